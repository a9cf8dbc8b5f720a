// SPDX-License-Identifier: BSD-3-Clause
// ScriptDisk: a connection's disk whose requests are calls of a script.
#pragma once

#include <memory>

#include "disk/disk.h"

namespace weft::plugins {

class ScriptPlugin;

// Calls the script's open, and asks it for all that it can do. `plugin` outlives the disk.
disk::Task<Result<std::unique_ptr<disk::Disk>>> open_script_disk(ScriptPlugin& plugin,
                                                                 engine::BlockingPool& pool,
                                                                 disk::OpenRequest request);

}  // namespace weft::plugins
