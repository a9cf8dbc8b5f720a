// SPDX-License-Identifier: BSD-3-Clause
// The same tests on both engines.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <filesystem>
#include <latch>
#include <string>
#include <thread>

#include "base/fd.h"
#include "engine/blocking_pool.h"
#include "engine/buffer_pool.h"
#include "engine/loop.h"
#include "engine/scope.h"
#include "engine/task.h"

namespace weft::engine {
namespace {

using std::chrono::milliseconds;

class Engine : public testing::TestWithParam<EngineKind> {
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

INSTANTIATE_TEST_SUITE_P(Engines, Engine, testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

Task<int> ready(int value) {
  return value;
}
Task<int> coroutine(int value) {
  co_return value;
}
Task<int> sum(int n) {
  int total = 0;
  for (int i = 0; i < n; i++) total += co_await coroutine(1) + co_await ready(1);
  co_return total;
}

TEST_P(Engine, AwaitingChildrenThatFinishAtOnceDoesNotGrowTheStack) {
  EXPECT_EQ(loop->run_until_done(sum(300'000)), 600'000);
}

TEST(Task, ReadyTaskNeedsNoCoroutine) {
  Task<Status> good = Status{};
  Task<Status> bad = fail(EIO);
  ASSERT_TRUE(good.ready());
  ASSERT_TRUE(bad.ready());
  EXPECT_TRUE(good.take().has_value());
  EXPECT_EQ(bad.take().error().code, EIO);
}

Task<int> sleep_then(Loop& loop, Clock::duration time, int value) {
  Timer timer(loop);
  co_await timer.sleep(time);
  co_return value;
}

Task<int> sleep_in_a_row(Loop& loop, int times) {
  int total = 0;
  for (int i = 0; i < times; i++) total += co_await sleep_then(loop, Clock::duration(0), 1);
  co_return total;
}

TEST_P(Engine, ChildrenThatFinishLaterResumeTheirParent) {
  EXPECT_EQ(loop->run_until_done(sleep_in_a_row(*loop, 1000)), 1000);
}

Task<std::string> race(Loop& loop) {
  std::string order;
  auto runner = [](Loop& l, int ms, char name, std::string& out) -> Task<void> {
    Timer timer(l);
    co_await timer.sleep(milliseconds(ms));
    out += name;
  };
  Scope scope(loop);
  scope.spawn(runner(loop, 30, 'c', order));
  scope.spawn(runner(loop, 10, 'a', order));
  scope.spawn(runner(loop, 20, 'b', order));
  EXPECT_EQ(scope.count(), 3u);
  co_await scope.join();
  co_return order;
}

TEST_P(Engine, ScopeWaitsForAllAndTimersFireInOrder) {
  EXPECT_EQ(loop->run_until_done(race(*loop)), "abc");
}

Task<bool> cancelled_sleep(Loop& loop) {
  Timer timer(loop);
  Scope scope(loop);
  bool woke_by_time = true;
  auto sleeper = [](Timer& t, bool& result) -> Task<void> {
    result = co_await t.sleep(std::chrono::hours(1));
  };
  scope.spawn(sleeper(timer, woke_by_time));
  timer.cancel();
  co_await scope.join();
  co_return woke_by_time;
}

TEST_P(Engine, CancelledTimerWakesItsWaiter) {
  EXPECT_FALSE(loop->run_until_done(cancelled_sleep(*loop)));
}

struct SocketPair {
  SocketPair() {
    int fds[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    a = Fd(fds[0]);
    b = Fd(fds[1]);
  }
  Fd a, b;
};

Task<size_t> receive_all(Loop& loop, int fd) {
  Watch watch(loop, fd);
  char buffer[1000];
  size_t total = 0;
  for (;;) {
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
    if (n > 0) total += static_cast<size_t>(n);
    if (n == 0) co_return total;
    if (n < 0 && !co_await watch.readable()) co_return total;
  }
}

Task<void> send_all(Loop& loop, int fd, size_t size) {
  Watch watch(loop, fd);
  const std::string data(size, 'x');
  size_t sent = 0;
  while (sent < size) {
    const ssize_t n = ::send(fd, data.data() + sent, size - sent, MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else {
      EXPECT_EQ(errno, EAGAIN);
      co_await watch.writable();
    }
  }
  ::shutdown(fd, SHUT_WR);
}

Task<size_t> transfer(Loop& loop, size_t size) {
  SocketPair pair;
  Scope scope(loop);
  scope.spawn(send_all(loop, pair.a.get(), size));
  const size_t received = co_await receive_all(loop, pair.b.get());
  co_await scope.join();
  co_return received;
}

TEST_P(Engine, ReadinessMovesMegabytesBothSidesWaiting) {
  EXPECT_EQ(loop->run_until_done(transfer(*loop, 10'000'000)), 10'000'000u);
}

Task<bool> cancel_wait(Loop& loop, Fd& a, bool& result) {
  Watch watch(loop, a.get());
  Scope scope(loop);
  auto waiter = [](Watch& w, bool& r) -> Task<void> { r = co_await w.readable(); };
  scope.spawn(waiter(watch, result));
  Timer timer(loop);
  co_await timer.sleep(milliseconds(5));
  watch.cancel();
  co_await scope.join();
  co_return co_await watch.readable();
}

TEST_P(Engine, CancelledWatchStaysCancelledAndThePeerSeesTheClose) {
  SocketPair pair;
  bool result = true;
  EXPECT_FALSE(loop->run_until_done(cancel_wait(*loop, pair.a, result)));
  EXPECT_FALSE(result);
  // The engine must not keep the open file alive once the watch is gone and a turn has passed.
  pair.a.reset();
  loop->run_until_done(sleep_then(*loop, milliseconds(1), 0));
  char byte;
  EXPECT_EQ(::recv(pair.b.get(), &byte, 1, 0), 0);
}

Task<bool> half_closed_is_readable_but_full_is_not_writable(Loop& loop) {
  SocketPair pair;
  ::shutdown(pair.b.get(), SHUT_WR);
  const std::string data(100'000, 'x');
  while (::send(pair.a.get(), data.data(), data.size(), MSG_NOSIGNAL) > 0) {
  }
  Watch watch(loop, pair.a.get());
  EXPECT_TRUE(co_await watch.readable());
  EXPECT_TRUE(co_await watch.readable());  // the end of the stream never blocks
  bool writable = false;
  Scope scope(loop);
  auto waiter = [](Watch& w, bool& r) -> Task<void> { r = co_await w.writable(); };
  scope.spawn(waiter(watch, writable));
  Timer timer(loop);
  co_await timer.sleep(milliseconds(5));
  const bool early = writable;
  watch.cancel();
  co_await scope.join();
  co_return early;
}

TEST_P(Engine, HalfClosedPeerDoesNotMakeAFullSocketWritable) {
  EXPECT_FALSE(loop->run_until_done(half_closed_is_readable_but_full_is_not_writable(*loop)));
}

Task<void> file_round_trip(Loop& loop, int fd) {
  const std::string text = "many connections, one disk";
  EXPECT_EQ(co_await loop.write_file(fd, bytes_of(text), 4096), static_cast<int>(text.size()));
  std::string back(text.size(), '\0');
  EXPECT_EQ(co_await loop.read_file(fd, std::as_writable_bytes(std::span(back)), 4096),
            static_cast<int>(text.size()));
  EXPECT_EQ(back, text);
  EXPECT_EQ(co_await loop.read_file(fd, std::as_writable_bytes(std::span(back)), 1 << 20), 0);
  EXPECT_EQ(co_await loop.read_file(-1, std::as_writable_bytes(std::span(back)), 0), -EBADF);
}

TEST_P(Engine, ReadsAndWritesFiles) {
  Fd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  loop->run_until_done(file_round_trip(*loop, file.get()));
}

TEST_P(Engine, MessagesOfOtherThreadsArriveInOrder) {
  struct Note final : Message {
    std::vector<int>* out = nullptr;
    Loop* loop = nullptr;
    int value = 0;
    int last = 0;
    void run() override {
      out->push_back(value);
      if (value == last) loop->stop();
    }
  };
  constexpr int kCount = 10'000;
  std::vector<int> out;
  std::vector<Note> notes(kCount);
  std::thread poster([&] {
    for (int i = 0; i < kCount; i++) {
      notes[static_cast<size_t>(i)].out = &out;
      notes[static_cast<size_t>(i)].loop = loop.get();
      notes[static_cast<size_t>(i)].value = i;
      notes[static_cast<size_t>(i)].last = kCount - 1;
      loop->post(notes[static_cast<size_t>(i)]);
    }
  });
  loop->run();
  poster.join();
  ASSERT_EQ(out.size(), static_cast<size_t>(kCount));
  for (int i = 0; i < kCount; i++) ASSERT_EQ(out[static_cast<size_t>(i)], i);
}

// The leak checker would see a call that is lost with its loop.
TEST_P(Engine, WhatTheLoopNeverCameToIsDiscarded) {
  struct Note final : Message {
    int* discarded = nullptr;
    void run() override { ADD_FAILURE() << "the loop never ran"; }
    void discard() noexcept override { ++*discarded; }
  };
  int discarded = 0;
  Note note;
  note.discarded = &discarded;
  loop->post(note);
  loop->call([held = std::make_unique<int>(1)] { ADD_FAILURE() << *held; });
  loop.reset();
  EXPECT_EQ(discarded, 1);
}

struct Concurrency {
  std::atomic<int> now{0};
  std::atomic<int> most{0};
  int call() {
    int seen = ++now;
    int before = most;
    while (seen > before && !most.compare_exchange_weak(before, seen)) {
    }
    now--;
    return 1;
  }
};

Task<int> many_blocking(Loop& loop, Lane& lane, BlockingKind kind, int count, Concurrency& meter) {
  Scope scope(loop);
  int total = 0;
  auto one = [](Loop& l, Lane& where, BlockingKind how, Concurrency& m, int& all) -> Task<void> {
    all += co_await where.run(l, BlockingReason::kPlugin, how, [&m] { return m.call(); });
  };
  for (int i = 0; i < count; i++) scope.spawn(one(loop, lane, kind, meter, total));
  co_await scope.join();
  co_return total;
}

TEST_P(Engine, BlockingCallsRunOnThePoolWithinTheLimitAndAreCounted) {
  Lane lane(pool, 4);
  for (BlockingKind kind : {BlockingKind::kParallel, BlockingKind::kShort}) {
    Concurrency meter;
    EXPECT_EQ(loop->run_until_done(many_blocking(*loop, lane, kind, 1000, meter)), 1000);
    EXPECT_GE(meter.most, 1);
    EXPECT_LE(meter.most, 4);
  }
  EXPECT_EQ(pool.count(BlockingReason::kPlugin), 2000u);
}

Task<void> stuck_and_others(Loop& loop, Lane& lane, std::latch& release, int& finished) {
  Scope scope(loop);
  auto stuck = [](Loop& l, Lane& where, std::latch& gate) -> Task<void> {
    co_await where.run(l, BlockingReason::kWrite, BlockingKind::kShort, [&gate] {
      gate.wait();
      return 0;
    });
  };
  auto quick = [](Loop& l, Lane& where, int& count) -> Task<void> {
    count += co_await where.run(l, BlockingReason::kWrite, BlockingKind::kShort, [] { return 1; });
  };
  Scope quick_ones(loop);
  // Three that are stuck, each with others queued behind it.
  for (int i = 0; i < 3; i++) {
    scope.spawn(stuck(loop, lane, release));
    for (int k = 0; k < 10; k++) quick_ones.spawn(quick(loop, lane, finished));
  }
  co_await quick_ones.join();  // they do not wait for the stuck ones
  EXPECT_EQ(finished, 30);
  release.count_down();
  co_await scope.join();
}

TEST_P(Engine, ABatchedCallThatIsStuckDelaysOnlyItself) {
  Lane lane(pool);
  std::latch release(1);
  int finished = 0;
  loop->run_until_done(stuck_and_others(*loop, lane, release, finished));
}

Task<void> wait_for(Loop& loop, Lane& lane, std::latch& gate, int& done) {
  done += co_await lane.run(loop, BlockingReason::kWrite, BlockingKind::kShort, [&gate] {
    gate.wait();
    return 1;
  });
}

// Everything a loop does goes on while its thread is stuck, whoever runs it by then.
Task<void> life_goes_on(Loop& loop, BlockingPool& pool, int fd) {
  constexpr int kRounds = 3;
  std::deque<Lane> lanes;
  std::deque<std::latch> gates;
  Scope scope(loop);
  int done = 0;
  SocketPair waiting;  // a wait that began before and ends after
  size_t received = 0;
  auto receiver = [](Loop& l, int socket, size_t& total) -> Task<void> {
    total = co_await receive_all(l, socket);
  };
  scope.spawn(receiver(loop, waiting.b.get(), received));
  for (int round = 0; round < kRounds; round++) {
    lanes.emplace_back(pool);
    gates.emplace_back(1);
    scope.spawn(wait_for(loop, lanes.back(), gates.back(), done));
    EXPECT_EQ(co_await sleep_then(loop, milliseconds(20), 7), 7);
    EXPECT_EQ(co_await transfer(loop, 1'000'000), 1'000'000u);
    co_await file_round_trip(loop, fd);
    EXPECT_EQ(co_await lanes.back().run(loop, BlockingReason::kSync, BlockingKind::kParallel,
                                        [] { return 5; }),
              5);
    EXPECT_EQ(done, 0);
  }
  for (std::latch& gate : gates) gate.count_down();
  co_await send_all(loop, waiting.a.get(), 1000);
  co_await scope.join();
  EXPECT_EQ(done, kRounds);
  EXPECT_EQ(received, 1000u);
}

TEST_P(Engine, ALoopWhoseThreadIsStuckGoesOnWithAnother) {
  Fd file(::open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  ASSERT_TRUE(file);
  for (int i = 0; i < 3; i++) loop->run_until_done(life_goes_on(*loop, pool, file.get()));
  EXPECT_EQ(loop->run_until_done(sum(10)), 20);
}

// A thread that takes over when the process has no descriptor left.
Task<void> life_goes_on_without_descriptors(Loop& loop, BlockingPool& pool) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t before = std::exchange(limit.rlim_cur, 200);
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  co_await sleep_then(loop, milliseconds(1), 0);  // the loop has what it needs to run
  Lane lane(pool);
  int done = 0;
  std::latch open(0);
  // UBSan looks at a type with a pipe when it meets it first.
  co_await wait_for(loop, lane, open, done);
  std::vector<Fd> all;
  while (Fd one{::open("/dev/null", O_RDONLY | O_CLOEXEC)}) all.push_back(std::move(one));
  EXPECT_EQ(errno, EMFILE);
  std::latch gate(1);
  Scope scope(loop);
  scope.spawn(wait_for(loop, lane, gate, done));
  co_await sleep_then(loop, milliseconds(20), 0);
  EXPECT_EQ(done, 1);
  gate.count_down();
  co_await scope.join();
  EXPECT_EQ(done, 2);
  limit.rlim_cur = before;
  EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST_P(Engine, ALoopIsTakenOverWithoutADescriptorToSpare) {
#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
  GTEST_SKIP() << "the sanitizer's own check of objects needs descriptors";
#endif
#endif
  loop->run_until_done(life_goes_on_without_descriptors(*loop, pool));
}

Task<void> budget_line(Loop& loop, Budget& budget) {
  EXPECT_TRUE(budget.try_take(90));
  EXPECT_FALSE(budget.try_take(20));
  Scope scope(loop);
  std::string order;
  auto taker = [](Loop& l, Budget& b, uint64_t bytes, char name, std::string& out) -> Task<void> {
    Budget::Taker take(b, l, bytes);
    EXPECT_TRUE(co_await take);
    out += name;
  };
  scope.spawn(taker(loop, budget, 50, 'a', order));
  scope.spawn(taker(loop, budget, 5, 'b', order));  // fits, but stands behind
  EXPECT_EQ(order, "");
  Budget::Taker gone(budget, loop, 1000);
  auto leaver = [](Budget::Taker& take, bool& result) -> Task<void> { result = co_await take; };
  bool got = true;
  scope.spawn(leaver(gone, got));
  gone.cancel();
  budget.give_back(90);
  co_await scope.join();
  EXPECT_EQ(order, "ab");
  EXPECT_FALSE(got);
  EXPECT_EQ(budget.used(), 55u);
  budget.give_back(55);
  EXPECT_TRUE(budget.try_take(1'000'000));  // counts as the whole
  EXPECT_EQ(budget.used(), 100u);
  budget.give_back(1'000'000);
  EXPECT_EQ(budget.used(), 0u);
}

TEST_P(Engine, BudgetServesItsLineInOrder) {
  Budget budget(100);
  loop->run_until_done(budget_line(*loop, budget));
}

TEST(BufferPool, KeepsUpToItsLimitAndGivesBack) {
  BufferPool pool;
  {
    Buffer small = pool.get(1);
    EXPECT_EQ(small.capacity(), 4096u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(small.data()) % 4096, 0u);
    Buffer large = pool.get((32u << 20) + 1);
    EXPECT_EQ(large.capacity(), size_t{64} << 20);
    EXPECT_FALSE(pool.get(size_t{1} << 40));
  }
  EXPECT_EQ(pool.kept_bytes(), 4096u);  // 64 MiB is more than is kept
  std::byte* first;
  {
    Buffer again = pool.get(4096);
    first = again.data();
    EXPECT_EQ(pool.kept_bytes(), 0u);
  }
  EXPECT_EQ(pool.get(100).data(), first);
  pool.trim();
  EXPECT_EQ(pool.kept_bytes(), 0u);
}

TEST(ChooseEngine, SaysWhatItChoseAndRefusesNonsense) {
  EXPECT_EQ(choose_engine("epoll").kind, EngineKind::kEpoll);
  EXPECT_FALSE(choose_engine("auto").reason.empty());
  EXPECT_THROW((void)choose_engine("kqueue"), ConfigError);
}

}  // namespace
}  // namespace weft::engine
