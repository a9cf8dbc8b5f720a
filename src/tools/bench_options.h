// SPDX-License-Identifier: BSD-3-Clause
// The command line of nbdbench.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

#include "nbd/constants.h"
#include "tools/uri.h"
#include "tools/workload.h"

namespace weft::tools {

enum class Verify : uint8_t {
  kOff,
  kOwn,     // every connection has a part of the window for itself
  kShared,  // every connection reads what any of them wrote
};

struct BenchOptions {
  Target target;
  Mix mix;
  uint32_t fua_percent = 0;
  uint32_t flush_every = 0;
  bool random = true;
  uint32_t block_size = 4096;  // bytes
  uint32_t depth = 32;         // per connection
  uint32_t connections = 1;
  uint32_t threads = 0;            // 0: one for each connection, up to kThreadsMax
  uint64_t offset = 0;             // bytes
  std::optional<uint64_t> length;  // bytes; nothing: to the export's end
  double duration_s = 10;          // 0: until `operations` are done
  double warmup_s = 0.5;
  uint64_t operations = 0;  // of all connections; 0: no limit
  double rate = 0;          // operations per second, all connections; 0: no limit
  uint64_t seed = 1;
  Verify verify = Verify::kOff;
  bool fill = false;
  bool destructive = false;
  nbd::HeaderMode headers = nbd::HeaderMode::kStructured;  // at best
  bool json = false;
  bool progress = true;  // when stderr is a terminal
  double timeout_s = 30;
  std::optional<pid_t> server_pid;
  bool server_children = false;
};

inline constexpr uint32_t kThreadsMax = 64;

// What the command line asks for; --help and --version are printed, and nothing is returned.
// Throws ConfigError.
[[nodiscard]] std::optional<BenchOptions> parse_bench_options(int argc, char** argv);

}  // namespace weft::tools
