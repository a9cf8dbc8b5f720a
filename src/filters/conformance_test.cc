// SPDX-License-Identifier: BSD-3-Clause
// Every filter that should be transparent passes the conformance suite of disks.
#include "disk/conformance.h"

#include <filesystem>
#include <string>
#include <utility>

#include "filters/testing.h"
#include "plugins/testing.h"

namespace weft::disk {
namespace {

using filters::make_filtered;
using plugins::make_configured;

constexpr uint64_t kOdd = (1 << 20) + 12345;

Candidate over_memory(std::string label, std::string name, filters::Parameters parameters = {}) {
  return {std::move(label), [name, parameters](const std::filesystem::path&) {
            return make_filtered(name, parameters,
                                 make_configured("memory", {{"size", std::to_string(kOdd)}}));
          }};
}

INSTANTIATE_TEST_SUITE_P(
    Filters, Conformance,
    each_engine({
        over_memory("MultiConn", "multi-conn"),
        over_memory("MultiConnEmulate", "multi-conn", {{"multi-conn-mode", "emulate"}}),
        over_memory("MultiConnUntracked", "multi-conn",
                    {{"multi-conn-mode", "emulate"}, {"multi-conn-track-dirty", "off"}}),
        over_memory("Nofilter", "nofilter"),
    }),
    conformance_name);

}  // namespace
}  // namespace weft::disk
