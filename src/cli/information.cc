// SPDX-License-Identifier: BSD-3-Clause
#include "cli/information.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <map>
#include <string_view>
#include <vector>

#include "engine/loop.h"

namespace weft::cli {
namespace {

constexpr size_t kHelpColumn = 30;

// "  -U, --unix PATH|-           listen on ...": the text wraps at its column.
std::string help_line(const OptionSpec& spec) {
  std::string line = spec.letter != 0 ? fmt::format("  -{}, ", spec.letter) : "      ";
  line += fmt::format("--{}", spec.names.front());
  if (spec.argument != nullptr) {
    line += fmt::format("{}{}", spec.letter != 0 ? ' ' : '=', spec.argument);
  }
  if (line.size() + 2 > kHelpColumn) {
    line += '\n' + std::string(kHelpColumn, ' ');
  } else {
    line.resize(kHelpColumn, ' ');
  }
  return line + spec.help + '\n';
}

std::string indented(std::string_view text) {
  std::string result;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) result += fmt::format("  {}\n", text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return result;
}

// A plugin or a filter.
template <typename Info>
std::string layer_help(const char* kind, const Info& info) {
  std::string text = fmt::format("\n{}: {} ({})\n", kind, info.name, info.longname);
  if (info.description != nullptr) text += indented(info.description);
  if (info.config_help != nullptr && info.config_help[0] != '\0') {
    text += fmt::format("Parameters of {}:\n{}", info.name, indented(info.config_help));
  }
  return text;
}

std::string plugin_help(const disk::PluginInfo& plugin) {
  std::string text = layer_help("Plugin", plugin);
  if (plugin.file != nullptr) text += fmt::format("The plugin's file is {}.\n", plugin.file->path);
  if (plugin.magic_config_key != nullptr) {
    text += fmt::format("{0}= may be left out: '{1} VALUE' is '{1} {0}=VALUE'.\n",
                        plugin.magic_config_key, plugin.name);
  }
  return text;
}

template <typename Info>
std::string list_of(std::span<const Info> infos) {
  std::string text;
  for (const Info& info : infos) {
    const std::string_view about = info.description != nullptr ? info.description : info.longname;
    text += fmt::format("  {:<12} {}\n", info.name, about.substr(0, about.find('\n')));
  }
  return text;
}

template <typename Info>
std::string names_of(std::span<const Info> infos) {
  std::string names;
  for (const Info& info : infos) names += fmt::format("{}{}", names.empty() ? "" : " ", info.name);
  return names;
}

const char* thread_model_name(disk::ThreadModel model) {
  switch (model) {
    case disk::ThreadModel::kSerializeConnections:
      return "serialize_connections";
    case disk::ThreadModel::kSerializeAllRequests:
      return "serialize_all_requests";
    case disk::ThreadModel::kSerializeRequests:
      return "serialize_requests";
    case disk::ThreadModel::kParallel:
      break;
  }
  return "parallel";
}

// Key=value lines, in alphabetical order of the keys.
class Lines {
 public:
  void add(std::string_view key, std::string_view value) { lines_.emplace(key, value); }
  [[nodiscard]] std::string text() const {
    std::string text;
    for (const auto& [key, value] : lines_) text += fmt::format("{}={}\n", key, value);
    return text;
  }

 private:
  std::map<std::string, std::string> lines_;
};

void add_version(Lines& lines, std::string_view version) {
  const size_t dot = version.find('.');
  lines.add("version", version);
  lines.add("version_major", version.substr(0, dot));
  lines.add("version_minor", version.substr(dot + 1, version.find('.', dot + 1) - dot - 1));
}

void add_own_lines(Lines& lines, const Inventory& inventory) {
  const engine::EngineChoice choice = engine::choose_engine("auto");
  lines.add("engine", choice.kind == engine::EngineKind::kUring ? "io_uring" : "epoll");
  lines.add("engine_reason", choice.reason);
  lines.add("filters", names_of(inventory.filters));
  lines.add("plugins", names_of(inventory.plugins));
}

void add_nbdkit_lines(Lines& lines) {
  lines.add("filterdir", WEFT_FILTERDIR);
  lines.add("libdir", WEFT_LIBDIR);
  lines.add("max_api_version", "2");
  lines.add("root_tls_certificates_dir", WEFT_SYSCONFDIR "/pki/nbdkit");
  lines.add("sbindir", WEFT_SBINDIR);
  lines.add("soext", "so");
}

}  // namespace

const Folders& folders() {
  static constexpr Folders kFolders{WEFT_PLUGINDIR};
  return kFolders;
}

std::string program_path() {
  char path[PATH_MAX];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
  return size > 0 ? std::string(path, static_cast<size_t>(size)) : "weft";
}

std::string usage_text(const Personality& personality) {
  return fmt::format(
      "Usage: {0} [OPTIONS] [--filter=FILTER ...] PLUGIN [[KEY=]VALUE [KEY=VALUE ...]]\n\n"
      "  {0} file disk.img                       a disk image, on TCP port 10809\n"
      "  {0} -r -U /tmp/disk.sock file disk.img  read-only, on a Unix socket\n"
      "  {0} memory 1G --run 'nbdinfo $uri'      memory, while a command runs\n"
      "  {0} --filter=cow file disk.img          a disk image that stays as it is\n",
      personality.name);
}

std::string help_text(const Personality& personality, const Inventory& inventory,
                      const disk::PluginInfo* plugin, std::span<const disk::Layer> layers) {
  std::string text = personality.nbdkit ? "weft, with the command line of nbdkit " +
                                              std::string(personality.version)
                                        : "weft";
  text += " serves a disk to any NBD client, over many connections.\n\n" + usage_text(personality);
  if (!personality.nbdkit) {
    text += "  weft --explain file disk.img             what is promised for this disk, and why\n";
  }
  text += fmt::format(
      "  {} --help file                         the parameters of a plugin\n\n"
      "Options, before or after the plugin:\n",
      personality.name);
  for (const OptionSpec& spec : option_table()) {
    if (spec.help != nullptr && has_option(personality, spec)) text += help_line(spec);
  }
  text += "\nSIZE is in bytes or 10K, 10M, 10G...; DELAY in seconds or 100ms.\n";
  for (const disk::Layer& layer : layers) text += layer_help("Filter", *layer.info);
  if (plugin != nullptr) return text + plugin_help(*plugin);
  if (!layers.empty()) return text;
  text += "\nPlugins:\n" + list_of(inventory.plugins);
  text += "\nFilters:\n" + list_of(inventory.filters);
  return text + (personality.nbdkit ? "\nThe manual pages weft-nbdkit(1) and weft(1) say more.\n"
                                    : "\nThe manual page weft(1) says more.\n");
}

std::string version_text(const Personality& personality, const disk::PluginInfo* plugin,
                         std::span<const disk::Layer> layers) {
  std::string text = fmt::format("{} {}\n", personality.name, personality.version);
  for (const disk::Layer& layer : layers) {
    text += fmt::format("{} {}\n", layer.info->name, personality.version);
  }
  if (plugin == nullptr) return text;
  const std::string version = plugin->file != nullptr ? plugin->file->version : personality.version;
  return text + plugin->name + (version.empty() ? "" : " " + version) + "\n";
}

std::string dump_config_text(const Personality& personality, const Inventory& inventory) {
  utsname system{};
  ::uname(&system);
  Lines lines;
  lines.add("binary", program_path());
  lines.add("bindir", WEFT_BINDIR);
  lines.add("exit_with_parent", "yes");
  lines.add("host_cpu", system.machine);
  lines.add("host_os", "linux-gnu");
  lines.add("mandir", WEFT_MANDIR);
  lines.add("name", personality.name);
  lines.add("plugindir", folders().plugins);
  lines.add("run_default_socket", "Unix");
  lines.add("selinux", "yes");
  lines.add("sysconfdir", WEFT_SYSCONFDIR);
  lines.add("timeout_option", "yes");
  lines.add("tls", "no");
  add_version(lines, personality.version);
  lines.add("vsock_option", "yes");
  lines.add("zstd", "no");
  if (personality.nbdkit) {
    add_nbdkit_lines(lines);
  } else {
    add_own_lines(lines, inventory);
  }
  return lines.text();
}

namespace {

// What every built-in plugin has by its interface; what a disk can do is known when it opens
// (weft --explain).
constexpr const char* kBuiltInFields[] = {
    "longname",     "description", "config", "config_complete", "config_help",
    "list_exports", "open",        "close",  "get_size",        "pread"};

}  // namespace

std::string dump_plugin_text(const Personality& personality, const disk::PluginInfo& plugin,
                             disk::Plugin& stack) {
  const std::string own = stack.dump();
  const disk::PluginFile* file = plugin.file;
  std::string text;
  const auto line = [&](std::string_view key, std::string_view value) {
    text += fmt::format("{}={}\n", key, value);
  };
  // A built-in plugin lies in the program itself.
  line("path", file != nullptr ? file->path : program_path());
  line("name", plugin.name);
  if (!personality.nbdkit) line("longname", plugin.longname);
  const std::string version = file != nullptr ? file->version : personality.version;
  if (!version.empty()) line("version", version);
  if (file != nullptr) {
    line("api_version", std::to_string(file->api_version));
    line("struct_size", std::to_string(file->struct_size));
  } else if (personality.nbdkit) {
    // What a plugin of that release says.
    line("api_version", "2");
    line("struct_size", "384");
  } else {
    line("builtin", "yes");
  }
  line("max_thread_model",
       thread_model_name(file != nullptr ? file->thread_model_max : disk::ThreadModel::kParallel));
  line("thread_model", thread_model_name(stack.thread_model()));
  line("errno_is_preserved", file == nullptr || file->errno_is_preserved ? "1" : "0");
  if (plugin.magic_config_key != nullptr) line("magic_config_key", plugin.magic_config_key);
  const auto has = [&](std::string_view field) { line(fmt::format("has_{}", field), "1"); };
  if (file != nullptr) {
    std::ranges::for_each(file->fields, has);
  } else {
    std::ranges::for_each(kBuiltInFields, has);
  }
  return text + own;
}

std::string short_options_text(const Personality& personality) {
  std::string letters;
  for (const OptionSpec& spec : option_table()) {
    if (spec.letter != 0 && spec.help != nullptr && has_option(personality, spec)) {
      letters += spec.letter;
    }
  }
  std::ranges::sort(letters);
  std::string text;
  for (const char letter : letters) text += fmt::format("-{}\n", letter);
  return text;
}

std::string long_options_text(const Personality& personality) {
  std::vector<std::string_view> names;
  for (const OptionSpec& spec : option_table()) {
    if (spec.help != nullptr && has_option(personality, spec)) {
      names.insert(names.end(), spec.names.begin(), spec.names.end());
    }
  }
  std::ranges::sort(names);
  std::string text;
  for (const std::string_view name : names) text += fmt::format("--{}\n", name);
  return text;
}

}  // namespace weft::cli
