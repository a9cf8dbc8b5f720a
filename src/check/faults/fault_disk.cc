// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/fault_disk.h"

#include <fmt/format.h>

#include <bit>
#include <cerrno>
#include <condition_variable>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "base/result.h"
#include "check/faults/fuse_file.h"
#include "check/faults/volatile_store.h"

namespace weft::check {

namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

// A call is taken by the file system's thread. It then is in one place, until it is answered:
// stalled_ (waits for release()), timed_ (being done; its end comes by the clock), held_ (the power
// is gone). Everything happens under one mutex, answers too: after freeze() no answer leaves.
// Bytes: holes and data are told in blocks, as file systems do. Servers rely on that: qemu-nbd with
// O_DIRECT ends itself where a hole begins elsewhere.
constexpr uint64_t kHoleBlock = 4096;

class FaultDisk::Impl final : public FuseFile::Owner {
 public:
  explicit Impl(const FaultDiskOptions& options)
      : options_(options), store_(options.size, options.sector) {
    timer_ = std::thread([this] { run_timer(); });
    try {
      file_ = std::make_unique<FuseFile>(*this, options.size);
    } catch (...) {
      stop_timer();
      throw;
    }
  }

  ~Impl() override {
    fail_held();
    file_.reset();
    stop_timer();
  }

  [[nodiscard]] const FuseFile& file() const { return *file_; }

  // FuseFile::Owner
  void take(FileCall call) override;
  uint64_t next_data(uint64_t offset) override {
    const std::lock_guard lock(mutex_);
    const uint64_t found = store_.next_data(offset / kHoleBlock * kHoleBlock);
    return std::max(offset, found / kHoleBlock * kHoleBlock);
  }
  uint64_t next_hole(uint64_t offset) override {
    const std::lock_guard lock(mutex_);
    uint64_t block = offset / kHoleBlock * kHoleBlock;
    while (block < store_.size() && store_.next_data(block) < block + kHoleBlock) {
      block += kHoleBlock;
    }
    return std::min(std::max(offset, block), store_.size());
  }

  void freeze();
  void fail_held();
  uint64_t restore(Cut cut, uint64_t seed);
  void restore_nothing_lost();
  void wipe() {
    restore_nothing_lost();
    const std::lock_guard lock(mutex_);
    store_.wipe();
  }

  void fail(DiskCall call, Range range, int error, uint32_t count) {
    const std::lock_guard lock(mutex_);
    failures_.push_back({call, range, error, count});
  }
  void stall(DiskCall call, Range range, uint32_t count) {
    const std::lock_guard lock(mutex_);
    stalls_.push_back({call, range, 0, count});
  }
  void release();
  void clear_faults();
  [[nodiscard]] Counters counters() const;
  [[nodiscard]] bool wait_stalled(uint64_t count, std::chrono::milliseconds limit) const {
    std::unique_lock lock(mutex_);
    return stalled_more_.wait_for(lock, limit, [&] { return stalled_.size() >= count; });
  }
  void set_times(std::chrono::microseconds write_time, std::chrono::microseconds sync_time) {
    const std::lock_guard lock(mutex_);
    options_.write_time = write_time;
    options_.sync_time = sync_time;
  }

 private:
  struct Rule {
    DiskCall kind;
    Range range;
    int error;
    uint32_t left;
  };
  struct Work {
    FileCall call;
    int error = 0;         // that it will end with
    bool syncing = false;  // `sync` runs: a sync, or a durable write after the write itself
    VolatileStore::Sync sync = 0;
  };
  enum class Power : uint8_t { kOn, kFrozen, kOff };

  // All of these under the mutex.
  void count(const FileCall& call);
  static Rule* match(std::vector<Rule>& rules, DiskCall kind, Range range);
  void begin(Work work);
  void begin_sync(Work work);  // work.sync runs
  void after(std::chrono::microseconds time, Work work);
  void end(Work work);
  void apply(const FileCall& call);
  void drop(Work work);  // answers with EIO
  void hold_all();
  void revive();

  void run_timer();
  void stop_timer();

  mutable std::mutex mutex_;
  FaultDiskOptions options_;
  VolatileStore store_;
  Power power_ = Power::kOn;
  uint64_t first_handle_ = 1;  // handles below it are dead
  std::set<uint64_t> untold_;  // handles that have not been told of a sync that failed on another
  std::vector<Rule> failures_;
  std::vector<Rule> stalls_;
  std::list<Work> stalled_;
  std::multimap<Clock::time_point, Work> timed_;
  std::list<Work> held_;
  Counters counters_;
  mutable std::condition_variable stalled_more_;
  std::condition_variable timed_more_;
  bool stopping_ = false;
  std::thread timer_;
  std::unique_ptr<FuseFile> file_;
};

void FaultDisk::Impl::count(const FileCall& call) {
  switch (call.kind) {
    case DiskCall::kRead:
      ++counters_.reads;
      break;
    case DiskCall::kWrite:
      ++counters_.writes;
      if (call.durable) ++counters_.syncs;
      break;
    case DiskCall::kZero:
      ++counters_.zeroes;
      break;
    case DiskCall::kTrim:
      ++counters_.trims;
      break;
    case DiskCall::kSync:
      ++counters_.syncs;
      break;
  }
}

// The rule that this call meets; it is used up by one.
FaultDisk::Impl::Rule* FaultDisk::Impl::match(std::vector<Rule>& rules, DiskCall kind,
                                              Range range) {
  for (Rule& rule : rules) {
    if (rule.left == 0 || rule.kind != kind || !rule.range.overlaps(range)) continue;
    --rule.left;
    return &rule;
  }
  return nullptr;
}

void FaultDisk::Impl::take(FileCall call) {
  const std::lock_guard lock(mutex_);
  Work work{.call = std::move(call)};
  if (power_ == Power::kOff || work.call.handle < first_handle_) {
    FuseFile::answer_error(work.call, EIO);
    return;
  }
  count(work.call);
  if (power_ == Power::kFrozen) {
    held_.push_back(std::move(work));
    return;
  }
  if (work.call.kind == DiskCall::kSync) {
    work.sync = store_.begin_sync(work.call.range);
    work.syncing = true;
  }
  if (match(stalls_, work.call.kind, work.call.range)) {
    stalled_.push_back(std::move(work));
    stalled_more_.notify_all();
    return;
  }
  begin(std::move(work));
}

void FaultDisk::Impl::begin(Work work) {
  const DiskCall kind = work.call.kind;
  if (kind == DiskCall::kSync) {
    begin_sync(std::move(work));
    return;
  }
  if (const Rule* rule = match(failures_, kind, work.call.range)) {
    work.error = rule->error;
    ++counters_.failed;
  }
  after(kind == DiskCall::kRead ? std::chrono::microseconds(0) : options_.write_time,
        std::move(work));
}

void FaultDisk::Impl::begin_sync(Work work) {
  if (const Rule* rule = match(failures_, DiskCall::kSync, work.call.range)) {
    work.error = rule->error;
    ++counters_.failed;
  }
  after(options_.sync_time, std::move(work));
}

void FaultDisk::Impl::after(std::chrono::microseconds time, Work work) {
  if (time.count() == 0) {
    end(std::move(work));
    return;
  }
  timed_.emplace(Clock::now() + time, std::move(work));
  timed_more_.notify_one();
}

void FaultDisk::Impl::apply(const FileCall& call) {
  if (call.kind == DiskCall::kWrite) {
    store_.write(call.range.offset, call.data);
  } else if (call.kind != DiskCall::kRead && call.kind != DiskCall::kSync) {
    store_.zero(call.range);
  }
}

void FaultDisk::Impl::end(Work work) {
  const FileCall& call = work.call;
  if (work.syncing && work.error) {
    store_.fail_sync(work.sync);
    // Linux tells it once to each open file.
    for (uint64_t handle = first_handle_; handle < file_->next_handle(); ++handle) {
      if (handle != call.handle) untold_.insert(handle);
    }
  } else if (work.syncing) {
    store_.end_sync(work.sync);
    if (untold_.erase(call.handle) > 0) work.error = EIO;
  } else if (work.error == 0) {
    apply(call);
    if (call.durable) {
      work.sync = store_.begin_sync(call.range);
      work.syncing = true;
      if (match(stalls_, DiskCall::kSync, call.range)) {
        stalled_.push_back(std::move(work));
        stalled_more_.notify_all();
      } else {
        begin_sync(std::move(work));
      }
      return;
    }
  }
  if (work.error) {
    FuseFile::answer_error(call, work.error);
  } else if (call.kind == DiskCall::kRead) {
    std::vector<std::byte> data(call.range.length);
    store_.read(call.range.offset, data);
    FuseFile::answer_read(call, data);
  } else if (call.kind == DiskCall::kWrite) {
    FuseFile::answer_written(call);
  } else {
    FuseFile::answer_error(call, 0);
  }
}

void FaultDisk::Impl::drop(Work work) {
  if (work.syncing) {
    store_.abandon_sync(work.sync);
  } else if (work.error == 0) {
    apply(work.call);  // it may have happened
  }
  FuseFile::answer_error(work.call, EIO);
}

void FaultDisk::Impl::hold_all() {
  held_.splice(held_.end(), stalled_);
  for (auto& [due, work] : timed_) held_.push_back(std::move(work));
  timed_.clear();
}

void FaultDisk::Impl::freeze() {
  const std::lock_guard lock(mutex_);
  if (power_ != Power::kOn) return;
  power_ = Power::kFrozen;
  hold_all();
}

void FaultDisk::Impl::fail_held() {
  const std::lock_guard lock(mutex_);
  power_ = Power::kOff;
  hold_all();
  while (!held_.empty()) {
    drop(std::move(held_.front()));
    held_.pop_front();
  }
}

// The power is back: whoever had it open before is gone.
void FaultDisk::Impl::revive() {
  untold_.clear();
  first_handle_ = file_->next_handle();
  failures_.clear();
  stalls_.clear();
  power_ = Power::kOn;
}

uint64_t FaultDisk::Impl::restore(Cut cut, uint64_t seed) {
  fail_held();
  const std::lock_guard lock(mutex_);
  const uint64_t lost = cut == Cut::kLoseAll ? store_.lose_all() : store_.lose_some(seed);
  revive();
  return lost;
}

void FaultDisk::Impl::restore_nothing_lost() {
  if ([&] {
        const std::lock_guard lock(mutex_);
        return power_ != Power::kOn;
      }()) {
    fail_held();
  }
  release();
  const std::lock_guard lock(mutex_);
  // What the kernel still does for a process that has ended: it happens before the next one starts.
  for (auto& [due, work] : std::exchange(timed_, {})) end(std::move(work));
  for (auto& [due, work] : std::exchange(timed_, {})) end(std::move(work));  // syncs of writes
  revive();
}

void FaultDisk::Impl::release() {
  const std::lock_guard lock(mutex_);
  stalls_.clear();
  if (power_ != Power::kOn) return;
  for (Work& work : std::exchange(stalled_, {})) {
    work.syncing ? begin_sync(std::move(work)) : begin(std::move(work));
  }
}

void FaultDisk::Impl::clear_faults() {
  release();
  const std::lock_guard lock(mutex_);
  failures_.clear();
}

FaultDisk::Counters FaultDisk::Impl::counters() const {
  const std::lock_guard lock(mutex_);
  Counters result = counters_;
  result.stalled = stalled_.size();
  result.volatile_sectors = store_.volatile_sectors();
  return result;
}

void FaultDisk::Impl::run_timer() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    if (timed_.empty()) {
      timed_more_.wait(lock);
      continue;
    }
    const auto first = timed_.begin();
    if (first->first > Clock::now()) {
      const Clock::time_point due = first->first;  // the entry may go while we wait
      timed_more_.wait_until(lock, due);
      continue;
    }
    Work work = std::move(first->second);
    timed_.erase(first);
    end(std::move(work));
  }
}

void FaultDisk::Impl::stop_timer() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  timed_more_.notify_all();
  timer_.join();
}

FaultDisk::FaultDisk(const FaultDiskOptions& options) {
  if (!std::has_single_bit(options.sector) || options.size == 0 ||
      options.size % options.sector != 0) {
    throw ConfigError(
        fmt::format("disk: {} bytes are no whole number of sectors of {} bytes; give "
                    "a multiple",
                    options.size, options.sector));
  }
  impl_ = std::make_unique<Impl>(options);
}

FaultDisk::~FaultDisk() = default;

std::string FaultDisk::unavailable() {
  try {
    const FaultDisk probe({.size = 4096});
    return "";
  } catch (const ConfigError& error) {
    return error.what();
  }
}

const std::string& FaultDisk::path() const {
  return impl_->file().path();
}
bool FaultDisk::parallel_writes() const {
  return impl_->file().parallel_writes();
}
void FaultDisk::freeze() {
  impl_->freeze();
}
void FaultDisk::fail_held() {
  impl_->fail_held();
}
uint64_t FaultDisk::restore(Cut cut, uint64_t seed) {
  return impl_->restore(cut, seed);
}
void FaultDisk::restore_nothing_lost() {
  impl_->restore_nothing_lost();
}
void FaultDisk::wipe() {
  impl_->wipe();
}
void FaultDisk::fail(DiskCall call, Range range, int error, uint32_t count) {
  impl_->fail(call, range, error, count);
}
void FaultDisk::stall(DiskCall call, Range range, uint32_t count) {
  impl_->stall(call, range, count);
}
void FaultDisk::release() {
  impl_->release();
}
void FaultDisk::clear_faults() {
  impl_->clear_faults();
}
FaultDisk::Counters FaultDisk::counters() const {
  return impl_->counters();
}
bool FaultDisk::wait_stalled(uint64_t count, std::chrono::milliseconds limit) const {
  return impl_->wait_stalled(count, limit);
}
void FaultDisk::set_times(std::chrono::microseconds write_time,
                          std::chrono::microseconds sync_time) {
  impl_->set_times(write_time, sync_time);
}

}  // namespace weft::check
