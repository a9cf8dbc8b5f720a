// SPDX-License-Identifier: BSD-3-Clause
#include "disk/sparse_store.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <new>

namespace weft::disk {
namespace {

constexpr int kPageBits = std::countr_zero(SparseStore::kPageSize);
// Slots looked at in one call of extents(): what is left is asked for again.
constexpr uint64_t kExtentStepsMax = 1 << 17;

int height_for(uint64_t size, int fanout_bits) {
  const uint64_t last_page = size == 0 ? 0 : (size - 1) >> kPageBits;
  return std::max(1, (static_cast<int>(std::bit_width(last_page)) + fanout_bits - 1) / fanout_bits);
}

}  // namespace

SparseStore::SparseStore(uint64_t size)
    : size_(size), height_(height_for(size, kFanoutBits)), arena_(size) {}

SparseStore::~SparseStore() {
  if (void* root = root_.load()) free_nodes(static_cast<Node*>(root), height_ - 1);
}

// The pages' memory goes with the arena.
void SparseStore::free_nodes(Node* node, int level) {
  if (level > 0) {
    for (Slot& slot : node->slots) {
      if (void* child = slot.load()) free_nodes(static_cast<Node*>(child), level - 1);
    }
  }
  delete node;
}

SparseStore::Slot* SparseStore::find(uint64_t page, int* missing_bits) const {
  const std::atomic<void*>* slot = &root_;
  for (int level = height_ - 1;; level--) {
    auto* node = static_cast<Node*>(slot->load(std::memory_order_acquire));
    if (!node) {
      if (missing_bits) *missing_bits = (level + 1) * kFanoutBits;
      return nullptr;
    }
    Slot& below = node->slots[(page >> (level * kFanoutBits)) & (kFanout - 1)];
    if (level == 0) return &below;
    slot = &below;
  }
}

SparseStore::Slot* SparseStore::find_or_make(uint64_t page) {
  Slot* slot = &root_;
  for (int level = height_ - 1;; level--) {
    void* node = slot->load(std::memory_order_acquire);
    if (!node) {
      auto* made = new (std::nothrow) Node{};
      if (!made) return nullptr;
      if (slot->compare_exchange_strong(node, made, std::memory_order_acq_rel)) {
        node = made;
      } else {
        delete made;  // somebody else was faster
      }
    }
    slot = &static_cast<Node*>(node)->slots[(page >> (level * kFanoutBits)) & (kFanout - 1)];
    if (level == 0) return slot;
  }
}

template <typename F>
void SparseStore::for_pages(Range range, F f) {
  for (uint64_t offset = range.offset; offset < range.end();) {
    const uint64_t begin = offset & (kPageSize - 1);
    const uint64_t length = std::min(kPageSize - begin, range.end() - offset);
    if (!f(offset >> kPageBits, begin, length)) return;
    offset += length;
  }
}

void SparseStore::read(uint64_t offset, MutableByteSpan into) {
  std::byte* to = into.data();
  for_pages({offset, into.size()}, [&](uint64_t number, uint64_t begin, uint64_t length) {
    Page* page = nullptr;
    if (Slot* slot = find(number)) {
      std::lock_guard lock(stripe(number).mutex);
      page = static_cast<Page*>(slot->load(std::memory_order_relaxed));
      if (page) std::memcpy(to, page->data + begin, length);
    }
    if (!page) std::memset(to, 0, length);
    to += length;
    return true;
  });
}

Status SparseStore::write(uint64_t offset, ByteSpan from) {
  const std::byte* source = from.data();
  Status result;
  for_pages({offset, from.size()}, [&](uint64_t number, uint64_t begin, uint64_t length) {
    Slot* const slot = find_or_make(number);
    if (slot) {
      std::lock_guard lock(stripe(number).mutex);
      auto* page = static_cast<Page*>(slot->load(std::memory_order_relaxed));
      Page* const made = page ? nullptr : arena_.allocate();
      if (made) page = made;
      if (page) {
        std::memcpy(page->data + begin, source, length);
        if (made) {
          slot->store(made, std::memory_order_release);
          pages_.fetch_add(1, std::memory_order_relaxed);
        }
        source += length;
        return true;
      }
    }
    result = fail(ENOSPC, "there is no memory for this part of the disk");
    return false;
  });
  return result;
}

void SparseStore::zero(Range range, bool may_free) {
  for (uint64_t offset = range.offset; offset < range.end();) {
    const uint64_t number = offset >> kPageBits;
    int missing_bits = 0;
    Slot* const slot = find(number, &missing_bits);
    if (!slot) {
      // To the end of what is missing, in pages; the disk's end is far from wrapping.
      const uint64_t next = ((number >> missing_bits) + 1) << missing_bits;
      if (next > (range.end() - 1) >> kPageBits) return;
      offset = next << kPageBits;
      continue;
    }
    const uint64_t begin = offset & (kPageSize - 1);
    const uint64_t length = std::min(kPageSize - begin, range.end() - offset);
    offset += length;
    // The disk's last page may be cut short: the rest of it is never seen.
    const bool whole = begin == 0 && (length == kPageSize || offset == size_);
    Page* freed = nullptr;
    if (slot->load(std::memory_order_relaxed)) {
      std::lock_guard lock(stripe(number).mutex);
      auto* page = static_cast<Page*>(slot->load(std::memory_order_relaxed));
      if (page && whole && may_free) {
        freed = page;
        slot->store(nullptr, std::memory_order_release);
        pages_.fetch_sub(1, std::memory_order_relaxed);
      } else if (page) {
        std::memset(page->data + begin, 0, length);
      }
    }
    if (freed) arena_.release(*freed);
  }
}

void SparseStore::extents(Extents& into, bool one) const {
  const uint64_t end = into.window().end();
  uint64_t offset = into.window().offset;
  for (uint64_t steps = 0; offset < end && steps < kExtentStepsMax; steps++) {
    const uint64_t number = offset >> kPageBits;
    int missing_bits = 0;
    const Slot* const slot = find(number, &missing_bits);
    uint64_t next = number + 1;  // page
    uint32_t flags = kExtentHole | kExtentZero;
    if (!slot) {
      next = ((number >> missing_bits) + 1) << missing_bits;
    } else if (slot->load(std::memory_order_acquire)) {
      flags = kExtentData;
    }
    // In bytes `next` may lie beyond 2^64.
    const uint64_t until = next > (end - 1) >> kPageBits ? end : next << kPageBits;
    if (one && !into.list().empty() && into.list().back().flags != flags) return;
    if (!into.append(until - offset, flags)) return;
    offset = until;
  }
}

void SparseStore::lend(Range range, Lease& lease) {
  for_pages(range, [&](uint64_t number, uint64_t begin, uint64_t length) {
    Page* page = nullptr;
    if (Slot* slot = find(number)) {
      std::lock_guard lock(stripe(number).mutex);
      page = static_cast<Page*>(slot->load(std::memory_order_relaxed));
      // Its place in the disk holds it too, and cannot let go meanwhile.
      if (page) page->holders.fetch_add(1, std::memory_order_relaxed);
    }
    if (page) {
      lease.pieces.push_back({page->data + begin, length});
      lease.pins.push_back(page);
    } else if (!lease.pieces.empty() && !lease.pieces.back().data) {
      lease.pieces.back().length += length;
    } else {
      lease.pieces.push_back({nullptr, length});
    }
    return true;
  });
  lease.owner = &arena_;
  lease.release = [](Lease& ended) {
    auto& arena = *static_cast<PageArena*>(ended.owner);
    for (void* pin : ended.pins) arena.release(*static_cast<Page*>(pin));
  };
}

SparseDisk::SparseDisk(SparseStore& store, ChangeOrder& order, bool read_only)
    : store_(store), order_(order) {
  capabilities_ = {.size = store.size(),
                   .writable = !read_only,
                   .multi_conn = true,
                   .flush = Support::kNative,
                   .fua = Support::kNative,
                   .trim = Support::kNative,
                   .zero = Support::kNative,
                   .fast_zero = Support::kNative,
                   .cache = Support::kNative,
                   .extents = Support::kNative,
                   .block_size = {}};
}

Task<Status> SparseDisk::read(uint64_t offset, MutableByteSpan into) {
  store_.read(offset, into);
  return Status{};
}

bool SparseDisk::lend(Range range, Lease& lease) {
  store_.lend(range, lease);
  return true;
}

// FUA and flush: what is in memory is as durable as it will ever be.
Task<Status> SparseDisk::write(uint64_t offset, ByteSpan from, bool) {
  return store_.write(offset, from);
}

Task<Status> SparseDisk::zero(Range range, ZeroFlags flags) {
  store_.zero(range, flags.may_trim);
  return Status{};
}

Task<Status> SparseDisk::trim(Range range, bool) {
  store_.zero(range, true);
  return Status{};
}

Task<Status> SparseDisk::cache(Range) {
  return Status{};
}

Task<Status> SparseDisk::flush() {
  return Status{};
}

Task<Status> SparseDisk::extents(Extents& into, bool one) {
  store_.extents(into, one);
  return Status{};
}

}  // namespace weft::disk
