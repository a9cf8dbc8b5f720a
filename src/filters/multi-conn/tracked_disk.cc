// SPDX-License-Identifier: BSD-3-Clause
#include "filters/multi-conn/tracked_disk.h"

#include <utility>

#include "disk/filter.h"

namespace weft::filters {
namespace {

using disk::Reads;
using disk::Task;

class TrackedDisk final : public disk::FilterDisk {
 public:
  TrackedDisk(std::unique_ptr<disk::Disk> next_disk, std::shared_ptr<ChangeCount> changes,
              Tracking tracking, Advertise advertise, const char* reason)
      : FilterDisk(std::move(next_disk), Reads::kForwarded),
        changes_(std::move(changes)),
        tracking_(tracking),
        consistent_(capabilities_.multi_conn) {
    if (advertise == Advertise::kAsBelow) return;
    const bool ordered = advertise == Advertise::kOrdered;
    capabilities_.multi_conn_layer = "the multi-conn filter";
    capabilities_.multi_conn = capabilities_.multi_conn_ordered = ordered;
    capabilities_.multi_conn_reason = reason;
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return counted(next().write(offset, from, fua));
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return counted(next().zero(range, flags));
  }
  Task<Status> trim(Range range, bool fua) override { return counted(next().trim(range, fua)); }

  Task<Status> flush() override {
    const uint64_t ended = changes_->ended.load();
    if (tracking_ != Tracking::kOff) {
      const bool by_generation = consistent_ || tracking_ == Tracking::kFast;
      if (ended == (by_generation ? changes_->flushed.load() : 0)) return Status{};
    }
    return flush_below(ended);
  }

 private:
  Task<Status> counted(Task<Status> change) {
    if (!change.ready()) return counted_later(std::move(change));
    changes_->ended.fetch_add(1);
    return change;
  }
  Task<Status> counted_later(Task<Status> change) {
    const Status done = co_await change;
    changes_->ended.fetch_add(1);
    co_return done;
  }

  Task<Status> flush_below(uint64_t ended) {
    const Status done = co_await next().flush();
    if (!done) co_return done;
    uint64_t before = changes_->flushed.load();
    while (before < ended && !changes_->flushed.compare_exchange_weak(before, ended)) {
    }
    co_return done;
  }

  std::shared_ptr<ChangeCount> changes_;
  const Tracking tracking_;
  const bool consistent_;
};

}  // namespace

std::unique_ptr<disk::Disk> make_tracked_disk(std::unique_ptr<disk::Disk> next,
                                              std::shared_ptr<ChangeCount> changes,
                                              Tracking tracking, Advertise advertise,
                                              const char* reason) {
  return std::make_unique<TrackedDisk>(std::move(next), std::move(changes), tracking, advertise,
                                       reason);
}

}  // namespace weft::filters
