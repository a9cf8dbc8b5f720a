// SPDX-License-Identifier: BSD-3-Clause
#include "engine/loop.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cstdio>
#include <cstring>
#include <thread>

#include "base/fd.h"
#include "engine/blocking_pool.h"
#include "engine/engines.h"

namespace weft::engine {
namespace {

thread_local Loop* current_loop = nullptr;

constexpr auto kShortCallsTime = std::chrono::milliseconds(2);  // in one turn

// Whether the kernel would run the thread if it had a processor to spare (proc(5), state R).
bool is_runnable(int tid) {
  char path[64];
  std::snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
  Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  char text[256];
  const ssize_t n = file ? ::read(file.get(), text, sizeof text - 1) : -1;
  if (n <= 0) return false;
  text[n] = '\0';
  const char* after_name = std::strrchr(text, ')');
  return after_name && after_name[1] == ' ' && after_name[2] == 'R';
}

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

void Loop::end() {
  if (watched_) pool_.forget(*this);
  while (guests_.load(std::memory_order_acquire) > 0) std::this_thread::yield();
  Message* message = messages_.exchange(nullptr, std::memory_order_acquire);
  while (message) {
    Message* next = message->next_;  // discard() may destroy the message
    message->discard();
    message = next;
  }
}

Loop* Loop::current() {
  return current_loop;
}

void Loop::run() {
  Loop* outer = std::exchange(current_loop, this);
  stopped_ = false;
  runner_tid_.store(::gettid(), std::memory_order_relaxed);
  adopt_thread();
  if (!run_turns()) {
    std::unique_lock lock(lost_mutex_);
    ended_elsewhere_.wait(lock, [this] { return std::exchange(ended_, false); });
  }
  current_loop = outer;
}

bool Loop::run_turns() {
  while (!stopped_) {
    if (!turn()) return false;
    if (stop_requested_.exchange(false, std::memory_order_acquire)) {
      stopped_ = true;
    }
  }
  return true;
}

void Loop::stop() {
  stop_requested_.store(true, std::memory_order_seq_cst);
  if (!in_thread()) ring_doorbell();
}

bool Loop::turn() {
  run_messages();
  run_timers();
  run_ready();
  if (short_calls_) {
    if (!make_short_calls()) return false;
    run_ready();
  }
  run_turn_ends();
  if (ready_ || turn_ends_ || short_calls_ || stop_requested_.load(std::memory_order_acquire)) {
    wait(std::chrono::nanoseconds(0));
    return true;
  }
  // Say that this thread is about to sleep, then look for messages once more: a poster that comes
  // after the look sees the flag and rings.
  sleeping_.store(true, std::memory_order_seq_cst);
  const bool idle = messages_.load(std::memory_order_seq_cst) == nullptr &&
                    !stop_requested_.load(std::memory_order_seq_cst);
  wait(idle ? time_to_next_timer() : std::chrono::nanoseconds(0));
  sleeping_.store(false, std::memory_order_relaxed);
  return true;
}

// ---- short blocking calls ---------------------------------------------------------------------

void Loop::add_short_call(BlockingJob& job) noexcept {
  job.next_ = nullptr;
  *short_calls_tail_ = &job;
  short_calls_tail_ = &job.next_;
}

// False: this thread was stuck in a call, and another runs the loop now.
bool Loop::make_short_calls() {
  if (!watched_) {
    pool_.watch(*this);
    watched_ = true;
  }
  Clock::time_point now = Clock::now();
  const Clock::time_point until = now + kShortCallsTime;
  while (BlockingJob* job = short_calls_) {
    short_calls_ = job->next_;
    if (!short_calls_) short_calls_tail_ = &short_calls_;
    current_call_ = job;
    uint64_t mine = static_cast<uint64_t>(now.time_since_epoch().count()) << 1 | 1;
    call_state_.store(mine, std::memory_order_seq_cst);
    pool_.wake_watchdog();
    job->execute();
    if (!call_state_.compare_exchange_strong(mine, 0, std::memory_order_seq_cst)) {
      current_loop = nullptr;
      guests_.fetch_add(1, std::memory_order_relaxed);
      pool_.call_came_back(*job);
      post(*job);
      leave_thread();
      guests_.fetch_sub(1, std::memory_order_release);
      return false;
    }
    job->run();
    now = Clock::now();
    if (now > until) break;  // the others first: the rest comes in the next turn
  }
  return true;
}

void Loop::take_over_if_stuck(Clock::time_point now) {
  uint64_t state = call_state_.load(std::memory_order_seq_cst);
  if (!(state & 1)) return;
  const auto begun = Clock::time_point(Clock::duration(static_cast<int64_t>(state >> 1)));
  if (now - begun < kStuckTime) return;
  // Not on a processor, for want of one, is not stuck. But one that computes has no end either.
  if (now - begun < kBusyTime && is_runnable(runner_tid_.load(std::memory_order_relaxed))) return;
  if (!call_state_.compare_exchange_strong(state, 0, std::memory_order_seq_cst)) return;
  pool_.call_is_stuck(*current_call_);
  make_thread_at_any_cost([this] { run_taken_over(); }).detach();
}

void Loop::run_taken_over() {
  pthread_setname_np(pthread_self(), "weft-loop");
  current_loop = this;
  runner_tid_.store(::gettid(), std::memory_order_relaxed);
  adopt_thread();
  // What was queued behind the stuck call may be for the same disk: to the pool with it.
  BlockingJob* job = std::exchange(short_calls_, nullptr);
  short_calls_tail_ = &short_calls_;
  while (job) {
    BlockingJob* next = job->next_;
    pool_.submit_elsewhere(*job);
    job = next;
  }
  if (!run_turns()) return;
  current_loop = nullptr;
  guests_.fetch_add(1, std::memory_order_relaxed);
  {
    std::lock_guard lock(lost_mutex_);
    ended_ = true;  // who waits in run() has the loop again
    ended_elsewhere_.notify_all();
  }
  guests_.fetch_sub(1, std::memory_order_release);
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
  // Once the message is seen, the loop may run to its end: it waits for us there.
  guests_.fetch_add(1, std::memory_order_relaxed);
  Message* head = messages_.load(std::memory_order_relaxed);
  do {
    message.next_ = head;
  } while (!messages_.compare_exchange_weak(head, &message, std::memory_order_seq_cst,
                                            std::memory_order_relaxed));
  if (sleeping_.load(std::memory_order_seq_cst) && !in_thread()) ring_doorbell();
  guests_.fetch_sub(1, std::memory_order_release);
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
  return {EngineKind::kEpoll, fmt::format("no io_uring: {}", obstacle), true};
}

}  // namespace weft::engine
