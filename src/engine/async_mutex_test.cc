// SPDX-License-Identifier: BSD-3-Clause
// AsyncMutex on both engines and by several threads.
#include "engine/async_mutex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "engine/blocking_pool.h"
#include "engine/scope.h"

namespace weft::engine {
namespace {

using testing::ElementsAre;

class AsyncMutexTest : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring && choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << choose_engine("auto").reason;
    }
    loop = Loop::create(GetParam(), pool);
  }
  BlockingPool pool;
  std::unique_ptr<Loop> loop;
};

INSTANTIATE_TEST_SUITE_P(Engines, AsyncMutexTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

Task<void> take(AsyncMutex& mutex, Loop& loop, std::vector<int>& order, int number) {
  const AsyncMutex::Guard guard = co_await mutex.lock(loop);
  order.push_back(number);
  for (int i = 0; i < 3; i++) co_await loop.yield();
  order.push_back(-number);
}

Task<void> takers(Loop& loop, std::vector<int>& order) {
  AsyncMutex mutex;
  Scope scope(loop);
  for (int i = 1; i <= 4; i++) scope.spawn(take(mutex, loop, order, i));
  co_await scope.join();
  // Free again: the next has it at once.
  AsyncMutex::Locker locker = mutex.lock(loop);
  EXPECT_TRUE(locker.await_ready());
  const AsyncMutex::Guard guard = locker.await_resume();
}

TEST_P(AsyncMutexTest, FirstComeFirstServedAndOneAtATime) {
  std::vector<int> order;
  loop->run_until_done(takers(*loop, order));
  EXPECT_THAT(order, ElementsAre(1, -1, 2, -2, 3, -3, 4, -4));
}

Task<void> late_comer(AsyncMutex& mutex, Loop& loop, std::vector<int>& order) {
  const AsyncMutex::Guard guard = co_await mutex.lock(loop);
  order.push_back(2);
}

// Between the unlock and the turn of who waits, nobody can come.
Task<void> barge(Loop& loop, std::vector<int>& order) {
  AsyncMutex mutex;
  Scope scope(loop);
  AsyncMutex::Guard held = co_await mutex.lock(loop);
  scope.spawn(late_comer(mutex, loop, order));
  held.unlock();
  const AsyncMutex::Guard again = co_await mutex.lock(loop);
  order.push_back(1);
  co_await scope.join();
}

TEST_P(AsyncMutexTest, TheLockIsHandedOver) {
  std::vector<int> order;
  loop->run_until_done(barge(*loop, order));
  EXPECT_THAT(order, ElementsAre(2, 1));
}

Task<void> guards(Loop& loop) {
  AsyncMutex mutex;
  AsyncMutex::Guard none;
  EXPECT_FALSE(none);
  none.unlock();
  AsyncMutex::Guard first = co_await mutex.lock(loop);
  EXPECT_TRUE(first);
  AsyncMutex::Guard second = std::move(first);
  EXPECT_FALSE(first);
  EXPECT_TRUE(second);
  none = std::move(second);
  EXPECT_TRUE(none);
  none.unlock();
  EXPECT_FALSE(none);
  none.unlock();  // once is enough
  {
    const AsyncMutex::Guard scoped = co_await mutex.lock(loop);
  }
  const AsyncMutex::Guard last = co_await mutex.lock(loop);
  EXPECT_TRUE(last);
}

TEST_P(AsyncMutexTest, AGuardMovesAndUnlocksOnce) {
  loop->run_until_done(guards(*loop));
}

// What the lock guards is not atomic: ThreadSanitizer sees whether it is guarded.
struct Guarded {
  AsyncMutex mutex;
  bool inside = false;
  uint64_t count = 0;
};

Task<void> count_up(Guarded& guarded, Loop& loop, int times, int seed) {
  for (int i = 0; i < times; i++) {
    const AsyncMutex::Guard guard = co_await guarded.mutex.lock(loop);
    EXPECT_TRUE(loop.in_thread());  // who waits wakes on its own loop
    EXPECT_FALSE(std::exchange(guarded.inside, true));
    if ((i + seed) % 3 == 0) co_await loop.yield();
    guarded.count++;
    guarded.inside = false;
  }
}

Task<void> count_side_by_side(Guarded& guarded, Loop& loop, int times, int tasks) {
  Scope scope(loop);
  for (int i = 0; i < tasks; i++) scope.spawn(count_up(guarded, loop, times, i));
  co_await scope.join();
}

TEST_P(AsyncMutexTest, HoldsSeveralThreadsApart) {
  constexpr int kThreads = 4, kTasks = 8, kTimes = 300;
  Guarded guarded;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      const std::unique_ptr<Loop> own = Loop::create(GetParam(), pool);
      own->run_until_done(count_side_by_side(guarded, *own, kTimes, kTasks));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(guarded.count, uint64_t{kThreads} * kTasks * kTimes);
}

}  // namespace
}  // namespace weft::engine
