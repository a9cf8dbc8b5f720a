// SPDX-License-Identifier: BSD-3-Clause
// Serializer: holds the calls of a layer apart, as its thread model demands. Whoever calls, a
// client's request, another connection's flush, a filter's work in the background, waits here.
//
// With kSerializeRequests each disk has its lock; with kSerializeAllRequests all disks of the layer
// have one, which covers open() and close() as well; with kSerializeConnections a disk has the
// layer to itself from its open() to the end of its close().
#pragma once

#include <memory>

#include "disk/disk.h"

namespace weft::disk {

class Serializer {
 public:
  // The disk that `layer` opens, wrapped where its own_thread_model() asks for it.
  static Task<Result<std::unique_ptr<Disk>>> open(Plugin& layer, OpenRequest request);
};

}  // namespace weft::disk
