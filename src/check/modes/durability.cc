// SPDX-License-Identifier: BSD-3-Clause
// The power-cut and kill modes: rounds of load that the end of the server interrupts, and a look at
// what is left.
//
// The moment of the end decides what a round can show. Some rounds end anywhere, some right after
// the reply to a flush or to a change with FUA, some while a flush is under way. The quiet ones
// look for the flush that is lost: a write and a flush that overlap, then, when both are answered,
// another flush. All is answered then and nothing may be volatile in the disk; the cut comes when
// something is (that only chooses the moment: the judgement is by what is read afterwards). Short
// ones do it once, for servers that keep changes to themselves.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <optional>
#include <thread>
#include <utility>

#include "base/result.h"
#include "check/modes/scenario.h"
#include "tools/workload.h"

namespace weft::check {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr char kFlushBasis[] = "MUST, NBD protocol: Request types, NBD_CMD_FLUSH";
constexpr char kFuaBasis[] = "MUST, NBD protocol: Command flags, NBD_CMD_FLAG_FUA";

// So many reads had to see what was safe before their silence counts.
constexpr uint64_t kSurvivedMin = 50;
constexpr uint64_t kFuaMin = 5;  // changes that only FUA had made safe when the end came

constexpr uint64_t kOperationsMin = 50;  // of a round, before its end
constexpr uint64_t kOperationsMore = 800;
constexpr auto kRoundLimit = 1'000ms;
constexpr auto kQuietLimit = 700ms;
constexpr int kQuietTries = 150;
constexpr auto kWriteTime = 300us;  // of the disk, in quiet rounds
constexpr auto kSyncTime = 500us;

// However short the time: so many rounds, unless they take long. Fewer say nothing.
constexpr uint64_t kRoundsMin = 24;
constexpr auto kRoundsMinLimit = 5'000ms;

enum class Plan : uint8_t { kQuiet, kAfterFua, kShort, kAnywhere, kAfterFlush, kInFlush };
constexpr std::array kPlans = {Plan::kQuiet, Plan::kAfterFua,   Plan::kShort, Plan::kAnywhere,
                               Plan::kShort, Plan::kAfterFlush, Plan::kShort, Plan::kInFlush};

class Durability {
 public:
  Durability(Run& run, bool power) : run_(run), power_(power) {}

  void go();

 private:
  // False: no more rounds.
  bool round(uint64_t number);
  void load_until_the_end(Play& play, Plan plan, tools::Random& random);
  void overlap_flushes(Play& play, tools::Random& random);
  void overlap_once(Play& play, tools::Random& random);
  void judge(const Play& play, uint64_t seed);
  void count_fua(const History& history);
  void keep(Test& test, const Play& play, uint64_t seed, const Verdicts& verdicts);
  void conclude();

  Test make(const char* name, const char* title, const char* basis) const {
    return {.name = fmt::format("durability.{}.{}", power_ ? "power-cut" : "kill", name),
            .title = title,
            .basis = basis,
            .state = State::kPassed};
  }

  Run& run_;
  const bool power_;
  bool found_ = false;  // something: the rest of the time is cut short
  bool flush_ = false, fua_ = false, multi_ = false;
  std::optional<Layout> layout_;
  Clock::time_point begin_, end_;
  uint64_t rounds_ = 0, survived_ = 0, fua_only_ = 0, lost_sectors_ = 0, operations_ = 0;
  uint64_t overlapped_ = 0;
  // Of kills both in one: nothing of the disk is lost, so that it hardly matters how it got there.
  Test flushed_ = power_
                      ? make("flush", "what a flush has made safe survives", kFlushBasis)
                      : make("synced", "what a flush or FUA has made safe survives", kFlushBasis);
  Test fua_safe_ = make("fua", "what was written with FUA survives", kFuaBasis);
  Test acknowledged_ = make("acknowledged", "what was acknowledged survives",
                            "not in the specification, which asks for a flush; but kill -9 harms "
                            "only what the server keeps to itself");
  Test content_ =
      make("content", "afterwards nothing is read that nobody wrote", "the meaning of a disk");
  Test steady_ = make("steady", "what is read afterwards stays as it is", "the meaning of a disk");
  Test restart_ =
      make("restart", "the server starts again and serves its disk", "the meaning of a disk");
};

void Durability::go() {
  if (const std::string why = cannot_harm(run_); !why.empty()) {
    restart_.state = State::kSkipped;
    restart_.detail = why;
    run_.report.tests.push_back(restart_);
    return;
  }
  const nbd::ClientResult server = run_.dial().result;
  if (server.transmission_flags & nbd::kReadOnly) {
    restart_.state = State::kInconclusive;
    restart_.detail = "the export is read-only: nothing can be written to it";
    run_.report.tests.push_back(restart_);
    return;
  }
  flush_ = server.transmission_flags & nbd::kSendFlush;
  fua_ = server.transmission_flags & nbd::kSendFua;
  multi_ = server.transmission_flags & nbd::kCanMultiConn;
  layout_.emplace(run_.layout(server));
  begin_ = Clock::now();
  end_ = begin_ + run_.options.duration;
  uint64_t number = 0;
  const auto least = begin_ + kRoundsMinLimit;
  const auto more = [&] {
    return number == 0 || Clock::now() < end_ ||
           (number < kRoundsMin && !found_ && Clock::now() < least);
  };
  while (more() && !run_.interrupted) {
    if (!round(number++)) break;
  }
  conclude();
}

bool Durability::round(uint64_t number) {
  const uint64_t seed = run_.options.seed + number;
  tools::Random random(seed);
  Plan plan = kPlans[seed % kPlans.size()];
  if (!flush_) plan = seed % 2 ? Plan::kAnywhere : Plan::kAfterFua;
  if (!fua_ && plan == Plan::kAfterFua) plan = Plan::kAnywhere;
  LoadOptions options = run_.load_options(seed);
  options.limit = kRoundLimit;
  options.operations = std::numeric_limits<uint64_t>::max();
  if (!multi_) options.connections = 1;  // nobody may use several at once
  if (plan == Plan::kAfterFua) {         // with few flushes, which would make all safe
    options.fua_percent = 50;
    options.weights[static_cast<size_t>(Kind::kFlush)] = 1;
  }
  Play play(run_, *layout_, options);
  Stop stop = play.load().prepare();
  if (stop == Stop::kDone) {
    if (plan == Plan::kQuiet) {
      overlap_flushes(play, random);
    } else if (plan == Plan::kShort) {
      overlap_once(play, random);
    } else {
      load_until_the_end(play, plan, random);
    }
  } else if (stop != Stop::kInterrupted) {
    restart_.state = State::kInconclusive;
    restart_.detail = play.load().failure();
    return false;
  }
  if (run_.interrupted) {
    run_.disk->fail_held();  // a frozen disk would hold the server's end up
    return false;
  }

  if (power_) {
    const auto cut = random.below(2) ? FaultDisk::Cut::kLoseAll : FaultDisk::Cut::kLoseSome;
    const bool all = plan == Plan::kQuiet || plan == Plan::kShort;
    lost_sectors_ += play.cut_power(all ? FaultDisk::Cut::kLoseAll : cut, seed);
  } else {
    play.kill();
  }
  // Twice, and now and then once more after a restart that loses nothing (not by SIGTERM: servers
  // like to wait for their clients then).
  bool served = play.start_again();
  for (int i = 0; i < 2 && served; ++i) {
    stop = play.load().read_all(false);
    served = stop == Stop::kDone;
  }
  if (served && (number < kPlans.size() || number % 5 == 0)) {
    play.kill();
    served = play.start_again();
    if (served) served = play.load().read_all(false) == Stop::kDone;
  }
  ++rounds_;
  operations_ += play.load().finished();
  judge(play, seed);
  run_.progress.show(fmt::format("{} {}, {} reads of what had to survive", rounds_,
                                 power_ ? "cuts" : "kills", survived_));
  if (!served && !run_.interrupted) {
    const std::string why = play.why().empty() ? play.load().failure() : play.why();
    restart_.state = State::kFailed;
    restart_.detail = why;
    restart_.findings.push_back({.kind = "no-restart",
                                 .title = why,
                                 .story = {why},
                                 .seed = seed,
                                 .replay = run_.replay(seed)});
    return false;
  }
  return true;
}

// Random load; returns at the moment when it should end, with everything still under way.
void Durability::load_until_the_end(Play& play, Plan plan, tools::Random& random) {
  run_.disk->set_times(std::chrono::microseconds(random.below(3) * 100), kSyncTime);
  Load& load = play.load();
  const uint64_t least = load.finished() + kOperationsMin + random.below(kOperationsMore);
  const auto end = Clock::now() + kRoundLimit;
  const auto now_is_good = [&] {
    if (plan == Plan::kAnywhere) return true;
    // Among the last operations: the latest reply was to a flush; or a flush is under way.
    const auto& operations = load.history().operations;
    const size_t window = 2 * size_t{load.connections()} * run_.options.depth;
    const Operation* latest = nullptr;
    for (size_t i = operations.size(); i > 0 && operations.size() - i < window; --i) {
      const Operation& operation = operations[i - 1];
      if (!operation.replied()) {
        if (plan == Plan::kInFlush && operation.kind == Kind::kFlush) return true;
      } else if (!latest || operation.reply_ns > latest->reply_ns) {
        latest = &operation;
      }
    }
    if (!latest) return false;
    return plan == Plan::kAfterFlush ? latest->kind == Kind::kFlush
                                     : plan == Plan::kAfterFua && latest->fua;
  };
  (void)load.run_until([&] {
    if (load.finished() < least || !now_is_good()) return Clock::now() >= end;
    if (power_) run_.disk->freeze();  // at once: nothing else must happen
    return true;
  });
}

void Durability::overlap_flushes(Play& play, tools::Random& random) {
  run_.disk->set_times(kWriteTime, kSyncTime);
  Load& load = play.load();
  const uint32_t connections = load.connections();
  const auto end =
      Clock::now() + std::min<std::chrono::milliseconds>(kQuietLimit, run_.options.duration / 4);
  const auto pause = [&](uint64_t most_us) {
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(most_us)));
  };
  for (int i = 0; i < kQuietTries && Clock::now() < end && !run_.interrupted; ++i) {
    const auto writer = static_cast<uint32_t>(random.below(connections));
    // Without the flag a flush speaks for its own connection only.
    const auto flusher = multi_ ? static_cast<uint32_t>(random.below(connections)) : writer;
    const auto last = multi_ ? static_cast<uint32_t>(random.below(connections)) : writer;
    const auto block = static_cast<uint32_t>(random.below(layout_->blocks()));
    // Something for the first flush to do; else a server may rightly do nothing.
    load.perform(flusher, play.wish(Kind::kWrite, block + 1));
    const Wish write = play.wish(Kind::kWrite, block);
    uint32_t written = 0;
    uint32_t flushed = 0;
    if (random.below(2)) {
      written = load.start(writer, write);
      pause(400);
      flushed = load.start(flusher, {});
    } else {
      flushed = load.start(flusher, {});
      pause(400);
      written = load.start(writer, write);
    }
    const bool answered = load.wait_for(written, run_.options.patience) &&
                          load.wait_for(flushed, run_.options.patience);
    if (!answered || load.lost(writer) || load.lost(flusher)) return;
    const uint32_t again = load.perform(last, {});
    if (!load.history().operations[again].succeeded()) return;
    ++overlapped_;
    if (run_.disk->counters().volatile_sectors > 0) return;
  }
}

// The same for servers that keep changes to themselves, where the disk cannot tell the moment:
// once, on several connections at the same time, and then the end.
void Durability::overlap_once(Play& play, tools::Random& random) {
  run_.disk->set_times(kWriteTime, kSyncTime);
  Load& load = play.load();
  std::vector<uint32_t> started;
  const auto writers = 1 + static_cast<uint32_t>(random.below(load.connections()));
  for (uint32_t i = 0; i < writers; ++i) {
    load.perform(i, play.wish(Kind::kWrite, layout_->blocks() - 1 - i));
  }
  for (uint32_t i = 0; i < writers; ++i) {
    started.push_back(load.start(i, play.wish(Kind::kWrite, i)));
    std::this_thread::sleep_for(std::chrono::microseconds(random.below(300)));
    started.push_back(load.start(i, {}));
  }
  for (const uint32_t index : started) (void)load.wait_for(index, run_.options.patience);
  overlapped_ += writers;
  // One flush is enough for all where the flag says so.
  const bool one = multi_ && random.below(2);
  const auto last = static_cast<uint32_t>(random.below(load.connections()));
  for (uint32_t i = 0; i < load.connections(); ++i) {
    if ((one ? i == last : i < writers) && !load.lost(i)) load.perform(i, {});
  }
}

// Changes that FUA alone had made safe when the server ended.
void Durability::count_fua(const History& history) {
  const uint64_t end = history.restarts_ns.empty() ? kNever : history.restarts_ns.front();
  uint64_t last_flush = 0;
  for (const Operation& operation : history.operations) {
    if (operation.send_ns >= end) break;
    if (operation.kind == Kind::kFlush && operation.succeeded()) {
      last_flush = std::max(last_flush, operation.send_ns);
    }
  }
  for (const Operation& operation : history.operations) {
    if (operation.send_ns >= end) break;
    fua_only_ += operation.fua && changes(operation.kind) && operation.succeeded() &&
                 operation.reply_ns > last_flush;
  }
}

void Durability::keep(Test& test, const Play& play, uint64_t seed, const Verdicts& verdicts) {
  if (verdicts.of(Level::kAtOnce).count == 0) return;
  if (test.findings.empty()) {
    test.findings = findings_of(run_, {fmt::format("seed {}", seed), seed, play.history()},
                                verdicts, Level::kAtOnce);
    // The rest of the time would show the same again; a part of it may show the other tests.
    found_ = true;
    end_ = std::min(end_, Clock::now() + run_.options.duration / 4);
  } else {
    for (Finding& finding : test.findings) ++finding.count;
  }
  test.state = State::kFailed;
}

void Durability::judge(const Play& play, uint64_t seed) {
  const History history = play.history();
  if (history.restarts_ns.empty()) return;
  const uint64_t restart = history.restarts_ns.front();
  CheckOptions options;
  options.flush_covers_all = multi_;
  const Verdicts synced = check(history, options);
  survived_ += synced.witnesses.survived;
  run_.report.witnesses.add(synced.witnesses);
  count_fua(history);
  // Before the end it is the consistency mode's business.
  const auto after = [&](const Violation& violation) {
    return violation.read != kNone && history.operations[violation.read].send_ns > restart;
  };
  const auto lost = [&](const Violation& v) { return after(v) && v.fault == Fault::kLost; };
  keep(flushed_, play, seed,
       only(synced, [&](const Violation& v) { return lost(v) && (v.flush != kNone || !power_); }));
  keep(fua_safe_, play, seed,
       only(synced, [&](const Violation& v) { return lost(v) && v.flush == kNone && power_; }));
  keep(steady_, play, seed,
       only(synced, [&](const Violation& v) { return after(v) && v.fault == Fault::kUnsteady; }));
  keep(content_, play, seed, only(synced, [&](const Violation& v) {
         return after(v) && (v.fault == Fault::kGarbage || v.fault == Fault::kFuture ||
                             v.fault == Fault::kFalseZero);
       }));
  if (!power_) {
    options.survival = Survival::kAcknowledged;
    keep(acknowledged_, play, seed, only(check(history, options), lost));
  }
}

void Durability::conclude() {
  const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
  const char* const ends = power_ ? "cuts" : "kills";
  const bool enough = survived_ >= kSurvivedMin;
  const auto detail = [&](Test& test, const std::string& text) {
    if (test.detail.empty()) test.detail = text;
    if (test.state == State::kPassed && !enough && &test != &restart_) {
      test.state = State::kInconclusive;
      test.detail =
          fmt::format("too few reads of what had to survive: {}; give more --duration", survived_);
    }
  };
  detail(flushed_,
         power_ ? fmt::format("{} cuts lost {} sectors; {} reads of what had to survive; "
                              "{} flushes that overlapped a write, each followed by one",
                              rounds_, lost_sectors_, survived_, overlapped_)
                : fmt::format("{} kills; {} reads of what had to survive", rounds_, survived_));
  detail(fua_safe_,
         fmt::format("{} {}; {} changes that FUA alone had made safe", rounds_, ends, fua_only_));
  detail(acknowledged_, fmt::format("{} {}", rounds_, ends));
  detail(steady_, fmt::format("{} {}", rounds_, ends));
  detail(content_, fmt::format("{} {}", rounds_, ends));
  detail(restart_, fmt::format("{} {}", rounds_, ends));
  if (!flush_ && (power_ || !fua_)) {
    flushed_.state = State::kSkipped;
    flushed_.detail = "the server does not offer flushes";
  }
  if (!fua_) {
    fua_safe_.state = State::kSkipped;
    fua_safe_.detail = "the server does not offer FUA";
  } else if (fua_safe_.state == State::kPassed && fua_only_ < kFuaMin) {
    fua_safe_.state = State::kInconclusive;
    fua_safe_.detail =
        fmt::format("only {} changes depended on FUA; give more --duration", fua_only_);
  }
  if (acknowledged_.state == State::kFailed) acknowledged_.state = State::kWarned;
  for (Test* test : {&flushed_, &fua_safe_, &acknowledged_, &content_, &steady_, &restart_}) {
    if (test == (power_ ? &acknowledged_ : &fua_safe_)) continue;
    test->seconds = test == &flushed_ ? seconds : 0;
    run_.report.tests.push_back(std::move(*test));
  }
  run_.report.counts["operations"] += operations_;
  run_.report.counts[power_ ? "power cuts" : "kills"] += rounds_;
}

}  // namespace

void run_power_cut(Run& run) {
  Durability(run, true).go();
}

void run_kill(Run& run) {
  Durability(run, false).go();
}

}  // namespace weft::check
