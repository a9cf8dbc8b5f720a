// SPDX-License-Identifier: BSD-3-Clause
#include "server/stop_requests.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstddef>

#include "base/result.h"

namespace weft::server {
namespace {

constexpr std::array kSignals = {SIGTERM, SIGINT, SIGQUIT, SIGHUP};

// For the handler, which has no other way to know.
std::atomic<int> the_pipe{-1};
std::atomic<pid_t> the_process{0};

void note_signal(int number) {
  const int saved = errno;
  if (::getpid() == the_process.load()) {
    const auto byte = static_cast<unsigned char>(number);
    (void)!::write(the_pipe.load(), &byte, 1);  // full: there are requests enough
  } else {
    // A process that a plugin forked, and that does not know of any server.
    ::signal(number, SIG_DFL);
    ::raise(number);
  }
  errno = saved;
}

}  // namespace

struct StopRequests::Before {
  std::array<struct sigaction, kSignals.size()> actions;
  sigset_t mask;
};

StopRequests::StopRequests()
    : pipe_(std::make_shared<Pipe>()), before_(std::make_unique<Before>()) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) {
    throw ConfigError("cannot make a pipe for signals: " + errno_text(errno));
  }
  pipe_->read = Fd(ends[0]);
  pipe_->write = Fd(ends[1]);
  assert(the_pipe.load() == -1);
  the_pipe = ends[1];
  the_process = ::getpid();
  struct sigaction action = {};
  action.sa_handler = note_signal;
  action.sa_flags = SA_RESTART;
  sigset_t set;
  ::sigemptyset(&set);
  for (size_t i = 0; i < kSignals.size(); i++) {
    ::sigaddset(&set, kSignals[i]);
    ::sigaction(kSignals[i], &action, &before_->actions[i]);
  }
  // Whoever started this process may have had them blocked.
  ::pthread_sigmask(SIG_UNBLOCK, &set, &before_->mask);
}

StopRequests::~StopRequests() {
  ::pthread_sigmask(SIG_SETMASK, &before_->mask, nullptr);
  for (size_t i = 0; i < kSignals.size(); i++) {
    ::sigaction(kSignals[i], &before_->actions[i], nullptr);
  }
  the_pipe = -1;
}

std::function<void()> StopRequests::asker() const {
  return [pipe = pipe_] {
    const unsigned char byte = 0;
    (void)!::write(pipe->write.get(), &byte, 1);
  };
}

int StopRequests::fd() const {
  return pipe_->read.get();
}

}  // namespace weft::server
