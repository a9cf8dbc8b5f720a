// SPDX-License-Identifier: BSD-3-Clause
// What can be wrong with faulty-server, by name; and the dice that say when it strikes.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace weft::check::broken {

// In the order of fault_table(), which says what each does.
enum class Fault : uint8_t {
  kStaleCache,
  kStaleReadAhead,
  kLostFlush,
  kOwnFlush,
  kPrivateOverlay,
  kNeighbour,
  kEarlyAck,
  kShortRead,
  kIgnoredZero,
  kWideTrim,
  kFalseZero,
  kNoFlush,
  kNoFua,
  kOneError,
  kSwallowedError,
  kErrorHangup,
  kLateWrite,
  kDropAtDisc,
  kWrongCookie,
  kHang,
  kBadMagic,
  kTornSize,
  kPastEnd,
  kUnknownCommand,
};
inline constexpr size_t kFaultCount = static_cast<size_t>(Fault::kUnknownCommand) + 1;

struct FaultInfo {
  std::string_view name;  // as in --fault=NAME
  double probability;     // unless --fault=NAME:PROBABILITY says another
  std::string_view mode;  // of nbdcheck, that must find it: "consistency", "power-cut" ...
  std::string_view text;  // what it does, and each time when the dice are thrown
};
[[nodiscard]] std::span<const FaultInfo, kFaultCount> fault_table();

// Which faults are on, and how often. Set up before threads start; then any thread may ask.
class Dice {
 public:
  // `linger_max`: the longest that linger() takes.
  Dice(uint64_t seed, std::chrono::microseconds linger_max);

  // "NAME" or "NAME:PROBABILITY". Throws ConfigError.
  void add(std::string_view fault);
  // Whether the fault is on at all.
  [[nodiscard]] bool has(Fault fault) const { return of(fault) > 0; }
  // Throws the dice.
  [[nodiscard]] bool strikes(Fault fault);
  // From 0 to bound - 1.
  [[nodiscard]] uint64_t below(uint64_t bound) { return next() % bound; }
  // Waits for a random time, `times` as long as usual: so races have room.
  void linger(uint32_t times = 1);

 private:
  [[nodiscard]] double of(Fault fault) const { return probability_[static_cast<size_t>(fault)]; }
  [[nodiscard]] uint64_t next();

  std::array<double, kFaultCount> probability_ = {};
  std::atomic<uint64_t> state_;
  const std::chrono::microseconds linger_max_;
};

}  // namespace weft::check::broken
