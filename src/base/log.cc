// SPDX-License-Identifier: BSD-3-Clause
#include "base/log.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/fd.h"
#include "base/result.h"

namespace weft {

std::string errno_text(int code) {
  char buffer[128];
  return ::strerror_r(code, buffer, sizeof buffer);
}

}  // namespace weft

namespace weft::log {
namespace {

struct State {
  Options options;
  Fd file;
};

State& state() {
  static State* the_state = new State;  // never destroyed: threads may log during exit
  return *the_state;
}

const char* word(Level level) {
  switch (level) {
    case Level::kError:
      return "error";
    case Level::kWarning:
      return "warning";
    case Level::kInfo:
      return "info";
    case Level::kDebug:
      return "debug";
  }
  return "?";
}

int syslog_priority(Level level) {
  switch (level) {
    case Level::kError:
      return LOG_ERR;
    case Level::kWarning:
      return LOG_WARNING;
    case Level::kInfo:
      return LOG_INFO;
    case Level::kDebug:
      return LOG_DEBUG;
  }
  return LOG_ERR;
}

// One write(2) a line, so that lines of several threads and processes never mix.
void write_line(int fd, const std::string& line) {
  [[maybe_unused]] ssize_t written = ::write(fd, line.data(), line.size());
}

}  // namespace

void configure(const Options& options) {
  State& s = state();
  Fd file;
  if (options.target == Target::kFile) {
    file = Fd(::open(options.path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
    if (!file) {
      throw ConfigError(
          fmt::format("--log={}: cannot open the log file: {}", options.path, errno_text(errno)));
    }
  }
  s.options = options;
  s.file = std::move(file);
  if (options.target == Target::kSyslog) {
    ::openlog(s.options.program.c_str(), LOG_PID, LOG_DAEMON);
  }
}

bool verbose() {
  return state().options.verbose;
}

Target target() {
  return state().options.target;
}

Form form() {
  return state().options.form;
}

void write(Level level, std::string_view text, std::string_view subject) {
  const int saved = errno;
  State& s = state();
  const std::string about = subject.empty() ? "" : fmt::format("{}: ", subject);
  const std::string line =
      s.options.form == Form::kWeft
          ? fmt::format("{}: {}: {}{}\n", s.options.program, word(level), about, text)
          : fmt::format("{}: {}{}: {}\n", s.options.program, about, word(level), text);
  if (level == Level::kDebug) {
    write_line(STDERR_FILENO, line);
  } else {
    switch (s.options.target) {
      case Target::kStderr:
        write_line(STDERR_FILENO, line);
        break;
      case Target::kFile:
        write_line(s.file.get(), line);
        break;
      case Target::kNull:
        break;
      case Target::kSyslog:
        ::syslog(syslog_priority(level), "%s%.*s", about.c_str(), static_cast<int>(text.size()),
                 text.data());
        break;
    }
  }
  errno = saved;
}

// syslog(3) allocates and locks, so the datagram is made here.
void write_from_signal(std::string_view line) {
  const State& s = state();
  switch (s.options.target) {
    case Target::kStderr:
      break;
    case Target::kFile:
      (void)!::write(s.file.get(), line.data(), line.size());
      return;
    case Target::kNull:
      return;
    case Target::kSyslog: {
      constexpr std::string_view kPriority = "<27>";  // LOG_DAEMON, LOG_ERR
      sockaddr_un address{};
      address.sun_family = AF_UNIX;
      std::memcpy(address.sun_path, "/dev/log", sizeof "/dev/log");
      const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
      iovec parts[] = {
          {const_cast<char*>(kPriority.data()), kPriority.size()},
          {const_cast<char*>(line.data()), line.size() - (line.ends_with('\n') ? 1 : 0)}};
      msghdr message{};
      message.msg_name = &address;
      message.msg_namelen = sizeof address;
      message.msg_iov = parts;
      message.msg_iovlen = 2;
      (void)::sendmsg(fd, &message, MSG_NOSIGNAL);
      break;  // and to stderr, for who has it open
    }
  }
  (void)!::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace weft::log
