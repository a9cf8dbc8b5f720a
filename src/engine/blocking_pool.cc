// SPDX-License-Identifier: BSD-3-Clause
#include "engine/blocking_pool.h"

#include <pthread.h>
#include <signal.h>

#include <cassert>
#include <chrono>
#include <deque>
#include <vector>

namespace weft::engine {
namespace {

constexpr auto kStallTime =
    std::chrono::milliseconds(1);  // of a batched call, before another helps
constexpr auto kThreadIdleTime = std::chrono::seconds(30);  // then a thread ends

}  // namespace

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
  Fifo batched;
  size_t limit;
  size_t active = 0;           // threads at work here, or on their way
  size_t batched_active = 0;   // of these, on batched calls
  size_t batched_allowed = 1;  // grows while they are stuck
  Clock::time_point progress;  // when a batched call was last taken
  bool watched = false;        // in the watchdog's list
};

struct BlockingPool::State {
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
  bool watchdog_asleep = false;
  std::array<std::atomic<uint64_t>, static_cast<size_t>(BlockingReason::kCount)> counts{};

  void send_thread(Lane::Queue& lane, BlockingKind kind) {
    lane.active++;
    if (kind == BlockingKind::kBatched) lane.batched_active++;
    tickets.push_back({&lane, kind});
    if (idle >= tickets.size()) {
      wanted.notify_one();
    } else if (threads < kThreadsMax) {
      threads++;
      std::thread([this] { work(); }).detach();
    }
  }

  void help_batched(Lane::Queue& lane, Clock::time_point now) {
    if (lane.batched.empty()) return;
    if (lane.batched_active >= lane.batched_allowed) {
      if (now - lane.progress < kStallTime) return;
      lane.batched_allowed = lane.batched_active + 1;
      lane.progress = now;
    }
    if (lane.active < lane.limit) send_thread(lane, BlockingKind::kBatched);
  }

  void watch(Lane::Queue& lane) {
    if (!lane.watched) {
      lane.watched = true;
      watched.push_back(&lane);
    }
    if (!watchdog.joinable()) watchdog = std::thread([this] { run_watchdog(); });
    if (watchdog_asleep) watching.notify_one();
  }

  void run_watchdog() {
    pthread_setname_np(pthread_self(), "weft-watchdog");
    std::unique_lock lock(mutex);
    int quiet = 0;  // rounds without work: it goes to sleep after some, not at every pause
    while (!stopping) {
      if (watched.empty() && quiet++ > 100) {
        watchdog_asleep = true;
        watching.wait(lock, [this] { return stopping || !watched.empty(); });
        watchdog_asleep = false;
        quiet = 0;
      } else {
        watching.wait_for(lock, kStallTime);
      }
      const Clock::time_point now = Clock::now();
      for (size_t i = 0; i < watched.size();) {
        Lane::Queue& lane = *watched[i];
        if (lane.batched.empty()) {
          lane.watched = false;
          watched[i] = watched.back();
          watched.pop_back();
        } else {
          quiet = 0;
          help_batched(lane, now);
          i++;
        }
      }
    }
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
      const bool batched = kind == BlockingKind::kBatched;
      Lane::Queue::Fifo& fifo = batched ? lane.batched : lane.parallel;
      if (fifo.empty()) {
        if (batched && --lane.batched_active == 0) lane.batched_allowed = 1;
        // The other kind may have been held back by the limit.
        if (batched && !lane.parallel.empty()) {
          kind = BlockingKind::kParallel;
        } else if (!batched && !lane.batched.empty() &&
                   lane.batched_active < lane.batched_allowed) {
          kind = BlockingKind::kBatched;
          lane.batched_active++;
        } else {
          if (--lane.active == 0) lane_left.notify_all();
          return;
        }
        continue;
      }
      BlockingJob* job = fifo.pop();
      if (batched) lane.progress = Clock::now();
      lock.unlock();
      Loop* loop = job->loop_;
      job->execute();
      loop->post(*job);
      lock.lock();
    }
  }
};

BlockingPool::BlockingPool() : state_(std::make_unique<State>()) {
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
  assert(queue_->parallel.empty() && queue_->batched.empty());
  std::erase(state.watched, queue_.get());
}

void Lane::submit(BlockingJob& job, BlockingReason reason, BlockingKind kind) {
  BlockingPool::State& state = *pool_.state_;
  job.loop_ = Loop::current();
  assert(job.loop_);
  state.counts[static_cast<size_t>(reason)].fetch_add(1, std::memory_order_relaxed);
  std::lock_guard lock(state.mutex);
  if (kind == BlockingKind::kParallel) {
    queue_->parallel.push(job);
    if (queue_->active < queue_->limit) state.send_thread(*queue_, kind);
    return;
  }
  if (queue_->batched.empty() && queue_->batched_active == 0) queue_->progress = Clock::now();
  queue_->batched.push(job);
  state.help_batched(*queue_, queue_->progress);
  state.watch(*queue_);
}

}  // namespace weft::engine
