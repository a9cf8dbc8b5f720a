// SPDX-License-Identifier: BSD-3-Clause
// The disk with its faults: Disk is what all connections share, View what one connection sees.
//
// Without a fault every call goes straight to the store, and changes that overlap are done in the
// order in which they came: a write that is still on its way when its connection is cut cannot
// undo one that came after it.
//
// The faults with a write-back cache (lost-flush, own-flush) keep what a connection writes in its
// overlay until a flush. Nothing else is wrong with that cache: a write first writes back what
// other connections' overlays have in its place, so that what a flush has promised stays true.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "base/result.h"
#include "check/broken/faults.h"
#include "check/broken/overlay.h"
#include "check/broken/store.h"

namespace weft::check::broken {

class View;

class Disk {
 public:
  // `block`: bytes, a power of two: what copies and read-modify-writes are made of.
  Disk(Store& store, Dice& dice, uint64_t block) : store_(store), dice_(dice), block_(block) {}

  // A place in the order of changes. Give every change one when it arrives.
  using Turn = std::list<Range>::iterator;
  [[nodiscard]] Turn arrive(Range range);
  // Waits until every change before it that overlaps is done.
  void await(Turn turn);
  // The change is done, or not to be done.
  void leave(Turn turn);

 private:
  friend class View;

  Status sync(bool wanted) { return wanted ? store_.sync(dice_.has(Fault::kOneError)) : Status(); }

  Store& store_;
  Dice& dice_;
  const uint64_t block_;

  std::mutex order_lock_;
  std::condition_variable order_moved_;
  std::list<Range> order_;  // in the order of arrival

  std::mutex cache_lock_;  // all overlays and dirty marks
  std::set<View*> views_;
};

// Any thread; calls run in parallel.
class View {
 public:
  explicit View(Disk& disk);
  ~View();  // writes back what the connection's cache holds
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  Status read(Range range, MutableByteSpan into);
  Status write(uint64_t offset, ByteSpan from, bool fua);
  Status zero(Range range, bool fua, bool fast);
  Status trim(Range range, bool fua);
  Status flush();

 private:
  [[nodiscard]] bool write_back_cache() const;
  // Every change ends here.
  Status store(uint64_t offset, ByteSpan from);
  void write_through_cache(uint64_t offset, ByteSpan from, bool fua);
  void write_back(Range range);
  void use_copies(Range range, MutableByteSpan into);
  void keep_copies(Range range);
  void forget_copies(Range range);
  [[nodiscard]] Range blocks_around(Range range) const;

  Disk& disk_;
  Dice& dice_;

  // Under disk_.cache_lock_.
  Overlay overlay_;
  bool dirty_ = false;

  std::mutex copies_lock_;
  uint64_t own_changes_ = 0;                           // begun or ended
  std::map<uint64_t, std::vector<std::byte>> copies_;  // stale-cache: by number of the block
  std::map<uint64_t, std::vector<std::byte>> ahead_;   // stale-read-ahead
};

}  // namespace weft::check::broken
