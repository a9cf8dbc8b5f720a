// SPDX-License-Identifier: BSD-3-Clause
// Hosted plugins pass the conformance suite: those of the tests' own, in several ways, and Debian's
// memory plugin where it is installed.
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "disk/conformance.h"
#include "nbdkit/hosted_testing.h"

namespace weft::disk {
namespace {

using nbdkit::control_of;
using nbdkit::HostedPlugin;
using nbdkit::Library;
using Parameters = std::vector<std::pair<std::string, std::string>>;

// Ends after the plugin that was made of it. Tests use one after the other.
std::unique_ptr<Library> the_library;

std::unique_ptr<Plugin> load(const std::string& path, const Parameters& parameters) {
  the_library = std::make_unique<Library>(path, std::span<nbdkit::DebugFlag>());
  auto plugin = std::make_unique<HostedPlugin>(*the_library);
  for (const auto& [key, value] : parameters) plugin->config(key, value);
  plugin->config_complete();
  return plugin;
}

Candidate ram(std::string label, void (*prepare)(test_control&)) {
  return {std::move(label),
          [prepare](const std::filesystem::path&) {
            test_control& control = control_of("test_ram");
            prepare(control);
            return load(nbdkit::test_plugin("test_ram"), {});
          },
          true};
}

Candidate sized(std::string label, const std::string& name) {
  return {std::move(label),
          [name](const std::filesystem::path&) { return load(nbdkit::test_plugin(name), {}); },
          true};
}

Candidate debian(std::string label, const std::string& name, Parameters parameters,
                 bool remembers = true) {
  return {std::move(label),
          [name, parameters](const std::filesystem::path&) -> std::unique_ptr<Plugin> {
            const std::string path = WEFT_NBDKIT_PLUGINDIR "/nbdkit-" + name + "-plugin.so";
            if (::access(path.c_str(), R_OK) != 0) return nullptr;
            return load(path, parameters);
          },
          remembers};
}

INSTANTIATE_TEST_SUITE_P(
    Hosted, Conformance,
    each_engine({
        ram("Ram", [](test_control&) {}),
        ram("RamOfOddSize", [](test_control& control) { control.size = (1 << 20) + 12345; }),
        ram("RamAllRequestsSerialised", [](test_control& control) { control.thread_model = 1; }),
        ram("RamRequestsSerialised", [](test_control& control) { control.thread_model = 2; }),
        ram("RamThatOnlyReadsAndWrites",
            [](test_control& control) {
              control.can_zero = control.can_trim = control.can_extents = control.can_cache = 0;
              control.can_fua = 1;
              control.can_fast_zero = kAsDefault;
            }),
        ram("RamThatCannotZeroAfterAll",
            [](test_control& control) { control.fail[kZero] = EOPNOTSUPP; }),
        sized("Of176Bytes", "test_sized_176"),
        sized("Of264Bytes", "test_sized_264"),
        debian("DebiansMemory", "memory", {{"size", "2m"}}),
        debian("DebiansNull", "null", {{"size", "1m"}}, false),
    }),
    conformance_name);

}  // namespace
}  // namespace weft::disk
