// SPDX-License-Identifier: BSD-3-Clause
// ServerProcess: the server under test, started from a command with {disk} and {socket}.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "check/faults/fault_disk.h"

namespace weft::check {

// One thread at a time may use it; the thread that calls start() must live as long as the server
// (which dies with it).
class ServerProcess {
 public:
  // `command` is run without a shell, in a process group of its own, stdin from /dev/null, stdout
  // and stderr kept (the last 64 KiB) for messages. {disk} and {socket} are replaced wherever they
  // stand; {socket} is a path in a directory of our own. Throws ConfigError: no {socket} in it.
  ServerProcess(std::vector<std::string> command, std::string disk);
  ~ServerProcess();  // kills all of it
  ServerProcess(const ServerProcess&) = delete;
  ServerProcess& operator=(const ServerProcess&) = delete;

  // Starts it and waits until the socket takes connections (without making one, where /proc tells).
  // Throws ConfigError with what it printed when it ends before, or after `limit`. Not while it
  // runs. A stale socket is removed.
  void start(std::chrono::milliseconds limit);
  // kill -9 of all its processes at once: the group, and what has left it for the background (found
  // by a word in their environment). Returns when they are gone. They cannot end while a FaultDisk
  // holds or stalls a call of theirs: `signalled` is called after the signals are sent, to have it
  // answered. False: they are still there after ten seconds.
  bool kill(const std::function<void()>& signalled = {});
  // SIGTERM, then kill() after `limit`. True: it ended by itself.
  bool stop(std::chrono::milliseconds limit);
  // Still there? Also when the process that was started has ended and left another running.
  [[nodiscard]] bool running();
  // How it ended, for people: "exited with 1", "killed by signal 11"; "" while it runs or when that
  // is not known.
  [[nodiscard]] const std::string& ending() const { return ending_; }
  [[nodiscard]] std::string output() const;  // the end of what it printed since start()
  [[nodiscard]] const std::string& socket() const { return socket_; }
  [[nodiscard]] std::string command_line() const;  // as given, quoted for a shell

 private:
  struct Member;  // a process of the server

  void spawn();
  void reap();
  [[nodiscard]] bool listening() const;
  [[nodiscard]] std::vector<Member> members() const;
  [[nodiscard]] std::string said() const;  // ": " and its last lines, or ""

  std::vector<std::string> command_;
  std::string disk_;
  std::string directory_;
  std::string socket_;
  std::string mark_;  // in the environment of all its processes
  pid_t pid_ = -1;    // -1: none, or ended and reaped
  pid_t group_ = -1;  // of the last start()
  std::string ending_;
  Fd output_;  // a file without a name
};

// A cut of the power, from freeze() to restore(); the server is down afterwards. Returns how many
// sectors lost a version. Throws ConfigError when the server
// cannot be ended.
uint64_t cut_power(ServerProcess& server, FaultDisk& disk, FaultDisk::Cut cut, uint64_t seed);

}  // namespace weft::check
