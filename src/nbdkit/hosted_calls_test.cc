// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/hosted_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "base/log.h"
#include "disk/scratch_folder.h"
#include "engine/scope.h"

namespace weft::nbdkit {
namespace {

using disk::Task;
using engine::Clock;
using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::Not;

constexpr auto kPatience = std::chrono::seconds(20);  // of a busy machine

void spin(milliseconds time) {
  timespec now{};
  const auto cpu = [&] {
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
  };
  const auto end = cpu() + time;
  while (cpu() < end) {
  }
}

// Where, and how often, calls ran.
struct Places {
  std::atomic<int> on_loop{0};
  std::atomic<int> elsewhere{0};
  void note() { (engine::Loop::current() ? on_loop : elsewhere)++; }
};

class HostedCallsTest : public testing::Test {
 public:
  void SetUp() override {
    path_ = folder_.path() / "log";
    log::configure({.target = log::Target::kFile, .path = path_});
  }
  void TearDown() override {
    if (calls_) run(calls_->end());
    calls_.reset();
    log::configure({});
  }

  HostedCalls& calls(milliseconds hang_time = HostedCalls::kHangTime) {
    if (!calls_) calls_ = std::make_unique<HostedCalls>(all_, *loop_, connection_, hang_time);
    return *calls_;
  }
  void run(Task<void> task) { loop_->run_until_done(std::move(task)); }

  // Calls f() through the calls, `count` times one after the other.
  template <typename F>
  void repeat(int count, CallKind kind, F f) {
    for (int i = 0; i < count; i++) {
      loop_->run_until_done(calls().run(kind, "call", 0, [&](CallScope&) {
        f();
        return 0;
      }));
    }
  }
  std::string logged() {
    std::ifstream file(path_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }

  disk::ScratchFolder folder_;
  std::filesystem::path path_;
  engine::BlockingPool pool_;
  std::unique_ptr<engine::Loop> loop_ = engine::Loop::create(engine::EngineKind::kEpoll, pool_);
  CallsOfAll all_{"plug", pool_, false};
  Connection connection_{"plug", 7, nullptr};
  std::unique_ptr<HostedCalls> calls_;
};

// ---- Which thread -------------------------------------------------------------------------------

TEST_F(HostedCallsTest, ShortCallsAreSoonMadeByTheLoop) {
  Places places;
  repeat(1000, CallKind::kRead, [&] { places.note(); });
  EXPECT_GE(places.elsewhere, static_cast<int>(CallPace::kRow));
  EXPECT_GT(places.on_loop, 500);
}

TEST_F(HostedCallsTest, CallsThatSleepStayInThePool) {
  Places places;
  repeat(50, CallKind::kRead, [&] {
    places.note();
    std::this_thread::sleep_for(milliseconds(2));
  });
  EXPECT_EQ(places.on_loop, 0);
}

TEST_F(HostedCallsTest, CallsThatComputeStayInThePool) {
  Places places;
  repeat(50, CallKind::kRead, [&] {
    places.note();
    spin(milliseconds(2));
  });
  EXPECT_EQ(places.on_loop, 0);
}

TEST_F(HostedCallsTest, KindsAreToldApart) {
  Places reads;
  Places flushes;
  for (int i = 0; i < 50; i++) {
    repeat(10, CallKind::kRead, [&] { reads.note(); });
    repeat(1, CallKind::kFlush, [&] {
      flushes.note();
      std::this_thread::sleep_for(milliseconds(2));
    });
  }
  EXPECT_GT(reads.on_loop, 250);
  EXPECT_EQ(flushes.on_loop, 0);
}

TEST_F(HostedCallsTest, TrustIsLostWhenCallsGrowLong) {
  Places places;
  repeat(1000, CallKind::kRead, [] {});
  repeat(50, CallKind::kRead, [&] {
    places.note();
    std::this_thread::sleep_for(milliseconds(2));
  });
  EXPECT_LE(places.on_loop, 2);
  EXPECT_GE(places.elsewhere, 48);
}

TEST_F(HostedCallsTest, CallsThatSleepRunSideBySide) {
  constexpr int kCount = 100;
  std::atomic<int> inside{0};
  std::atomic<int> most{0};
  const auto one = [&]() -> Task<void> {
    co_await calls().run(CallKind::kRead, "pread", 4096, [&](CallScope&) {
      const int now = ++inside;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      // All of them can only be inside at once when each has a thread.
      for (const auto end = Clock::now() + kPatience; most < kCount && Clock::now() < end;) {
        std::this_thread::sleep_for(milliseconds(1));
      }
      inside--;
      return 0;
    });
  };
  run([](engine::Loop& loop, const auto& the_one) -> Task<void> {
    engine::Scope scope(loop);
    for (int i = 0; i < kCount; i++) scope.spawn(the_one());
    co_await scope.join();
  }(*loop_, one));
  EXPECT_EQ(most, kCount);
}

TEST_F(HostedCallsTest, WhatTheModelSerialisesRunsAlone) {
  CallsOfAll all("plug", pool_, true);
  Connection other("plug", 8, nullptr);
  HostedCalls first(all, *loop_, connection_);
  HostedCalls second(all, *loop_, other);
  int inside = 0;  // not atomic: the sanitizer sees if it has to be
  int most = 0;
  const auto one = [&](HostedCalls& which) -> Task<void> {
    co_await which.run(CallKind::kOther, "preconnect", 0, [&](CallScope&) {
      most = std::max(most, ++inside);
      std::this_thread::sleep_for(milliseconds(1));
      inside--;
      return 0;
    });
  };
  run([](engine::Loop& loop, const auto& the_one, HostedCalls& a, HostedCalls& b) -> Task<void> {
    engine::Scope scope(loop);
    for (int i = 0; i < 20; i++) scope.spawn(the_one(i % 2 ? a : b));
    co_await scope.join();
    co_await a.end();
    co_await b.end();
  }(*loop_, one, first, second));
  EXPECT_EQ(most, 1);
}

TEST_F(HostedCallsTest, TheThreadKnowsWhatItIsIn) {
  std::string found;
  loop_->run_until_done(calls().run(CallKind::kRead, "pread", 0, [&](CallScope& scope) {
    const CallScope* const current = CallScope::current();
    if (current == &scope) {
      found = std::string(current->plugin()) + " " + current->method() + " " +
              current->connection()->subject();
    }
    return 0;
  }));
  EXPECT_EQ(found, "plug pread plug[7]");
  EXPECT_EQ(CallScope::current(), nullptr);
}

// ---- Calls that do not come back ----------------------------------------------------------------

TEST_F(HostedCallsTest, OneThatHangsHoldsUpNoOtherAndIsReported) {
  HostedCalls& all = calls(milliseconds(50));
  std::atomic<bool> release{false};
  // So that the loop's own thread is the one that hangs.
  repeat(1000, CallKind::kRead, [] {});
  const auto hanging = [&]() -> Task<void> {
    co_await all.run(CallKind::kRead, "pread", 0, [&](CallScope&) {
      for (const auto end = Clock::now() + kPatience; !release && Clock::now() < end;) {
        std::this_thread::sleep_for(milliseconds(1));
      }
      return 0;
    });
  };
  const auto others = [&]() -> Task<void> {
    for (int i = 0; i < 100; i++) {
      co_await all.run(CallKind::kRead, "pread", 0, [](CallScope&) { return 0; });
      co_await all.run(CallKind::kWrite, "pwrite", 0, [](CallScope&) { return 0; });
    }
    EXPECT_FALSE(release);
    engine::Timer timer(*loop_);
    for (const auto end = Clock::now() + kPatience; Clock::now() < end;) {
      if (logged().find("not come back") != std::string::npos) break;
      co_await timer.sleep(milliseconds(5));
    }
    all_.abandon();
    release = true;
  };
  run([](engine::Loop& loop, const auto& one, const auto& two) -> Task<void> {
    engine::Scope scope(loop);
    scope.spawn(one());
    scope.spawn(two());
    co_await scope.join();
  }(*loop_, hanging, others));
  EXPECT_THAT(logged(), HasSubstr("warning: plug[7]: pread has not come back for "));
  EXPECT_THAT(logged(), HasSubstr("error: plug[7]: pread has not come back for "));
  EXPECT_THAT(logged(), HasSubstr("and the server ends"));
  EXPECT_THAT(logged(), HasSubstr("warning: plug[7]: pread has come back after"));
}

TEST_F(HostedCallsTest, OneThatComputesWithoutAnEndLosesTheLoop) {
  std::atomic<bool> release{false};
  repeat(1000, CallKind::kRead, [] {});
  const auto computing = [&]() -> Task<void> {
    co_await calls().run(CallKind::kRead, "pread", 0, [&](CallScope&) {
      for (const auto end = Clock::now() + kPatience; !release && Clock::now() < end;) {
      }
      return 0;
    });
  };
  const auto other = [&]() -> Task<void> {
    engine::Timer timer(*loop_);
    co_await timer.sleep(milliseconds(100));
    release = true;
  };
  const auto begun = Clock::now();
  run([](engine::Loop& loop, const auto& one, const auto& two) -> Task<void> {
    engine::Scope scope(loop);
    scope.spawn(one());
    scope.spawn(two());
    co_await scope.join();
  }(*loop_, computing, other));
  EXPECT_LT(Clock::now() - begun, kPatience);
}

TEST_F(HostedCallsTest, ManyThatHangAreAFewLines) {
  HostedCalls& all = calls(milliseconds(500));
  std::atomic<bool> release{false};
  const auto hanging = [&]() -> Task<void> {
    co_await all.run(CallKind::kRead, "pread", 0, [&](CallScope&) {
      for (const auto end = Clock::now() + kPatience; !release && Clock::now() < end;) {
        std::this_thread::sleep_for(milliseconds(1));
      }
      return 0;
    });
  };
  const auto waiter = [&]() -> Task<void> {
    engine::Timer timer(*loop_);
    for (const auto end = Clock::now() + kPatience; Clock::now() < end;) {
      if (logged().find("not come back") != std::string::npos) break;
      co_await timer.sleep(milliseconds(5));
    }
    release = true;
  };
  run([](engine::Loop& loop, const auto& one, const auto& two) -> Task<void> {
    engine::Scope scope(loop);
    for (int i = 0; i < 10; i++) scope.spawn(one());
    scope.spawn(two());
    co_await scope.join();
  }(*loop_, hanging, waiter));
  const std::string text = logged();
  EXPECT_THAT(text, HasSubstr(" other calls"));
  int lines = 0;
  for (size_t at = 0; (at = text.find("not come back", at)) != std::string::npos; at++) lines++;
  EXPECT_LE(lines, 3);
}

TEST_F(HostedCallsTest, WhatIsQuickIsNotReported) {
  (void)calls(milliseconds(20));
  repeat(20, CallKind::kFlush, [] { std::this_thread::sleep_for(milliseconds(1)); });
  EXPECT_THAT(logged(), Not(HasSubstr("the server ends")));
  all_.abandon();
  EXPECT_THAT(logged(), Not(HasSubstr("the server ends")));
}

}  // namespace
}  // namespace weft::nbdkit
