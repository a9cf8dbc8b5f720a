// SPDX-License-Identifier: BSD-3-Clause
// Protocol conformance: runs the tables of checks, one connection after another.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "base/result.h"
#include "check/conformance/probe.h"

namespace weft::check {
namespace conformance {
namespace {

// Checks in a row that leave the server away, or end with its silence: then it is given up.
constexpr uint32_t kGoneMax = 3;
constexpr uint32_t kSilentMax = 8;

struct Planned {
  const Check* check;
  nbd::HeaderMode mode;
  std::string name;
};

void plan(std::span<const Check> table, const Probe& probe, std::vector<Planned>& into) {
  using enum nbd::HeaderMode;
  for (const Check& check : table) {
    if (check.in == In::kHandshake) {
      into.push_back({&check, kSimple, std::string(check.name)});
      continue;
    }
    for (const nbd::HeaderMode mode : {kSimple, kStructured, kExtended}) {
      const bool here = check.in == In::kEveryMode ||
                        (check.in == In::kChunkModes && mode != kSimple) ||
                        (check.in == In::kSimple && mode == kSimple) ||
                        (check.in == In::kExtendedOnly && mode == kExtended);
      if (!here || !probe.offers(mode)) continue;
      into.push_back({&check, mode, fmt::format("{}.{}", check.name, nbd::header_mode_name(mode))});
    }
  }
}

class Runner {
 public:
  explicit Runner(Run& run) : run_(run), probe_(run) {}

  void run() {
    if (!learn()) return;
    std::vector<Planned> planned;
    for (const auto table :
         {handshake_checks(), option_checks(), info_checks(), context_checks(), request_checks(),
          bounds_checks(), size_checks(), reply_checks(), status_checks(), connection_checks(),
          extended_checks(), leaving_checks()}) {
      plan(table, probe_, planned);
    }
    std::erase_if(planned, [&](const Planned& one) { return !run_.wants(one.name); });
    for (size_t i = 0; i < planned.size() && !run_.interrupted; ++i) {
      run_.progress.show(fmt::format("{}/{} {}", i + 1, planned.size(), planned[i].name));
      run_.report.tests.push_back(perform(planned[i]));
    }
    run_.report.counts["conformance checks"] += planned.size();
  }

 private:
  // False: nothing can be tested.
  bool learn() {
    Test test =
        new_test("handshake.negotiation", "the export can be negotiated in every header mode",
                 "MUST, NBD protocol: Baseline");
    const bool learnt = guarded(test, [&] { probe_.survey(); });
    if (!learnt || run_.wants(test.name)) run_.report.tests.push_back(std::move(test));
    return learnt;
  }

  static Test new_test(std::string name, std::string_view title, std::string_view basis) {
    return {.name = std::move(name),
            .title = std::string(title),
            .basis = std::string(basis),
            .state = State::kPassed};
  }

  Test perform(const Planned& planned) {
    const Check& check = *planned.check;
    Test test = new_test(planned.name, check.title, check.basis);
    probe_.begin(planned.mode);
    if (test.detail = probe_.lacks(check.needs); !test.detail.empty()) {
      test.state = State::kSkipped;
      return test;
    }
    if (gone_ >= kGoneMax || silent_ >= kSilentMax) {
      test.state = State::kInconclusive;
      test.detail = "the server no longer answers";
      return test;
    }
    guarded(test, [&] { check.run(probe_); });
    if (test.state == State::kSkipped) return test;
    const bool silent = !test.findings.empty() && test.findings[0].kind == "no-answer";
    silent_ = silent ? silent_ + 1 : 0;
    look_after(test);
    // Whatever the rule was: a server may not close for that, nor fall silent.
    const bool left = std::ranges::any_of(test.findings, [](const Finding& one) {
      return one.kind == "disconnected" || one.kind == "no-answer" || one.kind == "server-gone";
    });
    if (left && test.state == State::kFailed && !test.basis.starts_with("MUST")) {
      test.basis = "MUST, NBD protocol: Terminating the transmission phase (" + test.basis + ")";
    }
    return test;
  }

  // True: it did not throw.
  template <typename Body>
  bool guarded(Test& test, Body body) {
    const auto begin = std::chrono::steady_clock::now();
    bool passed = false;
    try {
      body();
      passed = true;
    } catch (const Verdict& verdict) {
      test.state = verdict.state;
      test.detail = verdict.what;
      if (!verdict.kind.empty()) test.findings.push_back(finding(test, verdict));
    } catch (const ConfigError& error) {
      test.state = State::kInconclusive;
      test.detail = error.what();
    }
    test.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return passed;
  }

  Finding finding(const Test& test, const Verdict& verdict) {
    Finding finding;
    finding.kind = verdict.kind;
    finding.title = verdict.what;
    finding.story = probe_.story().lines();
    finding.advice = verdict.advice;
    finding.story.push_back("but: " + verdict.what);
    if (!verdict.due.empty()) finding.story.push_back("what had to come: " + verdict.due);
    finding.replay = run_.options.replay(run_.options.seed, {"--only=" + test.name});
    return finding;
  }

  // Whether the server has survived the check; if it was ours, starts it again.
  void look_after(Test& test) {
    probe_.story().add("is the server still there?");
    try {
      Talk talk = probe_.open();
      talk.send_option(nbd::kOptAbort, {});
      gone_ = 0;
      return;
    } catch (const Verdict& verdict) {
      ++gone_;
      if (test.state == State::kInconclusive) return;
      test.state = State::kFailed;
      std::vector<std::string> advice;
      if (run_.server == nullptr) {
        advice.push_back(
            "If the server is meant to end with its first client, start it so that it stays "
            "(qemu-nbd --persistent).");
      }
      test.detail = "afterwards the server takes no new connection: " + verdict.what;
      test.findings.push_back(finding(test, {.kind = "server-gone",
                                             .what = test.detail,
                                             .due = "a server that goes on serving others",
                                             .advice = advice}));
    }
    if (!ended()) return;
    std::vector<std::string>& story = test.findings.back().story;
    story.push_back("the server's process has ended; its last words: " + last_line());
    run_.server->start(run_.options.patience);
    gone_ = 0;
  }

  // Whether the server was started by us and has ended; an end takes a moment.
  [[nodiscard]] bool ended() const {
    if (run_.server == nullptr) return false;
    for (int i = 0; i < 50 && run_.server->running(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return !run_.server->running();
  }

  [[nodiscard]] std::string last_line() const {
    std::string output = run_.server->output();
    while (output.ends_with('\n')) output.pop_back();
    return output.substr(output.rfind('\n') + 1);
  }

  Run& run_;
  Probe probe_;
  uint32_t gone_ = 0;
  uint32_t silent_ = 0;
};

}  // namespace
}  // namespace conformance

void run_conformance(Run& run) {
  conformance::Runner(run).run();
}

}  // namespace weft::check
