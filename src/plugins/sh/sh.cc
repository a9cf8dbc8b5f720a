// SPDX-License-Identifier: BSD-3-Clause
// The sh plugin: a script, or any program, whose first argument is the method.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>

#include "base/fd.h"
#include "plugins/plugins.h"
#include "plugins/sh/script_output.h"
#include "plugins/sh/script_plugin.h"

namespace weft::plugins {
namespace {

class ShPlugin final : public ScriptPlugin {
 public:
  ShPlugin() : ScriptPlugin("sh") {}
  ~ShPlugin() override { end_script(); }

  void config(std::string_view key, std::string_view value) override {
    if (script_.empty()) {
      if (key != "script") {
        throw ConfigError(
            fmt::format("sh: {}= comes before the script: the script is named first, as in: weft "
                        "sh ./script.sh {}={}",
                        key, key, value));
      }
      load(std::string(value));
      return;
    }
    std::string name(key);
    if (key == "script") {
      // A word without a key, of which the script may know what it means.
      if (magic_key_.empty()) {
        throw ConfigError(
            fmt::format("sh: '{}' is not KEY=VALUE, and the script {} has no magic_config_key: "
                        "write KEY=VALUE",
                        value, script_));
      }
      name = magic_key_;
    }
    if (!configure("config", {name, std::string(value)})) {
      throw ConfigError(
          fmt::format("sh: {}: there is no parameter '{}': the script has no config method, so it "
                      "takes no parameters",
                      script_, name));
    }
  }

  void config_complete() override {
    if (script_.empty()) {
      throw ConfigError("sh: there is no script: give one, as in: weft sh ./script.sh");
    }
    ScriptPlugin::config_complete();
  }

 protected:
  [[nodiscard]] ScriptPlace place_of(std::string_view) const override {
    return {ScriptPlace::kProgram, script_};
  }
  [[nodiscard]] bool has_script() const override { return !script_.empty(); }
  [[nodiscard]] std::string script_name(std::string_view) const override { return script_; }

 private:
  void load(const std::string& path) {
    const std::string& folder = tmpdir();
    const std::string found = path == "-" ? read_standard_input(folder) : find(path);
    if (::access(found.c_str(), X_OK) != 0) {
      throw ConfigError(
          fmt::format("sh: the script {} cannot be executed: {}: make it executable "
                      "with: chmod +x {}",
                      found, errno_text(errno), found));
    }
    script_ = found;
    configure("load", {});
    std::string key;
    if (configure("magic_config_key", {}, &key)) magic_key_ = without_newline(key);
  }

  static std::string find(const std::string& path) {
    const std::unique_ptr<char, decltype(&std::free)> real(::realpath(path.c_str(), nullptr),
                                                           &std::free);
    if (!real) {
      throw ConfigError(
          fmt::format("sh: the script '{}' cannot be found: {}: give its path, or - "
                      "to read it from the standard input",
                      path, errno_text(errno)));
    }
    struct stat status = {};
    if (::stat(real.get(), &status) == 0 && !S_ISREG(status.st_mode)) {
      throw ConfigError(
          fmt::format("sh: the script {} is no file: give the path of one", real.get()));
    }
    return real.get();
  }

  static std::string read_standard_input(const std::string& folder) {
    std::string path = folder + "/inline-script.sh";
    const auto refuse = [&](const char* what) {
      throw ConfigError(fmt::format("sh: the script on the standard input cannot be {}: {}", what,
                                    errno_text(errno)));
    };
    {
      const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700));
      if (!file) refuse("kept");
      char bytes[64 << 10];
      for (;;) {
        const ssize_t n = ::read(STDIN_FILENO, bytes, sizeof bytes);
        if (n == 0) break;
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) refuse("read");
        if (::write(file.get(), bytes, static_cast<size_t>(n)) != n) refuse("kept");
      }
    }
    return path;
  }

  std::string script_;  // an absolute path
  std::string magic_key_;
};

}  // namespace

constinit const disk::PluginInfo sh_plugin = {
    .name = "sh",
    .longname = "weft sh plugin",
    .description = "A disk made by a shell script or any other program",
    .config_help =
        "script=PATH  (required) the script, or - for one on the standard input\n"
        "KEY=VALUE  what the script's config method takes",
    .magic_config_key = "script",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<ShPlugin>(); },
};

}  // namespace weft::plugins
