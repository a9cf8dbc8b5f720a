// SPDX-License-Identifier: BSD-3-Clause
// Range: `length` bytes of a disk from `offset` on. A disk ends at 2^63 - 1 at most, so that the
// end of a valid range never wraps.
#pragma once

#include <algorithm>
#include <cstdint>

namespace weft {

struct Range {
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes

  [[nodiscard]] constexpr uint64_t end() const { return offset + length; }  // exclusive
  [[nodiscard]] constexpr bool empty() const { return length == 0; }
  [[nodiscard]] constexpr bool overlaps(const Range& other) const {
    return offset < other.end() && other.offset < end();
  }
  [[nodiscard]] constexpr bool within(uint64_t size) const {
    return offset <= size && length <= size - offset;
  }
  // The smallest range of whole blocks around this one. `block` is a power of two.
  [[nodiscard]] constexpr Range rounded_out(uint64_t block) const {
    const uint64_t first = offset & ~(block - 1);
    return {first, ((end() + block - 1) & ~(block - 1)) - first};
  }
  friend constexpr bool operator==(const Range&, const Range&) = default;
};

}  // namespace weft
