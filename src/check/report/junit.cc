// SPDX-License-Identifier: BSD-3-Clause
// The report for CI systems, in the JUnit XML that Jenkins, GitLab and GitHub's actions read.
//
// A warning is a passed test with its text in system-out. What could not be told is skipped, with
// the reason: shown, and no reason for a red build while the run as a whole could tell. So that a
// build is red exactly when the exit status is not 0, the verdict is a test case too.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "check/report/escape.h"
#include "check/report/json.h"
#include "check/report/report.h"

namespace weft::check {
namespace {

std::string seconds(double value) {
  return fmt::format("{:.3f}", std::isfinite(value) && value > 0 ? value : 0.0);
}

std::string story(const Test& test) {
  std::string text = "basis: " + test.basis + "\n";
  if (!test.detail.empty()) text += "seen: " + test.detail + "\n";
  for (const Finding& finding : test.findings) {
    text += fmt::format("\n{}: {}{}\n", finding.kind, finding.title,
                        finding.count > 1 ? fmt::format(" (seen {} times)", finding.count) : "");
    for (size_t i = 0; i < finding.story.size(); ++i) {
      text += fmt::format("  {}. {}\n", i + 1, finding.story[i]);
    }
    for (const std::string& advice : finding.advice) text += "  " + advice + "\n";
    if (finding.seed) text += fmt::format("  seed: {}\n", finding.seed);
    if (!finding.replay.empty()) text += "  again: " + finding.replay + "\n";
  }
  return text;
}

// The one line that CI systems show in their lists.
std::string message(const Test& test) {
  if (!test.detail.empty()) return test.detail;
  if (!test.findings.empty()) return test.findings.front().title;
  return test.title;
}

std::string case_head(const Test& test) {
  const std::string group = test.name.substr(0, test.name.find('.'));
  return fmt::format(R"(    <testcase classname="nbdcheck.{}" name="{}" time="{}")", markup(group),
                     markup(test.name), seconds(test.seconds));
}

std::string test_case(const Test& test) {
  const std::string head = case_head(test);
  const std::string text = markup(story(test), true);
  switch (test.state) {
    case State::kPassed:
      break;
    case State::kFailed:
      return fmt::format(
          "{}>\n      <failure type=\"{}\" message=\"{}\">{}</failure>\n"
          "    </testcase>\n",
          head, test.findings.empty() ? "broken" : markup(test.findings.front().kind),
          markup(message(test)), text);
    case State::kWarned:
      return fmt::format("{}>\n      <system-out>warning: {}\n{}</system-out>\n    </testcase>\n",
                         head, markup(message(test)), text);
    case State::kInconclusive:
      return fmt::format(
          "{}>\n      <skipped message=\"could not tell: {}\"/>\n"
          "      <system-out>{}</system-out>\n    </testcase>\n",
          head, markup(message(test)), text);
    case State::kSkipped:
      return fmt::format("{}>\n      <skipped message=\"{}\"/>\n    </testcase>\n", head,
                         markup(message(test)));
  }
  return head + "/>\n";
}

std::string verdict_case(const Report& report) {
  const std::string head = "    <testcase classname=\"nbdcheck\" name=\"verdict\" time=\"0.000\"";
  const std::string verdict = markup(report.verdict);
  switch (report.outcome) {
    case Outcome::kKept:
      break;
    case Outcome::kBroken:
      return fmt::format(
          "{}>\n      <failure type=\"broken\" message=\"{}\">{}</failure>\n"
          "    </testcase>\n",
          head, verdict, verdict);
    case Outcome::kUnknown:
      return fmt::format(
          "{}>\n      <error type=\"could-not-tell\" message=\"{}\">{}</error>\n"
          "    </testcase>\n",
          head, verdict, verdict);
  }
  return fmt::format("{}>\n      <system-out>{}</system-out>\n    </testcase>\n", head, verdict);
}

std::string property(std::string_view name, std::string_view value) {
  return fmt::format("      <property name=\"{}\" value=\"{}\"/>\n", markup(name), markup(value));
}

std::string properties(const Report& report) {
  std::string result = "    <properties>\n";
  result += property("version", report.version);
  result += property("target", report.target);
  result += property("command line", report.command_line);
  result += property("seed", std::to_string(report.seed));
  result += property("outcome", outcome_name(report.outcome));
  result += property("verdict", report.verdict);
  result += property("level reached",
                     report.level_reached ? level_name(*report.level_reached) : "not measured");
  for (const auto& [name, value] : report.facts) result += property("export: " + name, value);
  return result + "    </properties>\n";
}

}  // namespace

std::string junit_report(const Report& report) {
  const auto count = [&report](State state) {
    return std::ranges::count(report.tests, state, &Test::state);
  };
  // JUnit's times have no zone.
  std::string started = report.started;
  if (started.ends_with('Z')) started.pop_back();
  const std::string totals = fmt::format(
      R"(name="nbdcheck" tests="{}" failures="{}" errors="{}" skipped="{}" time="{}")",
      report.tests.size() + 1, count(State::kFailed) + (report.outcome == Outcome::kBroken),
      report.outcome == Outcome::kUnknown ? 1 : 0,
      count(State::kSkipped) + count(State::kInconclusive), seconds(report.seconds));
  std::string result = fmt::format(
      "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites {0}>\n"
      "  <testsuite {0}{1}>\n",
      totals, started.empty() ? "" : fmt::format(" timestamp=\"{}\"", markup(started)));
  result += properties(report);
  result += verdict_case(report);
  for (const Test& test : report.tests) result += test_case(test);
  return result + "  </testsuite>\n</testsuites>\n";
}

}  // namespace weft::check
