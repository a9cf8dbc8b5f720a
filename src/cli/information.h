// SPDX-License-Identifier: BSD-3-Clause
// What weft tells about itself: the texts of --help, --version, --dump-config, --dump-plugin,
// --short-options and --long-options. Each ends with a newline.
#pragma once

#include <span>
#include <string>

#include "cli/options.h"
#include "disk/disk.h"

namespace weft::cli {

// `plugin`: the one named on the command line, or null.
std::string help_text(std::span<const disk::PluginInfo> plugins, const disk::PluginInfo* plugin);
std::string version_text(const disk::PluginInfo* plugin);
std::string dump_config_text(std::span<const disk::PluginInfo> plugins);
std::string dump_plugin_text(const disk::PluginInfo& plugin);
std::string short_options_text();
std::string long_options_text();

}  // namespace weft::cli
