// SPDX-License-Identifier: BSD-3-Clause
// How a call of a hosted plugin gets to a thread, and what is done about one that does not come
// back.
//
// A connection's calls run side by side as far as the plugin's thread model allows: those of models
// that serialise connections or all requests are made one at a time in the whole process, whatever
// they are for, with a lock that is held during a call and never between two: a client that says
// nothing is in nobody's way. (That one connection's requests do not overlap, where that is the
// model, disk/serializer.h sees to.)
//
// Which thread makes a call is decided for each kind of callback, and each size of request, of each
// connection apart: by the loop's own thread as long as they have proved to be short, else by
// threads of the pool, made on demand and shared by all connections, as many as there are calls
// (call_pace.h). Requests that arrive in one turn of the loop are all on their way before it waits,
// and what comes back in one turn is answered together. Every connection has a lane of its own
// (engine/blocking_pool.h), so that one whose calls hang keeps no other from being served by its
// loop; a call that blocks or computes on a loop's thread without an end loses the loop.
//
// A call that is in progress for kHangTime is reported, and again when it returns after all. When
// the server gives up (CallsOfAll::abandon()), what is still in progress is named in the log.
#pragma once

#include <sys/resource.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <type_traits>
#include <utility>

#include "disk/disk.h"
#include "engine/async_mutex.h"
#include "engine/blocking_pool.h"
#include "engine/scope.h"
#include "nbdkit/call.h"
#include "nbdkit/call_pace.h"

namespace weft::nbdkit {

class HostedCalls;

// The kinds of callback whose pace is told apart.
enum class CallKind : uint8_t { kOther, kRead, kWrite, kFlush, kTrim, kZero, kExtents, kCache };
inline constexpr size_t kCallKinds = 8;

// What all calls of a plugin have in common. Thread-safe.
class CallsOfAll {
 public:
  // `plugin`: its name. It and the pool outlive this.
  CallsOfAll(const char* plugin, engine::BlockingPool& pool, bool one_at_a_time)
      : plugin_(plugin), pool_(pool), one_at_a_time_(one_at_a_time) {}

  [[nodiscard]] const char* plugin() const { return plugin_; }
  [[nodiscard]] engine::BlockingPool& pool() { return pool_; }

  // Names what is in progress in the log. From any thread; does not block.
  void abandon();

 private:
  friend class HostedCalls;
  const char* plugin_;
  engine::BlockingPool& pool_;
  const bool one_at_a_time_;
  engine::AsyncMutex alone_;
  std::mutex mutex_;
  std::list<HostedCalls*> all_;  // guarded
};

// The calls of one connection, or of something else that makes some. Lives on its loop's thread.
class HostedCalls {
 public:
  static constexpr std::chrono::seconds kHangTime{30};

  // `connection`: what they are about. All outlive this.
  HostedCalls(CallsOfAll& all, engine::Loop& loop, Connection& connection,
              std::chrono::milliseconds hang_time = kHangTime);
  ~HostedCalls();  // after end()
  HostedCalls(const HostedCalls&) = delete;
  HostedCalls& operator=(const HostedCalls&) = delete;

  // Calls f(scope), which is to call back into the plugin, on some thread that is inside of the
  // plugin then, and gives its value on the loop. `method`: the callback's name, a static string.
  // `length`: how much it has to do, in bytes. `f` and what it refers to live until the await ends.
  template <typename F>
  disk::Task<std::invoke_result_t<F&, CallScope&>> run(CallKind kind, const char* method,
                                                       uint64_t length, F f);

  // The last. Nothing is in progress.
  disk::Task<void> end();

  [[nodiscard]] const Connection& connection() const { return connection_; }
  [[nodiscard]] const char* plugin() const { return all_.plugin(); }

 private:
  friend class CallsOfAll;
  using Clock = engine::Clock;
  static constexpr size_t kSizes = 4;

  struct Call {
    const char* method;
    Clock::time_point begun;
    bool late = false;  // it was counted in a report
    bool told = false;  // the report named it
    Call* previous = nullptr;
    Call* next = nullptr;
  };
  // Puts a call on the list for as long as it lives.
  class Listed {
   public:
    Listed(HostedCalls& calls, const char* method);
    ~Listed();
    Listed(const Listed&) = delete;
    Listed& operator=(const Listed&) = delete;

   private:
    HostedCalls& calls_;
    Call call_;
  };

  // Requests of other sizes take other times.
  static size_t size_class(uint64_t length) {
    return length <= 16 << 10 ? 0 : length <= 128 << 10 ? 1 : length <= 1 << 20 ? 2 : 3;
  }
  CallPace& pace(CallKind kind, uint64_t length) {
    return paces_[static_cast<size_t>(kind)][size_class(length)];
  }
  disk::Task<void> watch();
  void report(Clock::time_point now);
  void tell_in_progress();

  CallsOfAll& all_;
  engine::Loop& loop_;
  Connection& connection_;
  const std::chrono::milliseconds hang_time_;
  engine::Lane lane_;
  std::array<std::array<CallPace, kSizes>, kCallKinds> paces_;
  engine::Scope scope_;
  engine::Timer timer_;
  bool watching_ = false;  // watch() runs
  std::list<HostedCalls*>::iterator entry_;
  std::mutex mutex_;  // the list; tell_in_progress() comes from another thread
  Call* first_ = nullptr;
  Call* last_ = nullptr;
};

// How long a call takes on the thread that makes it.
class CallWatch {
 public:
  explicit CallWatch(engine::BlockingKind kind)
      : in_pool_(kind == engine::BlockingKind::kParallel), begun_(engine::Clock::now()) {
    if (in_pool_) ::getrusage(RUSAGE_THREAD, &before_);
  }

  [[nodiscard]] std::chrono::nanoseconds time() const {
    const std::chrono::nanoseconds wall = engine::Clock::now() - begun_;
    if (!in_pool_ || wall < CallPace::kShort) return wall;
    rusage after{};
    ::getrusage(RUSAGE_THREAD, &after);
    if (after.ru_nvcsw != before_.ru_nvcsw) return wall;  // it waited
    return processor_time(after) - processor_time(before_);
  }

 private:
  static std::chrono::nanoseconds processor_time(const rusage& usage) {
    return std::chrono::seconds(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           std::chrono::microseconds(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
  }
  bool in_pool_;
  engine::Clock::time_point begun_;
  rusage before_{};
};

template <typename F>
disk::Task<std::invoke_result_t<F&, CallScope&>> HostedCalls::run(CallKind kind, const char* method,
                                                                  uint64_t length, F f) {
  engine::AsyncMutex::Guard guard;
  if (all_.one_at_a_time_) guard = co_await all_.alone_.lock(loop_);
  const Listed listed(*this, method);
  CallPace& its_pace = pace(kind, length);
  const engine::BlockingKind how =
      kind == CallKind::kOther ? engine::BlockingKind::kParallel : its_pace.next();
  std::chrono::nanoseconds time{0};
  auto call = [&] {
    const CallWatch stopwatch(how);
    CallScope scope(all_.plugin(), method, &connection_);
    auto value = f(scope);
    time = stopwatch.time();
    return value;
  };
  auto value = co_await lane_.run(loop_, engine::BlockingReason::kPlugin, how, std::ref(call));
  its_pace.made(how, time);
  co_return value;
}

}  // namespace weft::nbdkit
