// SPDX-License-Identifier: BSD-3-Clause
// What the conformance suite cannot see of memory disks: their size, their pages, what is lent.
#include "disk/sparse_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

namespace weft::disk {
namespace {

using testing::ElementsAre;
constexpr uint64_t kLargest = INT64_MAX;
constexpr uint64_t kPage = SparseStore::kPageSize;
constexpr uint32_t kNothing = kExtentHole | kExtentZero;

std::vector<std::byte> filled(size_t size, int value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

TEST(SparseStore, TheLargestDisk) {
  SparseStore store(kLargest);
  const auto bytes = filled(1000, 5);
  ASSERT_TRUE(store.write(kLargest - 1000, bytes));
  ASSERT_TRUE(store.write(uint64_t{1} << 62, bytes));
  EXPECT_EQ(store.pages(), 2u);
  auto now = filled(1000, 0);
  store.read(kLargest - 1000, now);
  EXPECT_TRUE(now == bytes);

  Extents extents({0, kLargest});
  store.extents(extents, false);
  while (!extents.full()) {
    Extents more({extents.end(), kLargest - extents.end()});
    store.extents(more, false);
    for (const Extent& extent : more.list()) extents.append(extent.length, extent.flags);
  }
  const uint64_t last_page = (kLargest - 1000) / kPage * kPage;
  EXPECT_THAT(extents.list(),
              ElementsAre(Extent{uint64_t{1} << 62, kNothing}, Extent{kPage, kExtentData},
                          Extent{last_page - (uint64_t{1} << 62) - kPage, kNothing},
                          Extent{kLargest - last_page, kExtentData}));

  store.zero({0, kLargest}, true);
  EXPECT_EQ(store.pages(), 0u);
}

TEST(SparseStore, TrimFreesWholePagesAndZeroesTheRest) {
  SparseStore store(10 * kPage);
  ASSERT_TRUE(store.write(0, filled(10 * kPage, 9)));
  EXPECT_EQ(store.pages(), 10u);
  store.zero({kPage / 2, 3 * kPage}, true);
  EXPECT_EQ(store.pages(), 8u);
  auto now = filled(10 * kPage, 1);
  store.read(0, now);
  for (uint64_t i = 0; i < now.size(); i++) {
    const bool zeroed = i >= kPage / 2 && i < kPage / 2 + 3 * kPage;
    ASSERT_EQ(now[i], zeroed ? std::byte{0} : std::byte{9}) << i;
  }
  store.zero({0, 10 * kPage}, false);
  EXPECT_EQ(store.pages(), 8u);
  store.zero({0, 10 * kPage}, true);
  EXPECT_EQ(store.pages(), 0u);
}

TEST(SparseStore, TheLastPartOfAPageIsAWholePageOfAnOddDisk) {
  SparseStore store(kPage + 100);
  ASSERT_TRUE(store.write(kPage, filled(100, 9)));
  store.zero({kPage, 100}, true);
  EXPECT_EQ(store.pages(), 0u);
}

TEST(SparseStore, AFreedPageIsZeroWhenItIsUsedAgain) {
  SparseStore store(kPage);
  for (int i = 1; i < 5; i++) {
    ASSERT_TRUE(store.write(0, filled(kPage, i)));
    store.zero({0, kPage}, true);
    ASSERT_TRUE(store.write(10, filled(1, i)));
    auto now = filled(kPage, 0xee);
    store.read(0, now);
    auto expected = filled(kPage, 0);
    expected[10] = static_cast<std::byte>(i);
    ASSERT_TRUE(now == expected);
  }
}

TEST(SparseStore, WhatIsLentOutlivesItsTrim) {
  SparseStore store(4 * kPage);
  ASSERT_TRUE(store.write(0, filled(2 * kPage, 3)));
  Lease lease;
  store.lend({100, 4 * kPage - 200}, lease);
  ASSERT_EQ(lease.pieces.size(), 3u);
  EXPECT_EQ(lease.pieces[0].length, kPage - 100);
  EXPECT_EQ(lease.pieces[1].length, kPage);
  EXPECT_EQ(lease.pieces[2].data, nullptr);
  EXPECT_EQ(lease.pieces[2].length, 2 * kPage - 100);
  store.zero({0, 4 * kPage}, true);
  EXPECT_EQ(store.pages(), 0u);
  // A new page must not take the place of the one that is lent.
  ASSERT_TRUE(store.write(0, filled(4 * kPage, 8)));
  for (uint64_t i = 0; i < kPage; i++) ASSERT_EQ(lease.pieces[1].data[i], std::byte{3});
  const size_t capacity = lease.pieces.capacity();
  lease.give_back();
  EXPECT_EQ(lease.pieces.capacity(), capacity);  // to be used again without an allocation
  auto now = filled(4 * kPage, 0);
  store.read(0, now);
  EXPECT_TRUE(now == filled(4 * kPage, 8));
}

TEST(SparseStore, OneExtentIsEnough) {
  SparseStore store(uint64_t{1} << 40);
  ASSERT_TRUE(store.write(5 * kPage, filled(1, 1)));
  Extents extents({0, uint64_t{1} << 40});
  store.extents(extents, true);
  EXPECT_THAT(extents.list(), ElementsAre(Extent{5 * kPage, kNothing}));
}

// In a process of its own, with little memory to be had.
TEST(SparseStore, NoMemoryIsNoSpace) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
    (defined(__has_feature) &&                                       \
     (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer)))
  GTEST_SKIP() << "sanitizers need the address space";
#else
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit limit = {512 << 20, 512 << 20};
    setrlimit(RLIMIT_AS, &limit);
    SparseStore store(uint64_t{1} << 40);
    const std::vector<std::byte> page = filled(kPage, 1);
    for (uint64_t offset = 0; offset < uint64_t{1} << 30; offset += kPage) {
      const Status done = store.write(offset, page);
      if (done) continue;
      if (done.error().code != ENOSPC) _exit(2);
      // What was written is still there, and trimming makes room again.
      std::vector<std::byte> now(kPage);
      store.read(offset - kPage, now);
      if (now != page) _exit(3);
      store.zero({0, kPage}, true);
      _exit(store.write(offset, page) ? 0 : 4);
    }
    _exit(5);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
#endif
}

TEST(SparseStore, ThreadsThatWriteTrimAndLendTheSamePages) {
  SparseStore store(8 * kPage);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([&store, t] {
      Lease lease;
      std::vector<std::byte> buffer(kPage);
      for (int i = 0; i < 2000; i++) {
        const uint64_t page = static_cast<uint64_t>((i * 7 + t) % 8);
        if (i % 4 == 0) {
          ASSERT_TRUE(store.write(page * kPage + 5, filled(1000, t + 1)));
        } else if (i % 4 == 1) {
          store.zero({page * kPage, kPage}, i % 8 == 1);
        } else if (i % 4 == 2) {
          store.read(page * kPage, buffer);
          ASSERT_EQ(buffer[0], std::byte{0});
        } else {
          store.lend({0, 8 * kPage}, lease);
          lease.give_back();
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  store.zero({0, 8 * kPage}, true);
  EXPECT_EQ(store.pages(), 0u);
}

}  // namespace
}  // namespace weft::disk
