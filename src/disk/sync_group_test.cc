// SPDX-License-Identifier: BSD-3-Clause
// SyncGroup with a scripted sync, on both engines.
#include "disk/sync_group.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "engine/blocking_pool.h"
#include "engine/scope.h"

namespace weft::disk {
namespace {

using engine::EngineKind;
using engine::Loop;
using engine::Scope;
using engine::Task;

// A sync that waits until the test lets it end, with the result that the test gives.
class Script {
 public:
  Status sync() {
    std::unique_lock lock(mutex_);
    started_++;
    changed_.notify_all();
    changed_.wait(lock, [this] { return free_ || !results_.empty(); });
    ended_++;
    changed_.notify_all();
    if (results_.empty()) return {};
    const Status result = results_.front();
    results_.pop_front();
    return result;
  }
  void let_end(Status result = {}) {
    std::lock_guard lock(mutex_);
    results_.push_back(result);
    changed_.notify_all();
  }
  void let_all_end() {
    std::lock_guard lock(mutex_);
    free_ = true;
    changed_.notify_all();
  }
  void wait_started(int count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return started_ >= count; });
  }
  int started() {
    std::lock_guard lock(mutex_);
    return started_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Status> results_;
  bool free_ = false;
  int started_ = 0;
  int ended_ = 0;
};

class SyncGroupTest : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring &&
        engine::choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
    loop = Loop::create(GetParam(), pool);
  }
  std::unique_ptr<SyncGroup> make_group(bool dirty) {
    return std::make_unique<SyncGroup>("disk.img", [this] { return script.sync(); }, lane, dirty);
  }
  engine::BlockingPool pool;
  engine::Lane lane{pool};
  Script script;
  std::unique_ptr<Loop> loop;
};

INSTANTIATE_TEST_SUITE_P(Engines, SyncGroupTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

Task<void> flush_into(SyncGroup& group, Loop& loop, std::optional<Status>& result) {
  result = co_await group.flush(loop);
}

// Lets the loop work until `what` holds: its other threads decide when.
template <typename What>
Task<void> until(Loop& loop, What what) {
  engine::Timer timer(loop);
  while (!what()) co_await timer.sleep(std::chrono::microseconds(100));
}

TEST_P(SyncGroupTest, CleanMeansSyncedByThisGroup) {
  script.let_all_end();
  const auto clean = make_group(false);
  EXPECT_TRUE(loop->run_until_done(clean->flush(*loop)));
  EXPECT_EQ(script.started(), 0);

  const auto dirty = make_group(true);
  EXPECT_TRUE(loop->run_until_done(dirty->flush(*loop)));
  EXPECT_EQ(script.started(), 1);
  EXPECT_TRUE(loop->run_until_done(dirty->flush(*loop)));
  EXPECT_EQ(script.started(), 1);
  dirty->changed();
  EXPECT_FALSE(dirty->clean());
  EXPECT_TRUE(loop->run_until_done(dirty->flush(*loop)));
  EXPECT_EQ(script.started(), 2);
  EXPECT_EQ(dirty->syncs(), 2u);
}

TEST_P(SyncGroupTest, AFlushDuringASyncWaitsForTheNext) {
  const auto group = make_group(true);
  auto test = [](SyncGroup& g, Loop& on, Script& s) -> Task<void> {
    Scope scope(on);
    std::optional<Status> first, second, third;
    scope.spawn(flush_into(g, on, first));
    co_await until(on, [&] { return s.started() == 1; });
    scope.spawn(flush_into(g, on, second));
    scope.spawn(flush_into(g, on, third));
    s.let_end();
    co_await until(on, [&] { return s.started() == 2; });
    co_await until(on, [&] { return first.has_value(); });
    EXPECT_TRUE(*first);
    EXPECT_FALSE(second || third);
    s.let_end();
    co_await scope.join();
    EXPECT_TRUE(*second);
    EXPECT_TRUE(*third);
    EXPECT_EQ(s.started(), 2);  // they shared one
  };
  loop->run_until_done(test(*group, *loop, script));
  EXPECT_TRUE(group->clean());
}

TEST_P(SyncGroupTest, AChangeThatFinishesDuringASyncLeavesTheDiskDirty) {
  const auto group = make_group(true);
  auto test = [](SyncGroup& g, Loop& on, Script& s) -> Task<void> {
    Scope scope(on);
    std::optional<Status> first;
    scope.spawn(flush_into(g, on, first));
    co_await until(on, [&] { return s.started() == 1; });
    g.changed();
    s.let_end();
    co_await scope.join();
    EXPECT_FALSE(g.clean());
    s.let_end();
    const Status again = co_await g.flush(on);
    EXPECT_TRUE(again);
    EXPECT_EQ(s.started(), 2);
    EXPECT_TRUE(g.clean());
  };
  loop->run_until_done(test(*group, *loop, script));
}

TEST_P(SyncGroupTest, AFailedSyncMarksTheDiskForEver) {
  const auto group = make_group(true);
  auto test = [](SyncGroup& g, Loop& on, Script& s) -> Task<void> {
    Scope scope(on);
    std::optional<Status> first, second;
    scope.spawn(flush_into(g, on, first));
    co_await until(on, [&] { return s.started() == 1; });
    scope.spawn(flush_into(g, on, second));
    s.let_end(fail(ENOSPC));
    co_await scope.join();
    EXPECT_EQ(first->error().code, ENOSPC);
    // No second sync could make good what the first has lost.
    EXPECT_EQ(second->error().code, EIO);
    EXPECT_EQ(s.started(), 1);
    s.let_all_end();
    for (int i = 0; i < 3; i++) {
      const Status later = co_await g.flush(on);
      EXPECT_EQ(later.error().code, EIO);
    }
    EXPECT_EQ(s.started(), 1);
    EXPECT_EQ(g.status().error().code, EIO);
  };
  loop->run_until_done(test(*group, *loop, script));
}

TEST_P(SyncGroupTest, AMarkFromElsewhereFailsARunningFlushToo) {
  const auto group = make_group(true);
  auto test = [](SyncGroup& g, Loop& on, Script& s) -> Task<void> {
    Scope scope(on);
    std::optional<Status> first;
    scope.spawn(flush_into(g, on, first));
    co_await until(on, [&] { return s.started() == 1; });
    g.mark_failed({EIO}, "a write with FUA");
    s.let_end();
    co_await scope.join();
    EXPECT_FALSE(*first);
    const Status later = co_await g.flush(on);
    EXPECT_FALSE(later);
  };
  loop->run_until_done(test(*group, *loop, script));
  EXPECT_FALSE(group->clean());
}

// Each thread changes and flushes; a flush must cover what its thread changed before.
TEST_P(SyncGroupTest, ManyLoopsShareSyncs) {
  constexpr int kThreads = 4;
  constexpr int kFlushers = 8;
  constexpr int kRounds = 50;
  std::atomic<uint64_t> written{0};
  std::atomic<uint64_t> durable{0};
  SyncGroup group(
      "disk.img",
      [&]() -> Status {
        const uint64_t now = written.load();
        std::this_thread::yield();
        durable.store(now);
        return {};
      },
      lane, true);
  auto flusher = [](SyncGroup& g, Loop& on, std::atomic<uint64_t>& w,
                    std::atomic<uint64_t>& d) -> Task<void> {
    for (int i = 0; i < kRounds; i++) {
      const uint64_t mine = w.fetch_add(1) + 1;
      g.changed();
      const Status done = co_await g.flush(on);
      EXPECT_TRUE(done);
      EXPECT_GE(d.load(), mine);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      const auto own = Loop::create(GetParam(), pool);
      auto all = [](SyncGroup& g, Loop& on, std::atomic<uint64_t>& w, std::atomic<uint64_t>& d,
                    decltype(flusher)& one) -> Task<void> {
        Scope scope(on);
        for (int f = 0; f < kFlushers; f++) scope.spawn(one(g, on, w, d));
        co_await scope.join();
      };
      own->run_until_done(all(group, *own, written, durable, flusher));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(group.clean());
  EXPECT_LE(group.syncs(), uint64_t{kThreads * kFlushers * kRounds});
}

}  // namespace
}  // namespace weft::disk
