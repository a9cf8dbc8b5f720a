// SPDX-License-Identifier: BSD-3-Clause
// Group and Member: the connections of a disk that is made one for all of them (mode emulate).
//
// The disk below keeps state for each connection: what one has changed is seen by the others only
// after it has flushed *and* they have, which drops what they remember. So a flush on any
// connection is a *round* over all of them:
//
//   Step 1. Every connection that needs it (see Tracking) is flushed, all at the same time, each on
//     its own loop.
//   Step 2. A connection may have read, during step 1 and after its own flush, what another was
//     about to publish. Every connection on which something was in progress between the start of
//     its flush and the end of step 1 is flushed once more.
//
// A request that is still in progress when step 2 flushes its connection may yet bring old data
// into what the disk remembers for it. Such a connection is *suspect*: its next request waits until
// those have ended, and flushes once more, before it begins.
//
// Flushes that are asked for while a round runs share the next one. When several connections flush
// all the time, the next round waits for as many as the last one served, at most for as long as
// that took: otherwise one would always be ahead of the others, and pay two rounds for each.
//
// A flush that fails does not stop the others. It marks the group for ever: every later flush
// fails, on every connection, though it still passes on what it can.
//
// Order: what two connections have changed is published by whichever flushes last. So a change that
// overlaps, in whole blocks, what another connection has changed and not flushed runs a round
// first; and so does one that overlaps what another has published since this connection began to
// remember things, for it might put its few bytes into an old copy of the block, and later publish
// that. Overlapping changes never run at once (order()).
//
// No lock is held across I/O. A member's requests and flushes run on its loop alone; what other
// loops look at is atomic, or guarded by the group's mutex, which is held for short.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "disk/change_order.h"
#include "disk/disk.h"
#include "engine/async_mutex.h"
#include "engine/scope.h"
#include "filters/multi-conn/dirty_ranges.h"

namespace weft::filters {

// Which connections a round flushes.
enum class Tracking : uint8_t {
  kConnection,  // if anything has changed: what has changed, read or cached since its last flush
  kFast,        // if anything has changed: all
  kOff,         // always all
};

class Group;

// One connection of a group. Lives on its loop's thread.
class Member {
 public:
  // `next`: the connection's disk. All outlive the member.
  Member(Group& group, disk::Disk& next, engine::Loop& loop);
  ~Member();  // after leave()
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  // One request of the connection on its way through the disk below. Address-stable.
  struct Operation {
    Operation* previous = nullptr;
    Operation* next = nullptr;
    uint64_t number = 0;
  };

  // True: begin() may be called at once. Otherwise settle() comes first.
  [[nodiscard]] bool settled() const { return suspect_before_ == 0; }
  engine::Task<Status> settle();
  void begin(Operation& operation);
  void end(Operation& operation);

  // A change of `range`: before it begins, and when it has ended, well or not, before its reply.
  // `range` in whole blocks.
  [[nodiscard]] bool needs_round(Range range) const;
  void changed(Range range);

  // The connection ends: nothing is in progress on it. Publishes what it has changed.
  engine::Task<Status> leave();

 private:
  friend class Group;
  enum class Step : uint8_t { kFirst, kAgain, kAlone };
  engine::Task<Status> flush_own(Step step);
  // Something was in progress since the start of its last flush. Any thread.
  [[nodiscard]] bool active() const {
    return in_flight_.load() != 0 || activity_.load() != activity_at_flush_.load();
  }

  Group& group_;
  disk::Disk& next_;
  engine::Loop& loop_;
  engine::AsyncMutex flushing_;  // one flush at a time

  // Of its loop.
  Operation* first_ = nullptr;  // in progress, in the order of their beginnings
  Operation* last_ = nullptr;
  uint64_t operations_ = 0;      // begun so far
  uint64_t suspect_before_ = 0;  // operations with a lower number are stragglers; 0: none
  bool settling_ = false;
  engine::Signal ended_;  // an operation, a settling, or the last round's work on this member

  // Written by its loop, looked at by others.
  std::atomic<uint64_t> activity_{0};  // beginnings and ends
  std::atomic<uint64_t> activity_at_flush_{0};
  std::atomic<uint32_t> in_flight_{0};
  std::atomic<uint64_t> seen_{0};  // what it remembers is not older than this publication

  // Guarded by the group's mutex.
  DirtyRanges dirty_;      // changed since the start of its last flush
  DirtyRanges published_;  // changed before that, while the flush runs
  uint32_t rounds_ = 0;    // that work on this member
  bool leaving_ = false;   // leave() waits for them
  bool failed_ = false;    // its last flush did
};

// Thread-safe. Outlives its members.
class Group {
 public:
  // `name`: for the log.
  Group(std::string name, Tracking tracking) : name_(std::move(name)), tracking_(tracking) {}
  ~Group();

  // A flush for a client: what was changed before the call, on any member, is durable and seen by
  // all when it has succeeded. To be awaited on `loop`, the caller's.
  engine::Task<Status> flush(engine::Loop& loop);
  // The same for a change that must come after what others have changed. Fails only if now
  // something could not be published.
  engine::Task<Status> run_round(engine::Loop& loop) { return join_round(loop, true); }

  // The order of changes in whole blocks, for disks with blocks of this size.
  disk::ChangeOrder& order(uint64_t block);

  // Rounds that have run, for tests.
  [[nodiscard]] uint64_t rounds() const { return rounds_.load(std::memory_order_relaxed); }

 private:
  friend class Member;
  struct Waiter;
  struct Gathering;
  // `always`: even if nothing has changed since the last round.
  engine::Task<Status> join_round(engine::Loop& loop, bool always);
  [[nodiscard]] bool is_needed() const;  // with the mutex held
  engine::Task<void> gather(engine::Loop& loop);
  engine::Task<Status> run_steps(engine::Loop& loop);
  engine::Task<Status> flush_members(engine::Loop& loop, const std::vector<Member*>& members,
                                     Member::Step step);
  void mark_failed(Error error);
  void published(const Member& member, DirtyRanges ranges);  // with the mutex held
  void forget_publications();
  void release(Member& member);

  const std::string name_;
  const Tracking tracking_;
  std::atomic<uint64_t> changes_{0};  // ended, on all members
  std::atomic<uint64_t> flushed_{0};  // changes_ at the start of the last round that succeeded
  std::atomic<uint64_t> rounds_{0};
  std::atomic<uint64_t> publication_{0};  // the number of the last
  std::atomic<bool> failed_{false};

  mutable std::mutex mutex_;
  std::vector<Member*> members_;
  std::map<uint64_t, std::unique_ptr<disk::ChangeOrder>> orders_;  // by block size
  // What flushes have published, as long as some member may remember what was there before.
  struct Publication {
    uint64_t number;
    const Member* by;  // null: several. Perhaps gone by now
    DirtyRanges ranges;
  };
  std::deque<Publication> publications_;
  // The round that comes next.
  Waiter* first_ = nullptr;
  Waiter* last_ = nullptr;
  size_t waiting_ = 0;
  bool running_ = false;  // somebody leads
  std::shared_ptr<Gathering> gathering_;
  // How the last round went.
  size_t served_ = 0;
  engine::Clock::duration took_{0};
};

}  // namespace weft::filters
