// SPDX-License-Identifier: BSD-3-Clause
#include "check/broken/disk.h"

#include <algorithm>

namespace weft::check::broken {

Disk::Turn Disk::arrive(Range range) {
  const std::scoped_lock guard(order_lock_);
  return order_.insert(order_.end(), range);
}

void Disk::await(Turn turn) {
  std::unique_lock guard(order_lock_);
  order_moved_.wait(guard, [&] {
    return std::none_of(order_.begin(), turn,
                        [&](const Range& before) { return before.overlaps(*turn); });
  });
}

void Disk::leave(Turn turn) {
  {
    const std::scoped_lock guard(order_lock_);
    order_.erase(turn);
  }
  order_moved_.notify_all();
}

View::View(Disk& disk) : disk_(disk), dice_(disk.dice_) {
  const std::scoped_lock guard(disk_.cache_lock_);
  disk_.views_.insert(this);
}

View::~View() {
  const std::scoped_lock guard(disk_.cache_lock_);
  if (!dice_.has(Fault::kPrivateOverlay)) write_back({0, disk_.store_.size()});
  disk_.views_.erase(this);
}

bool View::write_back_cache() const {
  return dice_.has(Fault::kLostFlush) || dice_.has(Fault::kOwnFlush);
}

Range View::blocks_around(Range range) const {
  const Range whole = range.rounded_out(disk_.block_);
  return {whole.offset, std::min(whole.end(), disk_.store_.size()) - whole.offset};
}

Status View::read(Range range, MutableByteSpan into) {
  Status done;
  if (write_back_cache() || dice_.has(Fault::kPrivateOverlay)) {
    const std::scoped_lock guard(disk_.cache_lock_);
    done = disk_.store_.read(range.offset, into);
    overlay_.cover(range.offset, into);
  } else {
    done = disk_.store_.read(range.offset, into);
  }
  if (!done) return done;
  if (dice_.has(Fault::kStaleCache) || dice_.has(Fault::kStaleReadAhead)) {
    use_copies(range, into);
    keep_copies(range);
  }
  if (dice_.strikes(Fault::kShortRead)) {
    // What the call before left in the buffer, or nothing.
    const size_t got = dice_.below(into.size());
    const std::byte rest = dice_.below(2) == 0 ? std::byte{0} : std::byte{0xdb};
    std::fill(into.begin() + static_cast<ptrdiff_t>(got), into.end(), rest);
  }
  return {};
}

Status View::write(uint64_t offset, ByteSpan from, bool fua) {
  const Range range = {offset, from.size()};
  forget_copies(range);
  Status done;
  const Range whole = blocks_around(range);
  if (write_back_cache()) {
    write_through_cache(offset, from, fua);
  } else if (dice_.strikes(Fault::kPrivateOverlay)) {
    const std::scoped_lock guard(disk_.cache_lock_);
    overlay_.put(offset, from);
  } else if (whole != range && dice_.strikes(Fault::kNeighbour)) {
    std::vector<std::byte> block(whole.length);
    done = disk_.store_.read(whole.offset, block);
    std::ranges::copy(from, block.begin() + static_cast<ptrdiff_t>(offset - whole.offset));
    dice_.linger();
    if (done) done = store(whole.offset, block);
  } else {
    done = store(offset, from);
  }
  forget_copies(range);
  if (!done) {
    if (dice_.strikes(Fault::kSwallowedError)) return {};
    return done;
  }
  return disk_.sync(fua && !dice_.strikes(Fault::kNoFua));
}

Status View::store(uint64_t offset, ByteSpan from) {
  if (dice_.has(Fault::kPrivateOverlay)) {
    const std::scoped_lock guard(disk_.cache_lock_);
    overlay_.drop({offset, from.size()});
  }
  return disk_.store_.write(offset, from);
}

// With FUA the data go to the store at once, and are not in any overlay.
void View::write_through_cache(uint64_t offset, ByteSpan from, bool fua) {
  const Range range = {offset, from.size()};
  const bool too_early = dice_.strikes(Fault::kLostFlush);
  if (too_early) {
    const std::scoped_lock guard(disk_.cache_lock_);
    dirty_ = true;
  }
  dice_.linger();
  const std::scoped_lock guard(disk_.cache_lock_);
  for (View* view : disk_.views_) {
    if (view != this || fua) view->write_back(range);
  }
  if (fua) {
    (void)disk_.store_.write(offset, from);  // a cache that lies about success is fault enough
    return;
  }
  overlay_.put(offset, from);
  if (!too_early) dirty_ = true;
}

void View::write_back(Range range) {
  overlay_.take(range,
                [&](uint64_t offset, ByteSpan bytes) { (void)disk_.store_.write(offset, bytes); });
}

Status View::zero(Range range, bool fua, bool fast) {
  if (dice_.strikes(Fault::kIgnoredZero)) return {};
  if (write_back_cache() || dice_.has(Fault::kPrivateOverlay)) {
    return write(range.offset, std::vector<std::byte>(range.length), fua);
  }
  forget_copies(range);
  const Status done = disk_.store_.zero(range, fast);
  forget_copies(range);
  if (!done) return done;
  return disk_.sync(fua && !dice_.strikes(Fault::kNoFua));
}

Status View::trim(Range range, bool fua) {
  if (dice_.strikes(Fault::kWideTrim)) range = blocks_around(range);
  if (write_back_cache() || dice_.has(Fault::kPrivateOverlay)) return {};  // a trim may do nothing
  forget_copies(range);
  const Status done = disk_.store_.trim(range);
  forget_copies(range);
  if (!done) return done;
  return disk_.sync(fua && !dice_.strikes(Fault::kNoFua));
}

Status View::flush() {
  if (write_back_cache()) {
    const std::scoped_lock guard(disk_.cache_lock_);
    for (View* view : disk_.views_) {
      if (dice_.has(Fault::kOwnFlush) && view != this) continue;
      if (!view->dirty_) continue;
      view->dirty_ = false;
      view->write_back({0, disk_.store_.size()});
    }
  }
  return disk_.sync(!dice_.strikes(Fault::kNoFlush));
}

// ---------------------------------------------------------------------------------------------
// Copies of blocks that a connection keeps: stale-cache, stale-read-ahead.

void View::use_copies(Range range, MutableByteSpan into) {
  const bool stale = dice_.strikes(Fault::kStaleCache);
  const std::scoped_lock guard(copies_lock_);
  const auto use = [&](uint64_t block, const std::vector<std::byte>& bytes) {
    const uint64_t at = block * disk_.block_;
    const uint64_t begin = std::max(at, range.offset);
    const uint64_t end = std::min(at + bytes.size(), range.end());
    if (begin >= end) return;
    std::copy_n(bytes.begin() + static_cast<ptrdiff_t>(begin - at), end - begin,
                into.begin() + static_cast<ptrdiff_t>(begin - range.offset));
  };
  const uint64_t first = range.offset / disk_.block_;
  const uint64_t last = (range.end() - 1) / disk_.block_;
  for (uint64_t block = first; block <= last; ++block) {
    if (const auto copy = copies_.find(block); stale && copy != copies_.end()) {
      use(block, copy->second);
    }
    if (const auto copy = ahead_.find(block); copy != ahead_.end()) {
      use(block, copy->second);
      ahead_.erase(copy);
    }
  }
}

void View::keep_copies(Range range) {
  static constexpr size_t kCopiesMax = 1024;
  const auto keep = [&](Range blocks, std::map<uint64_t, std::vector<std::byte>>& into) {
    uint64_t changes = 0;
    {
      const std::scoped_lock guard(copies_lock_);
      changes = own_changes_;
    }
    std::vector<std::byte> bytes(blocks.length);
    if (bytes.empty() || !disk_.store_.read(blocks.offset, bytes)) return;
    const std::scoped_lock guard(copies_lock_);
    // A change of this connection came between: what was read may be older than what it knows.
    if (changes != own_changes_) return;
    if (into.size() >= kCopiesMax) into.clear();
    for (uint64_t at = 0; at < blocks.length; at += disk_.block_) {
      const uint64_t end = std::min(at + disk_.block_, blocks.length);
      into[(blocks.offset + at) / disk_.block_].assign(bytes.begin() + static_cast<ptrdiff_t>(at),
                                                       bytes.begin() + static_cast<ptrdiff_t>(end));
    }
  };
  const Range blocks = blocks_around(range);
  if (dice_.has(Fault::kStaleCache)) keep(blocks, copies_);
  if (dice_.strikes(Fault::kStaleReadAhead) && blocks.end() < disk_.store_.size()) {
    keep(blocks_around({blocks.end(), 1}), ahead_);
  }
}

void View::forget_copies(Range range) {
  const std::scoped_lock guard(copies_lock_);
  ++own_changes_;
  const Range blocks = blocks_around(range);
  for (auto* copies : {&copies_, &ahead_}) {
    copies->erase(copies->lower_bound(blocks.offset / disk_.block_),
                  copies->lower_bound((blocks.end() + disk_.block_ - 1) / disk_.block_));
  }
}

}  // namespace weft::check::broken
