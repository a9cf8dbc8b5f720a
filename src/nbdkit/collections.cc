// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/collections.h"

#include <algorithm>
#include <cstring>

nbdkit_extents::Outcome nbdkit_extents::add(uint64_t offset, uint64_t length, uint32_t type) {
  if (begun && offset != next) return Outcome::kNotNext;
  if (length == 0) return Outcome::kOk;
  if (!begun && offset > start) return Outcome::kBehindStart;
  uint64_t last = 0;  // exclusive
  if (__builtin_add_overflow(offset, length, &last)) last = UINT64_MAX;
  begun = true;
  next = last;
  const uint64_t from = std::max(offset, start);
  const uint64_t to = std::min(last, end);
  if (from >= to) return Outcome::kOk;
  if (!extents.empty() && extents.back().type == type) {
    // Only what follows directly may be joined: once the list is full, extents are left out.
    Extent& before = extents.back();
    if (before.offset + before.length == from) {
      before.length += to - from;
      return Outcome::kOk;
    }
  }
  if (extents.size() < kMax) extents.push_back({from, to - from, type});
  return Outcome::kOk;
}

nbdkit_exports::Outcome nbdkit_exports::add(const char* name, const char* description) {
  if (exports.size() >= kMax) return Outcome::kTooMany;
  if (::strnlen(name, kStringMax + 1) > kStringMax ||
      (description && ::strnlen(description, kStringMax + 1) > kStringMax)) {
    return Outcome::kTooLong;
  }
  exports.push_back({name, description ? description : ""});
  return Outcome::kOk;
}
