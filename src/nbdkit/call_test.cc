// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/call.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <csignal>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "nbdkit/crash.h"
#include "nbdkit/exported.h"

namespace weft::nbdkit {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;

constexpr unsigned kForEver = 2'000'000;  // seconds

TEST(Sleep, LastsAsLongAsAsked) {
  const auto start = steady_clock::now();
  EXPECT_EQ(nbdkit_nanosleep(0, 20'000'000), 0);
  EXPECT_GE(steady_clock::now() - start, 20ms);
  EXPECT_EQ(nbdkit_nanosleep(0, 0), 0);
  EXPECT_EQ(nbdkit_nanosleep(0, 1'100'000'000), 0);  // more than a second in nanoseconds
  EXPECT_GE(steady_clock::now() - start, 1120ms);
}

TEST(Sleep, RefusesWhatIsTooLong) {
  errno = 0;
  EXPECT_EQ(nbdkit_nanosleep(UINT_MAX, UINT_MAX), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(nbdkit_nanosleep(INT_MAX, 1'000'000'000), -1);
}

// A thread that sleeps in a call, for ever by its own will.
class SleepingCall {
 public:
  explicit SleepingCall(Connection* connection)
      : thread_([this, connection] {
          const CallScope scope("curl", "pread", connection);
          asleep_ = true;
          result_ = nbdkit_nanosleep(kForEver, 0);
          error_ = errno;
          over_ = true;
        }) {
    while (!asleep_) std::this_thread::sleep_for(1ms);
  }
  [[nodiscard]] bool over() const { return over_; }
  void expect_woken() {
    thread_.join();
    EXPECT_EQ(result_, -1);
    EXPECT_EQ(error_, ESHUTDOWN);
  }

 private:
  std::atomic<bool> asleep_{false};
  std::atomic<bool> over_{false};
  int result_ = 0;
  int error_ = 0;
  std::thread thread_;
};

TEST(Sleep, EndsWithItsConnection) {
  Connection one("curl", 1, nullptr);
  Connection other("curl", 2, nullptr);
  SleepingCall first(&one);
  SleepingCall second(&one);
  SleepingCall stays(&other);
  one.disconnect(false);
  first.expect_woken();
  second.expect_woken();
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(stays.over());
  other.disconnect(true);
  stays.expect_woken();
  const CallScope scope("curl", "pread", &one);
  EXPECT_EQ(nbdkit_nanosleep(kForEver, 0), -1);  // what begins later does not sleep at all
}

TEST(Sleep, EndsWithTheServer) {
  Connection connection("curl", 1, nullptr);
  SleepingCall call(&connection);
  SleepingCall thread(nullptr);
  Host::instance().wake();
  call.expect_woken();
  thread.expect_woken();
  EXPECT_EQ(nbdkit_nanosleep(kForEver, 0), -1);
  Host::instance().resume();
  EXPECT_EQ(nbdkit_nanosleep(0, 1), 0);
}

TEST(Sleep, VeryLongTimesDoNotOverflow) {
  Host::instance().wake();
  EXPECT_FALSE(Host::instance().sleep(UINT64_MAX, nullptr));
  Host::instance().resume();
  std::atomic<bool> over{false};
  std::thread sleeper([&] {
    EXPECT_FALSE(Host::instance().sleep(UINT64_MAX, nullptr));
    over = true;
  });
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(over);
  Host::instance().wake();
  sleeper.join();
  Host::instance().resume();
}

TEST(Sleep, ManyAtOnce) {
  constexpr int kThreads = 200;
  Connection connection("curl", 1, nullptr);
  std::vector<std::thread> threads;
  std::atomic<int> woken{0};
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      const CallScope scope("curl", "pread", &connection);
      if (nbdkit_nanosleep(kForEver, 0) == -1) ++woken;
    });
  }
  connection.disconnect(true);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(woken, kThreads);
}

TEST(Sleep, EndsWhenTheClientLeaves) {
  Connection connection("curl", 1, nullptr);
  SleepingCall call(&connection);
  connection.left();
  call.expect_woken();
}

// In a process of their own: they end it. `...DeathTest` are run first.
class ShutdownDeathTest : public testing::Test {
 protected:
  ShutdownDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

// Exits with the number of times that the server was asked to end.
void shut_down_then(bool serve_first) {
  static int asked = 0;
  const auto stop = [] { asked++; };
  if (serve_first) Host::instance().start_serving(stop);
  nbdkit_shutdown();
  nbdkit_shutdown();
  if (!serve_first) {
    if (nbdkit_nanosleep(kForEver, 0) == 0) std::_Exit(30);
    Host::instance().start_serving(stop);
  }
  std::_Exit(asked);
}

TEST_F(ShutdownDeathTest, AsksOnce) {
  EXPECT_EXIT(shut_down_then(true), testing::ExitedWithCode(1), "asks the server to end");
}

TEST_F(ShutdownDeathTest, WaitsUntilTheServerServes) {
  EXPECT_EXIT(shut_down_then(false), testing::ExitedWithCode(1), "asks the server to end");
}

#if !defined(__SANITIZE_ADDRESS__) && !__has_feature(address_sanitizer) && \
    !__has_feature(thread_sanitizer)

class CrashDeathTest : public ShutdownDeathTest {
 protected:
  template <typename F>
  static void crash(Connection* connection, F action) {
    Host::instance().set_plugin("curl");
    report_crashes("weft");
    std::thread([&] {
      const CallScope scope("curl", "pread", connection);
      action();
    }).join();
  }
};

// Needs more stack than any thread has.
__attribute__((noinline)) int recurse(int depth, volatile char* above) {
  volatile char frame[4096];
  frame[0] = above ? above[0] : 'x';
  return depth == 0 ? frame[0] : recurse(depth - 1, frame) + frame[0];
}

TEST_F(CrashDeathTest, NamesThePluginAndTheCallback) {
  EXPECT_EXIT(crash(nullptr, [] { *reinterpret_cast<volatile int*>(8) = 1; }),
              testing::KilledBySignal(SIGSEGV),
              "weft: error: curl: the plugin curl crashed in pread\\(\\): SIGSEGV");
  Connection connection("curl", 3, nullptr);
  EXPECT_EXIT(crash(&connection, [] { std::abort(); }), testing::KilledBySignal(SIGABRT),
              "weft: error: curl\\[3\\]: the plugin curl crashed in pread\\(\\): SIGABRT");
  for (const int signal : {SIGBUS, SIGFPE, SIGILL}) {
    EXPECT_EXIT(crash(nullptr, [signal] { ::raise(signal); }), testing::KilledBySignal(signal),
                "the plugin curl crashed in pread");
  }
}

TEST_F(CrashDeathTest, GoesWhereErrorsGo) {
  GTEST_FLAG_SET(death_test_style, "fast");  // the other style would make another file
  char name[] = "/tmp/weft-crash-XXXXXX";
  const Fd file(::mkstemp(name));
  ASSERT_TRUE(file);
  const auto crash_with_log_file = [&] {
    log::Options options;
    options.target = log::Target::kFile;
    options.path = name;
    options.form = log::Form::kNbdkit;
    log::configure(options);
    Connection connection("curl", 3, nullptr);
    crash(&connection, [] { std::abort(); });
  };
  EXPECT_EXIT(crash_with_log_file(), testing::KilledBySignal(SIGABRT), "^$");
  char text[256] = {};
  EXPECT_GT(::read(file.get(), text, sizeof text - 1), 0);
  EXPECT_STREQ(text,
               "weft: curl[3]: error: the plugin curl crashed in pread(): "
               "SIGABRT (it gave up)\n");
  ::unlink(name);
}

TEST_F(CrashDeathTest, AnOverflowOfTheStackToo) {
  EXPECT_EXIT(crash(nullptr, [] { std::_Exit(recurse(INT_MAX, nullptr)); }),
              testing::KilledBySignal(SIGSEGV), "the plugin curl crashed in pread");
}

TEST_F(CrashDeathTest, OutsideOfCallbacksItSaysSo) {
  const auto in_a_thread = [] {
    Host::instance().set_plugin("curl");
    report_crashes("weft");
    std::thread([] { std::abort(); }).join();
  };
  EXPECT_EXIT(in_a_thread(), testing::KilledBySignal(SIGABRT),
              "weft: error: crashed outside of the callbacks of the plugin curl");
}

TEST_F(CrashDeathTest, ExitInACallbackIsTold) {
  EXPECT_EXIT(
      {
        Host::instance().start_serving({});
        crash(nullptr, [] { std::exit(5); });
      },
      testing::ExitedWithCode(5),
      "weft: error: curl: the plugin curl ended the server: it called exit\\(\\) in pread\\(\\)");
  EXPECT_EXIT(crash(nullptr, [] { std::exit(0); }), testing::ExitedWithCode(0), "^$");
}

#endif

}  // namespace
}  // namespace weft::nbdkit
