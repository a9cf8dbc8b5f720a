// SPDX-License-Identifier: BSD-3-Clause
// Floors: for a read of a cell, the last change that it must see.
//
// V is stale for some W of a must-see set iff V ended before the last sending in that set: the
// floor. So a set is one number, and sets that grow with time are a running maximum.
#pragma once

#include <cstdint>
#include <vector>

#include "check/model/checker.h"
#include "check/model/timeline.h"

namespace weft::check {

struct Floor {
  uint32_t change = kNone;  // the last sent of the must-see set; kNone: the set is empty
  uint64_t send_ns = 0;

  [[nodiscard]] bool exists() const { return change != kNone; }
  // What ended then is stale.
  [[nodiscard]] bool above(uint64_t end_ns) const { return exists() && end_ns < send_ns; }
  void raise(const Floor& to) {
    if (to.exists() && (!exists() || to.send_ns > send_ns)) *this = to;
  }
};

// By the reason for which a change must be seen. All but the first speak of the read's own epoch.
struct Floors {
  Floor survived;      // durable before the last restart
  Floor own;           // acknowledged on the same connection
  Floor flushed;       // FUA, or flushed
  Floor acknowledged;  // on any connection

  // Of all that must be seen, at Level::kAtOnce.
  [[nodiscard]] Floor highest() const;
};

// Goes through one cell after the other, and in each through the reads as they were sent.
class FloorSweep {
 public:
  explicit FloorSweep(const Timeline& timeline)
      : timeline_(timeline), own_(timeline.connections()) {}

  void begin(uint32_t cell);
  // `read` was not sent before the one that was asked for last.
  [[nodiscard]] Floors of(uint32_t read);

 private:
  struct Own {
    uint32_t cell = kNone;
    uint32_t epoch = 0;
    Floor floor;
  };
  Own& own_of(uint32_t connection);
  void enter(uint32_t epoch);

  const Timeline& timeline_;
  uint32_t cell_ = kNone;
  std::span<const uint32_t> changes_;  // acknowledged, by end
  size_t survived_next_ = 0;           // the next of changes_ to look at, for each running maximum
  size_t acknowledged_next_ = 0;
  size_t flushed_next_ = 0;
  uint32_t epoch_ = 0;
  Floors floors_;         // without `own`
  std::vector<Own> own_;  // by connection; valid where cell and epoch are the present ones
};

}  // namespace weft::check
