// SPDX-License-Identifier: BSD-3-Clause
// PageArena: memory for pages of a disk held in memory. A page that is handed out is all zeroes;
// the memory of one that is given back returns to the system.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace weft::disk {

// A page, and how many hold it: its place in the disk, and each lease that lends it.
struct Page {
  std::byte* data = nullptr;  // PageArena::kPageSize bytes
  std::atomic<uint32_t> holders{0};
  Page* next_free = nullptr;
};

// Thread-safe.
class PageArena {
 public:
  static constexpr size_t kPageSize = 64 << 10;  // bytes

  // Never asks the system for much more than `size_max` bytes.
  explicit PageArena(uint64_t size_max);
  ~PageArena();  // no page is held
  PageArena(const PageArena&) = delete;
  PageArena& operator=(const PageArena&) = delete;

  // A page with one holder; null when there is no memory.
  Page* allocate();
  // Gives up one hold; the last frees the page.
  void release(Page& page) {
    if (page.holders.fetch_sub(1, std::memory_order_acq_rel) == 1) free(page);
  }

 private:
  struct Chunk {
    std::byte* memory;
    size_t size_bytes;
    std::unique_ptr<Page[]> pages;
  };
  void free(Page& page);
  bool add_chunk(size_t size_bytes);

  std::mutex mutex_;
  size_t chunk_size_;
  std::vector<Chunk> chunks_;
  Page* free_ = nullptr;
  size_t fresh_ = 0;  // pages of the last chunk that were never handed out
};

}  // namespace weft::disk
