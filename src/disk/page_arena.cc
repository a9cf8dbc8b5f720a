// SPDX-License-Identifier: BSD-3-Clause
#include "disk/page_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace weft::disk {
namespace {

// Large enough for huge pages and few calls; small enough to be locked in memory (--swap).
constexpr size_t kChunkSize = 8 << 20;
constexpr size_t kHugePageSize = 2 << 20;

}  // namespace

PageArena::PageArena(uint64_t size_max)
    : chunk_size_(std::clamp<uint64_t>((size_max + kPageSize - 1) & ~uint64_t{kPageSize - 1},
                                       kPageSize, kChunkSize)) {}

PageArena::~PageArena() {
  for (const Chunk& chunk : chunks_) munmap(chunk.memory, chunk.size_bytes);
}

bool PageArena::add_chunk(size_t size_bytes) {
  const size_t count = size_bytes / kPageSize;
  std::unique_ptr<Page[]> pages(new (std::nothrow) Page[count]);
  if (!pages) return false;
  // Aligned to huge pages: their faults and their misses are what random access costs.
  const size_t slack = size_bytes >= kHugePageSize ? kHugePageSize : 0;
  void* const mapped =
      mmap(nullptr, size_bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return false;
  auto* memory = static_cast<std::byte*>(mapped);
  if (slack) {
    const size_t head = -reinterpret_cast<uintptr_t>(memory) & (kHugePageSize - 1);
    if (head) munmap(memory, head);
    memory += head;
    if (slack > head) munmap(memory + size_bytes, slack - head);
    madvise(memory, size_bytes, MADV_HUGEPAGE);
  }
  for (size_t i = 0; i < count; i++) pages[i].data = memory + i * kPageSize;
  try {
    chunks_.push_back({memory, size_bytes, std::move(pages)});
  } catch (const std::bad_alloc&) {
    munmap(memory, size_bytes);
    return false;
  }
  fresh_ = count;
  return true;
}

Page* PageArena::allocate() {
  std::lock_guard lock(mutex_);
  Page* page = free_;
  if (page) {
    free_ = page->next_free;
  } else {
    // When memory is short, a smaller chunk may still be had.
    while (fresh_ == 0 && !add_chunk(chunk_size_)) {
      if (chunk_size_ == kPageSize) return nullptr;
      chunk_size_ = std::max(kPageSize, (chunk_size_ / 8) & ~(kPageSize - 1));
    }
    const Chunk& chunk = chunks_.back();
    page = &chunk.pages[chunk.size_bytes / kPageSize - fresh_--];
  }
  page->holders.store(1, std::memory_order_relaxed);
  return page;
}

void PageArena::free(Page& page) {
  // Refused for locked memory (--swap).
  if (madvise(page.data, kPageSize, MADV_DONTNEED) != 0) std::memset(page.data, 0, kPageSize);
  std::lock_guard lock(mutex_);
  page.next_free = free_;
  free_ = &page;
}

}  // namespace weft::disk
