// SPDX-License-Identifier: BSD-3-Clause
// Prefetches that take long: nobody waits for them but close().
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "disk/open_layer.h"
#include "engine/blocking_pool.h"
#include "filters/gated_disk.h"
#include "filters/testing.h"

namespace weft::filters {
namespace {

using disk::Disk;
using disk::Task;

constexpr uint64_t kSize = 64 << 20;
constexpr uint64_t kStep = 64 << 10;

class ReadaheadTest : public testing::Test {
 protected:
  void make(disk::Support cache = disk::Support::kNative) {
    gates.cache = cache;
    plugin = make_filtered("readahead", {}, std::make_unique<GatedPlugin>(gates, kSize));
    plugin->start({.pool = pool});
    disk = std::move(*loop->run_until_done(
        disk::open_layer(*plugin, "readahead", {.name = "", .read_only = false, .loop = *loop})));
  }
  void read(uint64_t offset, uint64_t length = kStep) {
    std::vector<std::byte> bytes(length);
    EXPECT_TRUE(loop->run_until_done(disk->read(offset, bytes)));
    settle();
  }
  // What is on the ready queue has run.
  void settle() {
    auto turns = [](engine::Loop& on) -> Task<void> {
      for (int i = 0; i < 3; i++) co_await on.yield();
    };
    loop->run_until_done(turns(*loop));
  }

  engine::BlockingPool pool;
  std::unique_ptr<engine::Loop> loop = engine::Loop::create(engine::EngineKind::kEpoll, pool);
  Gates gates{*loop};
  std::unique_ptr<disk::Plugin> plugin;
  std::unique_ptr<Disk> disk;
};

TEST_F(ReadaheadTest, TheWindowDoublesUpToItsLimit) {
  make();
  for (uint64_t offset = 0; offset < 32 << 20; offset += kStep) read(offset);
  ASSERT_GT(gates.caches.size(), 8u);
  uint64_t longest = 0;
  uint64_t end = 0;
  for (const Range& range : gates.caches) {
    EXPECT_GE(range.offset, end);
    end = range.end();
    longest = std::max(longest, range.length);
  }
  EXPECT_GE(longest, 1u << 20);
  EXPECT_LE(longest, 4u << 20);
  EXPECT_LE(end, (36u << 20));
  EXPECT_TRUE(loop->run_until_done(disk->close()));
}

TEST_F(ReadaheadTest, ReadsDoNotWaitForAPrefetchAndCloseDoes) {
  make();
  gates.hold_cache = true;
  for (uint64_t offset = 0; offset < 4 << 20; offset += kStep) read(offset);
  EXPECT_EQ(gates.caches.size(), 1u) << "one at a time";
  EXPECT_EQ(gates.caches_running, 1);

  engine::Scope scope(*loop);
  bool closed = false;
  auto close = [](Disk& what, bool& done) -> Task<void> {
    EXPECT_TRUE(co_await what.close());
    done = true;
  };
  scope.spawn(close(*disk, closed));
  settle();
  EXPECT_FALSE(closed);
  EXPECT_EQ(gates.closes, 0);
  gates.open_all();
  auto join = [](engine::Scope& all) -> Task<void> { co_await all.join(); };
  loop->run_until_done(join(scope));
  EXPECT_TRUE(closed);
  EXPECT_EQ(gates.closes, 1);
  EXPECT_EQ(gates.caches_running, 0);
}

TEST_F(ReadaheadTest, AJumpEndsIt) {
  make();
  read(0);
  read(kStep);
  ASSERT_EQ(gates.caches.size(), 1u);
  read(50 << 20);
  read(10 << 20);
  read(30 << 20);
  EXPECT_EQ(gates.caches.size(), 1u);
  read((30 << 20) + kStep);
  EXPECT_EQ(gates.caches.size(), 2u);
  EXPECT_TRUE(loop->run_until_done(disk->close()));
}

TEST_F(ReadaheadTest, NothingIsPrefetchedBeyondTheEnd) {
  make();
  for (uint64_t offset = kSize - (2 << 20); offset < kSize; offset += kStep) read(offset);
  ASSERT_FALSE(gates.caches.empty());
  EXPECT_EQ(gates.caches.back().end(), kSize);
  EXPECT_TRUE(loop->run_until_done(disk->close()));
}

TEST_F(ReadaheadTest, ALayerThatCannotPrefetchIsNotAsked) {
  make(disk::Support::kNone);
  read(0);
  read(kStep);
  read(2 * kStep);
  EXPECT_TRUE(gates.caches.empty());
  EXPECT_TRUE(loop->run_until_done(disk->close()));
}

}  // namespace
}  // namespace weft::filters
