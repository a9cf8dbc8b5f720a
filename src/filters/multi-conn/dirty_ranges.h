// SPDX-License-Identifier: BSD-3-Clause
// DirtyRanges: where a connection has changed the disk since its last flush.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "base/range.h"

namespace weft::filters {

// A set of ranges that covers what was added, and may cover more: above kCountMax ranges, those
// with the smallest gap between them become one. Not thread-safe.
class DirtyRanges {
 public:
  static constexpr size_t kCountMax = 64;

  void add(Range range);
  void add(const DirtyRanges& other);
  void clear() { ranges_.clear(); }

  [[nodiscard]] bool empty() const { return ranges_.empty(); }
  [[nodiscard]] bool overlaps(Range range) const;
  [[nodiscard]] size_t count() const { return ranges_.size(); }

 private:
  void merge_closest();

  std::map<uint64_t, uint64_t> ranges_;  // offset -> end; apart from each other
};

}  // namespace weft::filters
