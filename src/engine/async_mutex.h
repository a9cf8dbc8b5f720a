// SPDX-License-Identifier: BSD-3-Clause
// AsyncMutex: a lock that is held across awaits, by coroutines of any loops. First come, first
// served; nobody's thread ever blocks.
//
//   AsyncMutex::Guard guard = co_await mutex.lock(loop);
#pragma once

#include <coroutine>
#include <mutex>
#include <utility>

#include "engine/loop.h"

namespace weft::engine {

// Thread-safe. Outlives its guards and those who wait.
class AsyncMutex {
 public:
  AsyncMutex() = default;
  AsyncMutex(const AsyncMutex&) = delete;
  AsyncMutex& operator=(const AsyncMutex&) = delete;
  ~AsyncMutex();

  // Unlocks when it goes. May be moved; used by one thread at a time.
  class [[nodiscard]] Guard {
   public:
    Guard() = default;
    Guard(Guard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
    Guard& operator=(Guard&& other) noexcept {
      std::swap(mutex_, other.mutex_);
      return *this;
    }
    ~Guard() { unlock(); }
    void unlock() {
      if (AsyncMutex* const mutex = std::exchange(mutex_, nullptr)) mutex->unlock();
    }
    [[nodiscard]] explicit operator bool() const { return mutex_ != nullptr; }

   private:
    friend class AsyncMutex;
    explicit Guard(AsyncMutex& mutex) : mutex_(&mutex) {}
    AsyncMutex* mutex_ = nullptr;
  };

  class Locker final : public Message {
   public:
    Locker(AsyncMutex& mutex, Loop& loop) : mutex_(mutex), loop_(loop) {}
    [[nodiscard]] bool await_ready() { return mutex_.try_lock(); }
    bool await_suspend(std::coroutine_handle<> handle);
    Guard await_resume() { return Guard(mutex_); }
    void run() override { loop_.schedule(wakeup_); }

   private:
    friend class AsyncMutex;
    AsyncMutex& mutex_;
    Loop& loop_;
    Wakeup wakeup_{};
    Locker* next_ = nullptr;
  };

  // To be awaited on `loop`, which is the caller's.
  Locker lock(Loop& loop) { return {*this, loop}; }

 private:
  bool try_lock();
  void unlock();

  std::mutex mutex_;
  bool locked_ = false;
  Locker* first_ = nullptr;
  Locker* last_ = nullptr;
};

}  // namespace weft::engine
