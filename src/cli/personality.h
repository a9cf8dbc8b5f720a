// SPDX-License-Identifier: BSD-3-Clause
// Personality: whose command line a run of the program speaks, its own or nbdkit's. It is a value
// that the words are read with; what they come to is one Options, and nothing below this folder
// knows of it but the log, which is told how messages begin.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/log.h"
#include "base/result.h"

namespace weft::cli {

struct Personality {
  const char* name;     // of the program: messages begin so
  const char* version;  // what --version and --dump-config say
  log::Form form;
  bool nbdkit;  // nbdkit's words, combinations and texts only; else weft's own as well
};

const Personality& weft_personality();
const Personality& nbdkit_personality();

// The one that the program is started as: nbdkit's where the last part of `program` (argv[0]) is
// "nbdkit". --as=weft and --as=nbdkit, anywhere before `--`, choose it outright, the last one
// counts; they are taken out of `words`. Throws UsageError for any other --as.
const Personality& choose_personality(std::string_view program, std::vector<std::string>& words);

// The words of the command line make no sense: nothing was looked at beyond them.
class UsageError : public ConfigError {
 public:
  // `grammar`: an option that is not there, or not used as it must be.
  explicit UsageError(const std::string& text, bool grammar = false)
      : ConfigError(text), grammar_(grammar) {}
  [[nodiscard]] bool grammar() const { return grammar_; }

 private:
  bool grammar_;
};

// The line on standard error with which a program called `name` gives up at start.
std::string start_error_line(const Personality& personality, std::string_view name,
                             const std::exception& error);

}  // namespace weft::cli
