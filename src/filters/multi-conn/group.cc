// SPDX-License-Identifier: BSD-3-Clause
#include "filters/multi-conn/group.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "engine/elsewhere.h"

namespace weft::filters {
namespace {

// A round waits no longer than this for those that the last one served.
constexpr std::chrono::milliseconds kGatherMax{50};

constexpr size_t kPublicationsMax = 64;

constexpr const char* kFailedText =
    "an earlier flush of this disk failed: what was written may be lost";

}  // namespace

using engine::Loop;
using engine::Task;

// ---- Member -----------------------------------------------------------------------------------

Member::Member(Group& group, disk::Disk& next, Loop& loop)
    : group_(group), next_(next), loop_(loop), ended_(loop) {
  const std::lock_guard lock(group_.mutex_);
  group_.members_.push_back(this);
}

Member::~Member() {
  assert(!first_ && rounds_ == 0);
}

void Member::begin(Operation& operation) {
  operation.number = ++operations_;
  operation.previous = last_;
  operation.next = nullptr;
  (last_ ? last_->next : first_) = &operation;
  last_ = &operation;
  if (!active()) seen_.store(group_.publication_.load());  // it remembers nothing
  // Before the disk is called: a flush elsewhere that does not see it is followed by it.
  in_flight_.fetch_add(1);
  activity_.fetch_add(1);
}

void Member::end(Operation& operation) {
  (operation.previous ? operation.previous->next : first_) = operation.next;
  (operation.next ? operation.next->previous : last_) = operation.previous;
  activity_.fetch_add(1);
  in_flight_.fetch_sub(1);
  if (suspect_before_ != 0) ended_.notify_all();
}

Task<Status> Member::settle() {
  while (suspect_before_ != 0) {
    if (settling_ || (first_ && first_->number < suspect_before_)) {
      co_await ended_.wait();
      continue;
    }
    settling_ = true;
    const uint64_t before = suspect_before_;
    const Status flushed = co_await flush_own(Step::kAlone);
    settling_ = false;
    if (flushed && suspect_before_ == before) suspect_before_ = 0;
    ended_.notify_all();
    if (!flushed) co_return flushed;
  }
  co_return Status{};
}

bool Member::needs_round(Range range) const {
  const std::lock_guard lock(group_.mutex_);
  const auto changed_here = [&](const Member* other) {
    return other != this && (other->dirty_.overlaps(range) || other->published_.overlaps(range));
  };
  if (std::ranges::any_of(group_.members_, changed_here)) return true;
  if (!active()) return false;
  return std::ranges::any_of(group_.publications_, [&](const Group::Publication& publication) {
    return publication.number > seen_ && publication.by != this &&
           publication.ranges.overlaps(range);
  });
}

void Member::changed(Range range) {
  {
    const std::lock_guard lock(group_.mutex_);
    dirty_.add(range);
  }
  group_.changes_.fetch_add(1);
}

Task<Status> Member::flush_own(Step step) {
  const engine::AsyncMutex::Guard guard = co_await flushing_.lock(loop_);
  // What is still in progress now may bring back what was read before this flush.
  if (step == Step::kAgain && first_) suspect_before_ = operations_ + 1;
  const bool idle = !first_;
  const uint64_t seen = group_.publication_.load();
  const uint64_t activity = activity_.load();
  {
    const std::lock_guard lock(group_.mutex_);
    published_.add(dirty_);
    dirty_.clear();
  }
  const Status flushed = co_await next_.flush();
  if (!flushed) group_.mark_failed(flushed.error());
  // Until now the disk below may still remember something.
  if (flushed) activity_at_flush_.store(activity);
  if (flushed && idle) seen_.store(seen);
  const std::lock_guard lock(group_.mutex_);
  failed_ = !flushed;
  if (!flushed) {
    dirty_.add(published_);
  } else if (!published_.empty()) {
    group_.published(*this, std::move(published_));
  }
  published_.clear();
  co_return flushed;
}

Task<Status> Member::leave() {
  bool dirty = false;
  {
    const std::lock_guard lock(group_.mutex_);
    dirty = !dirty_.empty() || !published_.empty();
  }
  Status flushed;
  if (dirty) flushed = co_await flush_own(Step::kAlone);
  bool wait = false;
  {
    const std::lock_guard lock(group_.mutex_);
    std::erase(group_.members_, this);
    wait = leaving_ = rounds_ > 0;
  }
  if (wait) co_await ended_.wait();
  co_return flushed;
}

// ---- Group ------------------------------------------------------------------------------------

// Somebody who waits for a round: to be served by it, or to lead it.
struct Group::Waiter final : engine::Message {
  Waiter(Group& the_group, Loop& the_loop, bool needs_it)
      : group(the_group), loop(the_loop), always(needs_it) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  bool await_suspend(std::coroutine_handle<> handle);
  void await_resume() const noexcept {}
  void run() override { loop.schedule(wakeup); }

  Group& group;
  Loop& loop;
  const bool always;
  engine::Wakeup wakeup{};
  bool leads = false;
  Status result;
  Waiter* next = nullptr;
};

// A leader that waits for others to join. Kept by whoever may still wake it.
struct Group::Gathering {
  Loop& loop;
  engine::Timer* timer;  // null once it is over; of the leader's loop
};

bool Group::Waiter::await_suspend(std::coroutine_handle<> handle) {
  wakeup.handle = handle;
  std::shared_ptr<Gathering> complete;
  {
    const std::lock_guard lock(group.mutex_);
    (group.last_ ? group.last_->next : group.first_) = this;
    group.last_ = this;
    group.waiting_++;
    leads = !std::exchange(group.running_, true);
    if (leads) return false;
    if (group.waiting_ >= group.served_) complete = std::move(group.gathering_);
  }
  if (complete) {
    Loop& leader = complete->loop;
    leader.call([complete] {
      if (complete->timer) complete->timer->cancel();
    });
  }
  return true;
}

Group::~Group() {
  assert(members_.empty() && !running_);
}

disk::ChangeOrder& Group::order(uint64_t block) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<disk::ChangeOrder>& order = orders_[block];
  if (!order) order = std::make_unique<disk::ChangeOrder>(block);
  return *order;
}

void Group::mark_failed(Error error) {
  if (failed_.exchange(true)) return;
  log::error(
      "{}: a flush failed: {}: acknowledged writes may be lost, and every flush and FUA write of "
      "this disk fails from now on; check its storage and its data, then restart",
      name_, error.text ? error.text : errno_text(error.code));
}

Task<Status> Group::flush(Loop& loop) {
  if (tracking_ == Tracking::kOff || changes_.load() != flushed_.load()) {
    const Status done = co_await join_round(loop, tracking_ == Tracking::kOff);
    if (!done) co_return done;
  }
  if (failed_.load()) co_return fail(EIO, kFailedText);
  co_return Status{};
}

Task<Status> Group::join_round(Loop& loop, bool always) {
  Waiter self(*this, loop, always);
  co_await self;
  if (!self.leads) co_return self.result;

  co_await gather(loop);
  size_t count = 0;
  bool needed = false;
  {
    // From here on, who comes is served by the next round.
    const std::lock_guard lock(mutex_);
    assert(first_ == &self);
    needed = is_needed();
    first_ = last_ = nullptr;
    count = std::exchange(waiting_, 0);
  }
  const engine::Clock::time_point begun = engine::Clock::now();
  Status result;
  if (needed) result = co_await run_steps(loop);
  Waiter* promoted = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (needed) {
      served_ = count;
      took_ = engine::Clock::now() - begun;
    } else {
      served_ = std::min(served_ + count, members_.size());  // they were served by the last one
    }
    promoted = first_;
    running_ = promoted != nullptr;
  }
  if (promoted) {
    promoted->leads = true;
    promoted->loop.post(*promoted);
  }
  // From its message on, a waiter may be gone.
  for (Waiter* waiter = self.next; waiter;) {
    Waiter* const next = waiter->next;
    waiter->result = result;
    waiter->loop.post(*waiter);
    waiter = next;
  }
  co_return result;
}

// With the mutex held: whether the round before has not yet done all that is waited for now.
bool Group::is_needed() const {
  if (changes_.load() != flushed_.load()) return true;
  for (const Waiter* waiter = first_; waiter; waiter = waiter->next) {
    if (waiter->always) return true;
  }
  return false;
}

Task<void> Group::gather(Loop& loop) {
  engine::Timer timer(loop);
  const auto gathering = std::make_shared<Gathering>(Gathering{loop, &timer});
  engine::Clock::duration limit{};
  {
    const std::lock_guard lock(mutex_);
    if (waiting_ >= served_ || !is_needed()) co_return;
    gathering_ = gathering;
    limit = std::min<engine::Clock::duration>(took_, kGatherMax);
  }
  co_await timer.sleep(limit);
  gathering->timer = nullptr;
  const std::lock_guard lock(mutex_);
  gathering_.reset();
}

Task<Status> Group::run_steps(Loop& loop) {
  rounds_.fetch_add(1, std::memory_order_relaxed);
  const uint64_t changes = changes_.load();
  std::vector<Member*> chosen;
  {
    const std::lock_guard lock(mutex_);
    for (Member* member : members_) {
      const bool dirty = !member->dirty_.empty() || !member->published_.empty();
      if (tracking_ == Tracking::kConnection && !dirty && !member->active()) continue;
      member->rounds_++;
      chosen.push_back(member);
    }
  }
  Status result = co_await flush_members(loop, chosen, Member::Step::kFirst);

  chosen.clear();
  {
    const std::lock_guard lock(mutex_);
    for (Member* member : members_) {
      if (!member->active() || member->failed_) continue;
      member->rounds_++;
      chosen.push_back(member);
    }
  }
  const Status again = co_await flush_members(loop, chosen, Member::Step::kAgain);
  if (result) result = again;
  forget_publications();
  if (result) flushed_.store(changes);
  co_return result;
}

// All at the same time, each on its own loop. The result is that of the first that failed.
Task<Status> Group::flush_members(Loop& loop, const std::vector<Member*>& members,
                                  Member::Step step) {
  Status result;
  engine::Scope scope(loop);
  const auto flush_one = [](Group& group, Loop& here, Member& member, Member::Step which,
                            Status& all) -> Task<void> {
    const Status flushed = co_await engine::run_elsewhere(
        here, member.loop_, [&member, which] { return member.flush_own(which); });
    if (!flushed && all) all = flushed;
    group.release(member);
  };
  for (Member* member : members) scope.spawn(flush_one(*this, loop, *member, step, result));
  co_await scope.join();
  co_return result;
}

void Group::published(const Member& member, DirtyRanges ranges) {
  publications_.push_back({publication_.load() + 1, &member, std::move(ranges)});
  publication_.store(publications_.back().number);
  if (publications_.size() <= kPublicationsMax) return;
  Publication& second = publications_[1];
  second.ranges.add(publications_[0].ranges);
  if (second.by != publications_[0].by) second.by = nullptr;
  publications_.pop_front();
}

void Group::forget_publications() {
  const std::lock_guard lock(mutex_);
  uint64_t seen = publication_.load();
  for (const Member* member : members_) {
    if (member->active()) seen = std::min(seen, member->seen_.load());
  }
  while (!publications_.empty() && publications_.front().number <= seen) publications_.pop_front();
}

void Group::release(Member& member) {
  const std::lock_guard lock(mutex_);
  if (--member.rounds_ > 0 || !member.leaving_) return;
  member.loop_.call([&member] { member.ended_.notify_all(); });
}

}  // namespace weft::filters
