// SPDX-License-Identifier: BSD-3-Clause
// FlushRounds: flushes that wait at the same time share one round, which starts after the last of
// them has arrived: who arrives while a round runs waits for the next one. (SyncGroup does this for
// a blocking call; here the round is a coroutine.)
//
// One of those who wait, the first, leads: it runs the round on its own loop and brings the result
// to the others. At its end the first of those who have come meanwhile leads the next.
#pragma once

#include <cassert>
#include <mutex>
#include <utility>

#include "base/result.h"
#include "engine/loop.h"
#include "engine/task.h"

namespace weft::filters {

// Thread-safe. Outlives the tasks of its calls.
class FlushRounds {
 public:
  FlushRounds() = default;
  FlushRounds(const FlushRounds&) = delete;
  FlushRounds& operator=(const FlushRounds&) = delete;
  ~FlushRounds() { assert(!led_ && !first_); }

  // `round`, which returns a Task<Status>, is called on `loop`, the caller's, if this call leads.
  template <typename F>
  engine::Task<Status> flush(engine::Loop& loop, F round) {
    Waiter self(*this, loop);
    co_await self;
    if (!self.leads) co_return self.result;
    Waiter* const all = begin();
    const Status result = co_await round();
    end(all, result);
    co_return result;
  }

 private:
  struct Waiter final : engine::Message {
    Waiter(FlushRounds& the_rounds, engine::Loop& the_loop) : rounds(the_rounds), loop(the_loop) {}
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> handle) {
      wakeup.handle = handle;
      return rounds.arrive(*this);
    }
    void await_resume() const noexcept {}
    void run() override { loop.schedule(wakeup); }

    FlushRounds& rounds;
    engine::Loop& loop;
    engine::Wakeup wakeup{};
    Status result;
    bool leads = false;
    Waiter* next = nullptr;
  };

  // False: it leads now.
  bool arrive(Waiter& waiter) {
    const std::lock_guard lock(mutex_);
    (first_ ? last_->next : first_) = &waiter;
    last_ = &waiter;
    if (std::exchange(led_, true)) return true;
    waiter.leads = true;
    return false;
  }
  // Whoever has arrived by now is served by this round; the first is the leader.
  Waiter* begin() {
    const std::lock_guard lock(mutex_);
    return std::exchange(first_, nullptr);
  }
  void end(Waiter* leader, const Status& result) {
    Waiter* promoted = nullptr;
    {
      const std::lock_guard lock(mutex_);
      promoted = first_;
      led_ = promoted != nullptr;
    }
    if (promoted) {
      promoted->leads = true;
      promoted->loop.post(*promoted);
    }
    for (Waiter* waiter = leader->next; waiter;) {
      Waiter* const next = waiter->next;  // from its message on it may be gone
      waiter->result = result;
      waiter->loop.post(*waiter);
      waiter = next;
    }
  }

  std::mutex mutex_;
  bool led_ = false;
  Waiter* first_ = nullptr;  // who waits for the next round
  Waiter* last_ = nullptr;
};

}  // namespace weft::filters
