// SPDX-License-Identifier: BSD-3-Clause
// The disk of a connection in the modes that change nothing but what is advertised: leaves out the
// flushes that are not needed.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "disk/disk.h"
#include "filters/multi-conn/group.h"

namespace weft::filters {

// The changes of all connections of a disk. Thread-safe.
struct ChangeCount {
  std::atomic<uint64_t> ended{0};    // well or not; counted before the reply
  std::atomic<uint64_t> flushed{0};  // `ended` at the start of the last flush that succeeded
};

// What is said of multi-conn: no; what the disk below says; yes, because the operator wants it.
enum class Advertise : uint8_t { kNo, kAsBelow, kOrdered };

// Flushes that are not passed on:
//  - tracking off: none;
//  - over a disk whose connections are consistent, or with tracking fast: those after which nothing
//    has changed on any connection since the last one;
//  - else: those before the first change on any connection. From then on the disk below alone knows
//    which connection needs what.
// `reason`: why it is advertised, or not; a static string.
std::unique_ptr<disk::Disk> make_tracked_disk(std::unique_ptr<disk::Disk> next,
                                              std::shared_ptr<ChangeCount> changes,
                                              Tracking tracking, Advertise advertise,
                                              const char* reason);

}  // namespace weft::filters
