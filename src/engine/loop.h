// SPDX-License-Identifier: BSD-3-Clause
// Loop: one thread's event loop. Everything on it runs on that thread, and nothing on it blocks.
//
// Two implementations stand behind this one interface: io_uring (uring_loop.cc) and epoll with the
// blocking pool (epoll_loop.cc) for where io_uring is refused. Sockets are the same on both: the
// loop tells when a descriptor is ready and the caller makes the non-blocking call itself, since a
// receive or a send that is ready gains nothing from the ring. File reads and writes go to the ring
// where there is one, else to the pool.
//
// A turn of the loop: take what has happened (completions, messages of other threads, expired
// timers) and put the coroutines that waited for it on the ready queue; run the ready queue until
// it is empty; make the short blocking calls that were asked for; run what asked for the end of the
// turn (replies are sent there, so that all that became ready in one turn leaves in one call);
// wait.
//
// Short blocking calls (blocking_pool.h, BlockingKind::kShort) are made by the loop's own thread,
// which costs nothing, at a point where no coroutine is on its stack. A watchdog looks at the
// threads that are in such a call; one that is found blocked for kStuckTime, or that computes for
// kBusyTime, loses the loop to a new thread, which goes on from that very point. The old thread
// brings the result back when it has it, as the pool does, and does not run the loop again.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <coroutine>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/bytes.h"
#include "base/result.h"
#include "engine/task.h"

namespace weft::engine {

using Clock = std::chrono::steady_clock;

class Loop;
class BlockingPool;
class BlockingJob;

// A place in the ready queue. Embedded in what waits; in the queue once at a time.
struct Wakeup {
  std::coroutine_handle<> handle;
  Wakeup* next = nullptr;
};

// Something another thread wants the loop to do. The poster gives it up until run() is called on
// the loop's thread. What run() reads was written before post(): the queue orders the two.
class Message {
 public:
  virtual void run() = 0;
  // Instead of run(): the loop ends without having come to it. What it waits for never comes.
  virtual void discard() noexcept {}

 protected:
  ~Message() = default;

 private:
  friend class Loop;
  Message* next_ = nullptr;
};

// Something to do once at the end of the current turn.
class TurnEnd {
 public:
  virtual void turn_end() = 0;

 protected:
  ~TurnEnd() = default;

 private:
  friend class Loop;
  TurnEnd* next_ = nullptr;
  bool queued_ = false;
};

// One descriptor's readiness, for one reader and one writer at a time. Lives on its loop's thread.
// The descriptor stays the caller's; it is closed only after the watch is destroyed.
// Readiness is edge-triggered in spirit: wait for it only after a call took less than it could.
class Watch {
 public:
  Watch(Loop& loop, int fd);
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  ~Watch();  // nobody may be waiting

  struct Side {
    Watch* watch;
    Wakeup wakeup{};
    bool waiting = false;
    bool armed = false;    // the engine will report this side
    bool pending = false;  // it was reported while nobody waited
    bool always = false;   // the peer is gone: a call never blocks any more
    bool cancelled = false;
  };

  struct Awaiter {
    Side& side;
    [[nodiscard]] bool await_ready() const noexcept;
    void await_suspend(std::coroutine_handle<> handle) noexcept;
    bool await_resume() const noexcept;  // false: cancelled
  };

  // Waits until a receive or accept (a send) is worth trying: data, end of stream or an error.
  // `co_await` gives false when the watch was cancelled.
  Awaiter readable() { return {in_}; }
  Awaiter writable() { return {out_}; }

  // Wakes the reader (both sides) with false, now and for ever. May be called again.
  void cancel_input();
  void cancel();

  [[nodiscard]] int fd() const { return fd_; }

 private:
  friend class Loop;
  friend class EpollLoop;
  friend class UringLoop;
  void wake(Side& side);
  // What the engine reports, as bits of poll(2), which are those of epoll.
  void report(uint32_t events);

  Loop& loop_;
  int fd_;
  Side in_{this};
  Side out_{this};
  void* engine_data_ = nullptr;  // the engine's registration
};

// A point in time at which somebody is woken. Lives on its loop's thread.
class Timer {
 public:
  explicit Timer(Loop& loop) : loop_(loop) {}
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  ~Timer() { disarm(); }

  struct Awaiter {
    Timer& timer;
    Clock::time_point when;
    [[nodiscard]] bool await_ready() const noexcept { return timer.cancelled_; }
    void await_suspend(std::coroutine_handle<> handle);
    // False: cancelled before its time.
    bool await_resume() const noexcept { return !timer.cancelled_; }
  };
  // One waiter at a time.
  Awaiter until(Clock::time_point when) { return {*this, when}; }
  Awaiter sleep(Clock::duration time) { return {*this, Clock::now() + time}; }
  // Wakes the waiter with false; later waits return false at once.
  void cancel();

 private:
  friend class Loop;
  void disarm();

  Loop& loop_;
  Wakeup wakeup_{};
  std::multimap<Clock::time_point, Timer*>::iterator entry_{};
  bool armed_ = false;
  bool cancelled_ = false;
};

// A read or write of a file, awaited: the number of bytes, or -errno. The buffer must stay
// until the await ends; the kernel owns it until then.
struct FileOperation {
  enum class Kind : uint8_t { kRead, kWrite };

  Loop& loop;
  Kind kind;
  int fd;
  std::byte* buffer = nullptr;
  uint32_t length = 0;  // bytes
  uint64_t offset = 0;  // bytes
  int rw_flags = 0;     // RWF_*
  int result = 0;
  Wakeup wakeup{};

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle);
  [[nodiscard]] int await_resume() const noexcept { return result; }
};

enum class EngineKind { kUring, kEpoll };

// Which engine a process uses, and why: decided once at start by probing.
struct EngineChoice {
  EngineKind kind;
  std::string reason;        // for the log: "the kernel offers all that is needed"
  bool is_fallback = false;  // epoll, for want of io_uring
};

// `wanted` is "auto", "io_uring" or "epoll". Throws ConfigError when io_uring is demanded and not
// to be had (with what refused it, and the mend), or when the word is none of the three.
EngineChoice choose_engine(std::string_view wanted);

class Loop {
 public:
  // `pool` must outlive the loop.
  static std::unique_ptr<Loop> create(EngineKind kind, BlockingPool& pool);
  virtual ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Runs the loop, on the calling thread or what takes over from it, until stop().
  void run();
  // From any thread: run() returns at the end of its turn.
  void stop();

  // Runs `task` to its end on the calling thread and returns its value: for start-up, and tests.
  template <typename T>
  T run_until_done(Task<T> task);

  [[nodiscard]] bool in_thread() const { return current() == this; }
  static Loop* current();  // the loop that runs on this thread, or null

  // The coroutine is resumed in this turn, after those already queued. Own thread.
  void schedule(Wakeup& wakeup) noexcept {
    wakeup.next = nullptr;
    *ready_tail_ = &wakeup;
    ready_tail_ = &wakeup.next;
  }
  // Own thread; a second call in the same turn changes nothing.
  void at_turn_end(TurnEnd& what) noexcept;
  void cancel_turn_end(TurnEnd& what) noexcept;  // before `what` is destroyed
  // Any thread. Messages of one thread run in the order they were posted.
  void post(Message& message) noexcept;

  // From any thread: calls f() once on the loop's thread, unless the loop ends before.
  template <typename F>
  void call(F f) {
    struct Call final : Message {
      explicit Call(F function) : f(std::move(function)) {}
      void run() override {
        f();
        delete this;
      }
      void discard() noexcept override { delete this; }
      F f;
    };
    post(*new Call(std::move(f)));
  }

  // `co_await loop.yield()` lets the others on the ready queue run first.
  struct Yield {
    Loop& loop;
    Wakeup wakeup{};
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) noexcept {
      wakeup.handle = handle;
      loop.schedule(wakeup);
    }
    void await_resume() const noexcept {}
  };
  Yield yield() { return {*this}; }

  // Makes the call at the end of this turn. For Lane. Own thread.
  void add_short_call(BlockingJob& job) noexcept;

  // Reading and writing files. `rw_flags` are RWF_* flags of preadv2(2).
  FileOperation read_file(int fd, MutableByteSpan into, uint64_t offset, int rw_flags = 0);
  FileOperation write_file(int fd, ByteSpan from, uint64_t offset, int rw_flags = 0);

  [[nodiscard]] BlockingPool& pool() { return pool_; }
  [[nodiscard]] virtual EngineKind kind() const = 0;

 protected:
  friend class Watch;
  friend class Timer;
  friend class BlockingPool;
  friend struct FileOperation;

  explicit Loop(BlockingPool& pool);
  // First of all in an engine's destructor: no other thread is in the loop afterwards.
  void end();

  // Submits what is pending and waits for events, at most `timeout` (negative: no limit); puts what
  // they wake on the ready queue.
  virtual void wait(std::chrono::nanoseconds timeout) = 0;
  // Wakes wait() from another thread.
  virtual void ring_doorbell() noexcept = 0;
  virtual void arm(Watch& watch, Watch::Side& side) = 0;
  virtual void disarm(Watch& watch) = 0;
  virtual void start(FileOperation& operation) = 0;
  // The calling thread runs the loop from now on; another may have done so before.
  virtual void adopt_thread() {}
  // The calling thread has lost the loop: brings back what only it can (with call()).
  virtual void leave_thread() {}

  BlockingPool& pool_;

 private:
  static constexpr std::chrono::milliseconds kStuckTime{4};
  static constexpr std::chrono::milliseconds kBusyTime{250};  // of one that computes

  // False: this thread has lost the loop.
  bool run_turns();
  bool turn();
  bool make_short_calls();
  // By the watchdog: gives the loop to a new thread if its own is blocked in a call.
  void take_over_if_stuck(Clock::time_point now);
  void run_taken_over();
  void run_messages();
  void run_timers();
  void run_ready();
  void run_turn_ends();
  [[nodiscard]] std::chrono::nanoseconds time_to_next_timer() const;

  Wakeup* ready_ = nullptr;
  Wakeup** ready_tail_ = &ready_;
  TurnEnd* turn_ends_ = nullptr;
  std::multimap<Clock::time_point, Timer*> timers_;
  bool stopped_ = false;

  // Short blocking calls. `call_state_` is 0 or, during one, its start (ns) with the lowest bit
  // set; who changes it from that value, the thread at the end of the call or the watchdog, has the
  // loop.
  BlockingJob* short_calls_ = nullptr;
  BlockingJob** short_calls_tail_ = &short_calls_;
  BlockingJob* current_call_ = nullptr;  // published by call_state_
  std::atomic<uint64_t> call_state_{0};
  std::atomic<int> runner_tid_{0};
  bool watched_ = false;  // the watchdog knows this loop
  std::mutex lost_mutex_;
  std::condition_variable ended_elsewhere_;
  bool ended_ = false;  // a thread that had taken over has stopped (guarded by lost_mutex_)

  alignas(64) std::atomic<Message*> messages_{nullptr};
  std::atomic<bool> sleeping_{false};
  std::atomic<int> guests_{0};  // other threads that are about to leave this object alone
  std::atomic<bool> stop_requested_{false};
};

template <typename T>
T Loop::run_until_done(Task<T> task) {
  std::conditional_t<std::is_void_v<T>, int, std::optional<T>> value{};
  bool finished = false;
  auto drive = [](Loop& loop, Task<T>& inner, auto& slot, bool& flag) -> Task<void> {
    if constexpr (std::is_void_v<T>) {
      co_await inner;
    } else {
      slot.emplace(co_await inner);
    }
    flag = true;
    loop.stop();
  };
  Task<void> driver = drive(*this, task, value, finished);
  auto handle = driver.release();
  struct Ended final : TaskOwner {
    void task_ended() noexcept override {}
  } owner;
  handle.promise().owner = &owner;
  Wakeup start{handle};
  schedule(start);
  while (!finished) run();
  if constexpr (!std::is_void_v<T>) return std::move(*value);
}

}  // namespace weft::engine
