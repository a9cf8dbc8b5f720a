// SPDX-License-Identifier: BSD-3-Clause
// The eval plugin: methods that are pieces of shell script on the command line.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <set>
#include <string>

#include "base/fd.h"
#include "plugins/plugins.h"
#include "plugins/sh/script_plugin.h"

namespace weft::plugins {
namespace {

// In alphabetical order.
constexpr auto kMethods =
    std::to_array<std::string_view>({"after_fork",     "block_size",    "cache",
                                     "can_cache",      "can_extents",   "can_fast_zero",
                                     "can_flush",      "can_fua",       "can_multi_conn",
                                     "can_trim",       "can_write",     "can_zero",
                                     "close",          "config",        "config_complete",
                                     "default_export", "dump_plugin",   "export_description",
                                     "extents",        "flush",         "get_ready",
                                     "get_size",       "is_rotational", "list_exports",
                                     "missing",        "open",          "pread",
                                     "preconnect",     "pwrite",        "thread_model",
                                     "trim",           "unload",        "zero"});

class EvalPlugin final : public ScriptPlugin {
 public:
  EvalPlugin() : ScriptPlugin("eval") {}
  ~EvalPlugin() override { end_script(); }

  void config(std::string_view key, std::string_view value) override {
    if (std::ranges::find(kMethods, key) != kMethods.end()) {
      define(std::string(key), value);
    } else if (!configure("config", {std::string(key), std::string(value)})) {
      throw ConfigError(
          fmt::format("eval: there is no parameter '{}': it is no method, and there is no config= "
                      "script to take it",
                      key));
    }
  }

 protected:
  [[nodiscard]] ScriptPlace place_of(std::string_view method) const override {
    if (has(method)) return {ScriptPlace::kProgram, path_of(method)};
    // What a disk can do is seen from the methods that there are.
    constexpr std::string_view kCan = "can_";
    if (method.starts_with(kCan)) {
      std::string_view what = method.substr(kCan.size());
      if (what == "write") what = "pwrite";
      const bool known = what == "pwrite" || what == "flush" || what == "trim" || what == "zero" ||
                         what == "extents";
      if (known && has(what)) return {ScriptPlace::kTrue, {}};
      if (what == "cache" && has(what)) return {ScriptPlace::kNative, {}};
    }
    if (has("missing")) return {ScriptPlace::kProgram, path_of("missing")};
    return {ScriptPlace::kMissing, {}};
  }
  [[nodiscard]] bool has_script() const override { return !methods_.empty(); }
  [[nodiscard]] std::string script_name(std::string_view method) const override {
    return has(method) || !has("missing") ? "the script" : "the script of missing=";
  }

 private:
  [[nodiscard]] bool has(std::string_view method) const {
    return methods_.find(method) != methods_.end();
  }
  [[nodiscard]] std::string path_of(std::string_view method) const {
    return fmt::format("{}/{}", folder_, method);
  }

  // A file without #!, which /bin/sh runs.
  void define(const std::string& method, std::string_view text) {
    if (has(method)) {
      throw ConfigError(fmt::format("eval: {}= is given twice: give it once", method));
    }
    folder_ = tmpdir();
    const std::string content = std::string(text) + "\n";
    const Fd file(::open(path_of(method).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700));
    if (!file || ::write(file.get(), content.data(), content.size()) !=
                     static_cast<ssize_t>(content.size())) {
      throw ConfigError(fmt::format("eval: {}=: the script cannot be kept in {}: {}", method,
                                    folder_, errno_text(errno)));
    }
    methods_.insert(method);
  }

  std::string folder_;
  std::set<std::string, std::less<>> methods_;
};

}  // namespace

constinit const disk::PluginInfo eval_plugin = {
    .name = "eval",
    .longname = "weft eval plugin",
    .description = "A disk made by pieces of shell script on the command line",
    .config_help =
        "METHOD=SCRIPT  the shell script of a method: get_size, pread, pwrite, open, ...\n"
        "missing=SCRIPT  the script of all methods that are not given\n"
        "KEY=VALUE  what the script of config= takes",
    .magic_config_key = nullptr,
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<EvalPlugin>(); },
};

}  // namespace weft::plugins
