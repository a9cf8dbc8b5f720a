// SPDX-License-Identifier: BSD-3-Clause
// The two lists that a plugin fills: struct nbdkit_extents and struct nbdkit_exports. To a plugin
// they are opaque; the nbdkit_* functions on them are in exported_collections.cc. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "disk/disk.h"

// What a plugin says of a range of its disk. Extents are added in ascending order without gaps
// from `start` (or from before it: what lies before is dropped), clipped to `end`, neighbours of
// one type joined, and no more than kMax are kept. Each is what nbdkit_add_extent() was told.
struct nbdkit_extents {
  static constexpr size_t kMax = 1 << 20;
  struct Extent {
    uint64_t offset;  // bytes
    uint64_t length;
    uint32_t type;  // NBDKIT_EXTENT_HOLE, NBDKIT_EXTENT_ZERO
    friend bool operator==(const Extent&, const Extent&) = default;
  };
  enum class Outcome { kOk, kBehindStart, kNotNext };

  // An extent that cannot be kept (empty, outside of the window, or one too many) is kOk as well.
  // After another outcome the list is as before. Throws std::bad_alloc.
  Outcome add(uint64_t offset, uint64_t length, uint32_t type);

  uint64_t start = 0;  // bytes
  uint64_t end = 0;
  uint64_t next = 0;  // where the next extent has to begin, once one was added
  bool begun = false;
  std::vector<Extent> extents;
};

// The exports that a plugin lists: at most kMax, strings of at most 4096 bytes.
struct nbdkit_exports {
  static constexpr size_t kMax = 10000;
  static constexpr size_t kStringMax = 4096;
  enum class Outcome { kOk, kTooMany, kTooLong };

  // `description` may be null. Names may be there twice. Throws std::bad_alloc.
  Outcome add(const char* name, const char* description);

  bool use_default = false;  // nbdkit_use_default_export(): the default export stands for itself
  std::vector<weft::disk::ExportEntry> exports;
};
