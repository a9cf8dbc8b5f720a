// SPDX-License-Identifier: BSD-3-Clause
// Scope: runs tasks side by side on one loop and waits for all of them. Nothing is ever detached:
// whoever spawns owns a scope, and joins it before it goes.
//
//   Scope scope(loop);
//   scope.spawn(serve(a));
//   scope.spawn(serve(b));
//   co_await scope.join();
#pragma once

#include <cassert>

#include "engine/loop.h"
#include "engine/task.h"

namespace weft::engine {

class Scope final : public TaskOwner {
 public:
  explicit Scope(Loop& loop) : loop_(loop) {}
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() { assert(count_ == 0); }

  // Starts `task` inline; it is destroyed when it ends.
  void spawn(Task<void> task) {
    auto handle = task.release();
    handle.promise().owner = this;
    count_++;
    handle.resume();
  }

  [[nodiscard]] size_t count() const { return count_; }

  // Waits until every task, those spawned meanwhile included, has ended. One joiner at a time.
  struct Joiner {
    Scope& scope;
    [[nodiscard]] bool await_ready() const noexcept { return scope.count_ == 0; }
    void await_suspend(std::coroutine_handle<> handle) noexcept { scope.joiner_.handle = handle; }
    void await_resume() const noexcept {}
  };
  Joiner join() { return {*this}; }

  void task_ended() noexcept override {
    if (--count_ == 0 && joiner_.handle) {
      loop_.schedule(joiner_);
      // A second end cannot come before the joiner ran: it alone may spawn now.
    }
  }

 private:
  Loop& loop_;
  size_t count_ = 0;
  Wakeup joiner_{};
};

// Signal: wakes the coroutines that wait for a condition of their own loop. They look again at
// their condition when they wake.
class Signal {
 public:
  explicit Signal(Loop& loop) : loop_(loop) {}
  ~Signal() { assert(!first_); }

  struct Awaiter {
    Signal& signal;
    Wakeup wakeup{};
    Awaiter* next = nullptr;
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) noexcept {
      wakeup.handle = handle;
      *signal.last_ = this;
      signal.last_ = &next;
    }
    void await_resume() const noexcept {}
  };
  Awaiter wait() { return {*this}; }

  void notify_all() noexcept {
    Awaiter* waiter = first_;
    first_ = nullptr;
    last_ = &first_;
    while (waiter) {
      Awaiter* next = waiter->next;
      loop_.schedule(waiter->wakeup);
      waiter = next;
    }
  }

 private:
  Loop& loop_;
  Awaiter* first_ = nullptr;
  Awaiter** last_ = &first_;
};

}  // namespace weft::engine
