// SPDX-License-Identifier: BSD-3-Clause
// The consistency mode: rounds of random load, each judged as soon as it has ended; and when a
// round breaks a promise, smaller loads that break it too.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <iterator>
#include <optional>
#include <utility>

#include "base/result.h"
#include "check/subject.h"

namespace weft::check {
namespace {

using Clock = std::chrono::steady_clock;

constexpr char kBasis[] = "MUST, NBD protocol: Transmission flags, NBD_FLAG_CAN_MULTI_CONN";
constexpr char kOrderBasis[] = "MUST, NBD protocol: Ordering of messages and writes";

// So many reads must have been able to show a fault before their silence counts.
constexpr uint64_t kWitnessesMin = 200;
constexpr uint64_t kOverlappedFlushesMin = 10;

constexpr uint32_t kOverlaps = 20;  // of a round
constexpr uint64_t kRoundOperations = 20'000;
constexpr std::chrono::milliseconds kRoundLimit{1'500};
constexpr std::chrono::milliseconds kSmallLimit{500};  // of a load that is tried for minimising
// Minimising may take as long as the load, within these bounds.
constexpr std::chrono::milliseconds kMinimiseMin{2'000};
constexpr std::chrono::milliseconds kMinimiseMax{5'000};

// Rounds differ in what they make likely: many requests at once and few, many flushes and few.
LoadOptions shape(LoadOptions load) {
  load.operations = kRoundOperations;
  load.limit = kRoundLimit;
  switch (load.seed % 4) {
    case 1:  // each request alone: long after its reply others must see it
      load.depth = 1;
      break;
    case 2:  // few flushes: FUA, and what is seen without either
      load.fua_percent = 40;
      load.weights[static_cast<size_t>(Kind::kFlush)] /= 4;
      break;
    case 3:  // hardly anything but writes, reads and flushes
      load.weights[static_cast<size_t>(Kind::kTrim)] = 0;
      load.weights[static_cast<size_t>(Kind::kZero)] /= 3;
      load.weights[static_cast<size_t>(Kind::kFlush)] *= 2;
      break;
    default:
      break;
  }
  return load;
}

struct Round {
  NamedHistory history;
  Verdicts verdicts;
  Stop stop = Stop::kDone;
  bool violated = false;
  std::string failure;
};

class Consistency {
 public:
  explicit Consistency(Run& run) : run_(run) {}

  void go() {
    const auto begin = Clock::now();
    const auto end = begin + run_.options.duration;
    const nbd::ClientResult server = run_.dial().result;
    if (server.transmission_flags & nbd::kReadOnly) {
      return add({.name = "consistency.flushed",
                  .title = "what is flushed is seen by every connection",
                  .basis = kBasis,
                  .state = State::kInconclusive,
                  .detail = "the export is read-only: nothing can be written to it"});
    }
    promised_ = run_.report.multi_conn_advertised ? Level::kFlushed : Level::kOwn;
    layout_.emplace(run_.layout(server));
    const uint64_t rounds_min = promised_ == Level::kOwn ? 2 : 1;
    for (uint64_t round = 0; round < rounds_min || Clock::now() < end; round++) {
      if (run_.interrupted && round > 0) break;
      const uint64_t seed = run_.options.seed + round;
      std::optional<Round> played;
      try {
        played = play(load_of(seed), *layout_, seed);
      } catch (const ConfigError& error) {
        if (rounds_ == 0) throw;
        lost_ = error.what();  // what was seen before counts all the same
        break;
      }
      Round& done = *played;
      operations_ += done.history.history.operations.size();
      rounds_++;
      run_.progress.show(fmt::format("round {}, {} operations, {} reads judged", rounds_,
                                     operations_,
                                     witnesses_.reads + done.verdicts.witnesses.reads));
      const bool broken = judged(seed) && !done.verdicts.keeps(promised_);
      keep(std::move(done), seed);
      if (broken || !breaches_.empty()) break;
    }
    if (run_.interrupted && rounds_ == 0) return;
    report(std::chrono::duration<double>(Clock::now() - begin).count());
  }

 private:
  // Without the flag nobody may use a second connection: what one has written, another's cache may
  // undo much later. So every second round has one connection and is judged, and the others, with
  // all of them, only tell which level is reached.
  [[nodiscard]] bool judged(uint64_t seed) const {
    return promised_ != Level::kOwn || seed % 2 == run_.options.seed % 2;
  }

  [[nodiscard]] LoadOptions load_of(uint64_t seed) const {
    LoadOptions load = shape(run_.load_options(seed));
    if (promised_ == Level::kOwn && judged(seed)) load.connections = 1;
    return load;
  }

  Round play(const LoadOptions& options, const Layout& layout, uint64_t seed) {
    Round round;
    Load load(options, layout, [this] { return run_.dial(); }, &run_.interrupted);
    connections_ = std::max(connections_, load.connections());
    if (!load.refusal().empty()) refusal_ = load.refusal();
    compare_negotiations(load);
    round.stop = load.prepare();
    if (round.stop == Stop::kDone) round.stop = load.run();
    if (round.stop == Stop::kDone && options.weights[static_cast<size_t>(Kind::kFlush)] > 0) {
      round.stop = load.run_overlaps(kOverlaps);
    }
    // Before a flush the connections may differ (that tells the level); after it they must not.
    if (round.stop == Stop::kDone) round.stop = load.read_all(false);
    if (round.stop == Stop::kDone) round.stop = load.read_all(true);
    if (round.stop == Stop::kDone) round.stop = load.read_all(false);
    round.failure = load.failure();
    for (const auto& [text, count] : load.errors()) errors_[text] += count;
    round.history = {
        .title = fmt::format("seed {}", seed), .seed = seed, .history = load.history()};
    round.verdicts = check(round.history.history);
    return round;
  }

  void compare_negotiations(const Load& load) {
    const nbd::ClientResult& first = load.negotiated(0);
    for (uint32_t i = 1; i < load.connections(); i++) {
      const nbd::ClientResult& other = load.negotiated(i);
      if (first.size == other.size && first.transmission_flags == other.transmission_flags)
        continue;
      unequal_ = fmt::format(
          "connection A was told {} bytes, flags {:#x}; another one at the same time {} bytes, "
          "flags "
          "{:#x}",
          first.size, first.transmission_flags, other.size, other.transmission_flags);
    }
  }

  void keep(Round round, uint64_t seed) {
    Witnesses witnesses = round.verdicts.witnesses;
    if (!judged(seed)) witnesses.own = 0;
    witnesses_.add(witnesses);
    for (const Level level : kLevels) {
      if (level == Level::kOwn && !judged(seed)) continue;
      violations_[static_cast<size_t>(level)] += round.verdicts.of(level).count;
    }
    if (round.stop == Stop::kViolation || round.stop == Stop::kLost || round.stop == Stop::kHang) {
      const char* const kind = round.stop == Stop::kViolation ? "protocol-violation"
                               : round.stop == Stop::kHang    ? "no-reply"
                                                              : "disconnected";
      breaches_.push_back({.kind = kind,
                           .title = round.failure,
                           .story = {round.failure},
                           .seed = round.history.seed,
                           .replay = run_.replay(round.history.seed)});
    }
    if (judged(seed) && !round.verdicts.keeps(promised_)) {
      tell_violations(round);
    } else if (!example_ && !round.verdicts.keeps(Level::kAtOnce)) {
      example_ = findings_of(run_, round.history, round.verdicts, Level::kAtOnce);
    }
    last_ = std::move(round.history);
  }

  // The lowest level that is broken is shown by the smallest load; another one, which that may not
  // break, by the load that broke it.
  void tell_violations(const Round& round) {
    const Level lowest = round.verdicts.keeps(Level::kOwn) ? promised_ : Level::kOwn;
    NamedHistory smallest = minimise(round, lowest);
    const Verdicts verdicts = check(smallest.history);
    findings_ = findings_of(run_, std::move(smallest), verdicts, promised_);
    for (Finding& finding : findings_) {
      finding.replay = run_.options.replay(finding.seed, small_words_);
    }
    const auto told = [&](Level level) {
      return std::ranges::any_of(findings_, [&](const Finding& one) { return one.level == level; });
    };
    for (const Level level : kLevels) {
      if (level > promised_ || round.verdicts.of(level).violations.empty() || told(level)) continue;
      for (Finding& finding : findings_of(run_, round.history, round.verdicts, promised_)) {
        if (finding.level == level) findings_.push_back(std::move(finding));
      }
    }
  }

  // Loads with less of everything, as long as the same kind of fault is found again.
  NamedHistory minimise(const Round& round, Level level) {
    NamedHistory best = round.history;
    const auto end = Clock::now() + std::clamp(run_.options.duration, kMinimiseMin, kMinimiseMax);
    const uint64_t seed = round.history.seed;
    LoadOptions load = load_of(seed);
    load.limit = kSmallLimit;
    uint32_t blocks = layout_->blocks();
    const auto still_broken = [&](const LoadOptions& options, uint32_t count) {
      for (int attempt = 0; attempt < 2; attempt++) {
        if (Clock::now() >= end || run_.interrupted) return false;
        run_.progress.show("a violation was found; looking for a smaller load that shows it");
        try {
          Round again = play(options, smaller(count), seed);
          if (again.verdicts.keeps(level)) continue;
          best = std::move(again.history);
          return true;
        } catch (const ConfigError&) {
          return false;  // the server is gone: what was found stands
        }
      }
      return false;
    };
    const auto less = [&](auto change) {
      LoadOptions tried = load;
      uint32_t count = blocks;
      change(tried, count);
      if (!still_broken(tried, count)) return false;
      load = tried;
      blocks = count;
      return true;
    };
    for (const Kind kind : {Kind::kTrim, Kind::kZero, Kind::kCache, Kind::kStatus, Kind::kFlush}) {
      if (load.weights[static_cast<size_t>(kind)] == 0) continue;
      less([&](LoadOptions& tried, uint32_t&) { tried.weights[static_cast<size_t>(kind)] = 0; });
    }
    if (load.connections > 2) {
      less([](LoadOptions& tried, uint32_t&) { tried.connections = 2; });
    }
    less([](LoadOptions& tried, uint32_t&) { tried.depth = 1; });
    for (uint32_t count = blocks; count > 1;) {
      count = std::max(1u, count / 4);
      if (!less([&](LoadOptions&, uint32_t& tried) { tried = count; })) break;
    }
    while (load.operations > 40 &&
           less([](LoadOptions& tried, uint32_t&) { tried.operations /= 4; })) {
    }
    describe(load, blocks);
    return best;
  }

  Layout smaller(uint32_t blocks) const {
    const uint64_t block = layout_->range(0, layout_->cells_per_block()).length;
    const nbd::ClientResult& server = run_.dial().result;
    return {layout_->whole().offset, blocks, static_cast<uint32_t>(block),
            server.block_sizes ? server.block_sizes->min : 1};
  }

  void describe(const LoadOptions& load, uint32_t blocks) {
    std::string kinds;
    for (size_t i = 0; i < kKinds; i++) {
      if (load.weights[i] == 0) continue;
      kinds += (kinds.empty() ? "" : ",") + std::string(kind_name(static_cast<Kind>(i)));
    }
    small_words_ = {"--kinds=" + kinds, fmt::format("--connections={}", load.connections),
                    fmt::format("--depth={}", load.depth), fmt::format("--blocks={}", blocks)};
  }

  void add(Test test) { run_.report.tests.push_back(std::move(test)); }

  void report(double seconds) {
    run_.report.counts["operations"] += operations_;
    run_.report.counts["rounds"] += rounds_;
    run_.report.counts["connections"] = connections_;
    run_.report.witnesses.add(witnesses_);
    report_replies(seconds);
    report_own();
    report_flushed();
    report_at_once();
    if (!lost_.empty()) {
      add({.name = "consistency.run",
           .title = "the test runs to its end",
           .basis = "nbdcheck",
           .state = State::kInconclusive,
           .detail = lost_});
    }
    if (run_.report.histories.empty()) run_.report.histories.push_back(std::move(last_));
  }

  void report_replies(double seconds) {
    Test replies{.name = "consistency.replies",
                 .title = "every request is answered, with its own reply",
                 .basis = "MUST, NBD protocol: Transmission",
                 .state = breaches_.empty() ? State::kPassed : State::kFailed,
                 .detail = breaches_.empty()
                               ? fmt::format("{} operations in {} rounds", operations_, rounds_)
                               : breaches_.front().title,
                 .findings = breaches_,
                 .seconds = seconds};
    add(std::move(replies));
    if (!errors_.empty()) {
      Test test{.name = "consistency.errors",
                .title = "requests that the export allows succeed",
                .basis = "SHOULD, NBD protocol: Error values",
                .state = State::kWarned};
      for (const auto& [text, count] : errors_) {
        test.detail += fmt::format("{}{} x {}", test.detail.empty() ? "" : "; ", count, text);
      }
      add(std::move(test));
    }
    if (connections_ > 1) {
      Test test{.name = "consistency.equal",
                .title = "all connections are told the same size and flags",
                .basis = kBasis,
                .state = unequal_.empty()                    ? State::kPassed
                         : run_.report.multi_conn_advertised ? State::kFailed
                                                             : State::kSkipped,
                .detail = unequal_};
      if (test.state == State::kFailed) {
        test.findings.push_back({.kind = "unequal-exports",
                                 .title = unequal_,
                                 .story = {unequal_},
                                 .seed = run_.options.seed,
                                 .replay = run_.replay(run_.options.seed)});
      }
      add(std::move(test));
    }
  }

  std::vector<Finding> findings_for(Level level) const {
    std::vector<Finding> mine;
    std::ranges::copy_if(findings_, std::back_inserter(mine),
                         [&](const Finding& one) { return one.level == level; });
    return mine;
  }

  void report_own() {
    Test test{.name = "consistency.own",
              .title = "a connection sees its own acknowledged changes, and only what was written",
              .basis = kOrderBasis};
    test.findings = findings_for(Level::kOwn);
    if (violations_[0] > 0 || !test.findings.empty()) {
      test.state = State::kFailed;
      test.detail = fmt::format("{} violations", std::max<uint64_t>(violations_[0], 1));
    } else if (witnesses_.own < kWitnessesMin) {
      test.state = State::kInconclusive;
      test.detail = fmt::format(
          "only {} reads could have shown a fault, {} are wanted: a longer "
          "--duration may do",
          witnesses_.own, kWitnessesMin);
    } else {
      test.state = State::kPassed;
      test.detail = fmt::format("{} reads", witnesses_.own);
      run_.report.level_reached = Level::kOwn;
    }
    add(std::move(test));
  }

  void report_flushed() {
    Test test{.name = "consistency.flushed",
              .title = "what is flushed, or was written with FUA, is seen by every connection",
              .basis = kBasis};
    const bool advertised = run_.report.multi_conn_advertised;
    test.findings = findings_for(Level::kFlushed);
    const bool enough = witnesses_.flushed >= kWitnessesMin;
    if (violations_[1] > 0 || !test.findings.empty()) {
      test.state = advertised ? State::kFailed : State::kSkipped;
      test.detail = advertised ? fmt::format("{} violations", std::max<uint64_t>(violations_[1], 1))
                               : "not kept, and not advertised either";
    } else if (connections_ < 2) {
      test.state = advertised ? State::kInconclusive : State::kSkipped;
      test.detail = run_.options.connections < 2
                        ? "with one connection nothing can be said: give --connections=2 or more"
                        : fmt::format("there is no second connection: {}",
                                      refusal_.empty() ? run_.refusal : refusal_);
    } else if (!enough || (witnesses_.overlapped_flushes < kOverlappedFlushesMin &&
                           run_.options.kinds.empty())) {
      test.state = advertised ? State::kInconclusive : State::kSkipped;
      test.detail = fmt::format(
          "not enough races to conclude: {} reads of what another connection had flushed ({} are "
          "wanted), {} flushes that overlapped a change ({} are wanted): a longer --duration may "
          "do",
          witnesses_.flushed, kWitnessesMin, witnesses_.overlapped_flushes, kOverlappedFlushesMin);
    } else {
      test.state = advertised ? State::kPassed : State::kSkipped;
      test.detail =
          fmt::format("{}{} reads of what another connection had flushed",
                      advertised ? "" : "kept, though not advertised: ", witnesses_.flushed);
      if (violations_[0] == 0) run_.report.level_reached = Level::kFlushed;
    }
    add(std::move(test));
  }

  // Nobody is asked for this level: it is told, not judged.
  void report_at_once() {
    Test test{.name = "consistency.at-once",
              .title = "every acknowledged change is seen by every connection at once",
              .basis = "more than the flag promises",
              .state = State::kSkipped};
    if (violations_[2] > 0) {
      test.detail = "not reached; nobody has to";
      if (example_ && !example_->empty()) test.detail += ": " + example_->front().title;
    } else if (connections_ > 1 && witnesses_.at_once >= kWitnessesMin) {
      test.state = State::kPassed;
      test.detail = fmt::format("{} reads of what another connection had not flushed yet",
                                witnesses_.at_once);
      if (run_.report.level_reached == Level::kFlushed) run_.report.level_reached = Level::kAtOnce;
    } else {
      test.detail = "not enough races to tell";
    }
    add(std::move(test));
  }

  Run& run_;
  Level promised_ = Level::kOwn;
  std::optional<Layout> layout_;
  uint64_t rounds_ = 0;
  uint64_t operations_ = 0;
  uint32_t connections_ = 0;
  std::string refusal_;
  std::string lost_;  // why there was no further round
  std::string unequal_;
  Witnesses witnesses_;
  std::array<uint64_t, kLevels.size()> violations_{};
  std::vector<Finding> findings_;
  std::optional<std::vector<Finding>> example_;  // of a level that nobody promised
  std::vector<Finding> breaches_;
  std::vector<std::string> small_words_;
  std::map<std::string, uint64_t> errors_;
  NamedHistory last_;
};

}  // namespace

void run_consistency(Run& run) {
  Consistency(run).go();
}

}  // namespace weft::check
