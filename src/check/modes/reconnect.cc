// SPDX-License-Identifier: BSD-3-Clause
// The reconnect mode: what becomes of requests whose connection ends before their reply.
//
// A late write is one that takes effect after its client has given it up, sent another for the same
// place on another connection, and been told that this one is done. The specification, which speaks
// of replies only, does not forbid it; it loses data all the same.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/result.h"
#include "check/subject.h"

namespace weft::check {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kRoundLimit{1'000};
constexpr std::chrono::milliseconds kStall{400};   // how long the disk holds a write
constexpr std::chrono::milliseconds kSettle{150};  // for what is on its way to the disk
constexpr std::chrono::milliseconds kStopLimit{3'000};
constexpr uint64_t kWitnessesMin = 100;  // reads that could have shown a fault
constexpr int kStalls = 3;
constexpr int kPartings = 20;
constexpr uint32_t kInFlightAtParting = 8;

// The history as the client meant it: what it gave up was over when it did.
History as_meant(const Load& load) {
  History history = load.history();
  for (const Load::Abandoned& one : load.abandoned()) {
    Operation& operation = history.operations[one.operation];
    operation.reply_ns = one.cut_ns;
    operation.error = kGivenUp;
  }
  return history;
}

// The same, but what the server had to handle before it closed the connection was done then.
History as_handled(const Load& load, const std::vector<uint32_t>& unanswered) {
  History history = load.history();
  for (const Load::Abandoned& one : load.abandoned()) {
    if (!std::ranges::binary_search(unanswered, one.operation)) continue;
    history.operations[one.operation].reply_ns = one.cut_ns;
    history.operations[one.operation].error = nbd::kOk;
  }
  return history;
}

class Reconnect {
 public:
  explicit Reconnect(Run& run) : run_(run) {}

  void go() {
    const nbd::ClientResult server = run_.dial().result;
    promised_ = run_.report.multi_conn_advertised ? Level::kFlushed : Level::kOwn;
    if (server.transmission_flags & nbd::kReadOnly) {
      add("reconnect.consistent", "cut connections break nothing for the others",
          State::kInconclusive, "the export is read-only: nothing can be written to it");
      return;
    }
    layout_.emplace(run_.layout(server));
    begin_ = Clock::now();
    if (run_.disk) part(&Reconnect::stalled_writes);
    part(&Reconnect::cuts);
    part(&Reconnect::partings);
    if (run_.disk && run_.server) part(&Reconnect::restart);
    report_late_writes();
  }

 private:
  // A server that cannot be reached any more ends a part, not the others.
  void part(void (Reconnect::*what)()) {
    if (run_.interrupted) return;
    try {
      run_.ensure_server();
      (this->*what)();
    } catch (const ConfigError& error) {
      add("reconnect.serves", "the server takes new connections and answers the others",
          State::kFailed, error.what());
    }
  }

  Load load(uint64_t seed, uint32_t cut_every) const {
    LoadOptions options = run_.load_options(seed);
    options.cut_every = cut_every;
    if (cut_every > 0) {
      // One that is left without a reply may happen at any time: nothing could be said any more of
      // its cells, whose content it makes unknown, or like that of others.
      options.weights[static_cast<size_t>(Kind::kZero)] = 0;
      options.weights[static_cast<size_t>(Kind::kTrim)] = 0;
    }
    // Without the flag nobody may use two at once: one's cache may undo the other's writes.
    if (promised_ == Level::kOwn) options.connections = 1;
    options.limit = kRoundLimit;
    return Load(options, *layout_, [this] { return run_.dial(); }, &run_.interrupted);
  }

  Test& add(const char* name, const char* title, State state, std::string detail) {
    run_.report.tests.push_back({.name = name,
                                 .title = title,
                                 .basis = "the promise over connections that end",
                                 .state = state,
                                 .detail = std::move(detail)});
    return run_.report.tests.back();
  }

  // Random load whose connections are cut all the time.
  void cuts() {
    const auto end = begin_ + run_.options.duration;
    uint64_t cut = 0;
    uint64_t operations = 0;
    Witnesses witnesses;
    std::vector<Finding> findings;
    std::string failure;
    for (uint64_t round = 0; (round == 0 || Clock::now() < end) && !run_.interrupted; round++) {
      const uint64_t seed = run_.options.seed + round;
      Load load = this->load(seed, 30);
      Stop stop = load.prepare();
      if (stop == Stop::kDone) stop = load.run();
      if (stop == Stop::kDone) stop = load.read_all(true);
      cut += load.abandoned().size();
      operations += load.history().operations.size();
      run_.progress.show(fmt::format("round {}, {} requests left behind", round + 1, cut));
      const Verdicts verdicts = check(load.history());
      witnesses.add(verdicts.witnesses);
      if (!verdicts.keeps(promised_)) {
        findings = findings_of(run_, named(load.history(), seed), verdicts, promised_);
      }
      if (stop == Stop::kDone) look_for_late_writes(load, seed);
      if (stop == Stop::kViolation || stop == Stop::kHang || stop == Stop::kLost) {
        failure = load.failure();
        break;
      }
      if (!findings.empty() || !late_.empty()) break;
    }
    run_.report.counts["operations"] += operations;
    run_.report.counts["requests left behind"] += cut;
    run_.report.witnesses.add(witnesses);
    const uint64_t seen = witnesses.own + witnesses.flushed;
    Test& consistent =
        add("reconnect.consistent", "cut connections break nothing for the others",
            !findings.empty()       ? State::kFailed
            : seen >= kWitnessesMin ? State::kPassed
                                    : State::kInconclusive,
            fmt::format("{} operations, {} left without a reply; {} reads could have "
                        "shown a fault, {} are wanted",
                        operations, cut, seen, kWitnessesMin));
    consistent.findings = std::move(findings);
    consistent.seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    Test& answers =
        add("reconnect.serves", "the server takes new connections and answers the others",
            failure.empty() ? State::kPassed : State::kFailed, failure);
    if (!failure.empty()) {
      answers.findings.push_back({.kind = "disconnected",
                                  .title = failure,
                                  .story = {failure},
                                  .seed = run_.options.seed,
                                  .replay = run_.replay(run_.options.seed)});
    }
  }

  void look_for_late_writes(const Load& load, uint64_t seed) {
    const History meant = as_meant(load);
    const Verdicts verdicts = check(meant);
    for (const Load::Abandoned& one : load.abandoned()) {
      tried_ += changes(load.history().operations[one.operation].kind);
    }
    if (!late_.empty() || verdicts.keeps(promised_) || !check(load.history()).keeps(promised_)) {
      return;  // broken whatever one thinks of late writes: told elsewhere
    }
    late_ = findings_of(run_, named(meant, seed), verdicts, promised_);
    for (Finding& finding : late_) {
      finding.kind = "late-write";
      finding.advice = {
          "A write whose connection had been cut took effect after a newer one that was",
          "acknowledged. Drop what a dead connection has not started; let newer changes of the "
          "same",
          "place wait for what has started."};
    }
  }

  // A write that the disk holds is given up, and the same place written again.
  void stalled_writes() {
    if (!run_.disk->parallel_writes()) return;
    for (int i = 0; i < kStalls && late_.empty() && !run_.interrupted; i++) {
      const uint64_t seed = run_.options.seed + static_cast<uint64_t>(i);
      run_.progress.show("a write that the disk holds, given up and sent again");
      Load load = this->load(seed, 0);
      if (load.prepare() != Stop::kDone) return;
      const uint32_t other = load.connections() > 1 ? 1 : 0;
      const uint32_t block = static_cast<uint32_t>(i) % layout_->blocks();
      const Wish write{.kind = Kind::kWrite,
                       .cell = block * layout_->cells_per_block(),
                       .cells = layout_->cells_per_block()};
      run_.disk->stall(DiskCall::kWrite, layout_->range(write.cell, write.cells), 1);
      load.start(0, write);
      const bool held = run_.disk->wait_stalled(1, kStall);
      if (!load.redial(0)) break;
      const uint32_t again = load.start(other, write);
      // A server that lets it wait for the one before does right.
      if (load.wait_for(again, kStall) && load.history().operations[again].replied()) {
        const uint32_t flush = load.start(other, {});
        (void)load.wait_for(flush, kStall);
      }
      run_.disk->release();
      run_.disk->clear_faults();
      (void)load.wait_for(again, run_.options.patience);
      std::this_thread::sleep_for(kSettle);
      (void)load.read_all(true);
      if (held) stalls_++;
      look_for_late_writes(load, seed);
    }
    run_.disk->clear_faults();
  }

  // NBD_CMD_DISC while requests are in flight: all must be handled, and have been when the server
  // closes the connection.
  void partings() {
    Load load = this->load(run_.options.seed, 0);
    std::vector<uint32_t> unanswered;
    bool good = load.connections() > 0 && load.prepare() == Stop::kDone;
    for (int i = 0; i < kPartings && good && !run_.interrupted; i++) {
      for (uint32_t k = 0; k < kInFlightAtParting; k++) {
        const uint32_t cells = layout_->cells_per_block();
        const uint32_t block = (static_cast<uint32_t>(i) + k) % layout_->blocks();
        load.start(0, {.kind = Kind::kWrite, .cell = block * cells, .cells = cells});
      }
      good = load.part(0, run_.options.patience, unanswered);
      if (good) good = load.read_all(true) == Stop::kDone;
    }
    if (run_.interrupted) return;
    std::ranges::sort(unanswered);
    const std::string count =
        fmt::format("{} of {} requests in flight at NBD_CMD_DISC had no reply", unanswered.size(),
                    kPartings * kInFlightAtParting);
    Test& replies =
        add("reconnect.disc-replies", "NBD_CMD_DISC: what is in flight is answered first",
            unanswered.empty() ? State::kPassed : State::kFailed, count);
    replies.basis = "MUST, NBD protocol: Request types, NBD_CMD_DISC";
    if (!good) {
      replies.state = State::kFailed;
      replies.detail = load.failure();
    }
    if (replies.state == State::kFailed) {
      replies.findings.push_back({.kind = "reply-lost-at-disc",
                                  .title = replies.detail,
                                  .story = {replies.detail},
                                  .advice = {"Answer what is in flight before closing."},
                                  .seed = run_.options.seed,
                                  .replay = run_.replay(run_.options.seed)});
    }
    const History handled = as_handled(load, unanswered);
    const Verdicts verdicts = check(handled);
    Test& done = add("reconnect.disc-done", "NBD_CMD_DISC: what is in flight is done first",
                     verdicts.keeps(promised_) ? State::kPassed : State::kFailed, "");
    done.basis = replies.basis;
    if (!verdicts.keeps(promised_)) {
      done.findings = findings_of(run_, named(handled, run_.options.seed), verdicts, promised_);
    }
  }

  // The server ends in order (SIGTERM) in the middle of a load, and is started again.
  void restart() {
    run_.progress.show("a restart in the middle");
    Load load = this->load(run_.options.seed, 0);
    Stop stop = load.prepare();
    const uint64_t before = load.finished();
    if (stop == Stop::kDone) {
      stop = load.run_until([&] { return load.finished() > before + 500; });
    }
    const bool ended = run_.server->stop(std::min(run_.options.patience, kStopLimit));
    load.drain_lost(run_.options.patience);
    run_.server->start(kStartLimit);
    const bool read = load.reconnect_all() && load.read_all(false) == Stop::kDone;
    if (run_.interrupted) return;
    if (!read) {
      add("reconnect.restart", "a server that is stopped in order keeps what it acknowledged",
          State::kInconclusive, load.failure());
      return;
    }
    CheckOptions options;
    options.flush_covers_all = run_.report.multi_conn_advertised;
    CheckOptions all = options;
    all.survival = Survival::kAcknowledged;
    const Verdicts synced = check(load.history(), options);
    const Verdicts acknowledged = check(load.history(), all);
    const bool lost = !synced.keeps(Level::kOwn);
    const bool forgot = !acknowledged.keeps(Level::kOwn);
    Test& test = add(
        "reconnect.restart", "a server that is stopped in order keeps what it acknowledged",
        lost     ? State::kFailed
        : forgot ? State::kWarned
                 : State::kPassed,
        !ended   ? "SIGTERM did not end it in time"
        : lost   ? "what had been flushed was lost"
        : forgot ? "what had been acknowledged but not flushed was lost"
                 : fmt::format("{} reads of what had to survive", acknowledged.witnesses.survived));
    if (test.state == State::kPassed && acknowledged.witnesses.survived == 0) {
      test.state = State::kInconclusive;
    }
    if (!ended && test.state == State::kPassed) test.state = State::kWarned;
    if (forgot) {
      test.findings = findings_of(run_, named(load.history(), run_.options.seed),
                                  lost ? synced : acknowledged, Level::kOwn);
    }
  }

  void report_late_writes() {
    Test& test =
        add("reconnect.late-write", "a write that was given up never undoes a newer one",
            late_.empty() ? State::kPassed : State::kFailed,
            fmt::format("{} changes given up, {} of them held by the disk", tried_, stalls_));
    test.basis = "not in the specification: it forbids nothing here, and data is lost all the same";
    if (!late_.empty()) {
      test.detail = late_.front().title;
    } else if (tried_ == 0) {
      test.state = State::kInconclusive;
      test.detail = "no change was in flight when its connection was cut";
    } else if (stalls_ == 0) {
      test.detail += !run_.disk ? "; a slow disk shows more: give the server's command with {disk}"
                     : !run_.disk->parallel_writes()
                         ? "; this kernel lets a file have one write at a time"
                         : "; the disk saw no write in time";
    }
    test.findings = std::move(late_);
  }

  static NamedHistory named(History history, uint64_t seed) {
    return {.title = fmt::format("seed {}", seed), .seed = seed, .history = std::move(history)};
  }

  Run& run_;
  Level promised_ = Level::kOwn;
  std::optional<Layout> layout_;
  Clock::time_point begin_;
  std::vector<Finding> late_;
  uint64_t tried_ = 0;
  uint64_t stalls_ = 0;
};

}  // namespace

void run_reconnect(Run& run) {
  Reconnect(run).go();
}

}  // namespace weft::check
