// SPDX-License-Identifier: BSD-3-Clause
#include "cli/choose_plugin.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/result.h"
#include "cli/information.h"
#include "cli/parameters.h"
#include "cli/plugin_script.h"
#include "nbdkit/load.h"

namespace weft::cli {
namespace {

bool is_built_in(std::span<const disk::PluginInfo> built_in, const std::string& name) {
  return std::ranges::any_of(built_in, [&](const auto& info) { return name == info.name; });
}

std::string plugin_path(std::string_view name) {
  return fmt::format("{}/nbdkit-{}-plugin.so", folders().plugins, name);
}

const disk::PluginInfo& load(const std::string& path, Options& options) {
  std::vector<nbdkit::DebugFlag> flags;
  for (const DebugFlag& flag : options.debug_flags) {
    flags.push_back({flag.name, flag.flag, static_cast<int>(flag.value)});
  }
  const disk::PluginInfo& info = nbdkit::load_plugin(path, flags);
  std::vector<DebugFlag> unused;
  for (size_t i = 0; i < flags.size(); i++) {
    if (!flags[i].used) unused.push_back(options.debug_flags[i]);
  }
  options.debug_flags = std::move(unused);
  return info;
}

}  // namespace

Options read_command_line(const Personality& personality, std::vector<std::string> words,
                          std::span<const disk::PluginInfo> built_in) {
  // A script is of a language, whose plugin is none; one level more for a folder full of surprises.
  constexpr int kScriptsMax = 4;
  for (int i = 0; i < kScriptsMax; ++i) {
    Options options = parse_options(words, personality);
    if (options.plugin.empty() || is_built_in(built_in, options.plugin)) return options;
    auto expanded = expand_script(words, options.plugin_index, folders().plugins);
    if (!expanded) return options;
    words = std::move(*expanded);
  }
  throw ConfigError(fmt::format(
      "a script's first line names a script as its language, which is one again, {} times over",
      kScriptsMax));
}

const disk::PluginInfo& choose_plugin(std::span<const disk::PluginInfo> built_in,
                                      Options& options) {
  const std::string& name = options.plugin;
  for (const disk::PluginInfo& info : built_in) {
    if (name == info.name) return info;
  }
  std::string path = name;
  if (name.find_first_of("./") == std::string::npos) {
    path = plugin_path(name);
    if (!nbdkit::can_host()) {
      return find_plugin(built_in, name, "this build of weft loads no plugin files");
    }
    if (::access(path.c_str(), F_OK) != 0) {
      return find_plugin(built_in, name, fmt::format("{} is not there either", path));
    }
  }
  return load(path, options);
}

const disk::PluginInfo* fuller_plugin(const Personality& personality, const disk::PluginInfo& info,
                                      Options& options) {
  constexpr std::array<std::string_view, 3> kLess = {"data", "memory", "pattern"};
  if (!personality.nbdkit || info.file != nullptr || !nbdkit::can_host()) return nullptr;
  if (std::ranges::find(kLess, info.name) == kLess.end()) return nullptr;
  const std::string path = plugin_path(info.name);
  return ::access(path.c_str(), F_OK) == 0 ? &load(path, options) : nullptr;
}

}  // namespace weft::cli
