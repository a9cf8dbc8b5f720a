// SPDX-License-Identifier: BSD-3-Clause
// The clock of the tools.
#pragma once

#include <chrono>
#include <cstdint>

namespace weft::tools {

// CLOCK_MONOTONIC.
[[nodiscard]] inline uint64_t now_ns() {
  return static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
}

}  // namespace weft::tools
