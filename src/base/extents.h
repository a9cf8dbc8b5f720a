// SPDX-License-Identifier: BSD-3-Clause
// Extents: how the bytes of a range are stored, in ascending order and without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/range.h"

namespace weft {

// The base:allocation flags of an extent (NBD_STATE_HOLE, NBD_STATE_ZERO).
enum ExtentFlag : uint32_t { kExtentData = 0, kExtentHole = 1, kExtentZero = 2 };

struct Extent {
  uint64_t length = 0;  // bytes, > 0
  uint32_t flags = 0;   // ExtentFlag bits
  friend bool operator==(const Extent&, const Extent&) = default;
};

// A list that describes a prefix of `window`. Neighbours of the same kind are joined; what lies
// outside the window is cut off; at most `count_max` entries are kept.
class Extents {
 public:
  explicit Extents(Range window, size_t count_max = size_t{1} << 20)
      : window_(window), count_max_(count_max) {}

  // Appends an extent that begins where the list ends. False when the list takes no more (the
  // window is full, or count_max is reached); what was added before stays.
  // From the first refusal on nothing is added: it would be described at the wrong place.
  bool append(uint64_t length, uint32_t flags);

  [[nodiscard]] Range window() const { return window_; }
  [[nodiscard]] uint64_t end() const { return window_.offset + described_; }  // exclusive
  [[nodiscard]] bool full() const { return described_ == window_.length; }
  [[nodiscard]] const std::vector<Extent>& list() const { return list_; }

 private:
  Range window_;
  size_t count_max_;
  uint64_t described_ = 0;  // bytes
  bool closed_ = false;     // an extent was refused
  std::vector<Extent> list_;
};

}  // namespace weft
