// SPDX-License-Identifier: BSD-3-Clause
// What weft tells about itself: the texts of --help, --version, --dump-config, --dump-plugin,
// --short-options and --long-options. Each ends with a newline.
#pragma once

#include <span>
#include <string>

#include "cli/options.h"
#include "disk/filter.h"

namespace weft::cli {

// What the program has.
struct Inventory {
  std::span<const disk::PluginInfo> plugins;
  std::span<const disk::FilterInfo> filters;
};

// Folders of the installation.
struct Folders {
  const char* plugins;  // plugin files: nbdkit-NAME-plugin.so
};
const Folders& folders();

// The path of this program.
std::string program_path();

// What all texts of --help begin with.
std::string usage_text(const Personality& personality);
// `plugin`: the one named on the command line, or null; `layers`: the filters named there.
std::string help_text(const Personality& personality, const Inventory& inventory,
                      const disk::PluginInfo* plugin, std::span<const disk::Layer> layers);
std::string version_text(const Personality& personality, const disk::PluginInfo* plugin,
                         std::span<const disk::Layer> layers);
std::string dump_config_text(const Personality& personality, const Inventory& inventory);
// `stack`: the plugin, configured, with its filters.
std::string dump_plugin_text(const Personality& personality, const disk::PluginInfo& plugin,
                             disk::Plugin& stack);
std::string short_options_text(const Personality& personality);
std::string long_options_text(const Personality& personality);

}  // namespace weft::cli
