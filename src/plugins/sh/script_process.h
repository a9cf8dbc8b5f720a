// SPDX-License-Identifier: BSD-3-Clause
// ScriptProcesses: runs programs, feeds and hears them by pipes, and ends them when weft ends.
//
// A program is started with vfork(2): the server's address space is not copied, so that a call
// costs what the program itself takes. It gets an empty signal mask and the ordinary handling of
// SIGPIPE (the server blocks and ignores signals), and of descriptors only 0, 1 and 2. It is sent
// SIGKILL when the server dies, however that happens.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"

namespace weft::plugins {

// What a program reads on its standard input: nothing, bytes, or a number of zero bytes.
struct ScriptInput {
  ByteSpan data = {};
  uint64_t zeroes = 0;
};

struct ScriptEnd {
  int not_started = 0;     // an errno: there was no program to wait for
  int wait_status = 0;     // as waitpid(2) gives it
  bool abandoned = false;  // it was killed by abandon(), or not started because of it
  std::string out;         // its standard output, unless that went elsewhere
  uint64_t out_bytes = 0;  // how much it printed
  bool out_too_long = false;
  uint64_t not_fed = 0;  // bytes of its input that it did not take
  std::string err;       // the beginning of its standard error output
};

// Thread-safe but for the constructor, set_variable() and use_groups(). This process ignores
// SIGPIPE when a program has input.
class ScriptProcesses {
 public:
  static constexpr size_t kOutputMax = 64 << 20;  // bytes
  static constexpr size_t kErrorMax = 64 << 10;   // bytes

  // Programs get the environment of this process as it is now.
  ScriptProcesses();
  ScriptProcesses(const ScriptProcesses&) = delete;
  ScriptProcesses& operator=(const ScriptProcesses&) = delete;

  void set_variable(const std::string& name, const std::string& value);

  // From now on every program gets a process group of its own, which abandon() ends as a whole. Not
  // before: who starts weft may have to answer a script's question on the terminal.
  void use_groups() { own_groups_ = true; }

  // Runs `program` (a path; a file without #! is run by /bin/sh) and waits until it has ended and
  // nobody holds its output any more. Blocks. With `into`, what it prints goes there, and what is
  // more than that is counted and dropped. `time_max_ms`: killed then; 0: never.
  ScriptEnd run(const std::string& program, std::span<const std::string> arguments,
                const ScriptInput& input = {}, MutableByteSpan* into = nullptr,
                int64_t time_max_ms = 0);

  // Kills what runs and starts nothing any more, but for calls with a time limit. Does not block.
  void abandon();
  // Programs may be run again.
  void resume();

 private:
  struct Pipes;
  pid_t start(const char* program, char* const* arguments, char* const* shell_arguments, int in,
              int out, int err, int& error);
  void talk(Pipes& pipes, const ScriptInput& input, MutableByteSpan* into, int64_t time_max_ms,
            pid_t pid, ScriptEnd& end);
  void kill_one(pid_t pid) const;

  std::vector<std::string> environment_;  // "NAME=value"
  std::vector<char*> environment_pointers_;
  Fd no_input_;   // /dev/null
  Fd abandoned_;  // an eventfd: readable once abandon() was called
  bool own_groups_ = false;
  std::mutex mutex_;  // processes are reaped with it held, so that no other one can have the number
  bool ending_ = false;
  std::unordered_set<pid_t> running_;
};

}  // namespace weft::plugins
