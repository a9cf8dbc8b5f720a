// SPDX-License-Identifier: BSD-3-Clause
#include "disk/open_layer.h"

#include <utility>

#include "disk/serializer.h"
#include "disk/waist.h"

namespace weft::disk {

Task<Result<std::unique_ptr<Disk>>> open_layer(Plugin& layer, std::string name,
                                               OpenRequest request) {
  Result<std::unique_ptr<Disk>> disk = co_await Serializer::open(layer, std::move(request));
  if (!disk) co_return disk;
  co_return make_waist(std::move(*disk), std::move(name));
}

}  // namespace weft::disk
