// SPDX-License-Identifier: BSD-3-Clause
// Running a task on another loop, and awaiting it on one's own.
//
//   const Status done = co_await run_elsewhere(mine, theirs, [&] { return disk.flush(); });
#pragma once

#include <coroutine>
#include <optional>
#include <utility>

#include "engine/loop.h"
#include "engine/task.h"

namespace weft::engine {

namespace internal {

// Goes to the other loop as a message, runs the task there, and comes back as a message.
template <typename F, typename T>
struct Elsewhere final : Message {
  Elsewhere(Loop& the_here, Loop& the_there, F& the_make)
      : here(the_here), there(the_there), make(the_make) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    wakeup.handle = handle;
    there.post(*this);
  }
  T await_resume() { return std::move(*value); }

  void run() override {
    if (value) {
      here.schedule(wakeup);
      return;
    }
    auto handle = drive(*this).release();
    handle.promise().owner = &nobody;
    handle.resume();
  }
  // The frame is destroyed by its own end; what it was started for may be gone by then.
  static Task<void> drive(Elsewhere& self) {
    self.value.emplace(co_await self.make());
    self.here.post(self);
  }
  struct Nobody final : TaskOwner {
    void task_ended() noexcept override {}
  };
  inline static Nobody nobody;

  Loop& here;
  Loop& there;
  F& make;
  std::optional<T> value;
  Wakeup wakeup{};
};

}  // namespace internal

// Calls `make` on the thread of `there`, runs the Task it returns to its end there, and gives its
// value on `here`, the caller's loop. `there` runs until then. On one and the same loop the task is
// awaited as it is.
template <typename F>
auto run_elsewhere(Loop& here, Loop& there, F make) -> decltype(make()) {
  using T = typename decltype(make())::Value;
  if (&here == &there) co_return co_await make();
  internal::Elsewhere<F, T> call(here, there, make);
  co_return co_await call;
}

}  // namespace weft::engine
