// SPDX-License-Identifier: BSD-3-Clause
#include "filters/multi-conn/emulated_disk.h"

#include <algorithm>
#include <utility>

#include "disk/filter.h"

namespace weft::filters {
namespace {

using disk::Reads;
using disk::Support;
using disk::Task;

class EmulatedDisk final : public disk::FilterDisk {
 public:
  EmulatedDisk(std::unique_ptr<disk::Disk> next_disk, std::shared_ptr<Group> group,
               engine::Loop& loop)
      : FilterDisk(std::move(next_disk), Reads::kIntercepted),
        group_(std::move(group)),
        loop_(loop),
        member_(*group_, next(), loop) {
    // The blocks that the disk below may remember as a whole.
    block_ = std::max(capabilities_.block_size.minimum, capabilities_.block_size.preferred);
    if (capabilities_.writable) {
      if (disk::ChangeOrder* below = next().order()) {
        block_ = std::max(block_, below->granularity());
      }
      order_ = &group_->order(block_);
    }
    // A change that must be durable is one, and then a round: the waist above sees to it.
    if (capabilities_.fua != Support::kNone || capabilities_.writable) {
      capabilities_.fua = Support::kEmulate;
    }
    capabilities_.multi_conn = true;
    capabilities_.multi_conn_ordered = false;
    capabilities_.multi_conn_layer = "the multi-conn filter";
    capabilities_.multi_conn_reason =
        "a flush on any connection publishes what all of them have written";
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return watched([this, offset, into] { return next().read(offset, into); });
  }
  bool lend(Range range, disk::Lease& lease) override {
    if (!member_.settled()) return false;
    Member::Operation operation;
    member_.begin(operation);
    const bool lent = next().lend(range, lease);
    member_.end(operation);
    return lent;
  }
  [[nodiscard]] bool may_have_holes() const override { return false; }
  Task<Status> write(uint64_t offset, ByteSpan from, bool) override {
    return change({offset, from.size()},
                  [this, offset, from] { return next().write(offset, from, false); });
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    flags.fua = false;
    return change(range, [this, range, flags] { return next().zero(range, flags); });
  }
  Task<Status> trim(Range range, bool) override {
    return change(range, [this, range] { return next().trim(range, false); });
  }
  Task<Status> cache(Range range) override {
    return watched([this, range] { return next().cache(range); });
  }
  // What a disk remembers may be where its data are, too.
  Task<Status> extents(Extents& into, bool one) override {
    return watched([this, &into, one] { return next().extents(into, one); });
  }
  Task<Status> flush() override { return group_->flush(loop_); }
  disk::ChangeOrder* order() override { return order_; }

  Task<Status> close() override {
    const Status published = co_await member_.leave();
    const Status closed = co_await next().close();
    co_return published ? closed : published;
  }

 private:
  // `call` of the disk below, once the member is settled, and known to be in progress meanwhile.
  template <typename F>
  Task<Status> watched(F call) {
    if (!member_.settled()) {
      const Status settled = co_await member_.settle();
      if (!settled) co_return settled;
    }
    Member::Operation operation;
    member_.begin(operation);
    const Status done = co_await call();
    member_.end(operation);
    co_return done;
  }

  template <typename F>
  Task<Status> change(Range range, F call) {
    const Range blocks = range.rounded_out(block_);
    if (member_.needs_round(blocks)) {
      const Status published = co_await group_->run_round(loop_);
      if (!published) co_return published;
    }
    if (!member_.settled()) {
      const Status settled = co_await member_.settle();
      if (!settled) co_return settled;
    }
    Member::Operation operation;
    member_.begin(operation);
    const Status done = co_await call();
    // Well or not: a change that failed may have happened in part.
    member_.changed(blocks);
    member_.end(operation);
    co_return done;
  }

  std::shared_ptr<Group> group_;
  engine::Loop& loop_;
  Member member_;
  uint64_t block_;
  disk::ChangeOrder* order_ = nullptr;
};

}  // namespace

std::unique_ptr<disk::Disk> make_emulated_disk(std::unique_ptr<disk::Disk> next,
                                               std::shared_ptr<Group> group, engine::Loop& loop) {
  return std::make_unique<EmulatedDisk>(std::move(next), std::move(group), loop);
}

}  // namespace weft::filters
