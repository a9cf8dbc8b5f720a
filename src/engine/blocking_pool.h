// SPDX-License-Identifier: BSD-3-Clause
// Calls that may block, off the loops. Every trip has an enumerated reason and a counter.
//
// Work is queued on a Lane: one per disk, so that a disk that hangs holds up nothing but itself.
// The pool's threads are made on demand and shared by all lanes. A lane runs at most `limit` calls
// at once, and says with each call how it is to be run:
//  - kParallel: a thread of its own at once (a cold read, a sync: it waits for the device);
//  - kBatched: in order of arrival by a thread that is already at work on this lane's batched
//  calls,
//    if there is one (a buffered write: short work, for which waking a thread costs more than doing
//    it). A batched call that is stuck is noticed after a millisecond and another thread takes over
//    those queued behind it, and so on up to the limit.
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

enum class BlockingKind : uint8_t { kParallel, kBatched };

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
  friend class BlockingPool;
  Loop* loop_ = nullptr;
  BlockingJob* next_ = nullptr;
};

class BlockingPool {
 public:
  static constexpr size_t kThreadsMax = 1024;

  BlockingPool();
  ~BlockingPool();  // every lane is gone; waits for the threads
  BlockingPool(const BlockingPool&) = delete;
  BlockingPool& operator=(const BlockingPool&) = delete;

  [[nodiscard]] uint64_t count(BlockingReason reason) const;
  [[nodiscard]] size_t threads() const;
  // The pool's own lane, for calls that concern no disk.
  [[nodiscard]] Lane& general_lane() { return *general_lane_; }

 private:
  friend class Lane;
  struct State;
  std::unique_ptr<State> state_;
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
  BlockingPool& pool_;
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
