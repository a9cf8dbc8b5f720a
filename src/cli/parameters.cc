// SPDX-License-Identifier: BSD-3-Clause
#include "cli/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/log.h"
#include "base/result.h"

namespace weft::cli {
namespace {

// Not <cctype>: keys do not depend on the locale.
bool is_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}
bool is_key_character(char c) {
  return is_letter(c) || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
}

bool is_key(std::string_view text) {
  return !text.empty() && is_letter(text.front()) && std::ranges::all_of(text, is_key_character);
}

}  // namespace

const disk::PluginInfo& find_plugin(std::span<const disk::PluginInfo> plugins,
                                    const std::string& name) {
  std::string names;
  for (const disk::PluginInfo& info : plugins) {
    if (name == info.name) return info;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  }
  const bool is_path = name.find_first_of("./") != std::string::npos;
  throw ConfigError(fmt::format("there is no plugin '{}'{}; choose one of {}", name,
                                is_path ? " (this build of weft loads no plugin files)" : "",
                                names));
}

std::vector<disk::Layer> find_filters(std::span<const disk::FilterInfo> filters,
                                      std::span<const FilterWord> words) {
  std::vector<disk::Layer> layers;
  for (const FilterWord& word : words) {
    const auto found =
        std::ranges::find_if(filters, [&](const auto& info) { return word.name == info.name; });
    if (found == filters.end()) {
      std::string names;
      for (const disk::FilterInfo& info : filters) {
        names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
      }
      const bool is_path = word.name.find_first_of("./") != std::string::npos;
      throw ConfigError(fmt::format("there is no filter '{}'{}; choose among {}", word.name,
                                    is_path ? " (this build of weft loads no filter files)" : "",
                                    names));
    }
    layers.push_back({&*found, word.parameters});
  }
  return layers;
}

std::vector<Parameter> parse_parameters(const disk::PluginInfo& plugin,
                                        std::span<const std::string> words) {
  std::vector<Parameter> parameters;
  for (const std::string& word : words) {
    const size_t equals = word.find('=');
    if (equals != std::string::npos && is_key(std::string_view(word).substr(0, equals))) {
      parameters.push_back({word.substr(0, equals), word.substr(equals + 1), false});
    } else if (plugin.magic_config_key != nullptr) {
      parameters.push_back({plugin.magic_config_key, word, true});
    } else if (parameters.empty()) {
      parameters.push_back({"script", word, true});
    } else {
      throw ConfigError(fmt::format(
          "'{}' is no parameter of the plugin {}: write KEY=VALUE (see 'weft --help {}')", word,
          plugin.name, plugin.name));
    }
  }
  return parameters;
}

std::unique_ptr<disk::Plugin> make_plugin(const disk::PluginInfo& info,
                                          std::span<const disk::Layer> layers,
                                          std::span<const std::string> words) {
  std::unique_ptr<disk::Plugin> plugin = disk::make_stack(layers, info.make(), info.name);
  for (const Parameter& parameter : parse_parameters(info, words)) {
    log::debug("{}: {}={}", info.name, parameter.key, parameter.value);
    if (!parameter.bare || info.magic_config_key != nullptr) {
      plugin->config(parameter.key, parameter.value);
      continue;
    }
    try {
      plugin->config(parameter.key, parameter.value);
    } catch (const ConfigError& error) {
      // The user never wrote the key that the message speaks of.
      throw ConfigError(fmt::format("{} ('{}' stands for {}={})", error.what(), parameter.value,
                                    parameter.key, parameter.value));
    }
  }
  return plugin;
}

void warn_of_debug_flags(std::span<const DebugFlag> flags) {
  // nbdkit's own: what they would show, -v shows.
  constexpr std::array<std::string_view, 5> kSilent = {"backend.controlpath", "backend.datapath",
                                                       "environ", "tls.log", "tls.session"};
  for (const DebugFlag& flag : flags) {
    if (flag.name == "nbdkit" && std::ranges::find(kSilent, flag.flag) != kSilent.end()) continue;
    log::warning("-D {}.{}={}: there is no such debug flag; it is ignored", flag.name, flag.flag,
                 flag.value);
  }
}

}  // namespace weft::cli
