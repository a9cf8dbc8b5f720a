// SPDX-License-Identifier: BSD-3-Clause
#include "disk/one_disk.h"

#include <algorithm>
#include <cerrno>

#include "base/log.h"

namespace weft::disk {
namespace {

// Changes in one block of this size wait for each other, so that disks with the usual block sizes
// can have one order.
constexpr uint64_t kOrderGranularity = 4096;  // bytes

}  // namespace

ChangeOrder* OneDisk::enter(uint32_t block_size) {
  const std::lock_guard lock(mutex_);
  if (!order_ || order_->granularity() < block_size) {
    if (disks_ > 0) return nullptr;
    order_ = std::make_unique<ChangeOrder>(std::max<uint64_t>(block_size, kOrderGranularity));
  }
  disks_++;
  return order_.get();
}

void OneDisk::leave() {
  const std::lock_guard lock(mutex_);
  disks_--;
}

Status OneDisk::sync_status() const {
  if (!failed_.load(std::memory_order_acquire)) return {};
  return fail(EIO, "an earlier sync of this disk failed: what was written may be lost");
}

void OneDisk::sync_failed(std::string_view name, std::string_view what, Error error) {
  if (failed_.exchange(true, std::memory_order_acq_rel)) return;
  log::error(
      "{}: {} failed: {}: acknowledged writes may be lost, and every flush and FUA write of this "
      "disk fails from now on; check its storage and its data, then restart",
      name, what, errno_text(error.code));
}

}  // namespace weft::disk
