// SPDX-License-Identifier: BSD-3-Clause
// The disks of the file plugin, one per connection, over a shared Image.
#pragma once

#include <memory>

#include "disk/disk.h"
#include "plugins/file/image.h"

namespace weft::plugins {

// Through the page cache, or past it, as `images` says. `opened` was acquired for this disk,
// which gives it back in close(). `images` outlives it.
std::unique_ptr<disk::Disk> make_file_disk(Images& images, Images::Opened opened,
                                           engine::Loop& loop);

}  // namespace weft::plugins
