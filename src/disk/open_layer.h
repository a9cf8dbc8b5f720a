// SPDX-License-Identifier: BSD-3-Clause
// Opening a layer's disk: the one way, for the server and for every filter.
#pragma once

#include <memory>
#include <string>

#include "disk/disk.h"

namespace weft::disk {

// The disk that `layer` opens, its calls serialised as the layer's own thread model demands,
// behind a waist. `name`: the layer's, for the log.
Task<Result<std::unique_ptr<Disk>>> open_layer(Plugin& layer, std::string name,
                                               OpenRequest request);

}  // namespace weft::disk
