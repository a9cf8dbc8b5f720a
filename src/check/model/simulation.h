// SPDX-License-Identifier: BSD-3-Clause
// Simulation: histories of a disk whose promise is known, because it is made here. For tests.
//
// Each cell is two registers, its first and its last byte; every operation comes to each register
// at a moment of its own, so cells are torn.
#pragma once

#include <cstdint>

#include "check/model/history.h"

namespace weft::check {

enum class Caches : uint8_t {
  kNone,        // one memory: all is seen at once
  kUntilFlush,  // each connection keeps its own until any connection flushes
  kForever,     // each connection sees only its own, once it has it; a flush shows it to new ones
};

struct SimulationOptions {
  uint64_t seed = 1;
  uint32_t operations = 1000;  // about
  uint32_t cells = 8;
  uint32_t connections = 4;
  uint32_t depth = 3;
  uint32_t restarts = 0;
  bool zeros = true;
  bool trims = true;
  bool failures = true;  // error replies, and replies that never come
  Caches caches = Caches::kNone;
  bool forgets = false;         // a restart takes what was not flushed
  bool ignores_flush = false;   // ... and what was
  uint32_t old_reads_each = 0;  // one in so many reads sees what was there before; 0: none
};

[[nodiscard]] History simulate(const SimulationOptions& options);

}  // namespace weft::check
