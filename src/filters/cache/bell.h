// SPDX-License-Identifier: BSD-3-Clause
// Bell: wakes coroutines of any loops, which look again at what they wait for. And Hold: a range of
// the disk that one coroutine has to itself.
#pragma once

#include <cassert>
#include <coroutine>
#include <cstdint>
#include <mutex>
#include <utility>

#include "disk/change_order.h"
#include "engine/loop.h"

namespace weft::filters {

// Thread-safe. Who waits reads rings() before it looks at its condition, so that no ring is missed:
//
//   for (;;) {
//     const uint64_t seen = bell.rings();
//     if (the condition holds) break;
//     co_await bell.wait(loop, seen);
//   }
class Bell {
 public:
  Bell() = default;
  Bell(const Bell&) = delete;
  Bell& operator=(const Bell&) = delete;
  ~Bell() { assert(!first_); }

  class Waiter final : public engine::Message {
   public:
    Waiter(Bell& bell, engine::Loop& loop, uint64_t seen) : bell_(bell), loop_(loop), seen_(seen) {}
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> handle) {
      wakeup_.handle = handle;
      const std::lock_guard lock(bell_.mutex_);
      if (bell_.rings_ != seen_) return false;
      next_ = bell_.first_;
      bell_.first_ = this;
      return true;
    }
    void await_resume() const noexcept {}
    void run() override { loop_.schedule(wakeup_); }

   private:
    friend class Bell;
    Bell& bell_;
    engine::Loop& loop_;
    const uint64_t seen_;
    engine::Wakeup wakeup_{};
    Waiter* next_ = nullptr;
  };

  [[nodiscard]] uint64_t rings() const {
    const std::lock_guard lock(mutex_);
    return rings_;
  }
  // To be awaited on `loop`. Returns at once when the bell has rung since `seen`.
  Waiter wait(engine::Loop& loop, uint64_t seen) { return {*this, loop, seen}; }

  void ring() {
    Waiter* waiter = nullptr;
    {
      const std::lock_guard lock(mutex_);
      rings_++;
      waiter = std::exchange(first_, nullptr);
    }
    while (waiter) {
      Waiter* const next = waiter->next_;  // from its message on it may be gone
      waiter->loop_.post(*waiter);
      waiter = next;
    }
  }

 private:
  mutable std::mutex mutex_;
  uint64_t rings_ = 0;
  Waiter* first_ = nullptr;
};

// `co_await hold` waits until nobody who came earlier holds any of the range; leave(), or its end,
// gives it up. Lives and ends on its loop.
class Hold final : public disk::Change {
 public:
  Hold(disk::ChangeOrder& order, Range range, engine::Loop& loop)
      : order_(order), range_(range), loop_(loop) {}
  ~Hold() { leave(); }

  [[nodiscard]] bool await_ready() {
    entered_ = true;
    return order_.enter(*this, range_, loop_);
  }
  void await_suspend(std::coroutine_handle<> handle) { wakeup_.handle = handle; }
  void await_resume() const noexcept {}
  void may_start() override { loop_.schedule(wakeup_); }
  void leave() {
    if (std::exchange(entered_, false)) order_.leave(*this);
  }

 private:
  disk::ChangeOrder& order_;
  const Range range_;
  engine::Loop& loop_;
  bool entered_ = false;
  engine::Wakeup wakeup_{};
};

}  // namespace weft::filters
