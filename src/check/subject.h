// SPDX-License-Identifier: BSD-3-Clause
// Subject: the server that is tested, as the tests see it; and what they share.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "check/faults/fault_disk.h"
#include "check/faults/server_process.h"
#include "check/load/load.h"
#include "check/options.h"
#include "check/report/report.h"

namespace weft::check {

inline constexpr std::chrono::milliseconds kStartLimit{20'000};  // for a server to be there

// How the run goes, for people who wait.
class Progress {
 public:
  virtual ~Progress() = default;
  // A line that replaces the one before, at most ten times a second.
  virtual void show(const std::string& line) = 0;
};

// What every mode is given. A mode adds its tests to the report and returns; it ends early, with
// what it has, once `interrupted` is true.
struct Run {
  const Options& options;
  tools::Target target;             // where the server is, also when we started it
  ServerProcess* server = nullptr;  // when it was started by us
  FaultDisk* disk = nullptr;        // when the command has {disk}
  const std::atomic<bool>& interrupted;
  Progress& progress;
  Report& report;
  // How many connections there can be at the same time, of those that are asked for; and why there
  // is no second one ("": there is).
  uint32_t connections_max = 1;
  std::string refusal = {};

  // Dials one connection as all modes want it: structured, base:allocation, block sizes; extended
  // headers are left to conformance. A server that has not noticed yet that a connection has ended
  // may refuse the next one: it is asked again for a second.
  [[nodiscard]] tools::Dialled dial() const;
  // Sets the two above. Once, before the modes: a server may let one too many wait for long.
  void count_connections();
  // The cells for this export: inside the range the user allows. Throws ConfigError: no room.
  [[nodiscard]] Layout layout(const nbd::ClientResult& negotiated) const;
  // A server that we started and that has ended by itself is a finding ("server.alive"), and
  // started again. For the beginning of each part of a mode. Throws ConfigError: it does not start.
  void ensure_server();
  // The load that the options ask for.
  [[nodiscard]] LoadOptions load_options(uint64_t seed) const;
  // The command that shows a finding again: the same options with this seed.
  [[nodiscard]] std::string replay(uint64_t seed) const { return options.replay(seed); }
  // Whether --only lets this test run.
  [[nodiscard]] bool wants(const std::string& test) const;

 private:
  [[nodiscard]] tools::Dialled dial_once(std::chrono::milliseconds patience) const;
};

void run_consistency(Run& run);  // modes/consistency.cc
void run_reconnect(Run& run);    // modes/reconnect.cc
void run_conformance(Run& run);  // conformance/conformance.cc
void run_power_cut(Run& run);    // modes/durability.cc
void run_kill(Run& run);         // modes/durability.cc
void run_fail_flush(Run& run);   // modes/failures.cc
void run_fail_io(Run& run);      // modes/failures.cc

// Violations of one history as findings: equal ones (fault, level) told once, with their count; the
// history is put into the report.
[[nodiscard]] std::vector<Finding> findings_of(Run& run, NamedHistory history,
                                               const Verdicts& verdicts, Level promised);

}  // namespace weft::check
