// SPDX-License-Identifier: BSD-3-Clause
// A whole run of nbdbench: connects, fills, warms up, measures, and adds up.
#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "nbd/client_handshake.h"
#include "tools/bench_client.h"
#include "tools/bench_options.h"

namespace weft::tools {

struct ServerReport {
  double cpu_s = 0;  // while measuring
  uint64_t rss_bytes = 0;
  uint64_t rss_peak_bytes = 0;
  uint64_t threads = 0;
};

struct BenchReport {
  nbd::ClientResult negotiated;
  uint64_t length = 0;  // bytes of the export that were used
  double seconds = 0;   // of the measurement
  ClientStats stats;
  double client_cpu_s = 0;
  std::optional<ServerReport> server;
  std::vector<std::string> failures;  // one line each: lost connections, ...

  [[nodiscard]] uint64_t operations() const;  // that succeeded
  [[nodiscard]] uint64_t errors() const;
  // Everything was answered, rightly and without an error.
  [[nodiscard]] bool good() const;
};

// Runs until the options say, or `interrupted` becomes true (from a signal's handler). Throws
// ConfigError when it cannot begin.
[[nodiscard]] BenchReport run_bench(const BenchOptions& options,
                                    const std::atomic<bool>& interrupted);

}  // namespace weft::tools
