// SPDX-License-Identifier: BSD-3-Clause
#include "disk/change_order.h"

#include <bit>
#include <cassert>
#include <memory>
#include <vector>

namespace weft::disk {
namespace {

// What is left of a range when its change leaves. Not an empty range at its end: one inside another
// range counts as overlapping it.
constexpr Range kNothing{UINT64_MAX, 0};

}  // namespace

void Change::Wake::run() {
  change->waking_ = false;  // nobody else looks at it once the blockers are gone
  change->may_start();
}

ChangeOrder::~ChangeOrder() {
  for ([[maybe_unused]] const Bucket& bucket : buckets_) assert(!bucket.head);
}

uint64_t ChangeOrder::buckets_of(Range range) {
  const uint64_t first = range.offset >> kBucketShift;
  const uint64_t last = (range.end() - 1) >> kBucketShift;
  if (last - first >= kBuckets - 1) return ~uint64_t{0};
  const int count = static_cast<int>(last - first) + 1;
  return std::rotl((uint64_t{1} << count) - 1, static_cast<int>(first % kBuckets));
}

// Locks are taken in ascending order, so that two changes never wait for each other.
void ChangeOrder::lock(uint64_t buckets) {
  for (uint64_t left = buckets; left; left &= left - 1)
    buckets_[std::countr_zero(left)].mutex.lock();
}

void ChangeOrder::unlock(uint64_t buckets) {
  for (uint64_t left = buckets; left; left &= left - 1) {
    buckets_[std::countr_zero(left)].mutex.unlock();
  }
}

Change::Link& ChangeOrder::link_of(Change& change, int bucket) {
  return change.more_ ? change.more_[bucket] : change.first_;
}

// With the buckets locked: once for each list and each change in it that overlaps `range`.
uint32_t ChangeOrder::blockers_of(Range range, uint64_t buckets) const {
  uint32_t blockers = 0;
  for (uint64_t left = buckets; left; left &= left - 1) {
    const Bucket& bucket = buckets_[std::countr_zero(left)];
    for (const Change::Link* link = bucket.head; link; link = link->next) {
      if (link->change->range_.overlaps(range)) blockers++;
    }
  }
  return blockers;
}

bool ChangeOrder::enter(Change& change, Range range, engine::Loop& loop) {
  return add(change, range, loop, false);
}

bool ChangeOrder::try_enter(Change& change, Range range, engine::Loop& loop) {
  return add(change, range, loop, true);
}

bool ChangeOrder::add(Change& change, Range range, engine::Loop& loop, bool only_unblocked) {
  assert(!range.empty());
  range = range.rounded_out(granularity_);
  const uint64_t buckets = buckets_of(range);
  change.range_ = range;
  change.loop_ = &loop;
  change.buckets_ = buckets;
  change.wake_.change = &change;
  change.waking_ = false;
  if (std::popcount(buckets) > 1) change.more_ = new Change::Link[kBuckets];

  lock(buckets);
  const uint32_t blockers = blockers_of(range, buckets);
  if (blockers != 0 && only_unblocked) {
    unlock(buckets);
    change.buckets_ = 0;
    delete[] std::exchange(change.more_, nullptr);
    return false;
  }
  for (uint64_t left = buckets; left; left &= left - 1) {
    const int index = std::countr_zero(left);
    Bucket& bucket = buckets_[index];
    Change::Link& link = link_of(change, index);
    link = {&change, bucket.tail, nullptr};
    (bucket.tail ? bucket.tail->next : bucket.head) = &link;
    bucket.tail = &link;
  }
  change.blockers_.store(blockers, std::memory_order_relaxed);
  unlock(buckets);
  return blockers == 0;
}

// With the change's buckets locked: its range shrinks from `before` to `after`; later changes that
// overlapped the one and not the other lose a blocker, once for each list they share with it.
void ChangeOrder::release(Change& change, Range before, Range after) {
  for (uint64_t left = change.buckets_; left; left &= left - 1) {
    const int index = std::countr_zero(left);
    for (Change::Link* link = link_of(change, index).next; link; link = link->next) {
      Change& later = *link->change;
      if (!later.range_.overlaps(before) || later.range_.overlaps(after)) continue;
      if (later.blockers_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
        later.waking_ = true;
        later.loop_->post(later.wake_);
      }
    }
  }
}

void ChangeOrder::advance(Change& change, uint64_t offset) {
  lock(change.buckets_);
  const Range before = change.range_;
  // A block that is only half done is still held.
  offset &= ~(granularity_ - 1);
  if (offset > before.offset && offset < before.end()) {
    change.range_ = {offset, before.end() - offset};
    release(change, before, change.range_);
  }
  unlock(change.buckets_);
}

bool ChangeOrder::leave(Change& change) {
  const uint64_t buckets = change.buckets_;
  lock(buckets);
  const bool waking = change.waking_;
  release(change, change.range_, kNothing);
  for (uint64_t left = buckets; left; left &= left - 1) {
    const int index = std::countr_zero(left);
    Bucket& bucket = buckets_[index];
    Change::Link& link = link_of(change, index);
    (link.previous ? link.previous->next : bucket.head) = link.next;
    (link.next ? link.next->previous : bucket.tail) = link.previous;
  }
  change.buckets_ = 0;
  unlock(buckets);
  delete[] std::exchange(change.more_, nullptr);
  return !waking;
}

}  // namespace weft::disk
