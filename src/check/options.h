// SPDX-License-Identifier: BSD-3-Clause
// The command line of nbdcheck.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/range.h"
#include "check/model/history.h"
#include "tools/uri.h"

namespace weft::check {

// What is tested. The first three need a server alone; the others start it themselves, on a disk
// that they can harm.
struct Modes {
  bool consistency = false;
  bool reconnect = false;
  bool conformance = false;
  bool power_cut = false;
  bool kill = false;
  bool fail_flush = false;
  bool fail_io = false;

  [[nodiscard]] bool need_command() const { return power_cut || kill || fail_flush || fail_io; }
};

struct Options {
  Modes modes;
  std::optional<tools::Target> target;  // a URI, or
  std::vector<std::string> command;     // the words after "--"
  bool destroy = false;                 // the export's content may be destroyed
  uint64_t disk_size = 64 << 20;        // bytes of {disk}
  std::string export_name;              // with a command

  uint64_t seed = 1;  // never 0; chosen at random unless given
  uint32_t connections = 4;
  uint32_t depth = 4;
  uint32_t blocks = 16;
  uint32_t block_size = 4096;
  std::set<Kind> kinds;                        // of the load; empty: all that the server offers
  std::optional<Range> range;                  // of the export, that may be used
  std::chrono::milliseconds duration{10'000};  // of each mode
  std::chrono::milliseconds patience{10'000};  // for one reply
  std::set<std::string> accepted;  // --accept: names of tests or findings that are only warned of
  std::string only;                // --only: tests whose name begins so

  std::string json, junit, html;  // files to write, "" for none, "-" for stdout
  bool json_histories = false;
  bool verbose = false;
  bool quiet = false;
  std::vector<std::string> words;  // of the command line, quoted, as a replay wants them

  // This run as a command line, with this seed and words instead of the same options there.
  [[nodiscard]] std::string replay(uint64_t with_seed,
                                   const std::vector<std::string>& instead = {}) const;
};

// Prints help or version and returns nothing when that was asked for. Throws ConfigError.
[[nodiscard]] std::optional<Options> parse_options(int argc, char** argv);

}  // namespace weft::check
