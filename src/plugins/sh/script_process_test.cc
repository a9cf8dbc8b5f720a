// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <thread>

namespace weft::plugins {
namespace {

// As in the server.
[[maybe_unused]] const auto kNoPipeSignal = ::signal(SIGPIPE, SIG_IGN);

using Words = std::vector<std::string>;

ScriptEnd shell(ScriptProcesses& processes, const std::string& text, const ScriptInput& input = {},
                MutableByteSpan* into = nullptr, int64_t time_max_ms = 0) {
  return processes.run("/bin/sh", Words{"-c", text}, input, into, time_max_ms);
}

std::string text_of(size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; i++) text[i] = static_cast<char>('a' + i % 23);
  return text;
}

TEST(ScriptProcesses, HearsWhatIsPrintedAndTheStatus) {
  ScriptProcesses processes;
  processes.set_variable("tmpdir", "/somewhere");
  processes.set_variable("tmpdir", "/elsewhere");
  const ScriptEnd end = shell(processes, "echo $tmpdir; echo bad >&2; exit 7");
  EXPECT_EQ(end.not_started, 0);
  EXPECT_EQ(WEXITSTATUS(end.wait_status), 7);
  EXPECT_EQ(end.out, "/elsewhere\n");
  EXPECT_EQ(end.err, "bad\n");
}

TEST(ScriptProcesses, TellsWhatCannotBeStarted) {
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
  GTEST_SKIP() << "ThreadSanitizer makes a fork of vfork: the child's memory is its own";
#endif
#endif
  ScriptProcesses processes;
  EXPECT_EQ(processes.run("/no/such/program", Words{}).not_started, ENOENT);
  EXPECT_EQ(processes.run("/etc/passwd", Words{}).not_started, EACCES);
}

TEST(ScriptProcesses, BytesPassBothWaysAtOnce) {
  ScriptProcesses processes;
  for (const size_t size : {1u, 65536u, 65537u, 9u << 20}) {
    const std::string sent = text_of(size);
    std::string got(size, '?');
    MutableByteSpan into = std::as_writable_bytes(std::span(got));
    const ScriptEnd end = shell(processes, "cat", {std::as_bytes(std::span(sent)), 0}, &into);
    EXPECT_EQ(end.wait_status, 0);
    EXPECT_EQ(end.out_bytes, size);
    EXPECT_EQ(end.not_fed, 0u);
    EXPECT_TRUE(got == sent) << size;
  }
}

TEST(ScriptProcesses, ZeroesAreFedWithoutABuffer) {
  ScriptProcesses processes;
  const ScriptEnd end = shell(processes, "tr -d '\\0' | wc -c; wc -c", {{}, 5'000'001});
  EXPECT_EQ(end.out, "0\n0\n");
  EXPECT_EQ(shell(processes, "wc -c", {{}, 5'000'001}).out, "5000001\n");
}

TEST(ScriptProcesses, InputThatNobodyReadsIsCounted) {
  ScriptProcesses processes;
  EXPECT_EQ(shell(processes, "exit 0", {{}, 65536}).not_fed, 0u);
  const ScriptEnd end = shell(processes, "exit 0", {{}, 8 << 20});
  EXPECT_EQ(end.wait_status, 0);
  EXPECT_GT(end.not_fed, 0u);
}

TEST(ScriptProcesses, OutputWithoutEndLosesItsReader) {
  ScriptProcesses processes;
  std::string got(512, '?');
  MutableByteSpan into = std::as_writable_bytes(std::span(got));
  const ScriptEnd end = shell(processes, "exec cat /dev/zero", {}, &into);
  EXPECT_TRUE(end.out_too_long);
  EXPECT_TRUE(WIFSIGNALED(end.wait_status) && WTERMSIG(end.wait_status) == SIGPIPE);
  EXPECT_EQ(got, std::string(512, '\0'));
}

TEST(ScriptProcesses, ErrorsAreKeptUpToALimit) {
  ScriptProcesses processes;
  const ScriptEnd end = shell(processes, "head -c 1000000 /dev/zero >&2");
  EXPECT_EQ(end.err.size(), ScriptProcesses::kErrorMax);
  EXPECT_EQ(end.wait_status, 0);
}

TEST(ScriptProcesses, ATimeLimitKills) {
  ScriptProcesses processes;
  const ScriptEnd end = shell(processes, "exec sleep 100", {}, nullptr, 100);
  EXPECT_TRUE(WIFSIGNALED(end.wait_status));
}

TEST(ScriptProcesses, AbandonEndsWhatRunsWithItsChildrenAndStartsNoMore) {
  ScriptProcesses processes;
  processes.use_groups();
  std::atomic<int> ended = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; i++) {
    threads.emplace_back([&] {
      // A child holds the output as well; one in a session of its own cannot be killed with it.
      while (!shell(processes, "setsid sleep 3 & sleep 100 & sleep 100").abandoned) {
      }
      ended++;
    });
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  processes.abandon();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(ended, 8);
  EXPECT_TRUE(shell(processes, "exit 0").abandoned);
  EXPECT_EQ(shell(processes, "echo unload", {}, nullptr, 5000).out, "unload\n");
}

TEST(ScriptProcesses, ManyAtOnce) {
  ScriptProcesses processes;
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 16; i++) {
    threads.emplace_back([&processes, &right, i] {
      for (int turn = 0; turn < 10; turn++) {
        const std::string sent = text_of(1000 * static_cast<size_t>(i + 1));
        right += shell(processes, "cat", {std::as_bytes(std::span(sent)), 0}).out == sent;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 160);
}

}  // namespace
}  // namespace weft::plugins
