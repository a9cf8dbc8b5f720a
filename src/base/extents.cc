// SPDX-License-Identifier: BSD-3-Clause
#include "base/extents.h"

#include <algorithm>

namespace weft {

bool Extents::append(uint64_t length, uint32_t flags) {
  length = std::min(length, window_.length - described_);
  if (length == 0 || closed_) return false;
  if (!list_.empty() && list_.back().flags == flags) {
    list_.back().length += length;
  } else {
    if (list_.size() == count_max_) {
      closed_ = true;
      return false;
    }
    list_.push_back({length, flags});
  }
  described_ += length;
  return !full();
}

}  // namespace weft
