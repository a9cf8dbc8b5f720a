// SPDX-License-Identifier: BSD-3-Clause
// nbdcheck: does this NBD server keep its promise? See nbdcheck.md.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <exception>
#include <optional>
#include <stdexcept>

#include "base/result.h"
#include "check/options.h"
#include "check/subject.h"

namespace weft::check {
namespace {

constexpr int kUsage = 3;  // exit status: wrong usage, or no connection
constexpr std::chrono::milliseconds kStopLimit{5'000};

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

// A signal ends the run with the verdict so far. A second one does nothing more: the disk must be
// unmounted and the server ended, and nothing of it takes long.
void on_signal(int) {
  interrupted = true;
}

void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::sigaction(signal, &action, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
}

// One line on a terminal, written over and over; elsewhere nothing but the beginning of each mode.
class TerminalProgress final : public Progress {
 public:
  explicit TerminalProgress(bool quiet) : on_(!quiet && ::isatty(STDERR_FILENO)), quiet_(quiet) {}
  ~TerminalProgress() override { clear(); }

  void begin(const char* mode) {
    mode_ = mode;
    if (!quiet_ && !on_) fmt::print(stderr, "nbdcheck: {} ...\n", mode);
  }
  void show(const std::string& line) override {
    const auto now = std::chrono::steady_clock::now();
    if (!on_ || now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    fmt::print(stderr, "\r\x1b[K{}: {}", mode_, line);
    shown_ = true;
  }
  void clear() {
    if (shown_) fmt::print(stderr, "\r\x1b[K");
    shown_ = false;
  }

 private:
  const bool on_;
  const bool quiet_;
  const char* mode_ = "";
  bool shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

std::string time_text() {
  const std::time_t now = std::time(nullptr);
  std::tm utc = {};
  ::gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

void note_facts(Report& report, const nbd::ClientResult& server) {
  report.multi_conn_advertised = server.transmission_flags & nbd::kCanMultiConn;
  report.facts.emplace_back("size", fmt::format("{} bytes", server.size));
  report.facts.emplace_back("headers", nbd::header_mode_name(server.mode));
  report.facts.emplace_back("transmission flags", fmt::format("{:#x}", server.transmission_flags));
  report.facts.emplace_back("CAN_MULTI_CONN",
                            report.multi_conn_advertised ? "advertised" : "not advertised");
  if (server.block_sizes) {
    report.facts.emplace_back(
        "block size", fmt::format("minimum {}, preferred {}, maximum {}", server.block_sizes->min,
                                  server.block_sizes->preferred, server.block_sizes->payload_max));
  }
  if (!server.description.empty()) report.facts.emplace_back("description", server.description);
}

// What the user accepts is only warned of.
void accept(Report& report, const std::set<std::string>& accepted) {
  for (Test& test : report.tests) {
    if (test.state != State::kFailed) continue;
    const bool all =
        !test.findings.empty() && std::ranges::all_of(test.findings, [&](auto& finding) {
          return accepted.contains(finding.kind);
        });
    if (!all && !accepted.contains(test.name)) continue;
    test.state = State::kWarned;
    test.detail += test.detail.empty() ? "accepted" : " (accepted)";
  }
}

void conclude(Report& report) {
  const auto count = [&](State state) {
    return std::ranges::count(report.tests, state, &Test::state);
  };
  const auto failed = count(State::kFailed);
  const auto unclear = count(State::kInconclusive);
  const auto warned = count(State::kWarned);
  const auto passed = count(State::kPassed);
  const char* const soon = report.interrupted ? " (interrupted: the verdict so far)" : "";
  if (failed > 0) {
    report.outcome = Outcome::kBroken;
    report.verdict = fmt::format("{} of {} tests failed{}", failed, failed + passed + warned, soon);
    for (const Test& test : report.tests) {
      if (test.state != State::kFailed) continue;
      report.verdict += fmt::format("; first {}", test.name);
      if (!test.findings.empty()) report.verdict += ": " + test.findings.front().title;
      break;
    }
    return;
  }
  if (unclear > 0 || passed + warned == 0) {
    report.outcome = Outcome::kUnknown;
    report.verdict = unclear > 0 ? fmt::format("{} tests without a conclusion{}", unclear, soon)
                                 : fmt::format("nothing was tested{}", soon);
    for (const Test& test : report.tests) {
      if (test.state != State::kInconclusive) continue;
      report.verdict += fmt::format("; {}: {}", test.name, test.detail);
      break;
    }
    return;
  }
  report.outcome = Outcome::kKept;
  report.verdict = fmt::format("{} tests passed", passed);
  if (warned > 0) report.verdict += fmt::format(", {} warned", warned);
  report.verdict += soon;
}

// A run may take long: that its report cannot be written is said before it.
void check_writable(const std::string& path) {
  if (path.empty() || path == "-") return;
  const bool there = ::access(path.c_str(), F_OK) == 0;
  std::FILE* file = std::fopen(path.c_str(), "a");
  if (!file) throw ConfigError(fmt::format("{}: cannot be written: {}", path, errno_text(errno)));
  std::fclose(file);
  if (!there) ::unlink(path.c_str());
}

void write_file(const std::string& path, const std::string& text) {
  if (path.empty()) return;
  if (path == "-") {
    std::fputs(text.c_str(), stdout);
    return;
  }
  std::FILE* file = std::fopen(path.c_str(), "w");
  const bool good = file && std::fputs(text.c_str(), file) >= 0;
  if (!file || std::fclose(file) != 0 || !good) {
    throw ConfigError(fmt::format("{}: cannot be written: {}", path, errno_text(errno)));
  }
}

using Mode = void (*)(Run&);

void run_modes(Run& run, TerminalProgress& progress) {
  const Modes& modes = run.options.modes;
  // Consistency judges by what it has seen whether that is enough; of the others a part says
  // little.
  const auto unfinished = [&](const char* name, const char* why) {
    run.report.tests.push_back({.name = fmt::format("{}.run", name),
                                .title = "the test runs to its end",
                                .basis = "nbdcheck",
                                .state = State::kInconclusive,
                                .detail = why});
  };
  const auto one = [&](bool wanted, const char* name, Mode mode) {
    if (!wanted) return;
    if (interrupted) return unfinished(name, "interrupted before it began");
    progress.begin(name);
    try {
      mode(run);
    } catch (const ConfigError& error) {
      unfinished(name, error.what());
    }
    if (interrupted && mode != run_consistency) {
      unfinished(name, "interrupted before it had finished");
    }
    try {
      if (!interrupted) run.ensure_server();
    } catch (const ConfigError& error) {
      unfinished(name, error.what());
    }
    progress.clear();
    std::erase_if(run.report.tests, [&](const Test& test) { return !run.wants(test.name); });
  };
  one(modes.conformance, "conformance", run_conformance);
  one(modes.consistency, "consistency", run_consistency);
  one(modes.reconnect, "reconnect", run_reconnect);
  one(modes.power_cut, "durability.power-cut", run_power_cut);
  one(modes.kill, "durability.kill", run_kill);
  one(modes.fail_flush, "failures.flush", run_fail_flush);
  one(modes.fail_io, "failures.io", run_fail_io);
}

int run(const Options& options) {
  for (const std::string& path : {options.html, options.junit, options.json}) check_writable(path);
  TerminalProgress progress(options.quiet);
  Report report;
  report.started = time_text();
  report.seed = options.seed;
  report.command_line = options.replay(options.seed);
  const auto begin = std::chrono::steady_clock::now();

  std::optional<FaultDisk> disk;
  std::optional<ServerProcess> server;
  tools::Target target;
  if (options.target) {
    target = *options.target;
    report.target = target.uri();
  } else {
    const bool wants_disk = std::ranges::any_of(
        options.command, [](const std::string& word) { return word.find("{disk}") != word.npos; });
    if (wants_disk) disk.emplace(FaultDiskOptions{.size = options.disk_size});
    server.emplace(options.command, disk ? disk->path() : "");
    report.target = server->command_line();
    server->start(kStartLimit);
    target.socket = server->socket();
    target.export_name = options.export_name;
  }
  Run run{.options = options,
          .target = target,
          .server = server ? &*server : nullptr,
          .disk = disk ? &*disk : nullptr,
          .interrupted = interrupted,
          .progress = progress,
          .report = report};
  const nbd::ClientResult exported = run.dial().result;  // throws when there is nobody
  note_facts(report, exported);
  if (options.modes.consistency || options.modes.reconnect || options.modes.need_command()) {
    (void)run.layout(exported);  // throws when there is no room
    run.count_connections();
  }
  run_modes(run, progress);
  if (server) server->stop(kStopLimit);

  report.interrupted = interrupted;
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  accept(report, options.accepted);
  conclude(report);
  const bool stdout_taken = options.json == "-" || options.junit == "-" || options.html == "-";
  std::fputs(text_report(report, options.verbose).c_str(), stdout_taken ? stderr : stdout);
  write_file(options.html, html_report(report));
  write_file(options.junit, junit_report(report));
  write_file(options.json, json_report(report, options.json_histories));
  return static_cast<int>(report.outcome);
}

}  // namespace
}  // namespace weft::check

int main(int argc, char** argv) {
  try {
    const auto options = weft::check::parse_options(argc, argv);
    if (!options) return 0;
    weft::check::catch_signals();
    return weft::check::run(*options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "nbdcheck: {}\n", error.what());
    return weft::check::kUsage;
  }
}
