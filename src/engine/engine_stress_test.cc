// SPDX-License-Identifier: BSD-3-Clause
// The engine with several threads and much going on at once; for the sanitizers above all.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "engine/blocking_pool.h"
#include "engine/buffer_pool.h"
#include "engine/loop.h"
#include "engine/scope.h"

namespace weft::engine {
namespace {

class EngineStress : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring && choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << choose_engine("auto").reason;
    }
    loop = Loop::create(GetParam(), pool);
  }
  // Runs make(loop) on `count` threads, each with a loop of its own.
  void on_threads(int count, const std::function<Task<void>(Loop&, int)>& make) {
    std::vector<std::thread> threads;
    for (int i = 0; i < count; i++) {
      threads.emplace_back([&, i] {
        const std::unique_ptr<Loop> own = Loop::create(GetParam(), pool);
        own->run_until_done(make(*own, i));
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  BlockingPool pool;
  std::unique_ptr<Loop> loop;
};

INSTANTIATE_TEST_SUITE_P(Engines, EngineStress,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

// ---- One loop ---------------------------------------------------------------------------------

Task<void> wait_for(Signal& signal, const int& value, int wanted, int& woken) {
  while (value < wanted) co_await signal.wait();
  woken++;
}

Task<void> signals(Loop& loop) {
  Signal signal(loop);
  Scope scope(loop);
  int value = 0;
  int woken = 0;
  for (int i = 0; i < 100; i++) scope.spawn(wait_for(signal, value, i % 10, woken));
  EXPECT_EQ(woken, 10);
  for (value = 1; value < 10; value++) {
    signal.notify_all();
    signal.notify_all();  // nobody waits by now: they are on their way
    co_await loop.yield();
    co_await loop.yield();
    EXPECT_EQ(woken, 10 * (value + 1));
  }
  co_await scope.join();
  signal.notify_all();
}

TEST_P(EngineStress, SignalsWakeAllWhoWaitAndLookAgain) {
  loop->run_until_done(signals(*loop));
}

struct CountEnds final : TurnEnd {
  void turn_end() override {
    ends++;
    if (again && ends < 5) again->at_turn_end(*this);
  }
  int ends = 0;
  Loop* again = nullptr;
};

Task<void> turn_ends(Loop& loop) {
  CountEnds once, cancelled, repeated;
  repeated.again = &loop;
  loop.at_turn_end(once);
  loop.at_turn_end(cancelled);
  loop.at_turn_end(once);
  loop.at_turn_end(repeated);
  loop.cancel_turn_end(cancelled);
  EXPECT_EQ(once.ends, 0);
  Timer timer(loop);
  co_await timer.sleep(Clock::duration(0));
  EXPECT_EQ(once.ends, 1);
  EXPECT_EQ(cancelled.ends, 0);
  while (repeated.ends < 5) co_await loop.yield();
  loop.cancel_turn_end(cancelled);  // is not queued
}

TEST_P(EngineStress, TurnEndsComeOnceATurn) {
  loop->run_until_done(turn_ends(*loop));
}

// Timers of all lengths, some cancelled, some destroyed: none fires early, none is lost.
Task<void> sleeper(Loop& loop, Timer& timer, Clock::duration time, int& fired, int& cancelled) {
  const Clock::time_point when = Clock::now() + time;
  if (co_await timer.sleep(time)) {
    EXPECT_GE(Clock::now(), when);
    fired++;
  } else {
    cancelled++;
  }
  (void)loop;
}

Task<void> timers(Loop& loop) {
  std::mt19937 random(1);
  Scope scope(loop);
  std::vector<std::unique_ptr<Timer>> all;
  int fired = 0;
  int cancelled = 0;
  for (int i = 0; i < 500; i++) {
    all.push_back(std::make_unique<Timer>(loop));
    const auto time = i % 3 ? std::chrono::microseconds(random() % 20'000)
                            : std::chrono::microseconds(std::chrono::hours(1));
    scope.spawn(sleeper(loop, *all.back(), time, fired, cancelled));
  }
  for (size_t i = 0; i < all.size(); i += 3) all[i]->cancel();
  co_await scope.join();
  EXPECT_EQ(fired, 333);
  EXPECT_EQ(cancelled, 167);
}

TEST_P(EngineStress, TimersAreNeitherEarlyNorLost) {
  loop->run_until_done(timers(*loop));
}

// A peer that has ended its side and takes what it is sent slowly: who waits to send to it is woken
// each time, and not all the time.
Task<void> send_slowly(Loop& loop, int fd, size_t bytes, size_t& waits) {
  Watch watch(loop, fd);
  const std::string data(bytes, 'x');
  for (size_t sent = 0; sent < bytes;) {
    const ssize_t n = ::send(fd, data.data() + sent, bytes - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
    } else {
      EXPECT_EQ(errno, EAGAIN);
      waits++;
      EXPECT_TRUE(co_await watch.writable());
    }
  }
}

Task<void> to_a_half_closed_peer(Loop& loop, bool closed_before) {
  int pair[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Fd server(pair[0]), client(pair[1]);
  if (closed_before) ::shutdown(client.get(), SHUT_WR);
  constexpr size_t kBytes = 3'000'000;
  size_t waits = 0;
  Scope scope(loop);
  scope.spawn(send_slowly(loop, server.get(), kBytes, waits));
  Timer timer(loop);
  co_await timer.sleep(std::chrono::milliseconds(5));
  if (!closed_before) ::shutdown(client.get(), SHUT_WR);
  co_await timer.sleep(std::chrono::milliseconds(20));
  EXPECT_LE(waits, 3u);  // nothing was taken, so nothing can be sent
  std::vector<char> buffer(100'000);
  for (size_t got = 0; got < kBytes;) {
    const ssize_t n = ::recv(client.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n > 0) {
      got += static_cast<size_t>(n);
    } else {
      co_await timer.sleep(std::chrono::microseconds(100));
    }
  }
  co_await scope.join();
}

TEST_P(EngineStress, AHalfClosedPeerThatReceivesIsSentTo) {
  for (const bool before : {false, true})
    loop->run_until_done(to_a_half_closed_peer(*loop, before));
}

// Descriptors come and go with their numbers used again at once: no event is for the wrong one.
Task<void> greet(Loop& loop, int fd, int number) {
  Watch watch(loop, fd);
  int got = -1;
  for (;;) {
    const ssize_t n = ::recv(fd, &got, sizeof got, MSG_DONTWAIT);
    if (n == sizeof got) break;
    EXPECT_TRUE(n < 0 && errno == EAGAIN) << n;
    if (!co_await watch.readable()) co_return;
  }
  EXPECT_EQ(got, number);
  if (number % 2) {  // waits for output while input may come as well
    (void)co_await watch.writable();
    EXPECT_EQ(::send(fd, &number, sizeof number, MSG_DONTWAIT | MSG_NOSIGNAL), 4);
  }
}

Task<void> come_and_go(Loop& loop) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; round++) {
    Scope scope(loop);
    std::vector<Fd> fds;
    for (int i = 0; i < 10; i++) {
      int pair[2];
      EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
      fds.emplace_back(pair[0]);
      fds.emplace_back(pair[1]);
      const int number = round * 10 + i;
      scope.spawn(greet(loop, pair[0], number));
      if (random() % 2) co_await loop.yield();
      EXPECT_EQ(::send(pair[1], &number, sizeof number, MSG_NOSIGNAL), 4);
    }
    co_await scope.join();
  }
}

TEST_P(EngineStress, DescriptorsThatAreUsedAgainGetTheirOwnEvents) {
  loop->run_until_done(come_and_go(*loop));
}

// A watch that is cancelled in the very turn in which it is ready, and destroyed.
Task<void> cancelled_when_ready(Loop& loop) {
  for (int i = 0; i < 300; i++) {
    int pair[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    Fd a(pair[0]), b(pair[1]);
    {
      Watch watch(loop, a.get());
      Scope scope(loop);
      int ended = 0;
      const auto reader = [](Watch& w, int& count) -> Task<void> {
        (void)co_await w.readable();
        count++;
      };
      const auto writer = [](Watch& w, int& count) -> Task<void> {
        (void)co_await w.writable();
        count++;
      };
      scope.spawn(reader(watch, ended));
      scope.spawn(writer(watch, ended));
      if (i % 3 == 0) co_await loop.yield();
      if (i % 2) b.reset();
      if (i % 5 == 0) {
        Timer timer(loop);
        co_await timer.sleep(Clock::duration(0));
      }
      watch.cancel_input();
      watch.cancel();
      co_await scope.join();
      EXPECT_EQ(ended, 2);
    }
  }
}

TEST_P(EngineStress, WatchesAreCancelledAtAnyMoment) {
  loop->run_until_done(cancelled_when_ready(*loop));
}

// ---- Several loops ----------------------------------------------------------------------------

// Two messages that send each other to and fro: each loop may be about to sleep when one comes.
TEST_P(EngineStress, NoMessageIsLostBetweenLoopsThatSleep) {
  const std::unique_ptr<Loop> other = Loop::create(GetParam(), pool);
  std::atomic<int> hits{0};
  constexpr int kHits = 5000;
  struct Bouncer final : Message {
    Loop* here = nullptr;
    Bouncer* partner = nullptr;
    std::atomic<int>* hits = nullptr;
    void run() override {
      if (hits->fetch_add(1) >= kHits) {
        here->stop();
        partner->here->stop();
      } else {
        partner->here->post(*partner);
      }
    }
  } a, b;
  a.here = loop.get();
  b.here = other.get();
  a.partner = &b;
  b.partner = &a;
  a.hits = b.hits = &hits;
  std::thread thread([&] { other->run(); });
  loop->post(a);
  loop->run();
  thread.join();
  EXPECT_EQ(hits, kHits + 1);
}

// Takers of a budget on several loops, some of which give up: never more than there is, and all
// are served in the end.
struct Shop {
  Budget& budget;
  std::atomic<int> served{0};
  std::atomic<int> gone{0};
};

Task<void> customer(Loop& loop, Shop& shop, uint64_t bytes, bool impatient, int turns) {
  Budget::Taker taker(shop.budget, loop, bytes);
  Scope scope(loop);
  const auto leave = [](Loop& l, Budget::Taker& t, int after) -> Task<void> {
    for (int i = 0; i < after; i++) co_await l.yield();
    t.cancel();
  };
  if (impatient) scope.spawn(leave(loop, taker, turns));
  if (co_await taker) {
    EXPECT_LE(shop.budget.used(), shop.budget.total());
    for (int i = 0; i < turns; i++) co_await loop.yield();
    shop.budget.give_back(bytes);
    shop.served++;
  } else {
    shop.gone++;
  }
  co_await scope.join();
}

TEST_P(EngineStress, ABudgetServesSeveralLoopsAndThoseWhoGiveUp) {
  Budget budget(1000);
  Shop shop{budget};
  constexpr int kCustomers = 2000;
  on_threads(3, [&](Loop& own, int number) -> Task<void> {
    return [](Loop& l, Shop& s, int seed) -> Task<void> {
      std::mt19937 random(static_cast<unsigned>(seed));
      Scope scope(l);
      for (int i = 0; i < kCustomers; i++) {
        const uint64_t bytes = random() % 10 == 0 ? 1 + random() % 2000 : 1 + random() % 200;
        scope.spawn(customer(l, s, bytes, random() % 4 == 0, static_cast<int>(random() % 5)));
        while (scope.count() > 20) co_await l.yield();
      }
      co_await scope.join();
    }(own, shop, number);
  });
  EXPECT_EQ(budget.used(), 0u);
  EXPECT_EQ(shop.served + shop.gone, 3 * kCustomers);
  EXPECT_GT(shop.served, kCustomers);
}

// Everything at once on loops whose threads get stuck again and again.
struct Busy {
  Lane& lane;
  std::atomic<int> done{0};
};

Task<void> short_call(Loop& loop, Busy& busy, bool blocks) {
  const int result =
      co_await busy.lane.run(loop, BlockingReason::kWrite, BlockingKind::kShort, [blocks] {
        if (blocks) ::usleep(30'000);
        return 1;
      });
  busy.done += result;
}

Task<void> long_call(Loop& loop, Busy& busy) {
  busy.done += co_await busy.lane.run(loop, BlockingReason::kSync, BlockingKind::kParallel,
                                      [] { return 1; });
}

Task<void> read_pipe(Loop& loop, int fd, size_t bytes) {
  Watch watch(loop, fd);
  char buffer[512];
  for (size_t got = 0; got < bytes;) {
    const ssize_t n = ::recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0) {
      got += static_cast<size_t>(n);
    } else {
      EXPECT_TRUE(co_await watch.readable());
    }
  }
}

Task<void> busy_loop(Loop& loop, Busy& busy, int seed) {
  std::mt19937 random(static_cast<unsigned>(seed));
  int pair[2];
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
  const Fd in(pair[0]), out(pair[1]);
  Scope scope(loop);
  constexpr size_t kRounds = 300;
  scope.spawn(read_pipe(loop, in.get(), kRounds * 100));
  const std::string bytes(100, 'x');
  for (size_t i = 0; i < kRounds; i++) {
    EXPECT_EQ(::send(out.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), 100);
    scope.spawn(short_call(loop, busy, i % 75 == 0));
    scope.spawn(short_call(loop, busy, false));
    scope.spawn(long_call(loop, busy));
    if (random() % 4 == 0) {
      Timer timer(loop);
      co_await timer.sleep(std::chrono::microseconds(random() % 200));
    }
    while (scope.count() > 30) co_await loop.yield();
  }
  co_await scope.join();
}

TEST_P(EngineStress, LoopsThatChangeThreadsLoseNothing) {
  Lane lane(pool);
  Busy busy{lane};
  on_threads(3, [&](Loop& own, int number) { return busy_loop(own, busy, number); });
  EXPECT_EQ(busy.done, 3 * 900);
}

// Two lanes: one whose calls are all stuck, and one that goes on as if nothing was.
TEST_P(EngineStress, AStuckLaneDoesNotHoldUpAnother) {
  Lane stuck(pool, 4);
  Lane free(pool, 4);
  std::atomic<bool> release{false};
  std::atomic<int> stuck_done{0};
  const auto run = [](Loop& l, Lane& s, Lane& f, std::atomic<bool>& go,
                      std::atomic<int>& ends) -> Task<void> {
    Scope all(l);
    const auto hang = [](Loop& loop, Lane& lane, BlockingKind kind, std::atomic<bool>& gate,
                         std::atomic<int>& count) -> Task<void> {
      count += co_await lane.run(loop, BlockingReason::kWrite, kind, [&gate] {
        while (!gate) ::usleep(1000);
        return 1;
      });
    };
    for (int i = 0; i < 12; i++) {
      const BlockingKind kind = i % 2 ? BlockingKind::kShort : BlockingKind::kParallel;
      all.spawn(hang(l, s, kind, go, ends));
    }
    for (int i = 0; i < 50; i++) {
      const BlockingKind kind = i % 2 ? BlockingKind::kShort : BlockingKind::kParallel;
      EXPECT_EQ(co_await f.run(l, BlockingReason::kWrite, kind, [] { return 7; }), 7);
    }
    EXPECT_EQ(ends, 0);
    go = true;
    co_await all.join();
  };
  loop->run_until_done(run(*loop, stuck, free, release, stuck_done));
  EXPECT_EQ(stuck_done, 12);
}

// The system has no more threads: those that are there do the work, and the first comes as soon as
// there is one.
void set_stack_size(size_t size) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  EXPECT_EQ(pthread_attr_setstacksize(&attributes, size), 0);
  EXPECT_EQ(pthread_setattr_default_np(&attributes), 0);
  pthread_attr_destroy(&attributes);
}
constexpr size_t kTooLarge = size_t{1} << 46;  // there is no room for such a stack
constexpr size_t kLargeEnough = size_t{8} << 20;

Task<void> many_calls(Loop& loop, Lane& lane, int count, int& done) {
  const auto one = [](Loop& l, Lane& where, int& all) -> Task<void> {
    all += co_await where.run(l, BlockingReason::kPlugin, BlockingKind::kParallel, [] {
      ::usleep(1000);
      return 1;
    });
  };
  Scope scope(loop);
  for (int i = 0; i < count; i++) scope.spawn(one(loop, lane, done));
  co_await scope.join();
}

TEST_P(EngineStress, WithoutThreadsToSpareTheWorkIsDoneAllTheSame) {
  Lane lane(pool);
  int done = 0;
  std::thread later([] {
    ::usleep(50'000);
    set_stack_size(kLargeEnough);
  });
  set_stack_size(kTooLarge);
  loop->run_until_done(many_calls(*loop, lane, 1, done));
  later.join();
  EXPECT_EQ(done, 1);
  set_stack_size(kTooLarge);
  loop->run_until_done(many_calls(*loop, lane, 50, done));
  set_stack_size(kLargeEnough);
  EXPECT_EQ(done, 51);
  EXPECT_EQ(pool.threads(), 1u);
}

}  // namespace
}  // namespace weft::engine
