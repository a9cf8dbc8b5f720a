// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/volatile_store.h"

#include <gtest/gtest.h>

#include <set>

namespace weft::check {
namespace {

constexpr uint64_t kSize = 16 * 512;

class VolatileStoreTest : public testing::Test {
 protected:
  void write(uint64_t offset, size_t length, uint8_t value) {
    store.write(offset, std::vector(length, std::byte{value}));
  }
  int at(uint64_t offset) const {
    std::byte byte;
    store.read(offset, {&byte, 1});
    return static_cast<int>(byte);
  }
  void sync() { store.end_sync(store.begin_sync({0, kSize})); }

  VolatileStore store{kSize, 512};
};

TEST_F(VolatileStoreTest, ReadsTheNewest) {
  EXPECT_EQ(at(0), 0);
  write(0, 512, 1);
  write(100, 1000, 2);
  EXPECT_EQ(at(99), 1);
  EXPECT_EQ(at(100), 2);
  EXPECT_EQ(at(1099), 2);
  EXPECT_EQ(at(1100), 0);
  EXPECT_EQ(store.volatile_sectors(), 3u);
  std::vector<std::byte> all(kSize);
  store.read(0, all);
  EXPECT_EQ(all[511], std::byte{2});
  EXPECT_EQ(all[kSize - 1], std::byte{0});
}

TEST_F(VolatileStoreTest, LosesWhatWasNotSynced) {
  write(0, 512, 1);
  sync();
  write(0, 512, 2);
  write(512, 512, 3);
  EXPECT_EQ(store.lose_all(), 2u);
  EXPECT_EQ(at(0), 1);
  EXPECT_EQ(at(512), 0);
  EXPECT_EQ(store.volatile_sectors(), 0u);
}

TEST_F(VolatileStoreTest, SyncCoversOnlyWhatWasBeforeIt) {
  write(0, 512, 1);
  const auto sync = store.begin_sync({0, kSize});
  write(0, 512, 2);
  write(512, 512, 3);
  store.end_sync(sync);
  EXPECT_EQ(at(0), 2);
  EXPECT_EQ(store.volatile_sectors(), 2u);
  EXPECT_EQ(store.lose_all(), 2u);
  EXPECT_EQ(at(0), 1);
  EXPECT_EQ(at(512), 0);
}

TEST_F(VolatileStoreTest, SyncThatHasNotEndedGivesNothing) {
  write(0, 512, 1);
  const auto sync = store.begin_sync({0, kSize});
  store.lose_all();
  EXPECT_EQ(at(0), 0);
  write(0, 512, 2);
  store.end_sync(sync);  // of the time before the cut
  store.lose_all();
  EXPECT_EQ(at(0), 0);
}

TEST_F(VolatileStoreTest, SyncOfARangeCoversItsSectors) {
  write(0, 2048, 1);
  store.end_sync(store.begin_sync({600, 100}));
  EXPECT_EQ(store.lose_all(), 3u);
  EXPECT_EQ(at(0), 0);
  EXPECT_EQ(at(512), 1);
  EXPECT_EQ(at(1024), 0);
}

TEST_F(VolatileStoreTest, FailedSyncDooms) {
  write(0, 1024, 1);
  const auto failing = store.begin_sync({0, kSize});
  write(512, 512, 2);
  store.fail_sync(failing);
  EXPECT_EQ(at(0), 1);
  sync();  // makes only what is not doomed stable
  EXPECT_EQ(at(0), 1);
  EXPECT_EQ(store.volatile_sectors(), 1u);
  for (uint64_t seed = 0; seed < 4; ++seed) {
    auto again = VolatileStore(kSize, 512);
    again.write(0, std::vector(512, std::byte{1}));
    again.fail_sync(again.begin_sync({0, kSize}));
    EXPECT_EQ(again.lose_some(seed), 1u);
  }
  store.lose_all();
  EXPECT_EQ(at(0), 0);
  EXPECT_EQ(at(512), 2);
}

TEST_F(VolatileStoreTest, WrittenAgainIsNotDoomed) {
  write(0, 512, 1);
  store.fail_sync(store.begin_sync({0, kSize}));
  write(0, 1, 2);
  sync();
  EXPECT_EQ(store.lose_all(), 0u);
  EXPECT_EQ(at(0), 2);
  EXPECT_EQ(at(1), 1);
}

TEST_F(VolatileStoreTest, LoseSomeKeepsAnyVersionSinceTheSync) {
  std::set<int> seen;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    store.lose_all();
    write(0, 512, 9);
    write(0, 512, 1);
    sync();
    write(0, 512, 2);
    write(0, 512, 3);
    const uint64_t lost = store.lose_some(seed);
    EXPECT_EQ(lost, at(0) == 3 ? 0u : 1u);
    seen.insert(at(0));
  }
  EXPECT_EQ(seen, (std::set<int>{1, 2, 3}));
}

TEST_F(VolatileStoreTest, LoseSomeIsSeeded) {
  const auto run = [](uint64_t seed) {
    VolatileStore disk(kSize, 512);
    for (uint8_t i = 1; i < 5; ++i) disk.write(0, std::vector(kSize, std::byte{i}));
    disk.lose_some(seed);
    std::vector<std::byte> all(kSize);
    disk.read(0, all);
    return all;
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
}

TEST_F(VolatileStoreTest, ManyVersionsKeepWhatASyncWants) {
  write(0, 512, 1);
  const auto sync = store.begin_sync({0, kSize});
  for (int i = 0; i < 1000; ++i) write(0, 512, 2);
  store.end_sync(sync);
  store.lose_all();
  EXPECT_EQ(at(0), 1);
}

TEST_F(VolatileStoreTest, AbandonedSyncChangesNothing) {
  write(0, 512, 1);
  store.abandon_sync(store.begin_sync({0, kSize}));
  EXPECT_EQ(store.volatile_sectors(), 1u);
  sync();
  EXPECT_EQ(store.lose_all(), 0u);
}

TEST_F(VolatileStoreTest, WipedItIsNew) {
  write(0, 512, 1);
  sync();
  write(512, 512, 2);
  const auto running = store.begin_sync({0, kSize});
  store.wipe();
  store.end_sync(running);
  EXPECT_EQ(at(0), 0);
  EXPECT_EQ(at(512), 0);
  EXPECT_EQ(store.lose_all(), 0u);
  EXPECT_EQ(store.next_data(0), kSize);
}

TEST_F(VolatileStoreTest, ZeroesAreWritesAndHoles) {
  write(512, 1536, 1);
  EXPECT_EQ(store.next_data(0), 512u);
  EXPECT_EQ(store.next_hole(512), 2048u);
  EXPECT_EQ(store.next_data(2048), kSize);
  sync();
  store.zero({600, 900});
  EXPECT_EQ(at(599), 1);
  EXPECT_EQ(at(600), 0);
  EXPECT_EQ(at(1499), 0);
  EXPECT_EQ(at(1500), 1);
  store.zero({1024, 512});
  EXPECT_EQ(store.next_hole(600), 1024u);
  EXPECT_EQ(store.next_data(1024), 1536u);
  store.lose_all();
  EXPECT_EQ(at(600), 1);
}

}  // namespace
}  // namespace weft::check
