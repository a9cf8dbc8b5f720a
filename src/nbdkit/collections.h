// SPDX-License-Identifier: BSD-3-Clause
// The two lists that a plugin fills: struct nbdkit_extents and struct nbdkit_exports. To a plugin
// they are opaque; the nbdkit_* functions on them are in exported_collections.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
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
  };
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
  bool use_default = false;  // nbdkit_use_default_export(): the default export stands for itself
  std::vector<weft::disk::ExportEntry> exports;
};
