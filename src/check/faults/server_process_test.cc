// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/server_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/result.h"

namespace weft::check {
namespace {

using namespace std::chrono_literals;
using testing::HasSubstr;

// Listens on its first argument and then sleeps; with a second word, in the background, in a
// session of its own.
constexpr const char* kListener = R"(
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(5)
print("listening")
sys.stdout.flush()
if len(sys.argv) > 2 and sys.argv[2] == "background":
    if os.fork(): os._exit(0)
    os.setsid()
if len(sys.argv) > 2 and sys.argv[2] == "write":
    fd = os.open(sys.argv[3], os.O_RDWR)
    while True: os.pwrite(fd, b"x" * 4096, 0)
time.sleep(100)
)";

std::string python() {
  return access("/usr/bin/python3", X_OK) == 0 ? "/usr/bin/python3" : "";
}

std::vector<std::string> listener(std::vector<std::string> more = {}) {
  std::vector<std::string> command = {python(), "-c", kListener, "{socket}"};
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

#define NEED_PYTHON() \
  if (python().empty()) GTEST_SKIP() << "no /usr/bin/python3"

std::string failure_of(ServerProcess& server, std::chrono::milliseconds limit) {
  try {
    server.start(limit);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(ServerProcessTest, NeedsASocket) {
  EXPECT_THROW(ServerProcess({"server", "{disk}"}, "/x"), ConfigError);
  EXPECT_THROW(ServerProcess({}, "/x"), ConfigError);
}

TEST(ServerProcessTest, QuotesItsCommand) {
  const ServerProcess server({"a b", "--x={socket}", "it's", ""}, "");
  EXPECT_EQ(server.command_line(), "'a b' --x={socket} 'it'\\''s' ''");
}

TEST(ServerProcessTest, StartsAndIsKilled) {
  NEED_PYTHON();
  ServerProcess server(listener(), "");
  for (int i = 0; i < 2; ++i) {
    server.start(10s);
    EXPECT_TRUE(server.running());
    EXPECT_EQ(server.output(), "listening\n");
    EXPECT_TRUE(server.kill());
    EXPECT_FALSE(server.running());
    EXPECT_EQ(server.ending(), "killed by signal 9");
  }
}

TEST(ServerProcessTest, StopsInOrder) {
  NEED_PYTHON();
  ServerProcess server(listener(), "");
  server.start(10s);
  EXPECT_TRUE(server.stop(5s));
  EXPECT_EQ(server.ending(), "killed by signal 15");
  EXPECT_FALSE(server.running());
}

TEST(ServerProcessTest, FollowsItIntoTheBackground) {
  NEED_PYTHON();
  ServerProcess server(listener({"background"}), "");
  server.start(10s);
  std::this_thread::sleep_for(300ms);  // the first process has ended by now
  EXPECT_TRUE(server.running());
  EXPECT_EQ(server.ending(), "exited with 0");
  EXPECT_TRUE(server.kill());
  EXPECT_FALSE(server.running());
}

TEST(ServerProcessTest, TellsWhyItDidNotStart) {
  ServerProcess server({"/bin/sh", "-c", "echo no such luck >&2; exit 3", "{socket}"}, "");
  const std::string why = failure_of(server, 5s);
  EXPECT_THAT(why, HasSubstr("exited with 3"));
  EXPECT_THAT(why, HasSubstr("no such luck"));
  ServerProcess missing({"/no/such/server", "{socket}"}, "");
  EXPECT_THAT(failure_of(missing, 5s), HasSubstr("No such file"));
  ServerProcess deaf({"/bin/sh", "-c", "echo deaf; sleep 100", "{socket}"}, "");
  EXPECT_THAT(failure_of(deaf, 200ms), HasSubstr("does not listen"));
  EXPECT_FALSE(deaf.running());
}

TEST(ServerProcessTest, ReplacesWords) {
  ServerProcess server({"/bin/sh", "-c", "echo disk={disk}; exit 1", "{socket}"}, "/some/disk");
  EXPECT_THAT(failure_of(server, 5s), HasSubstr("disk=/some/disk"));
}

TEST(ServerProcessTest, CutOfThePowerEndsWhoIsBusyOnTheDisk) {
  NEED_PYTHON();
  if (const std::string why = FaultDisk::unavailable(); !why.empty()) GTEST_SKIP() << why;
  FaultDisk disk({.size = 1 << 20, .write_time = 1ms});
  ServerProcess server(listener({"write", "{disk}"}), disk.path());
  for (int i = 0; i < 3; ++i) {
    const uint64_t before = disk.counters().writes;
    server.start(10s);
    for (int j = 0; j < 5000 && disk.counters().writes < before + 3; ++j) {
      std::this_thread::sleep_for(1ms);
    }
    EXPECT_EQ(cut_power(server, disk, FaultDisk::Cut::kLoseAll, 1), 8u);
    EXPECT_FALSE(server.running());
    EXPECT_EQ(disk.counters().volatile_sectors, 0u);
  }
}

}  // namespace
}  // namespace weft::check
