// SPDX-License-Identifier: BSD-3-Clause
// Library: a plugin's file in memory, and what is known of it before it is used.
#pragma once

#include <span>
#include <string>

#include "disk/disk.h"
#include "nbdkit/load.h"
#include "nbdkit/plugin_struct.h"

namespace weft::nbdkit {

class Library {
 public:
  // Loads the file and calls the plugin's load(). Throws ConfigError.
  Library(const std::string& path, std::span<DebugFlag> flags);
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  // The plugin's callbacks: what it does not have, or was built without knowing of, is null.
  [[nodiscard]] const nbdkit_plugin& calls() const { return calls_; }
  [[nodiscard]] const disk::PluginFile& file() const { return file_; }
  [[nodiscard]] const char* name() const { return calls_.name; }

  // This process, after the last fork, is the one that uses the plugin. Another one, which shares
  // what was made before the fork, does not end it.
  void claim();
  // Nothing of the plugin is called any more, not even unload().
  void give_up() { unloaded_ = true; }
  // Calls the plugin's unload(), once. Its file stays in memory: threads of its own may be left.
  void unload();

 private:
  void copy(const nbdkit_plugin& theirs);
  void check() const;
  void set_debug_flags(void* handle, std::span<DebugFlag> flags) const;

  const std::string path_;
  nbdkit_plugin calls_{};
  disk::PluginFile file_;
  int* owner_ =
      nullptr;  // shared with the forked: the process that claimed the plugin; 0: none yet
  bool unloaded_ = false;
};

}  // namespace weft::nbdkit
