// SPDX-License-Identifier: BSD-3-Clause
// The program's log: errors, warnings and information for the operator, debug messages with -v.
// The one process-wide object of weft: a message can be born anywhere, and where it goes is decided
// once, by main, before any thread starts. Every function may be called from any thread.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

namespace weft::log {

enum class Level { kError, kWarning, kInfo, kDebug };

enum class Target { kStderr, kSyslog, kNull, kFile };

// How a line is made up.
enum class Form {
  kWeft,    // "weft: error: SUBJECT: text"
  kNbdkit,  // "nbdkit: SUBJECT: error: text"
};

struct Options {
  Target target = Target::kStderr;
  std::string path;              // for kFile: appended to, flushed at every line
  std::string program = "weft";  // how a line begins
  Form form = Form::kWeft;
  bool verbose = false;  // print kDebug lines (always on stderr)
};

// Throws ConfigError when the file cannot be opened. Call before other threads run.
void configure(const Options& options);

// True when a debug line would be printed: lets a caller skip its preparation.
[[nodiscard]] bool verbose();

// How lines are made up, as configured.
[[nodiscard]] Form form();
[[nodiscard]] Target target();

// `subject`: what the message comes from, as "curl[3]" is the third connection of a hosted plugin;
// empty: weft itself.
void write(Level level, std::string_view text, std::string_view subject = {});

// For a handler of signals that end the program: async-signal-safe. An error whose whole line is
// `line`, with its newline; where errors go.
void write_from_signal(std::string_view line);

template <typename... A>
void error(fmt::format_string<A...> format, A&&... args) {
  write(Level::kError, fmt::format(format, std::forward<A>(args)...));
}
template <typename... A>
void warning(fmt::format_string<A...> format, A&&... args) {
  write(Level::kWarning, fmt::format(format, std::forward<A>(args)...));
}
template <typename... A>
void info(fmt::format_string<A...> format, A&&... args) {
  write(Level::kInfo, fmt::format(format, std::forward<A>(args)...));
}
template <typename... A>
void debug(fmt::format_string<A...> format, A&&... args) {
  if (verbose()) write(Level::kDebug, fmt::format(format, std::forward<A>(args)...));
}

}  // namespace weft::log
