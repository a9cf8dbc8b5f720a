// SPDX-License-Identifier: BSD-3-Clause
// What nbdbench prints at the end.
#pragma once

#include <string>

#include "tools/bench_options.h"
#include "tools/bench_run.h"

namespace weft::tools {

// Both end with a line feed. The names in the JSON object are described in nbdbench(1).
[[nodiscard]] std::string text_report(const BenchOptions& options, const BenchReport& report);
[[nodiscard]] std::string json_report(const BenchOptions& options, const BenchReport& report);

}  // namespace weft::tools
