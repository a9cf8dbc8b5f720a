// SPDX-License-Identifier: BSD-3-Clause
// From the words of a command line to a configured stack of filters over a plugin.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/options.h"
#include "disk/filter.h"

namespace weft::cli {

// The plugin called `name`. Throws ConfigError with the names there are, and what was found
// `elsewhere`.
const disk::PluginInfo& find_plugin(std::span<const disk::PluginInfo> plugins,
                                    const std::string& name, std::string_view elsewhere = {});

// The filters called so, with their own parameters. Throws ConfigError with the names there are.
std::vector<disk::Layer> find_filters(std::span<const disk::FilterInfo> filters,
                                      std::span<const FilterWord> words);

struct Parameter {
  std::string key;
  std::string value;
  bool bare = false;  // the word had no key
  friend bool operator==(const Parameter&, const Parameter&) = default;
};

// In the place of a word "@PATH" the lines of the file at PATH, each a word: blanks before it are
// dropped, and so are empty lines and those that begin with '#'. They may name further files. A
// plugin with a magic key may get a value that begins with '@': the word stays as it is where no
// file is at PATH. Throws ConfigError.
std::vector<std::string> read_parameter_files(const disk::PluginInfo& plugin,
                                              std::span<const std::string> words);

// What stands before the first '=' is a key if it is [A-Za-z][A-Za-z0-9._-]*. Any other word is
// bare: the value of the plugin's magic key or, where it has none, of `script` (the first word
// only). Throws ConfigError.
std::vector<Parameter> parse_parameters(const disk::PluginInfo& plugin,
                                        std::span<const std::string> words);

// Makes the plugin with the filters over it and gives them their parameters; config_complete() is
// left to the caller. Throws ConfigError.
std::unique_ptr<disk::Plugin> make_plugin(const disk::PluginInfo& info,
                                          std::span<const disk::Layer> layers,
                                          std::span<const std::string> words);

// Warns of every debug flag that nothing in this program has.
void warn_of_debug_flags(std::span<const DebugFlag> flags);

}  // namespace weft::cli
