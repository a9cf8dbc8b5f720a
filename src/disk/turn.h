// SPDX-License-Identifier: BSD-3-Clause
// Turn: a coroutine's change in an order of changes. It leaves with its scope.
//
//   Turn turn(order, range, loop);
//   co_await turn;
#pragma once

#include <coroutine>
#include <utility>

#include "disk/change_order.h"
#include "disk/disk.h"

namespace weft::disk {

class Turn final : public Change {
 public:
  // To be awaited on `loop`, which is the caller's. All outlive the turn.
  Turn(ChangeOrder& order, Range range, Loop& loop) : order_(&order), range_(range), loop_(loop) {}
  // As the server does for every change. A disk without an order is not waited for.
  Turn(Disk& disk, Range range, Loop& loop) : order_(disk.order()), range_(range), loop_(loop) {}
  ~Turn() { leave(); }

  // True: the turn is taken, as if it had been awaited. False: somebody else is there, and is not
  // waited for.
  [[nodiscard]] bool try_take() {
    return !order_ || (entered_ = order_->try_enter(*this, range_, loop_));
  }

  [[nodiscard]] bool await_ready() {
    return !order_ || (entered_ = true, order_->enter(*this, range_, loop_));
  }
  void await_suspend(std::coroutine_handle<> handle) { wakeup_.handle = handle; }
  void await_resume() const {}
  void may_start() override { loop_.schedule(wakeup_); }

  // Only once the turn has come: then nothing is on its way to this object any more.
  void leave() {
    if (std::exchange(entered_, false)) (void)order_->leave(*this);
  }

 private:
  ChangeOrder* order_;
  Range range_;
  Loop& loop_;
  bool entered_ = false;
  engine::Wakeup wakeup_{};
};

}  // namespace weft::disk
