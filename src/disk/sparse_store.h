// SPDX-License-Identifier: BSD-3-Clause
// SparseStore: the bytes of a disk in memory, in pages of 64 KiB that exist only where something
// was written. SparseDisk is the Disk over one, for the plugins that keep their data in memory.
//
// The pages hang in a radix tree, as high as the disk's size asks for. Its nodes are made when they
// are first needed and stay until the end, so that it is walked without a lock. What a page holds,
// and whether there is one, is changed and copied under one of 1024 locks, chosen by the page's
// number: a copy is atomic per page, and two connections meet only on neighbouring data.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/bytes.h"
#include "base/extents.h"
#include "base/range.h"
#include "base/result.h"
#include "disk/change_order.h"
#include "disk/disk.h"
#include "disk/page_arena.h"

namespace weft::disk {

// Thread-safe. All ranges lie within the size. Nothing blocks for longer than a copy of a page.
class SparseStore {
 public:
  static constexpr uint64_t kPageSize = PageArena::kPageSize;

  // `size`: bytes, at most 2^63 - 1.
  explicit SparseStore(uint64_t size);
  ~SparseStore();  // nothing is lent

  void read(uint64_t offset, MutableByteSpan into);
  // ENOSPC when there is no memory; what lies before the page that failed has been written.
  [[nodiscard]] Status write(uint64_t offset, ByteSpan from);
  // `may_free`: whole pages go; otherwise existing pages stay, and hold zeroes.
  void zero(Range range, bool may_free);
  // At most a bounded number of extents; at least one.
  void extents(Extents& into, bool one) const;
  void lend(Range range, Lease& lease);

  [[nodiscard]] uint64_t size() const { return size_; }
  // How many pages exist, without those that are only lent.
  [[nodiscard]] uint64_t pages() const { return pages_.load(std::memory_order_relaxed); }

 private:
  static constexpr int kFanoutBits = 9;
  static constexpr uint64_t kFanout = uint64_t{1} << kFanoutBits;
  struct Node {  // of Node* above, of Page* in the lowest level
    std::array<std::atomic<void*>, kFanout> slots;
  };
  struct alignas(64) Stripe {
    std::mutex mutex;
  };
  static constexpr size_t kStripes = 1024;

  using Slot = std::atomic<void*>;
  // The slot of a page; null where a node on the way is missing (then `missing_bits`, when given,
  // is set so that 2^bits pages from there on, aligned, are missing) or cannot be made.
  [[nodiscard]] Slot* find(uint64_t page, int* missing_bits = nullptr) const;
  Slot* find_or_make(uint64_t page);
  void free_nodes(Node* node, int level);
  Stripe& stripe(uint64_t page) { return stripes_[page % kStripes]; }
  // Calls f(page number, offset in it, length) for each page of `range`.
  template <typename F>
  static void for_pages(Range range, F f);

  const uint64_t size_;
  const int height_;  // levels of nodes, at least 1
  PageArena arena_;
  std::atomic<uint64_t> pages_{0};
  std::atomic<void*> root_{nullptr};
  std::array<Stripe, kStripes> stripes_;
};

// One per connection. Every call is ready at once.
class SparseDisk final : public Disk {
 public:
  // Both outlive the disk.
  SparseDisk(SparseStore& store, ChangeOrder& order, bool read_only);

  Task<Status> read(uint64_t offset, MutableByteSpan into) override;
  bool lend(Range range, Lease& lease) override;
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override;
  Task<Status> zero(Range range, ZeroFlags flags) override;
  Task<Status> trim(Range range, bool fua) override;
  Task<Status> cache(Range range) override;
  Task<Status> flush() override;
  Task<Status> extents(Extents& into, bool one) override;
  ChangeOrder* order() override { return &order_; }
  // The plugins that keep their data in memory have one disk, whatever name leads to it.
  [[nodiscard]] std::string identity() const override { return "memory"; }

 private:
  SparseStore& store_;
  ChangeOrder& order_;
};

}  // namespace weft::disk
