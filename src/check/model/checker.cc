// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/checker.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <queue>
#include <utility>

#include "check/model/cell_judge.h"
#include "check/model/timeline.h"
#include "check/model/zones.h"

namespace weft::check {

namespace {

// One pass, as things were sent. Between two sendings of changes lie flushes; of those the last is
// as good a successor as any.
uint64_t count_overlapped_flushes(const Timeline& timeline) {
  // The ends of successful changes that may be in flight; the first to end on top.
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> in_flight;
  // Flushes since the last change, and the moment after which a flush must be sent to show what
  // they forgot.
  std::vector<uint64_t> overlapped;
  uint64_t last_flush_send_ns = 0;
  uint64_t count = 0;
  const auto close = [&] {
    count += static_cast<uint64_t>(std::ranges::count_if(
        overlapped, [&](uint64_t shown_after) { return shown_after < last_flush_send_ns; }));
    overlapped.clear();
  };
  uint32_t epoch = 0;
  for (uint32_t i = 0; i < timeline.history().operations.size(); i++) {
    const Operation& op = timeline.operation(i);
    if (timeline.epoch(i) != epoch) {
      epoch = timeline.epoch(i);
      close();
    }
    if (changes(op.kind)) {
      close();
      if (op.succeeded()) in_flight.push(timeline.end(i));
    }
    if (op.kind != Kind::kFlush || !op.succeeded()) continue;
    while (!in_flight.empty() && in_flight.top() <= op.send_ns) in_flight.pop();
    if (!in_flight.empty()) overlapped.push_back(std::max(in_flight.top(), timeline.end(i)));
    last_flush_send_ns = op.send_ns;
  }
  close();
  return count;
}

}  // namespace

std::string_view level_name(Level level) {
  switch (level) {
    case Level::kOwn:
      return "own";
    case Level::kFlushed:
      return "flushed";
    case Level::kAtOnce:
      return "at-once";
  }
  return "unknown";
}

std::string_view fault_name(Fault fault) {
  switch (fault) {
    case Fault::kStale:
      return "stale-read";
    case Fault::kFuture:
      return "future-read";
    case Fault::kGarbage:
      return "garbage-read";
    case Fault::kFalseZero:
      return "false-zero";
    case Fault::kLost:
      return "lost-write";
    case Fault::kUnsteady:
      return "unsteady-read";
    case Fault::kNotLinear:
      return "not-linearizable";
  }
  return "unknown";
}

std::vector<uint32_t> Violation::operations() const {
  std::vector<uint32_t> all = more;
  for (const uint32_t op : {read, seen, missed, flush, other_read}) {
    if (op != kNone) all.push_back(op);
  }
  std::ranges::sort(all);
  const auto twice = std::ranges::unique(all);
  all.erase(twice.begin(), twice.end());
  return all;
}

void Witnesses::add(const Witnesses& more) {
  reads += more.reads;
  own += more.own;
  flushed += more.flushed;
  at_once += more.at_once;
  overlapped_flushes += more.overlapped_flushes;
  survived += more.survived;
}

Verdicts check(const History& history, const CheckOptions& options) {
  const Timeline timeline(history, options);
  Verdicts verdicts;
  Violations violations(options.violations_max);
  CellJudge judge(timeline, violations, verdicts.witnesses);
  for (uint32_t cell = 0; cell < timeline.cells(); cell++) judge.judge(cell);
  violations.finish(verdicts);
  verdicts.witnesses.overlapped_flushes = count_overlapped_flushes(timeline);
  return verdicts;
}

namespace {

template <typename Keep>
History cut_out(const History& history, const std::vector<uint32_t>& operations, Keep keep) {
  History part;
  part.cells = history.cells;
  part.connection_names = history.connection_names;
  part.restarts_ns = history.restarts_ns;
  for (const uint32_t index : operations) {
    Operation op = history.operations[index];
    const std::span<const Observation> seen = history.seen(op);
    op.seen = static_cast<uint32_t>(part.observations.size());
    std::ranges::copy_if(seen, std::back_inserter(part.observations), keep);
    op.seen_count = static_cast<uint32_t>(part.observations.size()) - op.seen;
    part.operations.push_back(op);
  }
  return part;
}

bool somebody_wrote(const History& history, uint32_t cell, Tag tag) {
  return std::ranges::any_of(history.operations, [&](const Operation& op) {
    return op.kind == Kind::kWrite && op.tag == tag && op.cell <= cell && cell < op.cell_end();
  });
}

}  // namespace

History part_of(const History& history, const std::vector<uint32_t>& operations) {
  return cut_out(history, operations, [](const Observation&) { return true; });
}

History part_of(const History& history, const Violation& violation) {
  const bool not_linear = violation.fault == Fault::kNotLinear;
  const bool two = not_linear || violation.fault == Fault::kUnsteady;
  // What was there before the first write has many looks.
  const bool unknown = not_linear && (violation.seen == kNone || violation.missed == kNone);
  return cut_out(history, violation.operations(), [&](const Observation& seen) {
    if (seen.cell != violation.cell) return false;
    if (seen.tag == violation.tag || (two && seen.tag == violation.other_tag)) return true;
    return unknown && (seen.tag == kZeroTag || !somebody_wrote(history, seen.cell, seen.tag));
  });
}

}  // namespace weft::check
