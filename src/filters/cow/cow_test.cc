// SPDX-License-Identifier: BSD-3-Clause
// What several connections of one overlay do to each other.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>
#include <vector>

#include "disk/open_layer.h"
#include "disk/scratch_folder.h"
#include "disk/turn.h"
#include "engine/blocking_pool.h"
#include "filters/testing.h"
#include "plugins/testing.h"

namespace weft::filters {
namespace {

using disk::Disk;
using disk::Task;
using engine::Loop;
using Bytes = std::vector<std::byte>;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kBlocks = 512;
constexpr std::byte kOld{0x11};

class CowTest : public testing::TestWithParam<engine::EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == engine::EngineKind::kUring &&
        engine::choose_engine("auto").kind != engine::EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
    path_ = scratch_.path() / "disk";
    std::ofstream(path_) << std::string(kBlocks * kBlock, char(kOld));
  }

  std::unique_ptr<disk::Plugin> make(Parameters parameters) {
    parameters.emplace_back("cow-block-size", "4k");
    auto stack = make_filtered("cow", parameters,
                               plugins::make_configured("file", {{"file", path_.string()}}));
    stack->start({.pool = pool_});
    return stack;
  }

  static std::unique_ptr<Disk> open(disk::Plugin& plugin, Loop& loop) {
    auto opened = loop.run_until_done(
        disk::open_layer(plugin, "cow", {.name = "", .read_only = false, .loop = loop}));
    EXPECT_TRUE(opened);
    return std::move(*opened);
  }

  disk::ScratchFolder scratch_;
  std::filesystem::path path_;
  engine::BlockingPool pool_;
};

// Changes a part of each block, and looks whether it stays so.
Task<void> write_all(Disk& disk, Loop& loop, int round, std::atomic<int>& lost) {
  const Bytes bytes(100, std::byte(round % 100 + 100));
  Bytes now(bytes.size());
  for (uint64_t block = 0; block < kBlocks; block++) {
    const uint64_t offset = block * kBlock + 1000;
    {
      disk::Turn turn(*disk.order(), {offset, bytes.size()}, loop);
      co_await turn;
      EXPECT_TRUE(co_await disk.write(offset, bytes, false));
    }
    EXPECT_TRUE(co_await disk.read(offset, now));
    if (now != bytes) lost++;
  }
}

Task<void> read_all(Disk& disk, bool cache) {
  Bytes now(3 * kBlock);
  for (uint64_t block = 0; block + 3 <= kBlocks; block++) {
    if (cache) {
      EXPECT_TRUE(co_await disk.cache({block * kBlock, now.size()}));
    } else {
      EXPECT_TRUE(co_await disk.read(block * kBlock, now));
    }
  }
}

TEST_P(CowTest, CopiesOfWhatIsReadNeverUndoWhatIsWritten) {
  constexpr int kRounds = 8;
  for (const bool cache : {false, true}) {
    std::atomic<int> lost{0};
    for (int round = 0; round < kRounds; round++) {
      std::array<std::unique_ptr<Loop>, 3> loops;
      for (auto& loop : loops) loop = Loop::create(GetParam(), pool_);
      const auto plugin = make({{cache ? "cow-on-cache" : "cow-on-read", "true"}});
      std::vector<std::thread> threads;
      for (size_t i = 0; i < loops.size(); i++) {
        threads.emplace_back([&, i] {
          Loop& loop = *loops[i];
          const std::unique_ptr<Disk> disk = open(*plugin, loop);
          loop.run_until_done(i == 0 ? write_all(*disk, loop, round, lost)
                                     : read_all(*disk, cache));
          EXPECT_TRUE(loop.run_until_done(disk->close()));
        });
      }
      for (std::thread& thread : threads) thread.join();

      Loop& loop = *loops[0];
      const std::unique_ptr<Disk> disk = open(*plugin, loop);
      Bytes all(kBlocks * kBlock);
      ASSERT_TRUE(loop.run_until_done(disk->read(0, all)));
      for (uint64_t i = 0; i < all.size(); i++) {
        const uint64_t place = i % kBlock;
        const bool written = place >= 1000 && place < 1100;
        ASSERT_EQ(all[i], written ? std::byte(round % 100 + 100) : kOld) << "at " << i;
      }
      EXPECT_TRUE(loop.run_until_done(disk->close()));
    }
    EXPECT_EQ(lost, 0);
  }
}

TEST_P(CowTest, TwoWritersOfOneBlockDoNotLoseEachOthersBytes) {
  const auto one = Loop::create(GetParam(), pool_);
  const auto two = Loop::create(GetParam(), pool_);
  const auto plugin = make({});
  const std::array<Loop*, 2> loops = {one.get(), two.get()};
  std::vector<std::thread> threads;
  for (size_t i = 0; i < loops.size(); i++) {
    threads.emplace_back([&, i] {
      const std::unique_ptr<Disk> disk = open(*plugin, *loops[i]);
      auto write = [](Disk& to, Loop& loop, size_t half) -> Task<void> {
        const Bytes bytes(kBlock / 4, std::byte(0x20 + half));
        for (uint64_t block = 0; block < kBlocks; block++) {
          const uint64_t offset = block * kBlock + half * kBlock / 2;
          disk::Turn turn(*to.order(), {offset, bytes.size()}, loop);
          co_await turn;
          EXPECT_TRUE(co_await to.write(offset, bytes, true));
        }
      };
      loops[i]->run_until_done(write(*disk, *loops[i], i));
      EXPECT_TRUE(loops[i]->run_until_done(disk->close()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::unique_ptr<Disk> disk = open(*plugin, *one);
  Bytes all(kBlocks * kBlock);
  ASSERT_TRUE(one->run_until_done(disk->read(0, all)));
  for (uint64_t i = 0; i < all.size(); i++) {
    const uint64_t quarter = i % kBlock / (kBlock / 4);
    const std::byte expected = quarter % 2 ? kOld : std::byte(0x20 + quarter / 2);
    ASSERT_EQ(all[i], expected) << "at " << i;
  }
  EXPECT_TRUE(one->run_until_done(disk->close()));
}

TEST_P(CowTest, WhatIsLentIsWhatIsRead) {
  const auto loop = Loop::create(GetParam(), pool_);
  auto stack = make_filtered("cow", {}, plugins::make_configured("memory", {{"size", "1m"}}));
  stack->start({.pool = pool_});
  const std::unique_ptr<Disk> disk = open(*stack, *loop);
  disk::Lease lease;
  EXPECT_TRUE(disk->lend({0, 100000}, lease));  // below
  lease.give_back();
  const Bytes bytes(10, std::byte{7});
  ASSERT_TRUE(loop->run_until_done(disk->write(65536, bytes, false)));
  EXPECT_FALSE(disk->lend({65530, 10}, lease));
  EXPECT_FALSE(disk->lend({65536, 10}, lease));
  EXPECT_TRUE(lease.pieces.empty());
  ASSERT_TRUE(loop->run_until_done(disk->zero({65536, 65536}, {.may_trim = true})));
  ASSERT_TRUE(disk->lend({65536, 65536}, lease));
  EXPECT_EQ(lease.pieces.at(0).data, nullptr);
  EXPECT_TRUE(loop->run_until_done(disk->close()));
}

INSTANTIATE_TEST_SUITE_P(Engines, CowTest,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         [](const auto& info) {
                           return info.param == engine::EngineKind::kUring ? "IoUring" : "Epoll";
                         });

}  // namespace
}  // namespace weft::filters
