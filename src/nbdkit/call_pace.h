// SPDX-License-Identifier: BSD-3-Clause
// CallPace: whether the calls of one kind are short enough to be made by the loop's own thread.
//
// Handing a call to another thread costs some microseconds, which is more than a plugin that has
// its bytes in memory takes for it; but a call that waits for a network or computes for long holds
// up all connections of the loop if the loop makes it itself. No plugin says which it has, and one
// plugin may have both. So calls begin on threads of the pool. When some in a row took less than
// kShort there, the next are made by the loop, until two of a few hundred take more than kLong, or
// their average is no longer short. (One alone may only have lost its processor to somebody else,
// so it also counts for no more than kCounted in the average.) Then the pool has them again, until
// the row is complete once more. A kind that loses the loop's trust soon after it got it needs a
// row twice as long the next time: one that is quick mostly, and slow every hundred calls, ends up
// in the pool; one that is slow every ten thousand does not.
//
// What counts as a call's time: its time on the clock; but a thread of the pool that never waited
// for anything, and only had to share its processor, counts its processor's time.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

#include "engine/blocking_pool.h"

namespace weft::nbdkit {

// Used by one thread at a time.
class CallPace {
 public:
  static constexpr std::chrono::nanoseconds kShort = std::chrono::microseconds(40);
  static constexpr std::chrono::nanoseconds kLong = std::chrono::milliseconds(1);
  static constexpr std::chrono::nanoseconds kCounted = kShort * 4;
  static constexpr uint64_t kLongApart = 256;    // calls from one long one to the next
  static constexpr uint32_t kRow = 4;            // calls, the first time
  static constexpr uint32_t kRowMax = 1u << 12;  // calls
  static constexpr uint32_t kTrust = 64;         // rows: lost within these, it was lost soon

  // How the next call is to be made.
  [[nodiscard]] engine::BlockingKind next() const {
    return trusted_ ? engine::BlockingKind::kShort : engine::BlockingKind::kParallel;
  }

  // A call took `time`.
  void made(engine::BlockingKind kind, std::chrono::nanoseconds time) {
    if (kind == engine::BlockingKind::kShort) {
      if (trusted_) made_by_loop(time);
    } else if (!trusted_) {
      row_ = time < kShort ? row_ + 1 : 0;
      if (row_ >= row_wanted_) {
        trusted_ = true;
        calls_ = 0;
        long_ones_end_ = 0;
        average_ = std::chrono::nanoseconds(0);
      }
    }
  }

 private:
  void made_by_loop(std::chrono::nanoseconds time) {
    calls_++;
    average_ += (std::min(time, kCounted) - average_) / 8;
    bool again = false;
    if (time >= kLong) {
      again = calls_ < long_ones_end_;
      long_ones_end_ = calls_ + kLongApart;
    }
    if (!again && average_ < kShort) return;
    trusted_ = false;
    row_ = 0;
    const bool soon = calls_ < uint64_t{kTrust} * row_wanted_;
    row_wanted_ = soon ? std::min(row_wanted_ * 2, kRowMax) : kRow * 2;
  }

  bool trusted_ = false;
  uint32_t row_ = 0;  // short calls in the pool, one after the other
  uint32_t row_wanted_ = kRow;
  uint64_t calls_ = 0;          // made by the loop since it is trusted
  uint64_t long_ones_end_ = 0;  // before this call no other may be long
  std::chrono::nanoseconds average_{0};
};

}  // namespace weft::nbdkit
