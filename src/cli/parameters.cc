// SPDX-License-Identifier: BSD-3-Clause
#include "cli/parameters.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

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

// The words of parameter files put in the place of "@PATH".
class ParameterFiles {
 public:
  explicit ParameterFiles(const disk::PluginInfo& plugin) : plugin_(plugin) {}

  std::vector<std::string> expand(std::span<const std::string> words) {
    add(words, 0);
    return std::move(expanded_);
  }

 private:
  static constexpr int kNestedMax = 8;
  static constexpr size_t kFileMax = 1 << 20;  // bytes

  void add(std::span<const std::string> words, int depth) {
    for (const std::string& word : words) {
      if (word.size() < 2 || word.front() != '@') {
        expanded_.push_back(word);
        continue;
      }
      const std::string path = word.substr(1);
      std::error_code error;
      const auto kind = std::filesystem::status(path, error).type();
      // "data @0x100 1" is a value.
      if (kind == std::filesystem::file_type::not_found && plugin_.magic_config_key != nullptr) {
        expanded_.push_back(word);
        continue;
      }
      if (kind == std::filesystem::file_type::directory) refuse(word, errno_text(EISDIR));
      if (depth == kNestedMax) refuse(word, "such files name each other more than 8 deep");
      add(read(word, path), depth + 1);
    }
  }

  static std::vector<std::string> read(const std::string& word, const std::string& path) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse(word, errno_text(errno));
    std::string text(kFileMax + 1, '\0');
    file.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.size() > kFileMax) refuse(word, "it is larger than 1M");
    if (text.contains('\0')) refuse(word, "it is no text");
    std::vector<std::string> lines;
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
      if (line.ends_with('\r')) line.pop_back();
      const size_t first = line.find_first_not_of(" \t");
      if (first == std::string::npos || line[first] == '#') continue;
      lines.push_back(line.substr(first));
    }
    return lines;
  }

  [[noreturn]] static void refuse(const std::string& word, const std::string& why) {
    throw ConfigError(fmt::format(
        "{}: cannot read parameters from this file: {}; name a file with a KEY=VALUE a line", word,
        why));
  }

  const disk::PluginInfo& plugin_;
  std::vector<std::string> expanded_;
};

}  // namespace

const disk::PluginInfo& find_plugin(std::span<const disk::PluginInfo> plugins,
                                    const std::string& name, std::string_view elsewhere) {
  std::string names;
  for (const disk::PluginInfo& info : plugins) {
    if (name == info.name) return info;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  }
  throw ConfigError(fmt::format("there is no plugin '{}'{}{}; choose one of {}", name,
                                elsewhere.empty() ? "" : ": ", elsewhere, names));
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
      throw ConfigError(fmt::format(
          "there is no filter '{}'{}; choose among {}", word.name,
          is_path ? " (weft loads no filter files: they fit one release of nbdkit only)" : "",
          names));
    }
    layers.push_back({&*found, word.parameters});
  }
  return layers;
}

std::vector<std::string> read_parameter_files(const disk::PluginInfo& plugin,
                                              std::span<const std::string> words) {
  return ParameterFiles(plugin).expand(words);
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
  for (const Parameter& parameter : parse_parameters(info, read_parameter_files(info, words))) {
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
