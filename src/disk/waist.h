// SPDX-License-Identifier: BSD-3-Clause
// The narrow waist: every call from one layer to the next passes here.
//
// It checks that the caller keeps to what disk.h demands and that the layer keeps its word, traces
// the calls with -v, and supplies what a layer says is to be emulated: zero by writing, cache by
// reading, FUA by the change and then a flush. A layer without extents is one piece of data.
// What only has to be handed on is handed on, without a coroutine.
#pragma once

#include <memory>
#include <string>

#include "disk/disk.h"

namespace weft::disk {

// `name` names the layer below in traces and errors.
std::unique_ptr<Disk> make_waist(std::unique_ptr<Disk> next, std::string name);

}  // namespace weft::disk
