// SPDX-License-Identifier: BSD-3-Clause
// A buffer for whole blocks, aligned as layers with O_DIRECT want it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace weft::filters {

struct FreeMemory {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using AlignedBuffer = std::unique_ptr<std::byte, FreeMemory>;

// Null when there is no memory.
inline AlignedBuffer make_aligned_buffer(uint64_t size_bytes) {
  constexpr uint64_t kAlignment = 4096;
  return AlignedBuffer(static_cast<std::byte*>(
      std::aligned_alloc(kAlignment, (size_bytes + kAlignment - 1) & ~(kAlignment - 1))));
}

}  // namespace weft::filters
