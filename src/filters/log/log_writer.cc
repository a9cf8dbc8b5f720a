// SPDX-License-Identifier: BSD-3-Clause
#include "filters/log/log_writer.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "base/log.h"

namespace weft::filters {
namespace {

// Where the script finds its variables: an open file, so that their size has no limit.
constexpr int kVariables = 3;

// 0 or an errno.
int write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n >= 0) {
      text.remove_prefix(static_cast<size_t>(n));
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

}  // namespace

void LogWriter::start() {
  // The server's signals are taken by its main thread alone.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  ::pthread_setname_np(thread_.native_handle(), "weft-log");
}

void LogWriter::write(const Record& record) {
  std::string assignments;
  if (!script_.empty()) assignments = record.assignments();
  const std::lock_guard lock(mutex_);
  if (ending_) return;
  const bool was_empty = queued_ == 0;
  if (file_) {
    // The time is taken here, so that it never goes back from one line to the next.
    const std::string line = record.line(std::chrono::system_clock::now());
    queued_ += line.size();
    lines_ += line;
  }
  if (!script_.empty()) {
    queued_ += assignments.size();
    entries_.push_back(std::move(assignments));
  }
  if (was_empty) wake_.notify_one();
}

bool LogWriter::full() const {
  const std::lock_guard lock(mutex_);
  return full_locked();
}

void LogWriter::wait_for_room() {
  std::unique_lock lock(mutex_);
  moved_.wait(lock, [this] { return !full_locked() || ending_; });
}

void LogWriter::finish(std::chrono::milliseconds time_max) {
  {
    std::unique_lock lock(mutex_);
    ending_ = true;
    wake_.notify_one();
    moved_.notify_all();
    if (!moved_.wait_for(lock, time_max, [this] { return ended_; })) {
      log::error("log: the script was still busy at the end; {} entries were not given to it",
                 entries_.size());
    }
  }
  end();
}

void LogWriter::end() {
  if (!thread_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    ending_ = abandoned_ = true;
    if (child_ > 0) ::kill(child_, SIGKILL);
    wake_.notify_one();
    moved_.notify_all();
  }
  thread_.join();
}

void LogWriter::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return ending_ || !lines_.empty() || !entries_.empty(); });
    if (!lines_.empty()) {
      const std::string lines = std::exchange(lines_, {});
      lock.unlock();
      write_file(lines);
      lock.lock();
      queued_ -= lines.size();
    } else if (!entries_.empty() && !abandoned_) {
      const std::string entry = std::move(entries_.front());
      entries_.pop_front();
      lock.unlock();
      run_script(entry);
      lock.lock();
      queued_ -= entry.size();
    } else {
      break;  // the end
    }
    moved_.notify_all();
  }
  ended_ = true;
  moved_.notify_all();
}

void LogWriter::write_file(std::string_view text) {
  if (const int error = write_all(file_.get(), text)) {
    complain(fmt::format("'{}' cannot be written", path_).c_str(), error);
  }
}

// Waits for its end: the entries come in order.
void LogWriter::run_script(const std::string& assignments) {
  const Fd variables(::memfd_create("weft-log", MFD_CLOEXEC));
  if (!variables) return complain("the script's variables cannot be stored", errno);
  if (const int error = write_all(variables.get(), assignments)) {
    return complain("the script's variables cannot be stored", error);
  }
  const std::string command = fmt::format(". /dev/fd/{0}; exec {0}<&-\n{1}", kVariables, script_);

  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  // With -s the server's standard output is its client.
  ::posix_spawn_file_actions_adddup2(&files, STDERR_FILENO, STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, variables.get(), kVariables);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  sigset_t defaults;
  ::sigemptyset(&none);
  ::sigfillset(&defaults);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setsigdefault(&attributes, &defaults);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  const char* const words[] = {"bash", "-c", command.c_str(), nullptr};
  pid_t child = 0;
  const int error =
      ::posix_spawnp(&child, "bash", &files, &attributes, const_cast<char* const*>(words), environ);
  ::posix_spawn_file_actions_destroy(&files);
  ::posix_spawnattr_destroy(&attributes);
  if (error != 0) return complain("the script cannot be started", error);
  {
    const std::lock_guard lock(mutex_);
    child_ = child;
    if (abandoned_) ::kill(child, SIGKILL);
  }
  // The child is reaped only when nobody can signal it any more.
  siginfo_t info{};
  while (::waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT) != 0 &&
         errno == EINTR) {
  }
  const std::lock_guard lock(mutex_);
  child_ = 0;
  ::waitpid(child, nullptr, 0);
}

void LogWriter::complain(const char* what, int error) {
  if (!std::exchange(complained_, true)) log::error("log: {}: {}", what, errno_text(error));
}

}  // namespace weft::filters
