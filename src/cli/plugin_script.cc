// SPDX-License-Identifier: BSD-3-Clause
#include "cli/plugin_script.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/fd.h"
#include "base/log.h"
#include "base/result.h"
#include "cli/information.h"

namespace weft::cli {
namespace {

// What the kernel reads of a script to find its first line.
constexpr size_t kLineMax = 256;

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

std::string_view last_part(std::string_view path) {
  return path.substr(path.rfind('/') + 1);
}

bool is_server(std::string_view command) {
  return last_part(command) == "nbdkit" || last_part(command) == "weft";
}

// As env -S splits, as far as a first line needs it: blanks separate, quotes keep together.
std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  char quote = 0;
  for (const char c : text) {
    if (quote != 0) {
      if (c == quote) {
        quote = 0;
      } else {
        words.back() += c;
      }
    } else if (c == ' ' || c == '\t') {
      inside = false;
    } else {
      if (!inside) words.emplace_back();
      inside = true;
      if (c == '\'' || c == '"') {
        quote = c;
      } else {
        words.back() += c;
      }
    }
  }
  return words;
}

// The first line of a script; nothing for any other file.
std::optional<std::string> first_line(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file) return {};
  std::string text(kLineMax, '\0');
  const ssize_t size = ::read(file.get(), text.data(), text.size());
  text.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
  if (!text.starts_with("#!")) return {};
  return text.substr(0, text.find('\n'));
}

bool is_executable(const std::string& path) {
  struct stat status{};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode) &&
         ::access(path.c_str(), X_OK) == 0;
}

// A folder in which this program is called nbdkit, or "".
std::string folder_as_nbdkit() {
  struct stat self{};
  if (::stat("/proc/self/exe", &self) != 0) return {};
  const std::string path = program_path();
  const std::string here = path.substr(0, path.rfind('/'));
  for (const std::string& folder :
       {here, here + "/../libexec/weft", std::string(WEFT_LIBEXECDIR "/weft")}) {
    struct stat status{};
    if (::stat((folder + "/nbdkit").c_str(), &status) == 0 && status.st_dev == self.st_dev &&
        status.st_ino == self.st_ino) {
      return folder;
    }
  }
  return {};
}

[[noreturn]] void become(const std::string& path, std::span<const std::string> words,
                         size_t index) {
  const std::string folder = folder_as_nbdkit();
  if (!folder.empty()) {
    const char* rest = std::getenv("PATH");
    ::setenv("PATH", fmt::format("{}:{}", folder, rest != nullptr ? rest : "/usr/bin:/bin").c_str(),
             1);
  }
  std::vector<char*> argv{const_cast<char*>(path.c_str())};
  for (size_t i = 0; i < words.size(); ++i) {
    if (i != index) argv.push_back(const_cast<char*>(words[i].c_str()));
  }
  argv.push_back(nullptr);
  ::execv(path.c_str(), argv.data());
  throw ConfigError(fmt::format("{}: cannot be executed: {}", path, errno_text(errno)));
}

}  // namespace

std::optional<std::vector<std::string>> parse_script_line(std::string_view line) {
  if (!line.starts_with("#!")) return {};
  line = trim(line.substr(2));
  const size_t end = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view interpreter = line.substr(0, end);
  std::string_view rest = trim(line.substr(end));
  if (is_server(interpreter)) {
    return rest.empty() ? std::vector<std::string>{} : std::vector<std::string>{std::string(rest)};
  }
  if (last_part(interpreter) != "env") return {};
  if (!rest.starts_with("-S")) {
    if (!is_server(rest)) return {};
    return std::vector<std::string>{};
  }
  std::vector<std::string> words = split(rest.substr(2));
  if (words.empty() || !is_server(words.front())) return {};
  words.erase(words.begin());
  return words;
}

void check_short_name(const std::string& name) {
  const auto forbidden = [](unsigned char c) {
    return c < ' ' || c == 0x7f ||
           std::string_view("\\:;, =").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (std::ranges::none_of(name, forbidden)) return;
  throw ConfigError(fmt::format(
      "there is no plugin '{}': no name has such characters; give the path of a plugin's file, "
      "with a '/' in it",
      name));
}

std::optional<std::vector<std::string>> expand_script(std::span<const std::string> words,
                                                      size_t index, const std::string& folder) {
  const std::string& name = words[index];
  const bool is_path = name.find_first_of("./") != std::string::npos;
  std::string path = name;
  if (!is_path) {
    check_short_name(name);
    path = fmt::format("{}/nbdkit-{}-plugin", folder, name);
    if (!is_executable(path)) return {};
  }
  const std::optional<std::string> line = first_line(path);
  if (!line && is_path) return {};  // whatever it is, it is no script
  const auto script = line ? parse_script_line(*line) : std::nullopt;
  if (!script) {
    if (!is_path) become(path, words, index);
    throw ConfigError(
        fmt::format("{}: this is a script and no plugin file; serve it by the plugin of its "
                    "language, as in 'nbdkit python {}'",
                    path, path));
  }
  if (script->empty()) {
    throw ConfigError(
        fmt::format("{}: its first line does not say of which language it is; write it as in "
                    "'#!/usr/bin/env -S nbdkit python'",
                    path));
  }
  std::vector<std::string> expanded = *script;
  expanded.push_back(path);
  for (size_t i = 0; i < words.size(); ++i) {
    if (i != index) expanded.push_back(words[i]);
  }
  return expanded;
}

}  // namespace weft::cli
