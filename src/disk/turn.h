// SPDX-License-Identifier: BSD-3-Clause
// For tests: a change's turn in the order of a disk.
#pragma once

#include <utility>

#include "disk/change_order.h"
#include "disk/disk.h"

namespace weft::disk {

// Waits for its turn in the order of changes, as the server does for every change.
class Turn final : public Change {
 public:
  Turn(Disk& disk, Range range, Loop& loop) : order_(disk.order()), range_(range), loop_(loop) {}
  ~Turn() { leave(); }

  [[nodiscard]] bool await_ready() {
    return !order_ || (entered_ = true, order_->enter(*this, range_, loop_));
  }
  void await_suspend(std::coroutine_handle<> handle) { wakeup_.handle = handle; }
  void await_resume() const {}
  void may_start() override { loop_.schedule(wakeup_); }
  void leave() {
    if (std::exchange(entered_, false)) order_->leave(*this);
  }

 private:
  ChangeOrder* order_;
  Range range_;
  Loop& loop_;
  bool entered_ = false;
  engine::Wakeup wakeup_{};
};

}  // namespace weft::disk
