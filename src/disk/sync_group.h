// SPDX-License-Identifier: BSD-3-Clause
// SyncGroup: the one sync of a disk, shared by all its connections on all loops.
//
// flush() calls that wait at the same time share one sync, which starts after the last of them has
// arrived: a flush that arrives while a sync runs waits for the next one. A disk without changes
// since its last sync needs none, but only what this group has synced itself counts as clean.
//
// A failed sync of any kind marks the disk for ever: the kernel drops what it could not write and
// reports that once, so that a later sync that succeeds proves nothing. Every later flush, on every
// connection, fails.
//
// The states: idle; *called* (a waiter, the leader, is on its way to the pool; who arrives joins);
// *syncing* (who arrives waits for the next). At the end of a sync the first that waits for the
// next one becomes its leader, on its own loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>

#include "base/result.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"
#include "engine/task.h"

namespace weft::disk {

// Thread-safe. Outlives the tasks of its flush() calls.
class SyncGroup {
 public:
  // Makes all changes that have finished durable. Called on a thread of the pool, one call at a
  // time; may block.
  using Sync = std::function<Status()>;

  // `name` names the disk in the log. `dirty`: its storage outlives the process, so that somebody
  // else may have left changes there.
  SyncGroup(std::string name, Sync sync, engine::Lane& lane, bool dirty)
      : name_(std::move(name)), sync_(std::move(sync)), lane_(lane), changes_(dirty ? 1 : 0) {}
  SyncGroup(const SyncGroup&) = delete;
  SyncGroup& operator=(const SyncGroup&) = delete;
  ~SyncGroup();

  // A change has finished, well or not. Called before its reply is sent.
  void changed() noexcept { changes_.fetch_add(1, std::memory_order_acq_rel); }

  // Makes durable what has finished before the call. Fails with the error of the sync, or with EIO
  // for ever once a sync has failed. To be awaited on `loop`, which is the caller's.
  engine::Task<Status> flush(engine::Loop& loop);

  // A change that had to be durable (FUA) is not, or a sync elsewhere failed. Logs the first time,
  // with `what` as the thing that failed ("a write with FUA").
  void mark_failed(Error error, const char* what);

  // The failure that flush() gives for ever, if there was one.
  [[nodiscard]] Status status() const;

  // True when flush() would have nothing to do.
  [[nodiscard]] bool clean() const {
    return changes_.load(std::memory_order_acquire) == synced_.load(std::memory_order_acquire);
  }
  // How many syncs have run.
  [[nodiscard]] uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }

 private:
  struct Waiter;
  struct List {
    Waiter* head = nullptr;
    Waiter* tail = nullptr;
  };
  engine::Task<Status> wait(engine::Loop& loop);
  void arrive(Waiter& waiter);
  void sync_for(Waiter& leader);

  const std::string name_;
  const Sync sync_;
  engine::Lane& lane_;
  std::atomic<uint64_t> changes_;    // finished ones
  std::atomic<uint64_t> synced_{0};  // changes_ at the start of the last sync that succeeded
  std::atomic<uint64_t> syncs_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  bool led_ = false;  // called or syncing
  List next_;         // who waits for the next sync; its head leads it, unless one is running
};

}  // namespace weft::disk
