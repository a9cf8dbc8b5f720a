// SPDX-License-Identifier: BSD-3-Clause
#include "disk/shared_disk.h"

#include <cassert>
#include <utility>

#include "engine/elsewhere.h"

namespace weft::disk {

using engine::run_elsewhere;

SharedDisk::SharedDisk(Loop& home, std::unique_ptr<Disk> disk)
    : home_(home),
      disk_(std::move(disk)),
      capabilities_(disk_->capabilities()),
      identity_(disk_->identity()),
      description_(disk_->description()) {}

SharedDisk::~SharedDisk() {
  assert(!disk_);
}

Task<Result<std::unique_ptr<SharedDisk>>> SharedDisk::open(Loop& here, Loop& home, Open open) {
  co_return co_await run_elsewhere(here, home, [&home, &open] { return open_at_home(home, open); });
}

Task<Result<std::unique_ptr<SharedDisk>>> SharedDisk::open_at_home(Loop& home, const Open& open) {
  Result<std::unique_ptr<Disk>> disk = co_await open(home);
  if (!disk) co_return std::unexpected(disk.error());
  co_return std::unique_ptr<SharedDisk>(new SharedDisk(home, std::move(*disk)));
}

Task<Status> SharedDisk::read(Loop& here, uint64_t offset, MutableByteSpan into) {
  return run_elsewhere(here, home_, [this, offset, into] { return disk_->read(offset, into); });
}

Task<Status> SharedDisk::write(Loop& here, uint64_t offset, ByteSpan from, bool fua) {
  return run_elsewhere(here, home_,
                       [this, offset, from, fua] { return disk_->write(offset, from, fua); });
}

Task<Status> SharedDisk::zero(Loop& here, Range range, ZeroFlags flags) {
  return run_elsewhere(here, home_, [this, range, flags] { return disk_->zero(range, flags); });
}

Task<Status> SharedDisk::trim(Loop& here, Range range, bool fua) {
  return run_elsewhere(here, home_, [this, range, fua] { return disk_->trim(range, fua); });
}

Task<Status> SharedDisk::flush(Loop& here) {
  return run_elsewhere(here, home_, [this] { return disk_->flush(); });
}

Task<Status> SharedDisk::extents(Loop& here, Extents& into, bool one) {
  return run_elsewhere(here, home_, [this, &into, one] { return disk_->extents(into, one); });
}

Task<Status> SharedDisk::close(Loop& here) {
  return run_elsewhere(here, home_, [this] { return close_at_home(); });
}

Task<Status> SharedDisk::close_at_home() {
  const Status closed = co_await disk_->close();
  disk_.reset();
  co_return closed;
}

}  // namespace weft::disk
