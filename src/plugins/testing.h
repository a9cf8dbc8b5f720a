// SPDX-License-Identifier: BSD-3-Clause
// What the tests of plugins share.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "disk/disk.h"

namespace weft::plugins {

using Parameters = std::vector<std::pair<std::string, std::string>>;

// A plugin of the table, configured but not completed.
inline std::unique_ptr<disk::Plugin> make_configured(std::string_view name,
                                                     const Parameters& parameters) {
  for (const disk::PluginInfo& info : disk::plugins()) {
    if (info.name != name) continue;
    std::unique_ptr<disk::Plugin> plugin = info.make();
    for (const auto& [key, value] : parameters) plugin->config(key, value);
    return plugin;
  }
  throw std::logic_error("no such plugin");
}

inline std::unique_ptr<disk::Plugin> make_plugin(std::string_view name,
                                                 const Parameters& parameters) {
  std::unique_ptr<disk::Plugin> plugin = make_configured(name, parameters);
  plugin->config_complete();
  return plugin;
}

// A file full of holes.
inline std::string make_image(const std::filesystem::path& path, uint64_t size) {
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd || ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    throw std::runtime_error("cannot make " + path.string());
  }
  return path;
}

}  // namespace weft::plugins
