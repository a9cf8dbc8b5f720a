// SPDX-License-Identifier: BSD-3-Clause
// Tasks that run on another loop, and loops with a thread of their own, on both engines.
#include "engine/elsewhere.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "engine/async_mutex.h"
#include "engine/blocking_pool.h"
#include "engine/loop_thread.h"
#include "engine/scope.h"

namespace weft::engine {
namespace {

class ElsewhereTest : public testing::TestWithParam<EngineKind> {
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

INSTANTIATE_TEST_SUITE_P(Engines, ElsewhereTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

// Suspends `yields` times and tells whether it ran on `on` throughout.
Task<bool> runs_on(Loop& on, int yields) {
  bool there = on.in_thread();
  for (int i = 0; i < yields; i++) {
    co_await on.yield();
    there = there && on.in_thread();
  }
  co_return there;
}

TEST_P(ElsewhereTest, ALoopThreadRunsUnderItsNameAndEnds) {
  LoopThread thread(GetParam(), pool, "weft-test-loop");
  std::promise<std::string> name;
  thread.loop().call([&name] {
    char text[16] = "";
    pthread_getname_np(pthread_self(), text, sizeof text);
    name.set_value(text);
  });
  EXPECT_EQ(name.get_future().get(), "weft-test-loop");
}

TEST_P(ElsewhereTest, ALoopThreadThatIsNeverUsedEnds) {
  for (int i = 0; i < 20; i++) LoopThread(GetParam(), pool, "weft-test-loop");
}

Task<void> there_and_back(Loop& here, Loop& there, int yields) {
  const bool was_there =
      co_await run_elsewhere(here, there, [&there, yields] { return runs_on(there, yields); });
  EXPECT_TRUE(was_there);
  EXPECT_TRUE(here.in_thread());
}

TEST_P(ElsewhereTest, RunsThereAndComesBack) {
  LoopThread other(GetParam(), pool, "weft-test-loop");
  for (int yields = 0; yields < 4; yields++) {
    loop->run_until_done(there_and_back(*loop, other.loop(), yields));
  }
  loop->run_until_done(there_and_back(*loop, *loop, 0));  // one and the same
  loop->run_until_done(there_and_back(*loop, *loop, 2));
}

Task<void> ready_tasks(Loop& here, Loop& there) {
  // Without a coroutine: the value is there when make() returns.
  const int number = co_await run_elsewhere(here, there, [] { return Task<int>(42); });
  EXPECT_EQ(number, 42);
  EXPECT_TRUE(here.in_thread());
  const Status failed = co_await run_elsewhere(
      here, there, []() -> Task<Status> { return fail(EIO, "as it should"); });
  EXPECT_EQ(failed.error().code, EIO);
  auto moved = co_await run_elsewhere(
      here, there, []() -> Task<std::unique_ptr<int>> { return std::make_unique<int>(7); });
  EXPECT_EQ(*moved, 7);
}

TEST_P(ElsewhereTest, BringsBackEveryKindOfValue) {
  LoopThread other(GetParam(), pool, "weft-test-loop");
  loop->run_until_done(ready_tasks(*loop, other.loop()));
}

Task<int> slow(Loop& on, int value) {
  Timer timer(on);
  co_await timer.sleep(std::chrono::milliseconds(20));
  co_return value;
}
Task<void> into(Loop& here, Loop& there, int value, std::vector<int>& results) {
  results.push_back(
      co_await run_elsewhere(here, there, [&there, value] { return slow(there, value); }));
}
Task<void> side_by_side(Loop& here, Loop& there, std::vector<int>& results) {
  Scope scope(here);
  for (int i = 0; i < 50; i++) scope.spawn(into(here, there, i, results));
  EXPECT_TRUE(results.empty());  // none has blocked this loop
  co_await scope.join();
}

TEST_P(ElsewhereTest, ManyRunSideBySide) {
  LoopThread other(GetParam(), pool, "weft-test-loop");
  std::vector<int> results;
  loop->run_until_done(side_by_side(*loop, other.loop(), results));
  EXPECT_EQ(results.size(), 50u);
}

// A task that goes elsewhere from elsewhere, round all the loops. What it carries is not atomic:
// ThreadSanitizer sees whether the hand-over orders it.
Task<int> round(std::vector<Loop*> loops, size_t at, int left, std::vector<int>& trail) {
  EXPECT_TRUE(loops[at]->in_thread());
  trail.push_back(static_cast<int>(at));
  if (left == 0) co_return 0;
  const size_t after = (at + 1) % loops.size();
  const int below = co_await run_elsewhere(
      *loops[at], *loops[after],
      [&loops, after, left, &trail] { return round(loops, after, left - 1, trail); });
  EXPECT_TRUE(loops[at]->in_thread());
  co_return below + 1;
}
Task<void> rounds(std::vector<Loop*> loops, size_t at, int times) {
  for (int i = 0; i < times; i++) {
    std::vector<int> trail;
    const int depth = co_await round(loops, at, 9, trail);
    EXPECT_EQ(depth, 9);
    EXPECT_EQ(trail.size(), 10u);
  }
}
Task<void> rounds_from_all(Loop& here, std::vector<Loop*> loops, int times) {
  Scope scope(here);
  for (int i = 0; i < 4; i++) scope.spawn(rounds(loops, 0, times));
  co_await scope.join();
}

TEST_P(ElsewhereTest, TasksGoRoundSeveralLoops) {
  LoopThread a(GetParam(), pool, "weft-test-a");
  LoopThread b(GetParam(), pool, "weft-test-b");
  loop->run_until_done(rounds_from_all(*loop, {loop.get(), &a.loop(), &b.loop()}, 100));
}

// A lock that a task elsewhere waits for, and its starter holds.
Task<int> locked(AsyncMutex& mutex, Loop& on) {
  const AsyncMutex::Guard guard = co_await mutex.lock(on);
  co_return on.in_thread() ? 1 : 0;
}
Task<void> lock_across(Loop& here, Loop& there) {
  AsyncMutex mutex;
  Scope scope(here);
  std::vector<int> results;
  {
    const AsyncMutex::Guard guard = co_await mutex.lock(here);
    const auto wait = [](Loop& mine, Loop& theirs, AsyncMutex& the_mutex,
                         std::vector<int>& out) -> Task<void> {
      out.push_back(co_await run_elsewhere(
          mine, theirs, [&the_mutex, &theirs] { return locked(the_mutex, theirs); }));
    };
    for (int i = 0; i < 10; i++) scope.spawn(wait(here, there, mutex, results));
    Timer timer(here);
    co_await timer.sleep(std::chrono::milliseconds(20));
    EXPECT_TRUE(results.empty());
  }
  co_await scope.join();
  EXPECT_THAT(results, testing::Each(1));
  EXPECT_EQ(results.size(), 10u);
}

TEST_P(ElsewhereTest, ALockIsHandedOverToAnotherLoop) {
  LoopThread other(GetParam(), pool, "weft-test-loop");
  loop->run_until_done(lock_across(*loop, other.loop()));
}

}  // namespace
}  // namespace weft::engine
