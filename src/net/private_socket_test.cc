// SPDX-License-Identifier: BSD-3-Clause
#include "net/private_socket.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <string>

#include "net/listen.h"

namespace weft::net {
namespace {

bool exists(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}

std::string directory_of(const std::string& path) {
  return path.substr(0, path.rfind('/'));
}

// Waits for what another process does; a minute is "never".
bool disappears(const std::string& path) {
  for (int i = 0; i < 6000; ++i) {
    if (!exists(path)) return true;
    ::usleep(10'000);
  }
  return false;
}

// Runs `body` in a child, which reports a path; returns the path and the child's wait status.
template <typename F>
std::string in_child(F body, int* status) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::close(ends[0]);
    body([&](const std::string& path) {
      (void)!::write(ends[1], path.data(), path.size());
      ::close(ends[1]);
    });
    ::_exit(0);
  }
  ::close(ends[1]);
  char buffer[256];
  const ssize_t count = ::read(ends[0], buffer, sizeof buffer);
  ::close(ends[0]);
  EXPECT_EQ(::waitpid(child, status, 0), child);
  return {buffer, static_cast<size_t>(count > 0 ? count : 0)};
}

TEST(PrivateSocket, IsPrivateAndRemoved) {
  std::string directory;
  {
    PrivateSocketPath socket;
    directory = directory_of(socket.path());
    EXPECT_EQ(directory.rfind("/tmp/weft", 0), 0u);
    struct stat status{};
    ASSERT_EQ(::stat(directory.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0700u);
    const ListeningSocket listening = listen_unix(socket.path());
    EXPECT_TRUE(exists(socket.path()));
  }
  EXPECT_FALSE(exists(directory));
}

TEST(PrivateSocket, RemovedWhenNothingWasBound) {
  std::string directory;
  {
    PrivateSocketPath socket;
    directory = directory_of(socket.path());
  }
  EXPECT_FALSE(exists(directory));
}

TEST(PrivateSocket, SecondRemoveDoesNothing) {
  PrivateSocketPath socket;
  socket.remove();
  EXPECT_FALSE(exists(directory_of(socket.path())));
  socket.remove();
}

TEST(PrivateSocket, RemovedWhenTheProcessIsKilled) {
  int status = 0;
  const std::string path = in_child(
      [](auto report) {
        PrivateSocketPath socket;
        const ListeningSocket listening = listen_unix(socket.path());
        report(socket.path());
        ::raise(SIGKILL);
      },
      &status);
  EXPECT_TRUE(WIFSIGNALED(status));
  ASSERT_FALSE(path.empty());
  EXPECT_TRUE(disappears(directory_of(path)));
}

TEST(PrivateSocket, RemovedWhenTheProcessExitsWithoutDestructors) {
  int status = 0;
  const std::string path = in_child(
      [](auto report) {
        PrivateSocketPath socket;
        report(socket.path());
        ::_exit(3);
      },
      &status);
  EXPECT_TRUE(disappears(directory_of(path)));
}

// The whole process group gets the signals of a terminal; the guardian must outlive them.
TEST(PrivateSocket, GuardianSurvivesSignalsToTheGroup) {
  int status = 0;
  const std::string path = in_child(
      [](auto report) {
        ::setpgid(0, 0);
        PrivateSocketPath socket;
        report(socket.path());
        ::kill(0, SIGTERM);
        ::pause();
      },
      &status);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_TRUE(disappears(directory_of(path)));
}

TEST(PrivateSocket, StaysAsLongAsAForkedServerLives) {
  int hold[2];
  ASSERT_EQ(::pipe(hold), 0);
  int status = 0;
  const std::string path = in_child(
      [&](auto report) {
        PrivateSocketPath socket;
        if (::fork() == 0) {  // the server in the background, then killed
          ::close(hold[1]);
          socket.take_responsibility();
          report(socket.path());
          char byte;
          (void)!::read(hold[0], &byte, 1);
          ::raise(SIGKILL);
        }
        ::_exit(0);
      },
      &status);
  ::close(hold[0]);
  EXPECT_TRUE(exists(directory_of(path)));
  ::close(hold[1]);
  EXPECT_TRUE(disappears(directory_of(path)));
}

// A process that is not responsible (the server under --run) leaves the directory to the other.
TEST(PrivateSocket, OnlyTheResponsibleProcessRemoves) {
  PrivateSocketPath socket;
  const pid_t child = ::fork();
  if (child == 0) {
    socket.remove();
    ::_exit(exists(directory_of(socket.path())) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(exists(directory_of(socket.path())));
}

}  // namespace
}  // namespace weft::net
