// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/load.h"

#include <fmt/format.h>

#include "base/result.h"

#ifdef WEFT_HOST_PLUGINS

#include "nbdkit/hosted_plugin.h"
#include "nbdkit/library.h"

namespace weft::nbdkit {
namespace {

// The one plugin of the process. Never destroyed: threads of its own may outlive main().
Library* the_library = nullptr;
disk::PluginInfo* the_info = nullptr;
bool made = false;

std::unique_ptr<disk::Plugin> make() {
  if (made) {
    throw ConfigError(
        fmt::format("{}: a plugin from a file keeps its configuration in static variables, so it "
                    "can be used once in a process: start another weft for the second use",
                    the_library->name()));
  }
  made = true;
  return std::make_unique<HostedPlugin>(*the_library);
}

}  // namespace

bool can_host() {
  return true;
}

const disk::PluginInfo& load_plugin(const std::string& path, std::span<DebugFlag> flags) {
  if (the_library != nullptr) {
    throw ConfigError(
        fmt::format("{}: one plugin from a file, {}, is loaded already, and a process hosts one: "
                    "start another weft for the second",
                    path, the_library->name()));
  }
  the_library = new Library(path, flags);
  const nbdkit_plugin& calls = the_library->calls();
  the_info = new disk::PluginInfo{
      .name = calls.name,
      .longname = calls.longname ? calls.longname : calls.name,
      .description = calls.description,
      .config_help = calls.config_help,
      .magic_config_key = calls.magic_config_key,
      .make = make,
      .file = &the_library->file(),
  };
  return *the_info;
}

void unload_plugin() {
  if (the_library != nullptr) the_library->unload();
}

}  // namespace weft::nbdkit

#else

namespace weft::nbdkit {

bool can_host() {
  return false;
}

const disk::PluginInfo& load_plugin(const std::string& path, std::span<DebugFlag>) {
  throw ConfigError(
      fmt::format("{}: this build of weft loads no plugin files: nbdkit-plugin.h was missing; "
                  "install it (apt-get install nbdkit-plugin-dev) and build weft again",
                  path));
}

void unload_plugin() {}

}  // namespace weft::nbdkit

#endif
