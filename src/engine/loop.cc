// SPDX-License-Identifier: BSD-3-Clause
#include "engine/loop.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cassert>

#include "engine/engines.h"

namespace weft::engine {
namespace {

thread_local Loop* current_loop = nullptr;

}  // namespace

// ---- Watch ------------------------------------------------------------------------------------

Watch::Watch(Loop& loop, int fd) : loop_(loop), fd_(fd) {}

Watch::~Watch() {
  assert(!in_.waiting && !out_.waiting);
  loop_.disarm(*this);
}

bool Watch::Awaiter::await_ready() const noexcept {
  return std::exchange(side.pending, false) || side.always || side.cancelled;
}

void Watch::Awaiter::await_suspend(std::coroutine_handle<> handle) noexcept {
  assert(!side.waiting);
  side.wakeup.handle = handle;
  side.waiting = true;
  if (!side.armed) side.watch->loop_.arm(*side.watch, side);
}

bool Watch::Awaiter::await_resume() const noexcept {
  return !side.cancelled;
}

void Watch::wake(Side& side) {
  if (!side.waiting) {
    side.pending = true;
    return;
  }
  side.waiting = false;
  loop_.schedule(side.wakeup);
}

void Watch::report(uint32_t events) {
  const bool gone = events & (POLLHUP | POLLERR | POLLNVAL);
  if (gone || events & POLLRDHUP) in_.always = true;
  if (gone) out_.always = true;
  if (gone || events & (POLLIN | POLLRDHUP)) wake(in_);
  if (gone || events & POLLOUT) wake(out_);
}

void Watch::cancel_input() {
  in_.cancelled = true;
  wake(in_);
}

void Watch::cancel() {
  cancel_input();
  out_.cancelled = true;
  wake(out_);
}

// ---- Timer ------------------------------------------------------------------------------------

void Timer::Awaiter::await_suspend(std::coroutine_handle<> handle) {
  assert(!timer.armed_);
  timer.wakeup_.handle = handle;
  timer.entry_ = timer.loop_.timers_.emplace(when, &timer);
  timer.armed_ = true;
}

void Timer::cancel() {
  cancelled_ = true;
  if (!armed_) return;
  disarm();
  loop_.schedule(wakeup_);
}

void Timer::disarm() {
  if (!armed_) return;
  loop_.timers_.erase(entry_);
  armed_ = false;
}

// ---- FileOperation ----------------------------------------------------------------------------

void FileOperation::await_suspend(std::coroutine_handle<> handle) {
  wakeup.handle = handle;
  loop.start(*this);
}

FileOperation Loop::read_file(int fd, MutableByteSpan into, uint64_t offset, int rw_flags) {
  const auto length = static_cast<uint32_t>(std::min<size_t>(into.size(), 1u << 30));
  return {*this, FileOperation::Kind::kRead, fd, into.data(), length, offset, rw_flags};
}

FileOperation Loop::write_file(int fd, ByteSpan from, uint64_t offset, int rw_flags) {
  const auto length = static_cast<uint32_t>(std::min<size_t>(from.size(), 1u << 30));
  return {
      *this,   FileOperation::Kind::kWrite, fd, const_cast<std::byte*>(from.data()), length, offset,
      rw_flags};
}

// ---- Loop -------------------------------------------------------------------------------------

std::unique_ptr<Loop> Loop::create(EngineKind kind, BlockingPool& pool) {
  return kind == EngineKind::kUring ? make_uring_loop(pool) : make_epoll_loop(pool);
}

Loop::Loop(BlockingPool& pool) : pool_(pool) {}
Loop::~Loop() = default;

Loop* Loop::current() {
  return current_loop;
}

void Loop::run() {
  Loop* outer = std::exchange(current_loop, this);
  stopped_ = false;
  while (!stopped_) {
    turn();
    if (stop_requested_.exchange(false, std::memory_order_acquire)) stopped_ = true;
  }
  current_loop = outer;
}

void Loop::stop() {
  stop_requested_.store(true, std::memory_order_seq_cst);
  if (!in_thread()) ring_doorbell();
}

void Loop::turn() {
  run_messages();
  run_timers();
  run_ready();
  run_turn_ends();
  if (ready_ || turn_ends_ || stop_requested_.load(std::memory_order_acquire)) {
    wait(std::chrono::nanoseconds(0));
    return;
  }
  // Say that this thread is about to sleep, then look for messages once more: a poster that comes
  // after the look sees the flag and rings.
  sleeping_.store(true, std::memory_order_seq_cst);
  const bool idle = messages_.load(std::memory_order_seq_cst) == nullptr &&
                    !stop_requested_.load(std::memory_order_seq_cst);
  wait(idle ? time_to_next_timer() : std::chrono::nanoseconds(0));
  sleeping_.store(false, std::memory_order_relaxed);
}

void Loop::at_turn_end(TurnEnd& what) noexcept {
  if (what.queued_) return;
  what.queued_ = true;
  what.next_ = turn_ends_;
  turn_ends_ = &what;
}

void Loop::cancel_turn_end(TurnEnd& what) noexcept {
  if (!what.queued_) return;
  for (TurnEnd** link = &turn_ends_; *link; link = &(*link)->next_) {
    if (*link == &what) {
      *link = what.next_;
      what.queued_ = false;
      return;
    }
  }
}

void Loop::post(Message& message) noexcept {
  Message* head = messages_.load(std::memory_order_relaxed);
  do {
    message.next_ = head;
  } while (!messages_.compare_exchange_weak(head, &message, std::memory_order_seq_cst,
                                            std::memory_order_relaxed));
  if (sleeping_.load(std::memory_order_seq_cst) && !in_thread()) ring_doorbell();
}

void Loop::run_messages() {
  Message* newest = messages_.load(std::memory_order_relaxed);
  if (!newest) return;
  newest = messages_.exchange(nullptr, std::memory_order_acquire);
  Message* oldest = nullptr;
  while (newest) {  // the stack has them newest first
    Message* next = newest->next_;
    newest->next_ = oldest;
    oldest = newest;
    newest = next;
  }
  while (oldest) {
    Message* next = oldest->next_;  // run() may destroy the message
    oldest->run();
    oldest = next;
  }
}

void Loop::run_timers() {
  if (timers_.empty()) return;
  const Clock::time_point now = Clock::now();
  while (!timers_.empty() && timers_.begin()->first <= now) {
    Timer& timer = *timers_.begin()->second;
    timer.disarm();
    schedule(timer.wakeup_);
  }
}

void Loop::run_ready() {
  // Only what is queued now: what these queue comes in the next round, with its completions.
  for (int round = 0; ready_ && round < 16; round++) {
    Wakeup* list = ready_;
    ready_ = nullptr;
    ready_tail_ = &ready_;
    while (list) {
      Wakeup* next = list->next;  // resuming may destroy the wakeup
      std::coroutine_handle<> handle = std::exchange(list->handle, nullptr);
      handle.resume();
      list = next;
    }
  }
}

void Loop::run_turn_ends() {
  TurnEnd* list = std::exchange(turn_ends_, nullptr);
  while (list) {
    TurnEnd* what = list;
    list = what->next_;
    what->queued_ = false;
    what->turn_end();
  }
}

std::chrono::nanoseconds Loop::time_to_next_timer() const {
  if (timers_.empty()) return std::chrono::nanoseconds(-1);
  const auto left = timers_.begin()->first - Clock::now();
  return std::max<std::chrono::nanoseconds>(left, std::chrono::nanoseconds(0));
}

// ---- the choice of the engine -----------------------------------------------------------------

EngineChoice choose_engine(std::string_view wanted) {
  if (wanted != "auto" && wanted != "io_uring" && wanted != "epoll") {
    throw ConfigError(
        fmt::format("--engine={}: no such engine; use auto, io_uring or epoll", wanted));
  }
  if (wanted == "epoll") return {EngineKind::kEpoll, "asked for"};
  const std::string obstacle = probe_uring();
  if (obstacle.empty()) {
    return {EngineKind::kUring, wanted == "auto" ? "the kernel offers all that is needed"
                                                 : "asked for, and the kernel offers it"};
  }
  if (wanted == "io_uring") {
    throw ConfigError(
        fmt::format("--engine=io_uring: {}; use --engine=auto or --engine=epoll", obstacle));
  }
  return {EngineKind::kEpoll, fmt::format("no io_uring: {}", obstacle)};
}

}  // namespace weft::engine
