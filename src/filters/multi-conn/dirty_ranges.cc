// SPDX-License-Identifier: BSD-3-Clause
#include "filters/multi-conn/dirty_ranges.h"

#include <algorithm>
#include <iterator>

namespace weft::filters {

void DirtyRanges::add(Range range) {
  uint64_t offset = range.offset;
  uint64_t end = range.end();
  auto next = ranges_.upper_bound(offset);
  if (next != ranges_.begin() && std::prev(next)->second >= offset) --next;
  // Whatever touches the new range becomes part of it.
  while (next != ranges_.end() && next->first <= end) {
    offset = std::min(offset, next->first);
    end = std::max(end, next->second);
    next = ranges_.erase(next);
  }
  ranges_.emplace_hint(next, offset, end);
  if (ranges_.size() > kCountMax) merge_closest();
}

void DirtyRanges::add(const DirtyRanges& other) {
  for (const auto& [offset, end] : other.ranges_) add({offset, end - offset});
}

bool DirtyRanges::overlaps(Range range) const {
  const auto next = ranges_.lower_bound(range.end());
  return next != ranges_.begin() && std::prev(next)->second > range.offset;
}

void DirtyRanges::merge_closest() {
  auto closest = ranges_.begin();
  uint64_t smallest = UINT64_MAX;
  for (auto it = ranges_.begin(); std::next(it) != ranges_.end(); ++it) {
    const uint64_t gap = std::next(it)->first - it->second;
    if (gap >= smallest) continue;
    smallest = gap;
    closest = it;
  }
  const auto after = std::next(closest);
  closest->second = after->second;
  ranges_.erase(after);
}

}  // namespace weft::filters
