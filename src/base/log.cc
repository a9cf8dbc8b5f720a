// SPDX-License-Identifier: BSD-3-Clause
#include "base/log.h"

#include <fcntl.h>
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

}  // namespace weft::log
