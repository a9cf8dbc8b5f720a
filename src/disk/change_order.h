// SPDX-License-Identifier: BSD-3-Clause
// ChangeOrder: overlapping changes of one disk take effect in the order they arrived, over all
// connections, exports and names that lead to it.
//
// A Change is entered when the last byte of its request has arrived. It may start once every change
// that was entered before it and overlaps it has left. A change that is dropped before it started
// (its connection died) leaves as well. A long trim or zero gives up its range piece by piece with
// advance(). Reads are not entered: they never wait.
//
// Ranges are rounded out to the granularity, so that a layer that reads, modifies and writes whole
// blocks is alone on them.
//
// The disk is cut into buckets of 1 MiB, 64 of them in turn, each with its lock and its list of
// changes in arrival order: changes far apart do not meet. A change that spans several is in the
// list of each; it counts one blocker for each list and each earlier, overlapping change in it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/range.h"
#include "engine/loop.h"

namespace weft::disk {

class ChangeOrder;

// One change on its way. Address-stable from enter() to leave(). Belongs to its loop's thread.
class Change {
 public:
  Change() = default;
  Change(const Change&) = delete;
  Change& operator=(const Change&) = delete;

  // Called on the thread of the loop given to enter(), once nothing earlier overlaps any more.
  // Not called when enter() said that it may start at once.
  virtual void may_start() = 0;

 protected:
  ~Change() = default;

 private:
  friend class ChangeOrder;
  struct Link {
    Change* change = nullptr;
    Link* previous = nullptr;
    Link* next = nullptr;
  };
  struct Wake final : engine::Message {
    Change* change = nullptr;
    void run() override;
  };
  Range range_;
  engine::Loop* loop_ = nullptr;
  uint64_t buckets_ = 0;  // bit set of the lists it is in
  std::atomic<uint32_t> blockers_{0};
  bool waking_ = false;   // may_start() is on its way; set with the buckets locked, once
  Link first_;            // the list of the lowest bucket: most changes need no other
  Link* more_ = nullptr;  // 64 links, indexed by bucket, for a change in several
  Wake wake_;
};

// Thread-safe. Outlives its changes.
class ChangeOrder {
 public:
  // `granularity`: a power of two, bytes.
  explicit ChangeOrder(uint64_t granularity = 1) : granularity_(granularity) {}
  ~ChangeOrder();

  // True: it may start now. False: may_start() will be called on `loop`.
  [[nodiscard]] bool enter(Change& change, Range range, engine::Loop& loop);

  // Enters the change if it may start now. False: it is not entered, and nothing is left behind.
  [[nodiscard]] bool try_enter(Change& change, Range range, engine::Loop& loop);

  // The change is done up to `offset` (exclusive): others may have what lies before it.
  void advance(Change& change, uint64_t offset);

  // The change has finished, or is dropped. False: its may_start() is already on its way to its
  // loop and will still be called, so the object must stay until then.
  bool leave(Change& change);

  [[nodiscard]] uint64_t granularity() const { return granularity_; }

 private:
  static constexpr int kBuckets = 64;
  static constexpr int kBucketShift = 20;  // 1 MiB
  struct alignas(64) Bucket {
    std::mutex mutex;
    Change::Link* head = nullptr;
    Change::Link* tail = nullptr;
  };
  static uint64_t buckets_of(Range range);
  uint32_t blockers_of(Range range, uint64_t buckets) const;
  bool add(Change& change, Range range, engine::Loop& loop, bool only_unblocked);
  void lock(uint64_t buckets);
  void unlock(uint64_t buckets);
  Change::Link& link_of(Change& change, int bucket);
  void release(Change& change, Range before, Range after);

  uint64_t granularity_;
  std::array<Bucket, kBuckets> buckets_;
};

}  // namespace weft::disk
