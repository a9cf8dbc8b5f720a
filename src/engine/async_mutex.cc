// SPDX-License-Identifier: BSD-3-Clause
#include "engine/async_mutex.h"

#include <cassert>

namespace weft::engine {

AsyncMutex::~AsyncMutex() {
  assert(!locked_);
}

bool AsyncMutex::try_lock() {
  const std::lock_guard lock(mutex_);
  return !std::exchange(locked_, true);
}

bool AsyncMutex::Locker::await_suspend(std::coroutine_handle<> handle) {
  wakeup_.handle = handle;
  const std::lock_guard lock(mutex_.mutex_);
  if (!std::exchange(mutex_.locked_, true)) return false;  // it was unlocked meanwhile
  (mutex_.last_ ? mutex_.last_->next_ : mutex_.first_) = this;
  mutex_.last_ = this;
  return true;
}

// The lock is handed over, so that nobody can come between.
void AsyncMutex::unlock() {
  Locker* next = nullptr;
  {
    const std::lock_guard lock(mutex_);
    next = first_;
    if (next) {
      first_ = next->next_;
      if (!first_) last_ = nullptr;
    } else {
      locked_ = false;
    }
  }
  if (next) next->loop_.post(*next);
}

}  // namespace weft::engine
