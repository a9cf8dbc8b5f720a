// SPDX-License-Identifier: BSD-3-Clause
// HostedDisk: a connection's disk whose requests are calls of a hosted plugin.
#pragma once

#include <cstdint>
#include <memory>

#include "disk/disk.h"

namespace weft::nbdkit {

class HostedPlugin;

// Calls the plugin's open, and asks it for all that it can do. `number`: the connection's, from 1
// on. `plugin` outlives the disk.
disk::Task<Result<std::unique_ptr<disk::Disk>>> open_hosted_disk(HostedPlugin& plugin,
                                                                 uint64_t number,
                                                                 disk::OpenRequest request);

}  // namespace weft::nbdkit
