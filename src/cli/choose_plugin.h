// SPDX-License-Identifier: BSD-3-Clause
// From a command line to the plugin that it names: one of the program, or one in a file.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cli/options.h"
#include "disk/disk.h"

namespace weft::cli {

// parse_options(), where the plugin may be a script (plugin_script.h): then what its first line
// stands for. Throws ConfigError. May not return: see expand_script().
Options read_command_line(const Personality& personality, std::vector<std::string> words,
                          std::span<const disk::PluginInfo> built_in);

// The plugin of `options`: one of `built_in`, or loaded from the file at a path, or from the plugin
// folder by its short name. Its debug flags are set and taken out of `options`. Throws ConfigError.
const disk::PluginInfo& choose_plugin(std::span<const disk::PluginInfo> built_in, Options& options);

// nbdkit's plugin file in the place of a built-in plugin that knows less than that does (the data
// language, kinds of memory) and has refused the parameters, for who speaks as nbdkit. Null: there
// is none. Loads it as choose_plugin() does.
const disk::PluginInfo* fuller_plugin(const Personality& personality, const disk::PluginInfo& info,
                                      Options& options);

}  // namespace weft::cli
