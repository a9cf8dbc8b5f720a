// SPDX-License-Identifier: BSD-3-Clause
// Calls that may block. Every one has an enumerated reason and a counter.
//
// Work is queued on a Lane: one per disk, so that a disk that hangs holds up nothing but itself.
// With each call comes how it is to be made:
//  - kParallel: by a thread of the pool, at once (a cold read, a sync: it waits for the device).
//  The
//    threads are made on demand and shared by all lanes; a lane has at most `limit` at once.
//  - kShort: by the loop's own thread at the end of the turn (a buffered write of a few pages:
//  handing
//    it to a thread costs more than doing it). If it blocks after all, the loop is taken over by
//    another thread (loop.h); and as long as a lane has a call that is stuck so, and for a second
//    from then, its short calls are made by the pool: one after another by one thread, and by one
//    more whenever that makes no progress for a millisecond, up to the limit.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/loop.h"

namespace weft::engine {

enum class BlockingReason : uint8_t {
  kOpen,         // opening, locking, closing files
  kMetadata,     // stat, directory listings
  kColdRead,     // a read that is not in the page cache
  kWrite,        // a buffered write
  kDirectWrite,  // a write past the page cache
  kSync,         // fdatasync
  kAllocate,     // fallocate: zero, trim
  kExtents,      // lseek SEEK_DATA, SEEK_HOLE
  kPlugin,       // a call of a plugin that blocks
  kCount,
};
std::string_view blocking_reason_name(BlockingReason reason);

enum class BlockingKind : uint8_t { kParallel, kShort };

class Lane;

// A call on its way through the pool. Executed on a thread of the pool; run() then comes back on
// the loop that asked.
class BlockingJob : public Message {
 public:
  virtual void execute() = 0;

 protected:
  ~BlockingJob() = default;

 private:
  friend class Lane;
  friend class Loop;
  friend class BlockingPool;
  Loop* loop_ = nullptr;
  Lane* lane_ = nullptr;
  BlockingJob* next_ = nullptr;
};

class BlockingPool {
 public:
  static constexpr size_t kThreadsMax = 1024;

  BlockingPool();
  ~BlockingPool();  // every lane is gone; waits for the threads
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  // Threads stay to the end, also without work: a process that one of them has started may be told
  // of the end of its thread (PR_SET_PDEATHSIG), and take it for ours.
  void keep_threads();

  [[nodiscard]] uint64_t count(BlockingReason reason) const;
  [[nodiscard]] size_t threads() const;
  // The pool's own lane, for calls that concern no disk.
  [[nodiscard]] Lane& general_lane() { return *general_lane_; }

 private:
  friend class Lane;
  friend class Loop;

  // Short calls, for Loop.
  void watch(Loop& loop);
  void forget(Loop& loop);
  void wake_watchdog() noexcept {
    if (watchdog_asleep_.load(std::memory_order_seq_cst)) wake_watchdog_now();
  }
  void wake_watchdog_now() noexcept;
  void call_is_stuck(BlockingJob& job);
  void call_came_back(BlockingJob& job);
  void submit_elsewhere(BlockingJob& job);

  struct State;
  std::unique_ptr<State> state_;
  std::atomic<bool> watchdog_asleep_{true};
  std::unique_ptr<Lane> general_lane_;
};

// A queue of blocking calls with a limit. May be used from any loop. Destroyed when it is idle.
class Lane {
 public:
  static constexpr size_t kLimitDefault = 64;

  explicit Lane(BlockingPool& pool, size_t limit = kLimitDefault);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void submit(BlockingJob& job, BlockingReason reason, BlockingKind kind);

  // `co_await lane.run(loop, reason, kind, f)` gives what f() returns, called on a pool thread.
  // `f` and what it refers to live until the await ends.
  template <typename F>
  auto run(Loop& loop, BlockingReason reason, BlockingKind kind, F f);

 private:
  friend class BlockingPool;
  [[nodiscard]] bool wants_pool() const;
  void queue_short(BlockingJob& job);

  BlockingPool& pool_;
  std::atomic<int> stuck_{0};           // short calls whose loops were taken over
  std::atomic<int64_t> pool_until_{0};  // Clock's ticks; 0: never was stuck
  struct Queue;
  std::unique_ptr<Queue> queue_;
};

namespace internal {

template <typename F>
struct BlockingAwaiter final : BlockingJob {
  using Value = std::invoke_result_t<F&>;
  BlockingAwaiter(Lane& the_lane, Loop& the_loop, BlockingReason the_reason, BlockingKind the_kind,
                  F function)
      : lane(the_lane),
        loop(the_loop),
        reason(the_reason),
        kind(the_kind),
        f(std::move(function)) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    wakeup.handle = handle;
    lane.submit(*this, reason, kind);
  }
  Value await_resume() { return std::move(*value); }

  void execute() override { value.emplace(f()); }
  void run() override { loop.schedule(wakeup); }

  Lane& lane;
  Loop& loop;
  BlockingReason reason;
  BlockingKind kind;
  F f;
  std::optional<Value> value;
  Wakeup wakeup{};
};

}  // namespace internal

template <typename F>
auto Lane::run(Loop& loop, BlockingReason reason, BlockingKind kind, F f) {
  return internal::BlockingAwaiter<F>(*this, loop, reason, kind, std::move(f));
}

}  // namespace weft::engine
