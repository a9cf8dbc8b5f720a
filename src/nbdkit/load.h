// SPDX-License-Identifier: BSD-3-Clause
// Plugins in files: nbdkit-NAME-plugin.so, with the C interface of nbdkit-plugin(3).
//
// A plugin keeps its state in static variables, so a process hosts one of them, configured once.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "disk/disk.h"

namespace weft::nbdkit {

// -D NAME.FLAG=N for the plugin: its int variable NAME_debug_FLAG is set before it is loaded.
struct DebugFlag {
  std::string name;  // the plugin's
  std::string flag;  // a '.' is written '_' in the variable
  int value = 0;
  bool used = false;  // set by load_plugin(): the plugin is called so and has the variable
};

// Whether this build can host plugins; else load_plugin() says how one is made that can.
bool can_host();

// Loads the file at `path` (absolute, or relative to the current directory) and calls the plugin's
// load(). The result lives as long as the program; its make() may be called once.
// Throws ConfigError for what is no plugin, or is one that cannot be hosted.
const disk::PluginInfo& load_plugin(const std::string& path, std::span<DebugFlag> flags);

// After the last use: the plugin's unload(). The file stays in memory.
void unload_plugin();

}  // namespace weft::nbdkit
