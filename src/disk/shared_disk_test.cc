// SPDX-License-Identifier: BSD-3-Clause
#include "disk/shared_disk.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "disk/change_order.h"
#include "disk/sparse_store.h"
#include "engine/blocking_pool.h"
#include "engine/loop_thread.h"

namespace weft::disk {
namespace {

using engine::EngineKind;

// Fails the test when it is called anywhere but at home.
class HomelyDisk final : public Disk {
 public:
  HomelyDisk(SparseStore& store, ChangeOrder& order, Loop& home, int& closed)
      : disk_(store, order, false), home_(home), closed_(closed) {
    capabilities_ = disk_.capabilities();
  }
  ~HomelyDisk() override { EXPECT_TRUE(home_.in_thread()); }
  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    EXPECT_TRUE(home_.in_thread());
    return disk_.read(offset, into);
  }
  // Takes a while.
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    EXPECT_TRUE(home_.in_thread());
    engine::Timer timer(home_);
    co_await timer.sleep(std::chrono::microseconds(50));
    co_return co_await disk_.write(offset, from, fua);
  }
  Task<Status> flush() override { return fail(EIO, "as the test wants"); }
  Task<Status> extents(Extents& into, bool one) override { return disk_.extents(into, one); }
  [[nodiscard]] std::string identity() const override { return "homely"; }
  Task<Status> close() override {
    EXPECT_TRUE(home_.in_thread());
    closed_++;
    return Status{};
  }

 private:
  SparseDisk disk_;
  Loop& home_;
  int& closed_;
};

class SharedDiskTest : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring &&
        engine::choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
  }
  engine::BlockingPool pool;
};

INSTANTIATE_TEST_SUITE_P(Engines, SharedDiskTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

Task<void> write_and_read(SharedDisk& disk, Loop& here, uint64_t offset) {
  std::vector<std::byte> data(512);
  for (int i = 0; i < 100; i++) {
    std::memset(data.data(), i + 1, data.size());
    const Status written = co_await disk.write(here, offset, data, false);
    EXPECT_TRUE(written);
    EXPECT_TRUE(here.in_thread());
    std::vector<std::byte> now(data.size());
    const Status read = co_await disk.read(here, offset, now);
    EXPECT_TRUE(read);
    EXPECT_EQ(now, data);
  }
}

TEST_P(SharedDiskTest, IsUsedAtHomeAndAnswersWhereItIsCalled) {
  SparseStore store(1 << 20);
  ChangeOrder order;
  int closed = 0;
  engine::LoopThread home(GetParam(), pool, "home");
  const std::unique_ptr<Loop> here = Loop::create(GetParam(), pool);
  auto opened = here->run_until_done(SharedDisk::open(*here, home.loop(), [&](Loop& at) {
    EXPECT_TRUE(at.in_thread());
    return Task<Result<std::unique_ptr<Disk>>>(
        Result<std::unique_ptr<Disk>>(std::make_unique<HomelyDisk>(store, order, at, closed)));
  }));
  ASSERT_TRUE(opened);
  SharedDisk& disk = **opened;
  EXPECT_EQ(disk.identity(), "homely");
  EXPECT_EQ(disk.capabilities().size, uint64_t{1} << 20);

  std::vector<std::thread> threads;
  for (uint64_t i = 0; i < 4; i++) {
    threads.emplace_back([&, i] {
      const std::unique_ptr<Loop> own = Loop::create(GetParam(), pool);
      own->run_until_done(write_and_read(disk, *own, i * 4096));
    });
  }
  for (std::thread& thread : threads) thread.join();

  const Status flushed = here->run_until_done(disk.flush(*here));
  ASSERT_FALSE(flushed);
  EXPECT_EQ(flushed.error().code, EIO);
  Extents extents({0, 1 << 20});
  ASSERT_TRUE(here->run_until_done(disk.extents(*here, extents, false)));
  EXPECT_TRUE(extents.full());
  ASSERT_TRUE(here->run_until_done(disk.close(*here)));
  EXPECT_EQ(closed, 1);
}

TEST_P(SharedDiskTest, AFailedOpenIsTheCallersToKnow) {
  engine::LoopThread home(GetParam(), pool, "home");
  const std::unique_ptr<Loop> here = Loop::create(GetParam(), pool);
  auto opened = here->run_until_done(SharedDisk::open(*here, home.loop(), [](Loop&) {
    return Task<Result<std::unique_ptr<Disk>>>(Result<std::unique_ptr<Disk>>(fail(ENOENT)));
  }));
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, ENOENT);
}

}  // namespace
}  // namespace weft::disk
