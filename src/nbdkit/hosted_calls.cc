// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/hosted_calls.h"

#include <algorithm>
#include <cassert>

#include "base/log.h"

namespace weft::nbdkit {
namespace {

// Threads that a connection may have at work: plenty, but not all that there are. One client whose
// calls hang leaves some for others.
constexpr size_t kLaneLimit = 128;
static_assert(kLaneLimit * 4 <= engine::BlockingPool::kThreadsMax);

double in_seconds(engine::Clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void CallsOfAll::abandon() {
  const std::lock_guard lock(mutex_);
  for (HostedCalls* calls : all_) calls->tell_in_progress();
}

HostedCalls::HostedCalls(CallsOfAll& all, engine::Loop& loop, Connection& connection,
                         std::chrono::milliseconds hang_time)
    : all_(all),
      loop_(loop),
      connection_(connection),
      hang_time_(hang_time),
      lane_(all.pool(), kLaneLimit),
      scope_(loop),
      timer_(loop) {
  const std::lock_guard lock(all_.mutex_);
  entry_ = all_.all_.insert(all_.all_.end(), this);
}

HostedCalls::~HostedCalls() {
  assert(first_ == nullptr);
  const std::lock_guard lock(all_.mutex_);
  all_.all_.erase(entry_);
}

disk::Task<void> HostedCalls::end() {
  timer_.cancel();
  co_await scope_.join();
}

HostedCalls::Listed::Listed(HostedCalls& calls, const char* method)
    : calls_(calls), call_{method, Clock::now()} {
  {
    const std::lock_guard lock(calls_.mutex_);
    call_.previous = calls_.last_;
    (call_.previous ? call_.previous->next : calls_.first_) = &call_;
    calls_.last_ = &call_;
  }
  if (!calls_.watching_) {
    calls_.watching_ = true;
    calls_.scope_.spawn(calls_.watch());
  }
}

HostedCalls::Listed::~Listed() {
  {
    const std::lock_guard lock(calls_.mutex_);
    (call_.previous ? call_.previous->next : calls_.first_) = call_.next;
    (call_.next ? call_.next->previous : calls_.last_) = call_.previous;
  }
  if (!call_.told) return;
  log::write(log::Level::kWarning,
             fmt::format("{} has come back after {:.1f} s", call_.method,
                         in_seconds(Clock::now() - call_.begun)),
             calls_.connection_.subject());
}

// ---- Calls that do not come back ----------------------------------------------------------------

// Not a timer a call, but one look when the oldest of them is due: most are long gone by then.
disk::Task<void> HostedCalls::watch() {
  Clock::time_point due = Clock::now() + hang_time_;
  while (co_await timer_.until(due)) {
    const Clock::time_point now = Clock::now();
    report(now);
    const Call* next = first_;
    while (next && next->late) next = next->next;
    if (first_ == nullptr) break;
    due = (next ? next->begun : now) + hang_time_;
  }
  watching_ = false;
}

// One line for all that are late, or nearly, so that a plugin that hangs does not flood the log.
void HostedCalls::report(Clock::time_point now) {
  Call* oldest = nullptr;
  size_t count = 0;
  const Clock::duration nearly = hang_time_ - hang_time_ / 10;
  for (Call* call = first_; call && now - call->begun >= nearly; call = call->next) {
    if (call->late) continue;
    if (!oldest) oldest = call;
    call->late = true;
    count++;
  }
  if (!oldest) return;
  oldest->told = true;
  const std::string others = count > 1 ? fmt::format(", nor have {} other calls", count - 1) : "";
  log::write(log::Level::kWarning,
             fmt::format("{} has not come back for {:.0f} s{}: the plugin hangs; the requests that "
                         "wait for it wait on, others do not",
                         oldest->method, in_seconds(now - oldest->begun), others),
             connection_.subject());
}

void HostedCalls::tell_in_progress() {
  const std::lock_guard lock(mutex_);
  if (first_ == nullptr) return;
  size_t others = 0;
  for (const Call* call = first_->next; call; call = call->next) others++;
  log::write(
      log::Level::kError,
      fmt::format("{} has not come back for {:.1f} s{}, and the server ends: it is waited for no "
                  "longer, and what it was to do is lost",
                  first_->method, in_seconds(Clock::now() - first_->begun),
                  others ? fmt::format(", nor have {} other calls", others) : ""),
      connection_.subject());
}

}  // namespace weft::nbdkit
