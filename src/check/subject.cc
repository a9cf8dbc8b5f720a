// SPDX-License-Identifier: BSD-3-Clause
#include "check/subject.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <utility>

#include "base/result.h"

namespace weft::check {
namespace {

// For one connection more: a server that lets it wait in its backlog does so for ever.
constexpr std::chrono::milliseconds kExtraPatience{3'000};
constexpr std::chrono::milliseconds kDialAgain{1'000};
constexpr std::chrono::milliseconds kDialPause{30};
constexpr ptrdiff_t kLastWords = 5;  // lines of a dead server's output

// Where an author should look first.
std::vector<std::string> advice_for(Fault fault, Level level) {
  switch (fault) {
    case Fault::kStale:
      if (level == Level::kOwn) {
        return {"A connection must see its own acknowledged changes. Look for a write that is",
                "acknowledged before it is done, and for a read-modify-write of a block that does",
                "not exclude other changes to the same block."};
      }
      if (level == Level::kFlushed) {
        return {"After a FLUSH reply on any connection, or a change's own FUA reply, every",
                "connection must see it. Look for a cache (or read-ahead) that belongs to one",
                "connection and is not dropped by the others' flushes, and for a flush that is",
                "skipped because a dirty mark was cleared while a change was under way."};
      }
      return {"An acknowledged change was not visible at once on another connection. The flag",
              "allows that until a flush; a disk without a cache per connection does not do it."};
    case Fault::kFuture:
      return {"The read was answered with data whose write had not been sent yet: replies or",
              "their payloads are mixed up (a wrong cookie, a buffer used again too early)."};
    case Fault::kGarbage:
      return {"Nobody wrote these bytes here. Look for short reads and writes that are taken for",
              "whole ones, replies with a wrong cookie, and wrong offsets."};
    case Fault::kFalseZero:
      return {"BLOCK_STATUS said that a range reads as zeroes while it held data that had to be",
              "seen. Look for a map of extents that writes do not keep up to date."};
    case Fault::kLost:
      return {"What a flush or FUA had made safe was gone after the restart. Look for a flush",
              "that is skipped or not passed on, and for one that joins a sync which had already",
              "begun when the change ended."};
    case Fault::kUnsteady:
      return {"After the restart the same block was read twice with different content, and",
              "nothing was written between."};
    case Fault::kNotLinear:
      return {"Two reads saw changes in an order that no single disk could have had."};
  }
  return {};
}

// Fewer operations and a shorter time make the better story.
uint64_t length_of(const History& history, const Violation& violation) {
  const std::vector<uint32_t> operations = violation.operations();
  if (operations.empty()) return 0;
  return uint64_t{operations.size()} << 48 |
         std::min<uint64_t>(history.operations[operations.back()].send_ns -
                                history.operations[operations.front()].send_ns,
                            (uint64_t{1} << 48) - 1);
}

}  // namespace

tools::Dialled Run::dial() const {
  const auto end = std::chrono::steady_clock::now() + kDialAgain;
  for (;;) {
    try {
      return dial_once(options.patience);
    } catch (const ConfigError&) {
      if (interrupted || std::chrono::steady_clock::now() >= end) throw;
      if (server && !server->running()) throw;
      std::this_thread::sleep_for(kDialPause);
    }
  }
}

void Run::count_connections() {
  std::vector<tools::Dialled> held;
  held.push_back(dial());
  try {
    while (held.size() < options.connections) {
      held.push_back(dial_once(std::min(options.patience, kExtraPatience)));
    }
  } catch (const ConfigError& error) {
    if (held.size() == 1) refusal = error.what();
  }
  connections_max = static_cast<uint32_t>(held.size());
}

tools::Dialled Run::dial_once(std::chrono::milliseconds patience) const {
  return tools::dial(target,
                     {.export_name = target.export_name,
                      .want_structured = true,
                      .contexts = {nbd::kBaseAllocation},
                      .infos = {nbd::kInfoBlockSize}},
                     patience);
}

Layout Run::layout(const nbd::ClientResult& negotiated) const {
  const uint32_t granularity = negotiated.block_sizes ? negotiated.block_sizes->min : 1;
  const uint32_t payload_max =
      negotiated.block_sizes ? negotiated.block_sizes->payload_max : nbd::kPayloadAdvertisedMax;
  const uint32_t block =
      std::clamp(options.block_size, granularity, std::max(granularity, payload_max));
  Range range = options.range.value_or(Range{0, negotiated.size});
  if (!range.within(negotiated.size)) {
    throw ConfigError(fmt::format("--range: the export has {} bytes only", negotiated.size));
  }
  const uint64_t first = (range.offset + granularity - 1) / granularity * granularity;
  const uint64_t room = range.end() > first ? (range.end() - first) / block : 0;
  if (room == 0) {
    throw ConfigError(
        fmt::format("there is no room for a block of {} bytes: {}", block,
                    options.range ? "give a larger --range" : "the export is too small"));
  }
  return {first, static_cast<uint32_t>(std::min<uint64_t>(options.blocks, room)), block,
          granularity};
}

void Run::ensure_server() {
  if (!server || server->running()) return;
  const std::string output = server->output();
  Finding finding{.kind = "server-died",
                  .title = "the server ended by itself",
                  .story = {},
                  .advice = {"Whatever a client does, the server has to go on for the others."},
                  .seed = options.seed,
                  .replay = replay(options.seed)};
  for (size_t at = 0; at < output.size();) {
    const size_t end = std::min(output.find('\n', at), output.size());
    finding.story.push_back(output.substr(at, end - at));
    at = end + 1;
  }
  if (std::ssize(finding.story) > kLastWords) {
    finding.story.erase(finding.story.begin(), finding.story.end() - kLastWords);
  }
  if (!finding.story.empty()) finding.title += "; its last words: " + finding.story.back();
  const auto known = std::ranges::find(report.tests, "server.alive", &Test::name);
  if (known != report.tests.end()) {
    known->findings.front().count++;
  } else {
    report.tests.push_back({.name = "server.alive",
                            .title = "the server stays up",
                            .basis = "MUST, NBD protocol: Transmission",
                            .state = State::kFailed,
                            .detail = finding.title,
                            .findings = {finding}});
  }
  server->start(kStartLimit);
}

LoadOptions Run::load_options(uint64_t seed) const {
  LoadOptions load{.connections = std::min(options.connections, connections_max),
                   .depth = options.depth,
                   .seed = seed,
                   .patience = options.patience};
  for (size_t i = 0; i < kKinds; i++) {
    if (!options.kinds.empty() && !options.kinds.contains(static_cast<Kind>(i)))
      load.weights[i] = 0;
  }
  return load;
}

bool Run::wants(const std::string& test) const {
  return test.starts_with(options.only);
}

std::vector<Finding> findings_of(Run& run, NamedHistory history, const Verdicts& verdicts,
                                 Level promised) {
  std::map<std::pair<Fault, Level>, std::vector<const Violation*>> groups;
  for (const Level level : kLevels) {
    if (level > promised) break;
    for (const Violation& violation : verdicts.of(level).violations) {
      groups[{violation.fault, level}].push_back(&violation);
    }
  }
  std::vector<Finding> findings;
  const auto index = static_cast<uint32_t>(run.report.histories.size());
  for (const auto& [what, violations] : groups) {
    const Violation& best = **std::ranges::min_element(
        violations, {}, [&](const Violation* one) { return length_of(history.history, *one); });
    findings.push_back({.kind = std::string(fault_name(what.first)),
                        .title = summary(history.history, best),
                        .story = tell(history.history, best),
                        .advice = advice_for(what.first, what.second),
                        .count = violations.size(),
                        .seed = history.seed,
                        .replay = run.replay(history.seed),
                        .history = index,
                        .operations = best.operations(),
                        .level = what.second});
  }
  if (!findings.empty()) run.report.histories.push_back(std::move(history));
  return findings;
}

}  // namespace weft::check
