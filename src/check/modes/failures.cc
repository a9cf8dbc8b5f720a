// SPDX-License-Identifier: BSD-3-Clause
// The modes in which the disk fails: a sync (fail-flush), or reads and writes (fail-io). Each test
// is a scene of its own on a server that was just started: a few operations, one after the other,
// so that its story can be told; and at the end a cut of the power, to see what was true.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>
#include <utility>

#include "base/result.h"
#include "check/modes/scenario.h"

namespace weft::check {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr char kFlushBasis[] = "MUST, NBD protocol: Request types, NBD_CMD_FLUSH";
constexpr char kFuaBasis[] = "MUST, NBD protocol: Command flags, NBD_CMD_FLAG_FUA";
constexpr char kErrorBasis[] = "SHOULD, NBD protocol: Error values";
constexpr char kOthersBasis[] = "the meaning of a disk";

constexpr uint32_t kAlways = 1'000'000;  // calls that fail: all
constexpr auto kSlowSync = 30ms;         // so that several flushes meet in it
constexpr uint32_t kA = 0, kB = 1;       // connections
constexpr uint32_t kConnections = 3;

const std::vector<std::string> kStickyAdvice = {
    "After a failed fsync(2) Linux takes the pages that could not be written for clean: the next "
    "fsync succeeds, and the data is gone.",
    "Keep the failure, and fail every later flush and FUA on all connections, until somebody opens "
    "the disk again; or write the data again."};

class Failures {
 public:
  explicit Failures(Run& run) : run_(run) {}

  void flushes();
  void io();

 private:
  // False: a test that says why was added instead.
  bool begin(const char* name);
  // One scene; what cannot be played is inconclusive.
  void scene(Test test, const std::function<void(Play&, Test&)>& play);
  // The power is cut and everything read; losses and wrong contents become the test's findings.
  void look(Play& play, Test& test, const char* lost_kind, const std::string& lost_title);
  void find(Play& play, Test& test, const char* kind, const std::string& title,
            std::vector<std::string> advice);
  // A connection that was lost is dialled again. False: it cannot.
  bool alive(Play& play, uint32_t connection);
  // The later flushes of a scene, on all connections and on a new one; how many said OK.
  uint32_t flush_everywhere(Play& play);

  // A request failed that does not touch the failing place. No promise is broken: the server may
  // use the disk in larger units.
  void note_spread(Play& play, Test& test);

  void later(Play& play, Test& test);
  void together(Play& play, Test& test);
  void fua(Play& play, Test& test);
  void reading(Play& play, Test& test);
  void writing(Play& play, Test& test, int error);
  void zeroing(Play& play, Test& test);

  Run& run_;
  nbd::ClientResult server_;
  std::optional<Layout> layout_;
};

bool Failures::begin(const char* name) {
  Test test{.name = fmt::format("failures.{}", name),
            .title = "the disk's failures can be tested",
            .basis = "nbdcheck",
            .state = State::kSkipped,
            .detail = cannot_harm(run_)};
  if (test.detail.empty()) {
    server_ = run_.dial().result;
    if (!(server_.transmission_flags & nbd::kReadOnly)) {
      layout_.emplace(run_.layout(server_));
      if (layout_->blocks() >= 4) return true;
      test.detail = "needs four blocks: give more --blocks, or a larger --range";
    } else {
      test.state = State::kInconclusive;
      test.detail = "the export is read-only: nothing can be written to it";
    }
  }
  run_.report.tests.push_back(std::move(test));
  return false;
}

void Failures::scene(Test test, const std::function<void(Play&, Test&)>& play) {
  if (!run_.wants(test.name) || run_.interrupted) return;
  run_.progress.show(test.title);
  const auto begin = Clock::now();
  test.state = State::kPassed;
  try {
    LoadOptions options = run_.load_options(run_.options.seed);
    // Without the flag nobody may use several at once.
    const bool multi = server_.transmission_flags & nbd::kCanMultiConn;
    options.connections = multi ? std::min(kConnections, run_.connections_max) : 1;
    Play stage(run_, *layout_, options);
    const Stop stop = stage.load().prepare();
    if (stop == Stop::kDone) {
      play(stage, test);
      run_.report.counts["operations"] += stage.load().finished();
    } else {
      test.state = State::kInconclusive;
      test.detail = stage.load().failure();
    }
  } catch (const ConfigError& error) {
    test.state = State::kInconclusive;
    test.detail = error.what();
  }
  run_.disk->clear_faults();
  // What an interrupted scene seems to show may be the interruption.
  if (!run_.interrupted) {
    test.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    run_.report.tests.push_back(std::move(test));
  }
}

void Failures::find(Play& play, Test& test, const char* kind, const std::string& title,
                    std::vector<std::string> advice) {
  test.state = State::kFailed;
  if (test.detail.empty()) test.detail = title;
  test.findings.push_back({.kind = kind,
                           .title = title,
                           .story = play.story(),
                           .advice = std::move(advice),
                           .seed = run_.options.seed,
                           .replay = run_.replay(run_.options.seed)});
}

void Failures::note_spread(Play& play, Test& test) {
  const State before = test.state;
  find(
      play, test, "error-spread", "a request that does not touch the failing place failed",
      {"A server that uses the disk in larger units than it was asked for fails more than the disk",
       "does. Ask for what failed again, in the units of the requests."});
  if (before != State::kFailed) test.state = State::kWarned;
}

void Failures::look(Play& play, Test& test, const char* lost_kind, const std::string& lost_title) {
  play.cut_power(FaultDisk::Cut::kLoseAll, run_.options.seed);
  play.say("the power is cut: what is not safe is lost; the server is started again");
  if (!play.start_again() || play.load().read_all(false) != Stop::kDone) {
    const std::string why = play.why().empty() ? play.load().failure() : play.why();
    play.say(why);
    if (!run_.interrupted) {
      find(play, test, "no-restart", "after it the server does not serve: " + why, {});
    }
    return;
  }
  CheckOptions options;
  options.flush_covers_all = server_.transmission_flags & nbd::kCanMultiConn;
  const History history = play.history();
  const Verdicts verdicts = check(history, options);
  run_.report.witnesses.add(verdicts.witnesses);
  std::vector<Finding> found =
      findings_of(run_, {test.name, run_.options.seed, history}, verdicts, Level::kOwn);
  for (Finding& finding : found) {
    std::vector<std::string> story = play.story();
    if (finding.kind == fault_name(Fault::kLost)) {
      story.push_back(finding.title);
      finding.kind = lost_kind;
      finding.title = lost_title;
      finding.advice = kStickyAdvice;
    } else {
      story.push_back("and so:");
      story.insert(story.end(), finding.story.begin(), finding.story.end());
    }
    finding.story = std::move(story);
    if (test.detail.empty()) test.detail = finding.title;
    test.findings.push_back(std::move(finding));
    test.state = State::kFailed;
  }
}

bool Failures::alive(Play& play, uint32_t connection) {
  if (!play.load().lost(connection)) return true;
  if (!play.load().redial(connection)) {
    play.say(fmt::format("no new connection: {}", play.load().failure()));
    return false;
  }
  play.say("a new connection takes the place of the one that was lost");
  return true;
}

uint32_t Failures::flush_everywhere(Play& play) {
  uint32_t good = 0;
  for (const uint32_t connection : {kB, kA, kB}) {
    if (connection >= play.load().connections() || !alive(play, connection)) continue;
    good += play.operation(play.act(connection, {})).succeeded();
  }
  const uint32_t last = play.load().connections() - 1;
  if (!run_.server->running() || !play.load().redial(last)) return good;
  play.say("another connection is made");
  good += play.operation(play.act(last, {})).succeeded();
  return good;
}

// A flush fails; and then others are asked for.
void Failures::later(Play& play, Test& test) {
  const bool second = play.load().connections() > 1;
  play.act(kA, play.wish(Kind::kWrite, 0));
  if (second) play.act(kB, play.wish(Kind::kWrite, 1));
  const uint64_t before = run_.disk->counters().failed;
  run_.disk->fail(DiskCall::kSync, {0, server_.size}, EIO);
  play.say("the disk's next sync fails with EIO, and forgets what it should have written");
  const uint32_t first = play.act(kA, {});
  if (run_.disk->counters().failed == before) {
    test.state = State::kInconclusive;
    test.detail = "the flush asked the disk for no sync";
    return;
  }
  // A server may have written it again: only a loss says that an OK was false.
  const bool told = !play.operation(first).succeeded();
  const uint32_t good = flush_everywhere(play);
  if (server_.transmission_flags & nbd::kSendFua && alive(play, kA)) {
    play.act(kA, play.wish(Kind::kWrite, 2, true));
  }
  look(play, test, told ? "false-flush" : "error-not-told",
       told ? "after a failed flush others said OK, and acknowledged data was lost"
            : "a flush whose sync failed said OK, and acknowledged data was lost");
  if (test.state == State::kPassed) {
    test.detail = good == 0 ? "the failure was told, and every later flush failed"
                            : fmt::format("{} later flushes said OK, and nothing was lost", good);
  }
}

// Several flushes are answered by one failed sync.
void Failures::together(Play& play, Test& test) {
  const uint32_t connections = play.load().connections();
  if (connections < 2) {
    test.state = State::kSkipped;
    test.detail = "there is no second connection: " + play.load().refusal();
    return;
  }
  for (uint32_t i = 0; i < connections; ++i) play.act(i, play.wish(Kind::kWrite, i));
  const uint64_t before = run_.disk->counters().failed;
  run_.disk->set_times(0us, kSlowSync);
  run_.disk->fail(DiskCall::kSync, {0, server_.size}, EIO);
  play.say("the disk's next sync fails with EIO, and forgets what it should have written");
  std::vector<std::pair<uint32_t, Wish>> flushes;
  for (uint32_t i = 0; i < connections; ++i) flushes.emplace_back(i, Wish{});
  const std::vector<uint32_t> answers = play.act_at_once(flushes);
  if (run_.disk->counters().failed == before) {
    test.state = State::kInconclusive;
    test.detail = "the flushes asked the disk for no sync";
    return;
  }
  const auto good = std::ranges::count_if(
      answers, [&](uint32_t index) { return play.operation(index).succeeded(); });
  const bool told = good < static_cast<ptrdiff_t>(answers.size());
  look(play, test, told ? "error-told-to-one" : "error-not-told",
       fmt::format("of {} flushes at once {} said OK while the sync failed, and acknowledged data "
                   "was lost",
                   answers.size(), good));
  if (test.state == State::kPassed) {
    test.detail = fmt::format("{} of {} flushes said OK, and nothing that was safe is lost", good,
                              answers.size());
  }
}

// The sync of a write with FUA fails.
void Failures::fua(Play& play, Test& test) {
  if (!(server_.transmission_flags & nbd::kSendFua)) {
    test.state = State::kSkipped;
    test.detail = "the server does not offer FUA";
    return;
  }
  play.act(kA, play.wish(Kind::kWrite, 0));
  const uint64_t before = run_.disk->counters().failed;
  run_.disk->fail(DiskCall::kSync, {0, server_.size}, EIO);
  play.say("the disk's next sync fails with EIO, and forgets what it should have written");
  const uint32_t write =
      play.act(std::min(kB, play.load().connections() - 1), play.wish(Kind::kWrite, 1, true));
  if (run_.disk->counters().failed == before) {
    test.state = State::kInconclusive;
    test.detail = "the write asked the disk for no sync";
    return;
  }
  const bool told = !play.operation(write).succeeded();
  const uint32_t good = flush_everywhere(play);
  look(play, test, told ? "false-flush" : "error-not-told",
       told ? "after a failed write with FUA flushes said OK, and acknowledged data was lost"
            : "a write with FUA whose sync failed said OK, and acknowledged data was lost");
  if (test.state == State::kPassed) {
    test.detail = good == 0 ? "the failure was told, and every later flush failed"
                            : fmt::format("{} later flushes said OK, and nothing was lost", good);
  }
}

void Failures::flushes() {
  if (!begin("flush")) return;
  if (!(server_.transmission_flags & nbd::kSendFlush)) {
    run_.report.tests.push_back({.name = "failures.flush.later",
                                 .title = "a failed flush is told",
                                 .basis = kFlushBasis,
                                 .state = State::kSkipped,
                                 .detail = "the server does not offer flushes"});
    return;
  }
  scene({.name = "failures.flush.later",
         .title = "a failed flush is told, and no later flush says that the data is safe",
         .basis = kFlushBasis},
        [this](Play& play, Test& test) { later(play, test); });
  scene({.name = "failures.flush.together",
         .title = "of flushes that are answered by one failed sync none succeeds",
         .basis = kFlushBasis},
        [this](Play& play, Test& test) { together(play, test); });
  scene({.name = "failures.flush.fua",
         .title = "a failed write with FUA is told, and no later flush covers it up",
         .basis = kFuaBasis},
        [this](Play& play, Test& test) { fua(play, test); });
}

void Failures::reading(Play& play, Test& test) {
  // A server that has just started has no cache to answer from.
  play.kill();
  if (!play.start_again()) {
    test.state = State::kInconclusive;
    test.detail = play.why();
    return;
  }
  const uint64_t before = run_.disk->counters().failed;
  const uint32_t other = std::min(kB, play.load().connections() - 1);
  run_.disk->fail(DiskCall::kRead, play.place(0), EIO, kAlways);
  play.say(fmt::format("the disk fails every read of {}+{} with EIO", play.place(0).offset,
                       play.place(0).length));
  const uint32_t failing = play.act(kA, play.wish(Kind::kRead, 0));
  const bool reached = run_.disk->counters().failed > before;
  const bool disconnected = play.load().lost(kA);
  std::vector<uint32_t> others;
  if (!play.load().lost(other)) others.push_back(play.act(other, play.wish(Kind::kRead, 2)));
  if (!disconnected) others.push_back(play.act(kA, play.wish(Kind::kRead, 3)));
  const bool spread =
      (other != kA && play.load().lost(other)) || std::ranges::any_of(others, [&](uint32_t index) {
        return !play.operation(index).succeeded();
      });
  run_.disk->clear_faults();
  play.say("the disk reads again");
  if (alive(play, kA)) {
    const uint32_t again = play.act(kA, play.wish(Kind::kRead, 0));
    if (!play.operation(again).succeeded()) {
      find(play, test, "error-stays", "the read fails although the disk reads again",
           {"A failed read says nothing about later ones: ask the disk again."});
    }
  }
  if (spread) note_spread(play, test);
  look(play, test, "lost-write", "acknowledged data was lost");
  if (disconnected && server_.mode == nbd::HeaderMode::kSimple) {
    // A simple reply that has begun can end in no other way.
    if (test.state == State::kPassed)
      test.detail = "the connection was closed: " + play.told(failing);
  } else if (disconnected) {
    find(
        play, test, "disconnect-on-read-error", "the connection was closed because of a read error",
        {"With structured replies a failed read is an error chunk: other requests in flight on the "
         "connection need not die of it."});
    test.basis = "MUST, NBD protocol: Terminating the transmission phase";
  } else if (test.state == State::kPassed && !reached) {
    test.state = State::kInconclusive;
    test.detail = "the read did not reach the disk: " + play.told(failing);
  } else if (test.state == State::kPassed) {
    test.detail = play.told(failing);
  }
}

void Failures::writing(Play& play, Test& test, int error) {
  const uint64_t before = run_.disk->counters().failed;
  const uint32_t other = std::min(kB, play.load().connections() - 1);
  const Range place{play.place(0).offset, 2 * play.place(0).length};  // blocks 0 and 1
  for (const DiskCall call : {DiskCall::kWrite, DiskCall::kZero, DiskCall::kTrim}) {
    run_.disk->fail(call, place, error, kAlways);
  }
  play.say(fmt::format("the disk fails every write of {}+{} with {}", place.offset, place.length,
                       error == ENOSPC ? "ENOSPC" : "EIO"));
  const uint32_t failing = play.act(kA, play.wish(Kind::kWrite, 0));
  bool spread = false;
  for (const Kind kind : {Kind::kWrite, Kind::kRead}) {
    if (play.load().lost(other)) break;
    spread |= !play.operation(play.act(other, play.wish(kind, 3))).succeeded();
  }
  if (other != kA) spread |= play.load().lost(other);
  if (alive(play, kA) && (server_.transmission_flags & nbd::kSendFua)) {
    play.act(kA, play.wish(Kind::kWrite, 1, true));
  }
  // What was acknowledged all the same must not be called safe.
  if (alive(play, kA) && (server_.transmission_flags & nbd::kSendFlush)) play.act(kA, {});
  const bool reached = run_.disk->counters().failed > before;
  run_.disk->clear_faults();
  play.say("the disk writes again");
  // Whole, the old or the new: the checker looks at every byte.
  for (const uint32_t block : {0u, 1u}) {
    if (alive(play, kA)) play.act(kA, play.wish(Kind::kRead, block));
  }
  if (spread) note_spread(play, test);
  look(play, test, "false-flush", "a write that the disk had refused was called safe, and is lost");
  if (test.state == State::kFailed) return;
  const Operation& answer = play.operation(failing);
  test.detail = play.told(failing);
  if (!reached) {
    test.state = State::kInconclusive;
    test.detail = "no write reached the disk: " + test.detail;
  } else if (!answer.replied()) {
    find(play, test, "disconnect-on-write-error",
         "the connection was closed because of a write error", {"Answer with an error."});
  } else if (error == ENOSPC && answer.error != nbd::kOk && answer.error != nbd::kEnospc) {
    test.state = State::kWarned;
    test.detail += "; ENOSPC would tell the client more";
  }
}

void Failures::zeroing(Play& play, Test& test) {
  if (!(server_.transmission_flags & nbd::kSendWriteZeroes)) {
    test.state = State::kSkipped;
    test.detail = "the server does not offer WRITE_ZEROES";
    return;
  }
  const uint64_t before = run_.disk->counters().failed;
  for (const DiskCall call : {DiskCall::kWrite, DiskCall::kZero, DiskCall::kTrim}) {
    run_.disk->fail(call, play.place(0), EIO, kAlways);
  }
  for (const DiskCall call : {DiskCall::kZero, DiskCall::kTrim}) {
    run_.disk->fail(call, play.place(2), EOPNOTSUPP, kAlways);
  }
  play.say(
      fmt::format("the disk fails every change of {}+{} with EIO; that of {} it can write, but "
                  "not zero (EOPNOTSUPP)",
                  play.place(0).offset, play.place(0).length, play.place(2).offset));
  const uint32_t failing = play.act(kA, play.wish(Kind::kZero, 0));
  if (alive(play, kA)) play.act(kA, play.wish(Kind::kZero, 2));
  if (alive(play, kA) && (server_.transmission_flags & nbd::kSendTrim)) {
    play.act(kA, play.wish(Kind::kTrim, 0));
  }
  if (alive(play, kA) && (server_.transmission_flags & nbd::kSendFlush)) play.act(kA, {});
  const bool reached = run_.disk->counters().failed > before;
  run_.disk->clear_faults();
  play.say("the disk does everything again");
  // What was acknowledged reads as zeroes; the checker looks.
  for (const uint32_t block : {0u, 2u}) {
    if (alive(play, kA)) play.act(kA, play.wish(Kind::kRead, block));
  }
  look(play, test, "false-flush", "zeroes that the disk had refused were called safe");
  if (test.state != State::kPassed) return;
  test.detail = play.told(failing);
  if (!reached) {
    test.state = State::kInconclusive;
    test.detail = "no change reached the disk: " + test.detail;
  }
}

void Failures::io() {
  if (!begin("io")) return;
  scene({.name = "failures.io.read",
         .title = "a read that the disk fails is answered with an error, and nothing else suffers",
         .basis = kErrorBasis},
        [this](Play& play, Test& test) { reading(play, test); });
  scene({.name = "failures.io.write",
         .title = "a write that the disk fails is answered with an error, and never called safe",
         .basis = kFlushBasis},
        [this](Play& play, Test& test) { writing(play, test, EIO); });
  scene({.name = "failures.io.no-space",
         .title = "a write without room on the disk is answered with an error, and never called "
                  "safe",
         .basis = kFlushBasis},
        [this](Play& play, Test& test) { writing(play, test, ENOSPC); });
  scene({.name = "failures.io.zero",
         .title = "zeroes that the disk refuses are written, or answered with an error",
         .basis = kOthersBasis},
        [this](Play& play, Test& test) { zeroing(play, test); });
}

}  // namespace

void run_fail_flush(Run& run) {
  Failures(run).flushes();
}

void run_fail_io(Run& run) {
  Failures(run).io();
}

}  // namespace weft::check
