// SPDX-License-Identifier: BSD-3-Clause
#include "cli/process.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <string>

#include "base/result.h"
#include "cli/run_command.h"

namespace weft::cli {
namespace {

using ::testing::HasSubstr;

// Those that a server waits for.
void block_stop_signals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  for (const int number : {SIGINT, SIGQUIT, SIGTERM, SIGHUP}) ::sigaddset(&signals, number);
  ::sigprocmask(SIG_BLOCK, &signals, nullptr);
}

// A child that stands for the server: it has the signals of one, and ends as `body` says.
pid_t start_server(const std::function<int()>& body) {
  Forked forked = fork_server();
  if (forked.child == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    block_stop_signals();
    tell_ready(std::move(forked.ready));
    ::_exit(body());
  }
  EXPECT_TRUE(wait_until_ready(forked.ready));
  return forked.child;
}

// Serves until it is told to stop, and ends with `status`.
std::function<int()> serves(int status = 0) {
  return [status] {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGTERM);
    int number = 0;
    ::sigwait(&signals, &number);
    return status;
  };
}

// run_command() changes the signal mask, so it gets a process of its own.
int run_status(const std::function<int()>& body) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

int run(const std::string& script, const std::function<int()>& server) {
  return run_status([&] { return run_command(script, start_server(server)); });
}

TEST(RunCommand, ExitStatusIsTheCommands) {
  EXPECT_EQ(run("true", serves()), 0);
  EXPECT_EQ(run("exit 7", serves()), 7);
  EXPECT_EQ(run("kill -9 $$", serves()), 128 + 9);
  EXPECT_EQ(run("no-such-command-at-all 2>/dev/null", serves()), 127);
}

TEST(RunCommand, ServersFailureIsNotLost) {
  EXPECT_EQ(run("true", serves(1)), 1);  // the last sync failed
  EXPECT_EQ(run("exit 7", serves(1)), 7);
}

TEST(RunCommand, ServerThatEndsEarly) {
  EXPECT_EQ(run("true", [] { return 3; }), 3);
  EXPECT_EQ(run("true", [] { return ::raise(SIGKILL); }), 128 + SIGKILL);
  EXPECT_EQ(run("exit 7", [] { return ::raise(SIGKILL); }), 7);
}

TEST(RunCommand, SignalsArePassedOn) {
  // The command tells its parent, which is the process that run_command() runs in.
  EXPECT_EQ(run("trap 'exit 5' TERM; kill -TERM $PPID; while :; do sleep 0.01; done", serves()), 5);
  EXPECT_EQ(run("trap 'exit 6' HUP; kill -HUP $PPID; while :; do sleep 0.01; done", serves()), 6);
}

TEST(RunCommand, CommandHasOrdinarySignals) {
  EXPECT_EQ(run("test \"$(grep SigBlk: /proc/self/status | tr -d '\\t')\" = "
                "SigBlk:0000000000000000",
                serves()),
            0);
}

TEST(Ready, ParentHearsOfAChildThatFails) {
  Forked forked = fork_server();
  if (forked.child == 0) ::_exit(4);
  EXPECT_FALSE(wait_until_ready(forked.ready));
  EXPECT_EQ(wait_for_server(forked.child), 4);
}

TEST(NewSocketsTest, UnlinkedUnlessKept) {
  const std::string path = fmt::format("/tmp/weft-process-test.{}", ::getpid());
  const auto make = [&] { std::ofstream(path) << "x"; };
  make();
  {
    NewSockets made;
    made.add(path);
  }
  EXPECT_NE(::access(path.c_str(), F_OK), 0);
  make();
  {
    NewSockets made;
    made.add(path);
    made.keep();
  }
  EXPECT_EQ(::access(path.c_str(), F_OK), 0);
  ::unlink(path.c_str());
}

TEST(Pidfile, HoldsThePid) {
  const std::string path = fmt::format("/tmp/weft-pid-test.{}", ::getpid());
  std::ofstream(path) << "something longer than a process id";
  write_pidfile(path);
  std::ifstream file(path);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  EXPECT_EQ(text, fmt::format("{}\n", ::getpid()));
  ::unlink(path.c_str());
  EXPECT_THROW(write_pidfile("/nonexistent/pid"), ConfigError);
}

TEST(IdentityTest, NamesAndNumbers) {
  EXPECT_EQ(find_identity("root", std::nullopt).user, 0u);
  EXPECT_EQ(find_identity("0", "0").group, 0u);
  EXPECT_EQ(find_identity("54321", std::nullopt).user, 54321u);
  EXPECT_EQ(find_identity(std::nullopt, std::nullopt).user, std::nullopt);
  for (const char* name : {"no such user", "-1", "", "99999999999"}) {
    EXPECT_THROW(find_identity(name, std::nullopt), ConfigError) << name;
    EXPECT_THROW(find_identity(std::nullopt, name), ConfigError) << name;
  }
}

TEST(StopWithParent, ParentThatIsGoneAlready) {
  EXPECT_EQ(
      run_status([] {
        stop_with_parent(::getppid() + 1);  // not our parent: it must have ended before we asked
        return 0;
      }),
      1000 + SIGTERM);
}

}  // namespace
}  // namespace weft::cli
