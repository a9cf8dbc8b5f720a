// SPDX-License-Identifier: BSD-3-Clause
// Verdict: how a check ends early; and Story: what was sent and received until then.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "check/report/report.h"

namespace weft::check::conformance {

// Thrown by checks, and by what they call; caught by the runner. A check that returns has passed.
struct Verdict {
  State state = State::kFailed;
  std::string kind;      // of the finding: "wrong-error", "disconnected", "no-answer", ...
  std::string what;      // one line: what was seen
  std::string due = {};  // one line: what had to come
  std::vector<std::string> advice = {};  // what an author should look at next
};

// A MUST is broken.
[[noreturn]] void broken(std::string kind, std::string what, std::string due,
                         std::vector<std::string> advice = {});
// A SHOULD is broken, or what was done is a hazard.
[[noreturn]] void against_advice(std::string kind, std::string what, std::string due,
                                 std::vector<std::string> advice = {});
// As one of the two.
[[noreturn]] void breach(State state, std::string kind, std::string what, std::string due,
                         std::vector<std::string> advice = {});
// The check does not apply to this server.
[[noreturn]] void skip(std::string why);
// Nothing can be told.
[[noreturn]] void unclear(std::string why);

// The steps of one check, as lines for people. Of long stories the first and the last are kept.
class Story {
 public:
  void add(std::string line);
  void clear();
  [[nodiscard]] std::vector<std::string> lines() const;

 private:
  std::vector<std::string> first_;
  std::vector<std::string> last_;  // a ring
  uint64_t count_ = 0;
};

// Hexadecimal digits without spaces; at most `max` bytes, then "...".
[[nodiscard]] std::string hex(ByteSpan bytes, size_t max = 32);

}  // namespace weft::check::conformance
