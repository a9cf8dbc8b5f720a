// SPDX-License-Identifier: BSD-3-Clause
// The blocking calls of the file plugin, for threads of the pool. Interrupted and partial calls are
// continued.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/bytes.h"
#include "base/extents.h"
#include "base/range.h"
#include "base/result.h"
#include "disk/disk.h"

namespace weft::disk {

// EIO where the file ends early: somebody has made it shorter.
Status read_fully(int fd, MutableByteSpan into, uint64_t offset);
// `rw_flags`: RWF_* of pwritev2(2).
Status write_fully(int fd, ByteSpan from, uint64_t offset, int rw_flags = 0);
Status sync_data(int fd);

// What has been learned of the ways to zero and trim a file. Shared by all threads.
struct SpaceCalls {
  bool block_device = false;
  // Bytes: whole sectors and whole pages of the page cache, for block devices (see file_calls.cc).
  uint32_t unit = 1;
  // Not refused as unsupported so far.
  std::atomic<bool> punch{true};
  std::atomic<bool> zero_range{true};
  std::atomic<bool> allocate{true};
  std::atomic<bool> discard{true};
};

// Zeroes a range as ZeroFlags say; `fua` is the caller's affair. Falls back from one way to the
// next and at last to writing. ENOTSUP when `fast` and only writing is left: nothing was changed
// then.
Status zero_range(int fd, SpaceCalls& calls, Range range, ZeroFlags flags);

// Gives the range's space back, where that can be done: it is no failure if not.
Status trim_range(int fd, SpaceCalls& calls, Range range);

// Describes the window by SEEK_DATA and SEEK_HOLE: a bounded number of extents.
Status find_extents(int fd, Extents& into, bool one);

}  // namespace weft::disk
