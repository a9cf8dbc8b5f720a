// SPDX-License-Identifier: BSD-3-Clause
// Made-up reports, for the tests of the pages and for looking at them:
//   report_sample WHAT OPERATIONS DIRECTORY   writes report.txt, .json, .xml and .html there
// WHAT is broken, kept, empty or hostile.
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "check/report/report.h"

namespace weft::check {
namespace {

constexpr uint32_t kCells = 32, kCellBytes = 2048;

// Operations as a load of `connections` x 4 produces them, on a disk that is right.
class Maker {
 public:
  Maker(uint64_t seed, std::vector<std::string> connections) : random_(seed) {
    history_.connection_names = std::move(connections);
    for (uint32_t cell = 0; cell < kCells; ++cell) {
      history_.cells.push_back({65536 + uint64_t{cell} * kCellBytes, kCellBytes});
    }
    content_.resize(kCells, kZeroTag);
  }

  // `count` operations of the connections [first, end); the last few of them without a reply when
  // the server is `killed`.
  void load(size_t count, uint32_t first, uint32_t end, bool killed) {
    constexpr uint32_t kDepth = 4;
    std::vector<uint64_t> idle((end - first) * kDepth, now_);
    for (size_t i = 0; i < count; ++i) {
      const auto slot = std::ranges::min_element(idle);
      const auto connection = first + static_cast<uint32_t>(slot - idle.begin()) / kDepth;
      const bool unanswered = killed && i + idle.size() > count;
      *slot = add(connection, *slot + below(20'000), unanswered);
      now_ = std::max(now_, history_.operations.back().send_ns);
    }
    if (!killed) now_ = std::ranges::max(idle);
  }
  void restart() {
    now_ += 3'000'000;
    history_.restarts_ns.push_back(now_);
    now_ += 5'000'000;
  }
  History take() { return std::move(history_); }

 private:
  uint64_t below(uint64_t limit) { return random_() % limit; }

  // Returns when its connection can send again.
  uint64_t add(uint32_t connection, uint64_t send_ns, bool unanswered) {
    Operation operation;
    operation.send_ns = std::max(send_ns, now_);
    operation.connection = connection;
    const uint64_t dice = below(100);
    operation.kind = dice < 34   ? Kind::kRead
                     : dice < 70 ? Kind::kWrite
                     : dice < 76 ? Kind::kZero
                     : dice < 92 ? Kind::kFlush
                                 : Kind::kStatus;
    const bool flush = operation.kind == Kind::kFlush;
    const uint64_t took = (flush ? 400'000 : 60'000) + below(flush ? 500'000 : 120'000);
    if (!flush) {
      operation.cells = 1 + static_cast<uint32_t>(below(2));
      operation.cell = static_cast<uint32_t>(below(kCells - 1));
    }
    operation.reply_ns = unanswered ? kNever : operation.send_ns + took;
    if (changes(operation.kind)) {
      operation.fua = below(5) == 0;
      if (operation.kind == Kind::kWrite) operation.tag = ++tag_;
      if (!unanswered && below(400) == 0) {
        operation.error = 28;  // ENOSPC
      } else {
        std::fill_n(content_.begin() + operation.cell, operation.cells, operation.tag);
      }
    }
    operation.seen = static_cast<uint32_t>(history_.observations.size());
    if (operation.kind == Kind::kRead && !unanswered) {
      for (uint32_t cell = operation.cell; cell < operation.cell_end(); ++cell) {
        history_.observations.push_back({cell, content_[cell]});
      }
      operation.seen_count = operation.cells;
    }
    history_.operations.push_back(operation);
    return operation.send_ns + took;
  }

  std::mt19937_64 random_;
  History history_;
  std::vector<Tag> content_;
  uint64_t now_ = 7'000'000'000;
  Tag tag_ = 0;
};

std::string at(const History& history, uint32_t index) {
  const Operation& operation = history.operations[index];
  return fmt::format(
      "{:.3f} ms",
      static_cast<double>(operation.send_ns - history.operations.front().send_ns) / 1e6);
}

const std::string& name_of(const History& history, uint32_t index) {
  return history.connection_names[history.operations[index].connection];
}

// Makes one read of the second half see what a write of before left, though a later one was
// flushed; the proof is in `finding`. False: there is no place for it.
bool plant(History& history, Finding& finding, size_t from) {
  auto& all = history.operations;
  for (size_t r = std::max(from, all.size() / 2); r < all.size(); ++r) {
    Operation& read = all[r];
    if (read.kind != Kind::kRead || !read.succeeded()) continue;
    std::vector<uint32_t> proof;  // backwards: read, flush, what had to be seen, what was seen
    uint64_t before = read.send_ns;
    for (size_t i = r; i-- > 0 && proof.size() < 3;) {
      const Operation& other = all[i];
      const bool wanted = proof.empty() ? other.kind == Kind::kFlush
                                        : other.kind == Kind::kWrite && other.cell <= read.cell &&
                                              read.cell < other.cell_end() &&
                                              other.connection != read.connection;
      if (!wanted || !other.succeeded() || other.reply_ns >= before) continue;
      proof.push_back(static_cast<uint32_t>(i));
      before = other.send_ns;
    }
    if (proof.size() < 3) continue;
    history.observations[read.seen].tag = all[proof[2]].tag;
    const CellPlace place = history.cells[read.cell];
    const auto where = fmt::format("{}+{}", place.offset, place.length);
    const auto index = static_cast<uint32_t>(r);
    finding.operations = {proof[2], proof[1], proof[0], index};
    finding.story = {
        fmt::format("{} wrote the block at {} (tag {}), sent at {}", name_of(history, proof[2]),
                    where, all[proof[2]].tag, at(history, proof[2])),
        fmt::format("{} wrote it again (tag {}), sent at {} and acknowledged",
                    name_of(history, proof[1]), all[proof[1]].tag, at(history, proof[1])),
        fmt::format("{} sent a flush at {}, which the server acknowledged",
                    name_of(history, proof[0]), at(history, proof[0])),
        fmt::format("{} read the block, sent at {}", name_of(history, index), at(history, index)),
        fmt::format("wrong: {} read tag {} at {}, which is older than what it had to see",
                    name_of(history, index), all[proof[2]].tag, where),
        fmt::format("had to be seen: {}'s write of tag {} or what came after it; the flush was "
                    "acknowledged before the read was sent",
                    name_of(history, proof[1]), all[proof[1]].tag)};
    return true;
  }
  return false;
}

Finding finding(std::string kind, std::string title, uint64_t seed, uint32_t history) {
  Finding result;
  result.kind = std::move(kind);
  result.title = std::move(title);
  result.seed = seed;
  result.history = history;
  result.replay = fmt::format(
      "nbdcheck --destroy --consistency --connections=4 --depth=4 --seed={} "
      "'nbd+unix:///?socket=/run/nbd.sock'",
      seed);
  return result;
}

Report broken(size_t operations) {
  Report report;
  report.outcome = Outcome::kBroken;
  report.verdict =
      "what one connection wrote and flushed was not seen by another, though the server advertises "
      "CAN_MULTI_CONN";
  report.multi_conn_advertised = true;
  report.level_reached = Level::kOwn;

  Maker maker(17, {"A", "B", "C", "D"});
  maker.load(operations, 0, 4, false);
  report.histories.push_back({"round 3, seed 17", 17, maker.take()});
  Maker cut(23, {"A", "B", "A2", "B2"});
  cut.load(std::min<size_t>(operations, 300), 0, 2, true);
  cut.restart();
  cut.load(std::min<size_t>(operations, 200), 2, 4, false);
  report.histories.push_back({"power cut 2, seed 23", 23, cut.take()});

  Finding stale =
      finding("stale-read", "a read saw what was there before a write that was flushed", 17, 0);
  stale.count = 1203;
  stale.advice = {"look for a cache that belongs to a connection, not to the export"};
  Finding fua = finding("stale-read", "the same for a second block", 17, 0);
  Finding lost = finding("lost-write", "a flushed write was gone after the power cut", 23, 1);
  lost.replay = "nbdcheck --power-cut --seed=23 -- myserver --socket {socket} {disk}";
  std::vector<Finding> flushed, survive;
  if (plant(report.histories[0].history, stale, 0)) flushed.push_back(stale);
  if (plant(report.histories[0].history, fua, operations * 3 / 4)) flushed.push_back(fua);
  History& second = report.histories[1].history;
  const size_t after = std::min<size_t>(operations, 300) + 3;
  if (plant(second, lost, after)) survive.push_back(lost);

  report.tests = {
      {"consistency.own",
       "each connection sees what it wrote",
       "MUST, NBD protocol: Ordering",
       State::kPassed,
       "12,408 reads had a write of their own to see",
       {},
       10.01},
      {"consistency.flushed", "what was flushed is seen on every connection",
       "MUST, NBD protocol: NBD_FLAG_CAN_MULTI_CONN", State::kFailed,
       "1,203 of 9,310 reads saw what was there before", flushed, 10.01},
      {"consistency.at-once",
       "what was acknowledged is seen on every connection",
       "the promise of a disk without caches of connections",
       State::kInconclusive,
       "not judged: the level below is broken already",
       {},
       0},
      {"power-cut.flushed", "what was flushed survives a loss of power",
       "MUST, NBD protocol: NBD_CMD_FLUSH", State::kFailed, "1 of 400 blocks", survive, 4.2},
      {"handshake.unknown-option",
       "an unknown option is answered with NBD_REP_ERR_UNSUP",
       "MUST, NBD protocol: Option types",
       State::kPassed,
       "",
       {},
       0.004},
      {"handshake.list",
       "NBD_OPT_LIST with data is refused",
       "SHOULD, NBD protocol: NBD_OPT_LIST",
       State::kWarned,
       "the server listed its exports",
       {},
       0.003},
      {"transmission.fast-zero",
       "NBD_CMD_FLAG_FAST_ZERO fails fast",
       "MUST, NBD protocol",
       State::kSkipped,
       "the server does not advertise it",
       {},
       0},
  };
  return report;
}

Report kept() {
  Report report;
  report.outcome = Outcome::kKept;
  report.verdict = "every read saw what it had to see, at once";
  report.multi_conn_advertised = true;
  report.level_reached = Level::kAtOnce;
  Maker maker(5, {"A", "B", "C", "D"});
  maker.load(2'000, 0, 4, false);
  report.histories.push_back({"round 1, seed 5", 5, maker.take()});
  report.tests = {{"consistency.flushed",
                   "what was flushed is seen on every connection",
                   "MUST, NBD protocol: NBD_FLAG_CAN_MULTI_CONN",
                   State::kPassed,
                   "",
                   {},
                   10}};
  return report;
}

// What a server that wants to harm its tester might say.
Report hostile() {
  Report report = broken(500);
  const std::string evil =
      "</script><script>document.documentElement.dataset.harmed='1'</script><!-- <script> "
      "\xff\xfe\x80 \x01\x1b[31m ]]> & \" ' {{data}} \xed\xa0\x80 \u2028 \u202e";
  report.target = evil;
  report.verdict = evil;
  report.facts.emplace_back(evil, evil);
  report.counts[evil] = 1;
  for (Test& test : report.tests) {
    test.detail = evil;
    for (Finding& each : test.findings) {
      each.title = each.replay = evil;
      each.story.push_back(evil);
      each.advice.push_back(evil);
    }
  }
  report.tests.push_back({evil, evil, evil, State::kFailed, evil, {}, 0});
  for (NamedHistory& history : report.histories) {
    history.title = evil;
    history.history.connection_names[0] = evil;
    history.history.operations[3].error = 4'000'000'000;
  }
  return report;
}

}  // namespace
}  // namespace weft::check

int main(int argc, char** argv) {
  using namespace weft::check;
  if (argc != 4) {
    fmt::print(stderr, "report_sample: give WHAT OPERATIONS DIRECTORY\n");
    return 2;
  }
  const std::string what = argv[1], folder = argv[3];
  Report report = what == "broken"    ? broken(std::strtoull(argv[2], nullptr, 10))
                  : what == "kept"    ? kept()
                  : what == "hostile" ? hostile()
                                      : Report{};
  if (what != "empty") {
    if (what != "hostile") report.target = "nbd+unix:///?socket=/run/nbd.sock";
    report.command_line = "nbdcheck --destroy --all 'nbd+unix:///?socket=/run/nbd.sock'";
    report.started = "2026-11-21T14:35:13Z";
    report.seconds = 24.6;
    report.seed = 17;
    for (auto [name, value] : {std::pair{"size", "16,777,216 bytes"},
                               {"headers", "structured"},
                               {"flags", "FLUSH FUA TRIM WRITE_ZEROES DF CAN_MULTI_CONN CACHE"},
                               {"block sizes", "1 / 4096 / 33554432"}}) {
      report.facts.emplace_back(name, value);
    }
    report.counts["operations"] = 100'000;
    report.counts["rounds"] = 4;
    report.witnesses = {12'408, 5'310, 9'310, 2'204, 118, 400};
  }
  for (const auto& [name, text] : {std::pair{"report.txt", text_report(report, true)},
                                   {"report.json", json_report(report, true)},
                                   {"report.xml", junit_report(report)},
                                   {"report.html", html_report(report)}}) {
    std::ofstream(folder + "/" + name, std::ios::binary) << text;
  }
  return static_cast<int>(report.outcome);
}
