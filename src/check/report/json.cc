// SPDX-License-Identifier: BSD-3-Clause
// The report for scripts. Its fields are documented in nbdcheck.md; a change there is a change of
// kFormat.
#include "check/report/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

namespace weft::check {
namespace {

constexpr int kFormat = 1;

Json finding_json(const Finding& finding) {
  Json result = {
      {"kind", finding.kind},     {"title", finding.title},   {"count", finding.count},
      {"story", finding.story},   {"advice", finding.advice}, {"seed", nullptr},
      {"replay", finding.replay}, {"history", nullptr},       {"operations", finding.operations}};
  result["level"] = nullptr;
  if (finding.level) result["level"] = level_name(*finding.level);
  if (finding.seed) result["seed"] = finding.seed;
  if (finding.history) result["history"] = *finding.history;
  return result;
}

Json test_json(const Test& test) {
  Json findings = Json::array();
  for (const Finding& finding : test.findings) findings.push_back(finding_json(finding));
  return {{"name", test.name},
          {"title", test.title},
          {"basis", test.basis},
          {"state", state_word(test.state)},
          {"detail", test.detail},
          {"seconds", test.seconds},
          {"findings", std::move(findings)}};
}

Json witnesses_json(const Witnesses& witnesses) {
  return {{"reads", witnesses.reads},
          {"own", witnesses.own},
          {"flushed", witnesses.flushed},
          {"at_once", witnesses.at_once},
          {"overlapped_flushes", witnesses.overlapped_flushes},
          {"survived", witnesses.survived}};
}

std::string_view part_word(Part part) {
  switch (part) {
    case Part::kWhole:
      return "whole";
    case Part::kHead:
      return "head";
    case Part::kTail:
      return "tail";
    case Part::kMiddle:
      break;
  }
  return "middle";
}

Json operation_json(const History& history, const Operation& operation, uint64_t start_ns) {
  Json seen = Json::array();
  for (const Observation& observation : history.seen(operation)) {
    Json one = {{"cell", observation.cell}, {"tag", observation.tag}};
    if (observation.tag == kGarbageTag) one["tag"] = "garbage";
    if (observation.part != Part::kWhole) one["part"] = part_word(observation.part);
    seen.push_back(std::move(one));
  }
  Json result = {{"connection", operation.connection},
                 {"kind", kind_name(operation.kind)},
                 {"cell", operation.cell},
                 {"cells", operation.cells},
                 {"send_ns", operation.send_ns - start_ns},
                 {"reply_ns", nullptr},
                 {"error", operation.error}};
  if (operation.replied()) result["reply_ns"] = operation.reply_ns - start_ns;
  if (operation.kind == Kind::kWrite) result["tag"] = operation.tag;
  if (operation.fua) result["fua"] = true;
  if (!seen.empty()) result["seen"] = std::move(seen);
  return result;
}

// An operation is a line of its own: a line tool can find it.
std::string history_lines(const NamedHistory& named) {
  const History& history = named.history;
  const uint64_t start_ns = history.operations.empty() ? 0 : history.operations.front().send_ns;
  Json cells = Json::array();
  for (const CellPlace& place : history.cells) {
    cells.push_back({{"offset", place.offset}, {"length", place.length}});
  }
  Json restarts = Json::array();
  for (const uint64_t restart : history.restarts_ns) {
    restarts.push_back(restart > start_ns ? restart - start_ns : 0);
  }
  std::string result = fmt::format(
      "    {{\n      \"title\": {},\n      \"seed\": {},\n      \"connections\": {},\n"
      "      \"cells\": {},\n      \"restarts_ns\": {},\n      \"operations\": [",
      dump(named.title), named.seed, dump(history.connection_names), dump(cells), dump(restarts));
  const char* separator = "\n        ";
  for (const Operation& operation : history.operations) {
    result += separator;
    result += dump(operation_json(history, operation, start_ns));
    separator = ",\n        ";
  }
  result += history.operations.empty() ? "]\n    }" : "\n      ]\n    }";
  return result;
}

}  // namespace

std::string_view state_word(State state) {
  switch (state) {
    case State::kPassed:
      return "passed";
    case State::kFailed:
      return "failed";
    case State::kWarned:
      return "warned";
    case State::kInconclusive:
      return "inconclusive";
    case State::kSkipped:
      break;
  }
  return "skipped";
}

std::string dump(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

Json report_json(const Report& report) {
  Json summary;
  for (const State state :
       {State::kPassed, State::kFailed, State::kWarned, State::kInconclusive, State::kSkipped}) {
    summary[std::string(state_word(state))] = std::ranges::count(report.tests, state, &Test::state);
  }
  Json facts = Json::array();
  for (const auto& [name, value] : report.facts) {
    facts.push_back({{"name", name}, {"value", value}});
  }
  Json tests = Json::array();
  for (const Test& test : report.tests) tests.push_back(test_json(test));
  Json result = {{"format", kFormat},
                 {"version", report.version},
                 {"target", report.target},
                 {"command_line", report.command_line},
                 {"started", report.started},
                 {"seconds", report.seconds},
                 {"seed", report.seed},
                 {"interrupted", report.interrupted},
                 {"outcome", outcome_name(report.outcome)},
                 {"exit_status", static_cast<int>(report.outcome)},
                 {"verdict", report.verdict},
                 {"multi_conn_advertised", report.multi_conn_advertised},
                 {"level_reached", nullptr},
                 {"facts", std::move(facts)},
                 {"summary", std::move(summary)},
                 {"tests", std::move(tests)},
                 {"counts", report.counts},
                 {"witnesses", witnesses_json(report.witnesses)}};
  if (report.level_reached) result["level_reached"] = level_name(*report.level_reached);
  if (report.counts.empty()) result["counts"] = Json::object();
  return result;
}

std::string json_report(const Report& report, bool with_histories) {
  std::string result = dump(report_json(report), 2);
  if (with_histories) {
    result.resize(result.size() - 2);  // "\n}"
    result += ",\n  \"histories\": [";
    const char* separator = "\n";
    for (const NamedHistory& history : report.histories) {
      result += separator;
      result += history_lines(history);
      separator = ",\n";
    }
    result += report.histories.empty() ? "]\n}" : "\n  ]\n}";
  }
  return result + "\n";
}

}  // namespace weft::check
