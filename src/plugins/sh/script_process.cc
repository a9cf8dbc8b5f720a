// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <string_view>
#include <thread>

#include "base/result.h"

namespace weft::plugins {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPipeSize = 256 << 10;      // bytes; asked for where much is to pass
constexpr size_t kPipeSizeUsual = 64 << 10;  // bytes; what the kernel gives
constexpr size_t kChunk = 64 << 10;          // bytes
// How much more than it was asked for a program may print before it loses its reader.
constexpr uint64_t kExcessMax = 1 << 20;  // bytes

alignas(4096) constinit std::array<std::byte, kChunk> zeroes{};

struct Pipe {
  Fd read;
  Fd write;
};

int make_pipe(Pipe& pipe, size_t size_bytes) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return errno;
  pipe.read = Fd(ends[0]);
  pipe.write = Fd(ends[1]);
  if (size_bytes > kPipeSizeUsual) ::fcntl(ends[1], F_SETPIPE_SZ, static_cast<int>(kPipeSize));
  return 0;
}

void make_nonblocking(const Fd& fd) {
  if (fd) ::fcntl(fd.get(), F_SETFL, ::fcntl(fd.get(), F_GETFL) | O_NONBLOCK);
}

// Writes the next bytes of the input until the pipe is full. False: nobody reads it any more.
bool feed(const Fd& pipe, const ScriptInput& input, uint64_t& fed) {
  const uint64_t to_feed = input.data.size() + input.zeroes;
  while (fed < to_feed) {
    const ByteSpan next = fed < input.data.size()
                              ? input.data.subspan(fed)
                              : ByteSpan(zeroes).first(std::min<uint64_t>(kChunk, to_feed - fed));
    const ssize_t n = ::write(pipe.get(), next.data(), next.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN;
    fed += static_cast<uint64_t>(n);
  }
  return true;
}

}  // namespace

struct ScriptProcesses::Pipes {
  Pipe in, out, err;
  uint64_t fed = 0;
};

ScriptProcesses::ScriptProcesses()
    : no_input_(::open("/dev/null", O_RDONLY | O_CLOEXEC)),
      abandoned_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!no_input_ || !abandoned_) {
    throw ConfigError("cannot open /dev/null or an eventfd: " + errno_text(errno));
  }
  for (char** variable = environ; *variable; variable++) environment_.emplace_back(*variable);
  set_variable("", "");
}

void ScriptProcesses::set_variable(const std::string& name, const std::string& value) {
  if (!name.empty()) {
    std::erase_if(environment_,
                  [&](const std::string& entry) { return entry.starts_with(name + "="); });
    environment_.push_back(name + "=" + value);
  }
  environment_pointers_.clear();
  for (std::string& entry : environment_) environment_pointers_.push_back(entry.data());
  environment_pointers_.push_back(nullptr);
}

// The child of vfork(2) shares our memory until it runs the program, while this thread waits: it
// makes system calls and writes `error`, nothing else. The other threads run on.
[[gnu::noinline]] pid_t ScriptProcesses::start(const char* program, char* const* arguments,
                                               char* const* shell_arguments, int in, int out,
                                               int err, int& error) {
  volatile int failure = 0;
  char* const* const variables = environment_pointers_.data();
  const bool own_group = own_groups_;
  const pid_t parent = ::getpid();
  sigset_t all, before;
  ::sigfillset(&all);
  // No handler of ours may run in the child, where it would work on our memory.
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wdeprecated-declarations"
  const pid_t pid = ::vfork();
#pragma clang diagnostic pop
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    if (own_group) ::setpgid(0, 0);
    ::dup2(in, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    struct sigaction usual = {};
    usual.sa_handler = SIG_DFL;
    // Sanitizers have handlers; the rest is what the server ignores.
    for (const int number : {SIGPIPE, SIGXFSZ, SIGTTOU, SIGCHLD, SIGSEGV, SIGBUS, SIGFPE, SIGILL,
                             SIGABRT, SIGTERM, SIGINT, SIGALRM, SIGUSR1, SIGUSR2}) {
      ::sigaction(number, &usual, nullptr);
    }
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::execve(program, arguments, variables);
    if (errno == ENOEXEC) ::execve(shell_arguments[0], shell_arguments, variables);
    failure = errno;
    ::_exit(127);
  }
  error = pid < 0 ? errno : failure;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return pid;
}

void ScriptProcesses::kill_one(pid_t pid) const {
  if (own_groups_) ::kill(-pid, SIGKILL);
  ::kill(pid, SIGKILL);
}

void ScriptProcesses::abandon() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  for (const pid_t pid : running_) kill_one(pid);
  const uint64_t one = 1;
  (void)!::write(abandoned_.get(), &one, sizeof one);
}

void ScriptProcesses::resume() {
  const std::lock_guard lock(mutex_);
  ending_ = false;
  uint64_t count = 0;
  (void)!::read(abandoned_.get(), &count, sizeof count);
}

ScriptEnd ScriptProcesses::run(const std::string& program, std::span<const std::string> arguments,
                               const ScriptInput& input, MutableByteSpan* into,
                               int64_t time_max_ms) {
  ScriptEnd end;
  const bool has_input = !input.data.empty() || input.zeroes > 0;
  Pipes pipes;
  if (has_input) end.not_started = make_pipe(pipes.in, input.data.size() + input.zeroes);
  if (!end.not_started) end.not_started = make_pipe(pipes.out, into ? into->size() : 0);
  if (!end.not_started) end.not_started = make_pipe(pipes.err, 0);
  if (end.not_started) return end;

  std::string shell = "/bin/sh";
  std::string name = program;
  std::vector<char*> words = {shell.data(), name.data()};
  for (const std::string& word : arguments) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);

  // What fits into the pipe is there when the program begins, and when it ends at once: then its
  // status alone says whether that is well.
  if (has_input) {
    make_nonblocking(pipes.in.write);
    feed(pipes.in.write, input, pipes.fed);
  }

  {
    const std::lock_guard lock(mutex_);
    end.abandoned = ending_ && time_max_ms == 0;
    if (end.abandoned) return end;
  }
  const pid_t pid = start(name.c_str(), words.data() + 1, words.data(),
                          has_input ? pipes.in.read.get() : no_input_.get(), pipes.out.write.get(),
                          pipes.err.write.get(), end.not_started);
  if (pid < 0) return end;
  {
    const std::lock_guard lock(mutex_);
    running_.insert(pid);
    if (ending_ && time_max_ms == 0) kill_one(pid);  // abandon() has just missed it
  }
  pipes.in.read.reset();
  pipes.out.write.reset();
  pipes.err.write.reset();
  if (!end.not_started) talk(pipes, input, into, time_max_ms, pid, end);

  end.not_fed = input.data.size() + input.zeroes - pipes.fed;

  siginfo_t info{};
  // One that has closed its output and goes on is not waited for longer than it may take.
  const auto deadline = Clock::now() + std::chrono::milliseconds(time_max_ms);
  while (time_max_ms != 0) {
    info.si_pid = 0;
    if (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT | WNOHANG) == 0 &&
        info.si_pid == 0) {
      if (Clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        continue;
      }
      kill_one(pid);
    }
    break;
  }
  while (::waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOWAIT) != 0 && errno == EINTR) {
  }
  const std::lock_guard lock(mutex_);
  while (::waitpid(pid, &end.wait_status, 0) < 0 && errno == EINTR) {
  }
  running_.erase(pid);
  if (ending_ && time_max_ms == 0 && WIFSIGNALED(end.wait_status)) end.abandoned = true;
  return end;
}

// Feeds the program and hears it until it has closed its output, and so has everybody who got it
// from the program.
void ScriptProcesses::talk(Pipes& pipes, const ScriptInput& input, MutableByteSpan* into,
                           int64_t time_max_ms, pid_t pid, ScriptEnd& end) {
  make_nonblocking(pipes.out.read);
  make_nonblocking(pipes.err.read);
  const auto deadline = Clock::now() + std::chrono::milliseconds(time_max_ms);
  const uint64_t to_feed = input.data.size() + input.zeroes;
  if (pipes.fed == to_feed) pipes.in.write.reset();
  std::vector<std::byte> scratch;

  const auto hear = [&] {
    for (;;) {
      MutableByteSpan room;
      if (into && end.out_bytes < into->size()) {
        room = into->subspan(end.out_bytes);
      } else {
        scratch.resize(kChunk);
        room = scratch;
      }
      const ssize_t n = ::read(pipes.out.read.get(), room.data(), room.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) break;
      end.out_bytes += static_cast<uint64_t>(n);
      if (!into) end.out.append(reinterpret_cast<const char*>(room.data()), static_cast<size_t>(n));
      const uint64_t most = into ? into->size() + kExcessMax : kOutputMax;
      if (end.out_bytes > most) {
        end.out_too_long = true;
        break;
      }
    }
    pipes.out.read.reset();
  };
  const auto hear_errors = [&] {
    for (;;) {
      char text[4096];
      const ssize_t n = ::read(pipes.err.read.get(), text, sizeof text);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && errno == EAGAIN) return;
      if (n <= 0) break;
      end.err.append(text, std::min(static_cast<size_t>(n), kErrorMax - end.err.size()));
    }
    pipes.err.read.reset();
  };

  while (pipes.in.write || pipes.out.read || pipes.err.read) {
    pollfd waits[4] = {{pipes.in.write.get(), POLLOUT, 0},
                       {pipes.out.read.get(), POLLIN, 0},
                       {pipes.err.read.get(), POLLIN, 0},
                       {time_max_ms ? -1 : abandoned_.get(), POLLIN, 0}};
    int timeout_ms = -1;
    if (time_max_ms) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now());
      if (left.count() <= 0) {
        kill_one(pid);
        return;
      }
      timeout_ms = static_cast<int>(left.count());
    }
    if (::poll(waits, 4, timeout_ms) < 0 && errno != EINTR) return;
    if (waits[3].revents) {
      end.abandoned = true;  // it has been killed; somebody else may still hold its output
      return;
    }
    if (waits[0].revents && (!feed(pipes.in.write, input, pipes.fed) || pipes.fed == to_feed)) {
      pipes.in.write.reset();
    }
    if (waits[1].revents) hear();
    if (waits[2].revents) hear_errors();
  }
}

}  // namespace weft::plugins
