// SPDX-License-Identifier: BSD-3-Clause
// The disk of a connection in mode emulate: tells its group what is going on.
#pragma once

#include <memory>

#include "disk/disk.h"
#include "filters/multi-conn/group.h"

namespace weft::filters {

// `next` can flush. `group` is kept as long as the disk.
std::unique_ptr<disk::Disk> make_emulated_disk(std::unique_ptr<disk::Disk> next,
                                               std::shared_ptr<Group> group, engine::Loop& loop);

}  // namespace weft::filters
