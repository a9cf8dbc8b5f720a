// SPDX-License-Identifier: BSD-3-Clause
#include "check/broken/faults.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <thread>

#include "base/parse.h"
#include "base/result.h"

namespace weft::check::broken {
namespace {

constexpr std::array<FaultInfo, kFaultCount> kFaults = {{
    {"stale-cache", 0.02, "consistency",
     "a read is answered from a copy that the connection kept of its last read; no change of "
     "another connection, flushed or not, reaches that copy"},
    {"stale-read-ahead", 0.05, "consistency",
     "a read fetches the next block too, and a later read of the connection takes that copy, "
     "whatever other connections have written since"},
    {"lost-flush", 1, "consistency",
     "a write-back cache for each connection, marked dirty before a write is in it: a flush that "
     "comes between clears the mark, and the next flush writes nothing back"},
    {"own-flush", 1, "consistency",
     "a write-back cache for each connection, of which a flush writes back the one of its own "
     "connection only"},
    {"private-overlay", 1, "consistency",
     "a write is kept for its own connection for ever, flushed or not"},
    {"neighbour", 0.2, "consistency",
     "an unaligned write reads the block around it, changes it and writes it back, and undoes "
     "what others wrote there meanwhile"},
    {"early-ack", 0.2, "consistency", "a write is acknowledged first and done a little later"},
    {"short-read", 0.005, "consistency",
     "the end of a read's answer is not read at all: zeroes or old bytes"},
    {"ignored-zero", 0.02, "consistency", "write-zeroes says success and does nothing"},
    {"wide-trim", 0.5, "consistency", "an unaligned trim takes the rest of its blocks with it"},
    {"false-zero", 0.05, "consistency", "block status says that data are zeroes"},
    {"no-flush", 1, "power-cut", "a flush does not sync the file"},
    {"no-fua", 1, "power-cut", "FUA does not sync the file"},
    {"one-error", 1, "fail-flush", "a failed sync is told to one flush; the next says success"},
    {"swallowed-error", 1, "fail-io", "a write that the file refused is acknowledged"},
    {"error-hangup", 1, "fail-io", "a read error ends the connection instead of being answered"},
    {"late-write", 1, "reconnect",
     "a write whose connection was cut before it was done is done a little later, over what was "
     "written since"},
    {"drop-at-disc", 0.5, "reconnect",
     "requests that are in flight when NBD_CMD_DISC comes are not answered"},
    {"wrong-cookie", 0.02, "consistency",
     "two requests in flight, of one kind and length, get each other's reply"},
    {"hang", 0.001, "consistency", "a request is never answered"},
    {"bad-magic", 0.001, "consistency", "a reply begins with a wrong magic"},
    {"torn-size", 1, "consistency",
     "every second connection is told a smaller size, or flags without FUA"},
    {"past-end", 1, "conformance", "requests past the end of the export succeed"},
    {"unknown-command", 1, "conformance", "an unknown command ends the connection"},
}};

}  // namespace

std::span<const FaultInfo, kFaultCount> fault_table() {
  return kFaults;
}

Dice::Dice(uint64_t seed, std::chrono::microseconds linger_max)
    : state_(seed), linger_max_(linger_max) {}

void Dice::add(std::string_view fault) {
  const size_t colon = fault.find(':');
  const std::string_view name = fault.substr(0, colon);
  const auto found = std::ranges::find(kFaults, name, &FaultInfo::name);
  if (found == kFaults.end()) {
    throw ConfigError(fmt::format("--fault: there is no '{}': see --list-faults", name));
  }
  probability_[static_cast<size_t>(found - kFaults.begin())] =
      colon == std::string_view::npos ? found->probability
                                      : parse_probability("--fault", fault.substr(colon + 1));
}

bool Dice::strikes(Fault fault) {
  const double probability = of(fault);
  if (probability <= 0) return false;
  return static_cast<double>(next() >> 11) * 0x1p-53 < probability;
}

void Dice::linger(uint32_t times) {
  const auto most = static_cast<uint64_t>(linger_max_.count()) * times;
  if (most > 0) std::this_thread::sleep_for(std::chrono::microseconds(below(most + 1)));
}

// SplitMix64: a counter, well stirred.
uint64_t Dice::next() {
  uint64_t z = state_.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace weft::check::broken
