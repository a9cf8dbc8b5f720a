// SPDX-License-Identifier: BSD-3-Clause
// What a run of nbdcheck has found, and the four ways to write it down.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check/model/checker.h"
#include "check/model/history.h"

namespace weft::check {

// How a run ended; the exit status is its value.
enum class Outcome : uint8_t {
  kKept = 0,
  kBroken = 1,
  kUnknown = 2,  // could not tell: too few witnesses, interrupted, the server lacks what is needed
};
[[nodiscard]] std::string_view outcome_name(Outcome outcome);  // "kept", "broken", "could-not-tell"

// A test of one promise: a conformance check, a level of consistency, a durability scenario ...
enum class State : uint8_t {
  kPassed,
  kFailed,        // breaks a MUST, or the promise
  kWarned,        // breaks a SHOULD, or is a hazard that the specification does not forbid
  kInconclusive,  // could not tell
  kSkipped,       // does not apply; why is in `detail`
};
[[nodiscard]] std::string_view state_name(State state);  // "passed", "FAILED", "warning", ...

// A violation as a short story.
struct Finding {
  std::string kind;                // a stable word for scripts: "stale-read", "lost-write", ...
  std::string title;               // one line, without the kind
  std::vector<std::string> story;  // a line for each step
  std::vector<std::string> advice = {};   // what an author should look at next: lines of one text
  uint64_t count = 1;                     // how often it was seen
  uint64_t seed = 0;                      // 0: does not depend on one
  std::string replay;                     // the command line that shows it again
  std::optional<uint32_t> history = {};   // which of Report::histories proves it
  std::vector<uint32_t> operations = {};  // of that history, the minimal set, ascending
  std::optional<Level> level = {};        // that it breaks, of a history's violation
};

struct Test {
  std::string name;   // stable, dotted: "consistency.flushed", "handshake.unknown-option"
  std::string title;  // one line: what is promised
  std::string basis;  // "MUST, NBD protocol: Baseline", "SHOULD, ...", "the promise of multi-conn"
  State state = State::kSkipped;
  std::string detail = {};  // one line: what was seen, or why not
  std::vector<Finding> findings = {};
  double seconds = 0;
};

struct NamedHistory {
  std::string title;  // "round 3, seed 17"
  uint64_t seed = 0;
  History history;
};

struct Report {
  std::string version = WEFT_VERSION;  // of nbdcheck
  std::string target;                  // the URI or the server's command
  std::string command_line;            // of this run
  std::string started;                 // ISO 8601, UTC
  double seconds = 0;
  uint64_t seed = 0;
  // Of the export: "size", "header mode", "flags", ...: name and value, in order.
  std::vector<std::pair<std::string, std::string>> facts;
  bool multi_conn_advertised = false;
  std::optional<Level> level_reached = {};  // the highest without a violation; unset: not measured
  Outcome outcome = Outcome::kUnknown;
  std::string verdict;  // one line, the reason: what was seen, without "PROMISE BROKEN" before it
  std::vector<Test> tests;
  std::map<std::string, uint64_t> counts;  // "operations", "reads judged", ...
  Witnesses witnesses;
  std::vector<NamedHistory> histories;  // those that findings point to; if none, the last one
  bool interrupted = false;
};

// For a terminal: the verdict line first, then what failed with its stories, what warned, what
// could not be told; with `verbose` also what passed. Ends with a newline.
[[nodiscard]] std::string text_report(const Report& report, bool verbose);
// One object; docs: nbdcheck(1), "THE JSON REPORT". Histories are in it only with `with_histories`.
[[nodiscard]] std::string json_report(const Report& report, bool with_histories);
// JUnit XML as CI systems read it: a test case for each Test.
[[nodiscard]] std::string junit_report(const Report& report);
// One self-contained page: no network, no other file.
[[nodiscard]] std::string html_report(const Report& report);

}  // namespace weft::check
