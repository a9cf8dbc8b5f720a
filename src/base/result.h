// SPDX-License-Identifier: BSD-3-Clause
// Result: the outcome of everything on the data path. A failure carries an errno and, where there
// is one, a text for people. Start-up and configuration throw ConfigError instead, caught in main.
#pragma once

#include <expected>
#include <stdexcept>
#include <string>

namespace weft {

// A failure of storage, network or a rule. `text`, when not null, points to static storage.
struct Error {
  int code = 0;                // an errno, never 0
  const char* text = nullptr;  // what went wrong, in a few words; may be sent to a client

  friend bool operator==(const Error& a, const Error& b) { return a.code == b.code; }
};

template <typename T>
using Result = std::expected<T, Error>;

using Status = Result<void>;

[[nodiscard]] inline std::unexpected<Error> fail(int code, const char* text = nullptr) {
  return std::unexpected<Error>(Error{code, text});
}

// A wrong option, parameter, size, file or combination of them: one line that names the thing, says
// why, and what to do. Thrown only before anything is started.
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The outcome of functions that a program above all needs the message of ("Permission denied").
std::string errno_text(int code);

}  // namespace weft
