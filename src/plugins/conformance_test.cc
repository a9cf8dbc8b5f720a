// SPDX-License-Identifier: BSD-3-Clause
// Every plugin, in every way of using it, passes the conformance suite.
#include "disk/conformance.h"

#include <fcntl.h>
#include <unistd.h>

#include <filesystem>
#include <string_view>
#include <utility>

#include "base/fd.h"
#include "base/result.h"
#include "disk/disk.h"

namespace weft::disk {
namespace {

using Parameters = std::vector<std::pair<std::string, std::string>>;

std::unique_ptr<Plugin> make(std::string_view name, const Parameters& parameters) {
  for (const PluginInfo& info : plugins()) {
    if (info.name != name) continue;
    std::unique_ptr<Plugin> plugin = info.make();
    for (const auto& [key, value] : parameters) plugin->config(key, value);
    plugin->config_complete();
    return plugin;
  }
  throw std::logic_error("no such plugin");
}

Candidate simple(std::string label, std::string name, Parameters parameters,
                 bool remembers = true) {
  return {std::move(label),
          [name, parameters](const std::filesystem::path&) { return make(name, parameters); },
          remembers};
}

std::string make_image(const std::filesystem::path& folder, uint64_t size) {
  const std::string path = folder / "disk.img";
  Fd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd || ftruncate(fd.get(), static_cast<off_t>(size)) != 0) {
    throw std::runtime_error("cannot make " + path);
  }
  return path;
}

Candidate file(std::string label, uint64_t size, Parameters parameters) {
  return {std::move(label),
          [size, parameters](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            Parameters all = parameters;
            all.emplace_back("file", make_image(scratch, size));
            try {
              return make("file", all);
            } catch (const ConfigError& error) {
              // A file system without O_DIRECT.
              if (std::string_view(error.what()).find("O_DIRECT") != std::string_view::npos) {
                return nullptr;
              }
              throw;
            }
          },
          true};
}

// On tmpfs, which knows fewer ways to zero than disk file systems do.
Candidate file_in_memory(std::string label, uint64_t size) {
  return {std::move(label),
          [size](const std::filesystem::path& scratch) -> std::unique_ptr<Plugin> {
            const std::filesystem::path folder = "/dev/shm";
            if (access(folder.c_str(), W_OK) != 0) return nullptr;
            const std::string path =
                make_image(scratch, 0) + "-link";  // a link, so that the scratch folder owns it
            const std::string target = folder / ("weft-test-" + scratch.filename().string());
            Fd fd(::open(target.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
            if (!fd || ftruncate(fd.get(), static_cast<off_t>(size)) != 0) return nullptr;
            std::unique_ptr<Plugin> plugin = make("file", {{"fd", std::to_string(fd.get())}});
            unlink(target.c_str());
            return plugin;
          },
          true};
}

constexpr uint64_t kOdd = (1 << 20) + 12345;

INSTANTIATE_TEST_SUITE_P(
    Plugins, Conformance,
    each_engine({
        simple("Memory", "memory", {{"size", "2m"}}),
        simple("MemoryOfOddSize", "memory", {{"size", std::to_string(kOdd)}}),
        simple("MemoryOfOneByte", "memory", {{"size", "1"}}),
        simple("Null", "null", {{"size", "1m"}}, false),
        simple("NullOfNothing", "null", {}, false),
        simple("Pattern", "pattern", {{"size", std::to_string(kOdd)}}),
        simple("Data", "data",
               {{"data", "1 2 3 \"text\" @65535 0xff 0xfe @100000 7"}, {"size", "1m"}}),
        simple("DataRaw", "data", {{"raw", "hello, world"}}),
        file("File", 2 << 20, {}),
        file("FileOfOddSize", kOdd, {}),
        file("FileOfOneByte", 1, {}),
        file("EmptyFile", 0, {}),
        file("FileReadAtRandom", 1 << 20, {{"fadvise", "random"}, {"lock", "off"}}),
        file("FileDirect", 2 << 20, {{"cache", "none"}}),
        file("FileDirectOfOddSize", kOdd, {{"cache", "none"}}),
        file("FileDirectOfOneByte", 1, {{"cache", "none"}}),
        file_in_memory("FileOnTmpfs", kOdd),
    }),
    conformance_name);

}  // namespace
}  // namespace weft::disk
