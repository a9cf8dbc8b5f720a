// SPDX-License-Identifier: BSD-3-Clause
// What a process uses, from /proc: for --server-pid.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>

namespace weft::tools {

struct ProcessUsage {
  uint64_t cpu_ns = 0;          // of all its threads, those that ended included
  uint64_t rss_bytes = 0;       // in memory now
  uint64_t rss_peak_bytes = 0;  // at most, since it started
  uint64_t threads = 0;
};

// Nothing when there is no such process. With `children` the sum over it and its descendants;
// of those that end between two calls the CPU time is lost.
[[nodiscard]] std::optional<ProcessUsage> process_usage(pid_t pid, bool children);

// CPU time of this process, all threads.
[[nodiscard]] uint64_t own_cpu_ns();

}  // namespace weft::tools
