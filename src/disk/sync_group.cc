// SPDX-License-Identifier: BSD-3-Clause
#include "disk/sync_group.h"

#include <cassert>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace weft::disk {
namespace {

using engine::BlockingKind;
using engine::BlockingReason;

constexpr const char* kFailedText =
    "an earlier sync of this disk failed: what was written may be lost";

}  // namespace

// Lives in the coroutine of a flush. As a job it is the leader's sync; as a message it comes back
// to its loop either to lead the next sync or with the result.
struct SyncGroup::Waiter final : engine::BlockingJob {
  Waiter(SyncGroup& the_group, engine::Loop& the_loop) : group(the_group), loop(the_loop) {}

  [[nodiscard]] bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    wakeup.handle = handle;
    group.arrive(*this);
  }
  Status await_resume() { return result; }

  void execute() override { group.sync_for(*this); }
  void run() override {
    if (std::exchange(leads, false)) {
      group.lane_.submit(*this, BlockingReason::kSync, BlockingKind::kParallel);
    } else {
      loop.schedule(wakeup);
    }
  }

  SyncGroup& group;
  engine::Loop& loop;
  engine::Wakeup wakeup{};
  Status result;
  bool leads = false;  // run() is to start the next sync
  Waiter* next = nullptr;
};

SyncGroup::~SyncGroup() {
  assert(!led_ && !next_.head);
}

Status SyncGroup::status() const {
  if (failed_.load(std::memory_order_acquire)) return fail(EIO, kFailedText);
  return {};
}

void SyncGroup::mark_failed(Error error, const char* what) {
  if (failed_.exchange(true, std::memory_order_acq_rel)) return;
  log::error(
      "{}: {} failed: {}: acknowledged writes may be lost, and every flush and FUA write of this "
      "disk "
      "fails from now on; check its storage and its data, then restart",
      name_, what, errno_text(error.code));
}

engine::Task<Status> SyncGroup::flush(engine::Loop& loop) {
  if (Status failed = status(); !failed) return failed;
  if (clean()) return Status{};
  return wait(loop);
}

engine::Task<Status> SyncGroup::wait(engine::Loop& loop) {
  Waiter waiter(*this, loop);
  co_return co_await waiter;
}

void SyncGroup::arrive(Waiter& waiter) {
  bool leads = false;
  {
    std::lock_guard lock(mutex_);
    (next_.head ? next_.tail->next : next_.head) = &waiter;
    next_.tail = &waiter;
    leads = !std::exchange(led_, true);
  }
  if (leads) lane_.submit(waiter, BlockingReason::kSync, BlockingKind::kParallel);
}

void SyncGroup::sync_for(Waiter& leader) {
  List mine;
  {
    // Whoever has arrived by now is served by this sync. All their changes have finished.
    std::lock_guard lock(mutex_);
    mine = std::exchange(next_, List{});
  }
  assert(mine.head == &leader);
  const uint64_t changes = changes_.load(std::memory_order_acquire);
  Status result = status();
  if (result) {
    syncs_.fetch_add(1, std::memory_order_relaxed);
    result = sync_();
    if (!result) {
      mark_failed(result.error(), "a sync");
    } else if (result = status(); result) {  // a FUA write may have failed meanwhile
      synced_.store(changes, std::memory_order_release);
    }
  }
  Waiter* promoted = nullptr;
  {
    std::lock_guard lock(mutex_);
    promoted = next_.head;
    led_ = promoted != nullptr;
  }
  if (promoted) {
    promoted->leads = true;
    promoted->loop.post(*promoted);
  }
  // From its message on, a waiter may be gone. The pool brings the leader back itself.
  leader.result = result;
  for (Waiter* waiter = leader.next; waiter;) {
    Waiter* const next = waiter->next;
    waiter->result = result;
    waiter->loop.post(*waiter);
    waiter = next;
  }
}

}  // namespace weft::disk
