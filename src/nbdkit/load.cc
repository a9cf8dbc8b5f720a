// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/load.h"

#include <fmt/format.h>

#include "base/result.h"

namespace weft::nbdkit {

bool can_host() {
  return false;
}

const disk::PluginInfo& load_plugin(const std::string& path, std::span<DebugFlag>) {
  throw ConfigError(fmt::format("{}: this build of weft loads no plugin files", path));
}

void unload_plugin() {}

}  // namespace weft::nbdkit
