// SPDX-License-Identifier: BSD-3-Clause
// OneDisk: what the connections of a plugin share that cannot tell its disks apart, because code
// of others stands behind it (a script, a hosted plugin). All that it serves counts as one disk: it
// has one order of changes, and one mark of a failed sync.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string_view>

#include "base/result.h"
#include "disk/change_order.h"

namespace weft::disk {

// Thread-safe.
class OneDisk {
 public:
  // The order of changes for a connection's disk with this minimum block size (bytes). Null: disks
  // are open that have too small ones. Every one that is got is left.
  ChangeOrder* enter(uint32_t block_size);
  void leave();

  // EIO once a sync has failed, for ever.
  [[nodiscard]] Status sync_status() const;
  // `name` says whose and `what` which sync it was: "a flush". Logged the first time.
  void sync_failed(std::string_view name, std::string_view what, Error error);

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::unique_ptr<ChangeOrder> order_;  // guarded; fixed while a disk is open
  size_t disks_ = 0;                    // guarded
};

}  // namespace weft::disk
