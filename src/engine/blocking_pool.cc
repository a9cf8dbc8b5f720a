// SPDX-License-Identifier: BSD-3-Clause
#include "engine/blocking_pool.h"

#include <pthread.h>
#include <signal.h>

#include <cassert>
#include <chrono>
#include <deque>
#include <functional>
#include <system_error>
#include <vector>

#include "base/log.h"
#include "engine/engines.h"

namespace weft::engine {
namespace {

constexpr auto kStallTime = std::chrono::milliseconds(1);  // of a short call, before another helps
constexpr auto kWatchTime = std::chrono::milliseconds(2);  // between two looks of the watchdog
constexpr int kQuietLooks = 100;                           // without work; then it sleeps
constexpr auto kPoolTime = std::chrono::seconds(1);        // for short calls, after one was stuck
constexpr auto kThreadRetryTime = std::chrono::milliseconds(10);
constexpr auto kThreadIdleTime = std::chrono::seconds(30);  // then a thread ends

// False: the system has none.
bool try_make_thread(const std::function<void()>& body) {
  try {
    std::thread(body).detach();
    return true;
  } catch (const std::system_error&) {
    return false;
  }
}

}  // namespace

std::thread make_thread_at_any_cost(const std::function<void()>& body) {
  for (bool told = false;; told = true) {
    try {
      return std::thread(body);
    } catch (const std::system_error& error) {
      if (!told) log::warning("cannot make a thread: {}; trying again", error.what());
      std::this_thread::sleep_for(kThreadRetryTime);
    }
  }
}

std::string_view blocking_reason_name(BlockingReason reason) {
  switch (reason) {
    case BlockingReason::kOpen:
      return "open";
    case BlockingReason::kMetadata:
      return "metadata";
    case BlockingReason::kColdRead:
      return "cold-read";
    case BlockingReason::kWrite:
      return "write";
    case BlockingReason::kDirectWrite:
      return "direct-write";
    case BlockingReason::kSync:
      return "sync";
    case BlockingReason::kAllocate:
      return "allocate";
    case BlockingReason::kExtents:
      return "extents";
    case BlockingReason::kPlugin:
      return "plugin";
    case BlockingReason::kCount:
      break;
  }
  return "?";
}

// Guarded by the pool's mutex.
struct Lane::Queue {
  struct Fifo {
    BlockingJob* head = nullptr;
    BlockingJob** tail = &head;
    [[nodiscard]] bool empty() const { return head == nullptr; }
    void push(BlockingJob& job) {
      job.next_ = nullptr;
      *tail = &job;
      tail = &job.next_;
    }
    BlockingJob* pop() {
      BlockingJob* job = head;
      head = job->next_;
      if (!head) tail = &head;
      return job;
    }
  };

  Fifo parallel;
  Fifo short_calls;
  size_t limit;
  size_t active = 0;           // threads at work here, or on their way
  size_t short_active = 0;     // of these, on short calls
  size_t short_allowed = 1;    // grows while they are stuck
  Clock::time_point progress;  // when a short call was last taken
  bool watched = false;        // in the watchdog's list
};

struct BlockingPool::State {
  explicit State(std::atomic<bool>& watchdog_asleep) : asleep(watchdog_asleep) {}
  bool keep_threads = false;

  struct Ticket {  // a thread is wanted at a lane
    Lane::Queue* lane;
    BlockingKind kind;
  };

  mutable std::mutex mutex;
  std::condition_variable wanted;     // tickets
  std::condition_variable ended;      // threads == 0
  std::condition_variable watching;   // watched is not empty
  std::condition_variable lane_left;  // a lane's active is 0
  std::deque<Ticket> tickets;
  std::vector<Lane::Queue*> watched;
  std::thread watchdog;
  size_t threads = 0;
  size_t idle = 0;
  bool stopping = false;
  std::vector<Loop*> loops;   // that make short calls
  std::atomic<bool>& asleep;  // the watchdog
  std::array<std::atomic<uint64_t>, static_cast<size_t>(BlockingReason::kCount)> counts{};

  void send_thread(Lane::Queue& lane, BlockingKind kind) {
    lane.active++;
    if (kind == BlockingKind::kShort) lane.short_active++;
    tickets.push_back({&lane, kind});
    if (idle >= tickets.size()) {
      wanted.notify_one();
    } else if (threads < kThreadsMax) {
      // Where no more threads are to be had, those that are there do the work one after the other.
      if (threads == 0) {
        make_thread_at_any_cost([this] { work(); }).detach();
      } else if (!try_make_thread([this] { work(); })) {
        return;
      }
      threads++;
    }
  }

  void help_short(Lane::Queue& lane, Clock::time_point now) {
    if (lane.short_calls.empty()) return;
    if (lane.short_active >= lane.short_allowed) {
      if (now - lane.progress < kStallTime) return;
      lane.short_allowed = lane.short_active + 1;
      lane.progress = now;
    }
    if (lane.active < lane.limit) send_thread(lane, BlockingKind::kShort);
  }

  void watch(Lane::Queue& lane) {
    if (!lane.watched) {
      lane.watched = true;
      watched.push_back(&lane);
    }
    rouse();
  }

  // With the mutex held.
  void rouse() {
    if (!watchdog.joinable()) watchdog = make_thread_at_any_cost([this] { run_watchdog(); });
    if (asleep.load(std::memory_order_relaxed)) watching.notify_one();
  }

  void run_watchdog() {
    pthread_setname_np(pthread_self(), "weft-watchdog");
    std::unique_lock lock(mutex);
    int quiet = 0;  // looks without work: it goes to sleep after some, not at every pause
    asleep.store(false, std::memory_order_seq_cst);
    while (!stopping) {
      if (quiet > kQuietLooks) {
        // Say so, then look once more: a call that begins after the look sees it and rings.
        asleep.store(true, std::memory_order_seq_cst);
        if (!look()) watching.wait(lock);
        asleep.store(false, std::memory_order_seq_cst);
        quiet = 0;
      } else {
        watching.wait_for(lock, watched.empty() ? kWatchTime : kStallTime);
      }
      if (stopping) break;
      quiet = look() ? 0 : quiet + 1;
    }
  }

  // True: there was something to watch.
  bool look() {
    const Clock::time_point now = Clock::now();
    bool busy = !watched.empty();
    for (size_t i = 0; i < watched.size();) {
      Lane::Queue& lane = *watched[i];
      if (lane.short_calls.empty()) {
        lane.watched = false;
        watched[i] = watched.back();
        watched.pop_back();
      } else {
        help_short(lane, now);
        i++;
      }
    }
    for (Loop* loop : loops) {
      if (loop->call_state_.load(std::memory_order_seq_cst) == 0) continue;
      busy = true;
      loop->take_over_if_stuck(now);
    }
    return busy;
  }

  void work() {
    pthread_setname_np(pthread_self(), "weft-blocking");
    std::unique_lock lock(mutex);
    for (;;) {
      if (tickets.empty()) {
        if (stopping) break;
        idle++;
        const bool called =
            wanted.wait_for(lock, kThreadIdleTime, [this] { return stopping || !tickets.empty(); });
        idle--;
        if (!called && keep_threads) continue;
        if (!called) break;
        continue;
      }
      const Ticket ticket = tickets.front();
      tickets.pop_front();
      serve(*ticket.lane, ticket.kind, lock);
    }
    if (--threads == 0) ended.notify_all();
  }

  // Runs calls of the lane until there are none left for this thread.
  void serve(Lane::Queue& lane, BlockingKind kind, std::unique_lock<std::mutex>& lock) {
    for (;;) {
      const bool short_calls = kind == BlockingKind::kShort;
      Lane::Queue::Fifo& fifo = short_calls ? lane.short_calls : lane.parallel;
      if (fifo.empty()) {
        if (short_calls && --lane.short_active == 0) lane.short_allowed = 1;
        // The other kind may have been held back by the limit.
        if (short_calls && !lane.parallel.empty()) {
          kind = BlockingKind::kParallel;
        } else if (!short_calls && !lane.short_calls.empty() &&
                   lane.short_active < lane.short_allowed) {
          kind = BlockingKind::kShort;
          lane.short_active++;
        } else {
          if (--lane.active == 0) lane_left.notify_all();
          return;
        }
        continue;
      }
      BlockingJob* job = fifo.pop();
      if (short_calls) lane.progress = Clock::now();
      lock.unlock();
      Loop* loop = job->loop_;
      job->execute();
      loop->post(*job);
      lock.lock();
    }
  }
};

BlockingPool::BlockingPool() : state_(std::make_unique<State>(watchdog_asleep_)) {
  general_lane_ = std::make_unique<Lane>(*this);
}

BlockingPool::~BlockingPool() {
  general_lane_.reset();
  std::unique_lock lock(state_->mutex);
  state_->stopping = true;
  state_->wanted.notify_all();
  state_->watching.notify_all();
  state_->ended.wait(lock, [this] { return state_->threads == 0; });
  lock.unlock();
  if (state_->watchdog.joinable()) state_->watchdog.join();
}

void BlockingPool::keep_threads() {
  const std::lock_guard lock(state_->mutex);
  state_->keep_threads = true;
}

uint64_t BlockingPool::count(BlockingReason reason) const {
  return state_->counts[static_cast<size_t>(reason)].load(std::memory_order_relaxed);
}

size_t BlockingPool::threads() const {
  std::lock_guard lock(state_->mutex);
  return state_->threads;
}

Lane::Lane(BlockingPool& pool, size_t limit) : pool_(pool), queue_(std::make_unique<Queue>()) {
  queue_->limit = limit;
}

Lane::~Lane() {
  BlockingPool::State& state = *pool_.state_;
  std::unique_lock lock(state.mutex);
  // The thread that has just brought the last call back still looks whether there is another.
  state.lane_left.wait(lock, [this] { return queue_->active == 0; });
  assert(queue_->parallel.empty() && queue_->short_calls.empty());
  std::erase(state.watched, queue_.get());
}

void Lane::submit(BlockingJob& job, BlockingReason reason, BlockingKind kind) {
  BlockingPool::State& state = *pool_.state_;
  job.loop_ = Loop::current();
  job.lane_ = this;
  assert(job.loop_);
  state.counts[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
  if (kind == BlockingKind::kShort) {
    if (!wants_pool()) {
      job.loop_->add_short_call(job);
    } else {
      queue_short(job);
    }
    return;
  }
  std::lock_guard lock(state.mutex);
  queue_->parallel.push(job);
  if (queue_->active < queue_->limit) state.send_thread(*queue_, kind);
}

bool Lane::wants_pool() const {
  if (stuck_.load(std::memory_order_relaxed) > 0) return true;
  const int64_t until = pool_until_.load(std::memory_order_relaxed);
  return until != 0 && Clock::now().time_since_epoch().count() < until;
}

// To a thread of the pool.
void Lane::queue_short(BlockingJob& job) {
  BlockingPool::State& state = *pool_.state_;
  std::lock_guard lock(state.mutex);
  if (queue_->short_calls.empty() && queue_->short_active == 0) queue_->progress = Clock::now();
  queue_->short_calls.push(job);
  state.help_short(*queue_, queue_->progress);
  state.watch(*queue_);
}

// ---- Short calls of loops ---------------------------------------------------------------------

void BlockingPool::watch(Loop& loop) {
  std::lock_guard lock(state_->mutex);
  state_->loops.push_back(&loop);
  state_->rouse();
}

void BlockingPool::forget(Loop& loop) {
  std::lock_guard lock(state_->mutex);
  std::erase(state_->loops, &loop);
}

void BlockingPool::wake_watchdog_now() noexcept {
  std::lock_guard lock(state_->mutex);
  state_->rouse();
}

void BlockingPool::call_is_stuck(BlockingJob& job) {
  job.lane_->stuck_.fetch_add(1, std::memory_order_relaxed);
  job.lane_->pool_until_.store((Clock::now() + kPoolTime).time_since_epoch().count(),
                               std::memory_order_relaxed);
}

void BlockingPool::call_came_back(BlockingJob& job) {
  job.lane_->stuck_.fetch_sub(1, std::memory_order_relaxed);
}

void BlockingPool::submit_elsewhere(BlockingJob& job) {
  job.lane_->queue_short(job);
}

}  // namespace weft::engine
