// SPDX-License-Identifier: BSD-3-Clause
#include "cli/information.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
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

std::string program_path() {
  char path[PATH_MAX];
  const ssize_t size = ::readlink("/proc/self/exe", path, sizeof path);
  return size > 0 ? std::string(path, static_cast<size_t>(size)) : "weft";
}

std::string engine_line() {
  const engine::EngineChoice choice = engine::choose_engine("auto");
  return fmt::format("engine={}\nengine_reason={}\n",
                     choice.kind == engine::EngineKind::kUring ? "io_uring" : "epoll",
                     choice.reason);
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

}  // namespace

std::string help_text(const Inventory& inventory, const disk::PluginInfo* plugin,
                      std::span<const disk::Layer> layers) {
  std::string text =
      "weft serves a disk to any NBD client, over many connections.\n\n"
      "Usage: weft [OPTIONS] [--filter=FILTER ...] PLUGIN [[KEY=]VALUE [KEY=VALUE ...]]\n\n"
      "  weft file disk.img                       a disk image, on TCP port 10809\n"
      "  weft -r -U /tmp/disk.sock file disk.img  read-only, on a Unix socket\n"
      "  weft memory 1G --run 'nbdinfo $uri'      memory, while a command runs\n"
      "  weft --filter=cow file disk.img          a disk image that stays as it is\n"
      "  weft --explain file disk.img             what is promised for this disk, and why\n"
      "  weft --help file                         the parameters of a plugin\n\n"
      "Options, before or after the plugin:\n";
  for (const OptionSpec& spec : option_table()) {
    if (spec.help != nullptr) text += help_line(spec);
  }
  text += "\nSIZE is in bytes or 10K, 10M, 10G...; DELAY in seconds or 100ms.\n";
  for (const disk::Layer& layer : layers) text += layer_help("Filter", *layer.info);
  if (plugin != nullptr) return text + plugin_help(*plugin);
  if (!layers.empty()) return text;
  text += "\nPlugins:\n" + list_of(inventory.plugins);
  text += "\nFilters:\n" + list_of(inventory.filters);
  return text + "\nThe manual page weft(1) says more.\n";
}

std::string version_text(const disk::PluginInfo* plugin, std::span<const disk::Layer> layers) {
  std::string text = "weft " WEFT_VERSION "\n";
  for (const disk::Layer& layer : layers) {
    text += fmt::format("{} {}\n", layer.info->name, WEFT_VERSION);
  }
  if (plugin != nullptr) text += fmt::format("{} {}\n", plugin->name, WEFT_VERSION);
  return text;
}

std::string dump_config_text(const Inventory& inventory) {
  const std::string version = WEFT_VERSION;
  const size_t dot = version.find('.');
  utsname system{};
  ::uname(&system);
  std::string text;
  text += fmt::format("binary={}\n", program_path());
  text += fmt::format("bindir={}\n", WEFT_BINDIR);
  text += engine_line();
  text += "exit_with_parent=yes\n";
  text += fmt::format("filters={}\n", names_of(inventory.filters));
  text += fmt::format("host_cpu={}\n", system.machine);
  text += "host_os=linux-gnu\n";
  text += fmt::format("mandir={}\n", WEFT_MANDIR);
  text += "name=weft\n";
  text += fmt::format("plugins={}\n", names_of(inventory.plugins));
  text += "run_default_socket=Unix\n";
  text += "selinux=yes\n";
  text += fmt::format("sysconfdir={}\n", WEFT_SYSCONFDIR);
  text += "timeout_option=yes\n";
  text += "tls=no\n";
  text += fmt::format("version={}\n", version);
  text += fmt::format("version_major={}\n", version.substr(0, dot));
  text += fmt::format("version_minor={}\n",
                      version.substr(dot + 1, version.find('.', dot + 1) - dot - 1));
  text += "vsock_option=yes\n";
  text += "zstd=no\n";
  return text;
}

std::string dump_plugin_text(const disk::PluginInfo& plugin, disk::Plugin& stack) {
  std::string text;
  const std::string own = stack.dump();
  // A built-in plugin lies in the program itself.
  text += fmt::format("path={}\n", program_path());
  text += fmt::format("name={}\n", plugin.name);
  text += fmt::format("longname={}\n", plugin.longname);
  text += fmt::format("version={}\n", WEFT_VERSION);
  text += "builtin=yes\n";
  text += "max_thread_model=parallel\n";
  text += fmt::format("thread_model={}\n", thread_model_name(stack.thread_model()));
  text += "errno_is_preserved=1\n";
  if (plugin.magic_config_key != nullptr) {
    text += fmt::format("magic_config_key={}\n", plugin.magic_config_key);
  }
  // What every built-in plugin has by its interface; what a disk can do is known when it opens
  // (weft --explain).
  for (const char* field : {"longname", "description", "config", "config_complete", "config_help",
                            "list_exports", "open", "close", "get_size", "pread"}) {
    text += fmt::format("has_{}=1\n", field);
  }
  return text + own;
}

std::string short_options_text() {
  std::string letters;
  for (const OptionSpec& spec : option_table()) {
    if (spec.letter != 0 && spec.help != nullptr) letters += spec.letter;
  }
  std::ranges::sort(letters);
  std::string text;
  for (const char letter : letters) text += fmt::format("-{}\n", letter);
  return text;
}

std::string long_options_text() {
  std::vector<std::string_view> names;
  for (const OptionSpec& spec : option_table()) {
    if (spec.help != nullptr) names.insert(names.end(), spec.names.begin(), spec.names.end());
  }
  std::ranges::sort(names);
  std::string text;
  for (const std::string_view name : names) text += fmt::format("--{}\n", name);
  return text;
}

}  // namespace weft::cli
