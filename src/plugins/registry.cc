// SPDX-License-Identifier: BSD-3-Clause
#include <array>

#include "plugins/plugins.h"

namespace weft::disk {

std::span<const PluginInfo> plugins() {
  static const std::array table = {
      plugins::data_plugin, plugins::eval_plugin,    plugins::file_plugin, plugins::memory_plugin,
      plugins::null_plugin, plugins::pattern_plugin, plugins::sh_plugin,
  };
  return table;
}

}  // namespace weft::disk
