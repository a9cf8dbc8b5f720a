// SPDX-License-Identifier: BSD-3-Clause
// The report for a terminal.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <string>
#include <string_view>

#include "check/report/escape.h"
#include "check/report/report.h"

namespace weft::check {
namespace {

constexpr size_t kColumns = 92;
// Of one test, unless all are wanted: a server that is wrong everywhere must not bury the verdict.
constexpr size_t kFindingsMax = 5;

std::string_view verdict_words(Outcome outcome) {
  switch (outcome) {
    case Outcome::kKept:
      return "PROMISE KEPT";
    case Outcome::kBroken:
      return "PROMISE BROKEN";
    case Outcome::kUnknown:
      break;
  }
  return "COULD NOT TELL";
}

std::string grouped(uint64_t number) {
  std::string result = std::to_string(number);
  for (size_t i = result.size(); i > 3; i -= 3) result.insert(i - 3, ",");
  return result;
}

// Counts what a terminal shows: bytes that go on a UTF-8 character take no column.
size_t columns(std::string_view text) {
  return static_cast<size_t>(
      std::ranges::count_if(text, [](char c) { return (c & 0xC0) != 0x80; }));
}

class Page {
 public:
  // A paragraph: its first line after `first`, the others as far in as that.
  void wrap(std::string_view first, std::string_view text) {
    const std::string clean = clean_text(text);
    const std::string margin(columns(first), ' ');
    text_ += first;
    size_t at = columns(first);
    bool begun = false;
    for (size_t from = 0; from < clean.size();) {
      const size_t end = std::min(clean.find(' ', from), clean.size());
      const auto word = std::string_view(clean).substr(from, end - from);
      from = end + 1;
      if (word.empty()) continue;
      if (begun && at + 1 + columns(word) > kColumns) {
        text_ += '\n';
        text_ += margin;
        at = columns(first);
      } else if (begun) {
        text_ += ' ';
        ++at;
      }
      text_ += word;
      at += columns(word);
      begun = true;
    }
    while (text_.ends_with(' ')) text_.pop_back();
    text_ += '\n';
  }
  // A line that is copied as it stands.
  void line(std::string_view first, std::string_view text) {
    text_ += first;
    text_ += clean_text(text);
    text_ += '\n';
  }
  void blank() {
    if (!text_.ends_with("\n\n")) text_ += '\n';
  }
  std::string take() {
    while (text_.ends_with("\n\n")) text_.pop_back();
    return std::move(text_);
  }

 private:
  std::string text_;
};

void add_finding(Page& page, const Finding& finding) {
  std::string title = finding.kind.empty() ? finding.title : finding.kind + ": " + finding.title;
  if (finding.count > 1) title += fmt::format(" (seen {} times)", grouped(finding.count));
  page.wrap("  ", title);
  for (size_t i = 0; i < finding.story.size(); ++i) {
    page.wrap(fmt::format("  {:>4}. ", i + 1), finding.story[i]);
  }
  if (!finding.advice.empty()) {
    page.wrap("     -> ", fmt::format("{}", fmt::join(finding.advice, " ")));
  }
  if (!finding.replay.empty()) {
    const std::string seed = finding.seed ? fmt::format(" (seed {})", finding.seed) : "";
    page.line(fmt::format("     again{}: ", seed), finding.replay);
  } else if (finding.seed) {
    page.line("     seed: ", std::to_string(finding.seed));
  }
}

void add_test(Page& page, const Test& test, bool verbose) {
  page.blank();
  page.wrap(fmt::format("{}: ", state_name(test.state)), test.name + ": " + test.title);
  if (!test.basis.empty()) page.wrap("  basis: ", test.basis);
  if (!test.detail.empty()) page.wrap("  seen:  ", test.detail);
  size_t shown = 0;
  for (const Finding& finding : test.findings) {
    if (!verbose && shown == kFindingsMax) {
      page.line("  ", fmt::format("and {} more: --verbose, --json and --html have all of them",
                                  test.findings.size() - shown));
      break;
    }
    page.blank();
    add_finding(page, finding);
    ++shown;
  }
}

// A line is enough for what needs nobody's attention.
void add_line(Page& page, const Test& test) {
  std::string text = test.name + ": " + test.title;
  if (test.state == State::kSkipped && !test.detail.empty()) text += " (" + test.detail + ")";
  page.wrap(fmt::format("{}: ", state_name(test.state)), text);
}

std::string_view level_words(const Report& report) {
  if (report.level_reached) return level_name(*report.level_reached);
  const bool broken = std::ranges::any_of(report.tests, [](const Test& test) {
    return test.state == State::kFailed && test.name.starts_with("consistency.");
  });
  return broken ? "none" : "not measured";
}

void add_head(Page& page, const Report& report) {
  const bool told = !report.interrupted || report.verdict.find("interrupted") != std::string::npos;
  page.wrap("nbdcheck: ", fmt::format("{}: {}{}", verdict_words(report.outcome), report.verdict,
                                      told ? "" : " (interrupted)"));
  page.line("  target: ", report.target);
  page.line("  level:  ", fmt::format("{}; CAN_MULTI_CONN is {}advertised", level_words(report),
                                      report.multi_conn_advertised ? "" : "not "));
  if (report.seed) {
    page.line("  run:    ", fmt::format("seed {}, {:.1f} s", report.seed, report.seconds));
  }
}

void add_counts(Page& page, const Report& report) {
  page.blank();
  std::string tests;
  for (const State state :
       {State::kPassed, State::kFailed, State::kWarned, State::kInconclusive, State::kSkipped}) {
    const auto count = std::ranges::count(report.tests, state, &Test::state);
    if (count) tests += fmt::format("{}{} {}", tests.empty() ? "" : ", ", count, state_name(state));
  }
  page.wrap("tests:     ", tests.empty() ? "none" : tests);
  std::string counts;
  for (const auto& [name, count] : report.counts) {
    counts += fmt::format("{}{} {}", counts.empty() ? "" : ", ", grouped(count), name);
  }
  if (!counts.empty()) page.wrap("counts:    ", counts);
  const Witnesses& seen = report.witnesses;
  if (seen.reads == 0) return;
  page.wrap(
      "witnesses: ",
      fmt::format("{} reads judged; of those that had to see a change, {} of the same "
                  "connection, {} flushed on another, {} acknowledged on another, {} from "
                  "before a restart; {} flushes overlapped a change",
                  grouped(seen.reads), grouped(seen.own), grouped(seen.flushed),
                  grouped(seen.at_once), grouped(seen.survived), grouped(seen.overlapped_flushes)));
}

}  // namespace

std::string_view outcome_name(Outcome outcome) {
  switch (outcome) {
    case Outcome::kKept:
      return "kept";
    case Outcome::kBroken:
      return "broken";
    case Outcome::kUnknown:
      break;
  }
  return "could-not-tell";
}

std::string_view state_name(State state) {
  switch (state) {
    case State::kPassed:
      return "passed";
    case State::kFailed:
      return "FAILED";
    case State::kWarned:
      return "warning";
    case State::kInconclusive:
      return "inconclusive";
    case State::kSkipped:
      break;
  }
  return "skipped";
}

std::string text_report(const Report& report, bool verbose) {
  Page page;
  add_head(page, report);
  for (const State state : {State::kFailed, State::kWarned, State::kInconclusive}) {
    std::map<std::string, uint64_t> untold;  // by their reason: one stands for all
    for (const Test& test : report.tests) {
      if (test.state != state) continue;
      const bool told = state == State::kInconclusive && untold.contains(test.detail);
      if (told && !verbose) {
        untold[test.detail]++;
        continue;
      }
      untold.emplace(test.detail, 0);
      add_test(page, test, verbose);
    }
    for (const auto& [detail, count] : untold) {
      if (count == 0) continue;
      page.blank();
      page.wrap("", fmt::format("{} more tests for the same reason: {}", count, detail));
    }
  }
  if (verbose) {
    page.blank();
    for (const State state : {State::kPassed, State::kSkipped}) {
      for (const Test& test : report.tests) {
        if (test.state == state) add_line(page, test);
      }
    }
  }
  add_counts(page, report);
  return page.take();
}

}  // namespace weft::check
