// SPDX-License-Identifier: BSD-3-Clause
// What a load consists of: the mix of operations, where they go, how many and how fast; and the
// Generator, which turns it into a sequence that depends on the seed alone.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft::tools {

enum class OpKind : uint8_t { kRead, kWrite, kZero, kTrim, kCache, kFlush };
inline constexpr size_t kOpKindCount = 6;
inline constexpr std::array<OpKind, kOpKindCount> kOpKinds = {
    OpKind::kRead, OpKind::kWrite, OpKind::kZero, OpKind::kTrim, OpKind::kCache, OpKind::kFlush};

[[nodiscard]] std::string_view op_name(OpKind kind);  // "read", as in --mix
[[nodiscard]] constexpr bool changes(OpKind kind) {
  return kind == OpKind::kWrite || kind == OpKind::kZero || kind == OpKind::kTrim;
}

// Shares of the kinds; what counts is their proportion.
struct Mix {
  std::array<uint32_t, kOpKindCount> weights{};

  [[nodiscard]] uint32_t weight(OpKind kind) const { return weights[static_cast<size_t>(kind)]; }
  [[nodiscard]] uint32_t total() const;
  [[nodiscard]] bool changes_data() const;
  [[nodiscard]] std::string text() const;  // "read=70,write=30", as parse_mix() takes it
};

// "read=70,write=20,flush=1"; a name without a number has weight 1. Throws ConfigError.
[[nodiscard]] Mix parse_mix(std::string_view text);

// How one connection works; see the options of nbdbench. Blocks are numbered from 0 in the window.
struct Workload {
  Mix mix;
  uint32_t fua_percent = 0;    // of operations that change data
  uint32_t flush_every = 0;    // a flush after so many operations that change data; 0: none
  bool random = true;          // or ascending, beginning again at the window's end
  uint32_t block_size = 4096;  // bytes of every operation
  uint32_t depth = 32;         // requests in flight
  uint64_t offset = 0;         // bytes, where the window begins
  uint64_t block_first = 0;    // of the blocks this connection uses
  uint64_t block_count = 0;    // > 0
  uint64_t block_start = 0;    // where ascending begins, less than block_count
  uint64_t seed = 1;
  uint64_t operations = 0;  // then it stops by itself; 0: no limit
  double interval_ns = 0;   // from one operation to the next; 0: as fast as it goes
};

// xoshiro256**: small, fast, and good enough to choose blocks with.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  // Evenly from 0 to bound - 1; bound > 0.
  uint64_t below(uint64_t bound) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(next()) * bound >> 64);
  }

 private:
  std::array<uint64_t, 4> state_;
};

struct Operation {
  OpKind kind = OpKind::kRead;
  bool fua = false;
  uint64_t block = 0;  // in the window; of a flush: no meaning
};

class Generator {
 public:
  explicit Generator(const Workload& workload);

  Operation next();
  // Another block for an operation whose block cannot be used now.
  uint64_t next_block();

 private:
  OpKind next_kind();

  const Workload workload_;
  const uint32_t mix_total_;
  int only_kind_ = -1;  // the one kind of the mix, or -1
  Random random_;
  uint64_t at_;           // ascending: the next block, relative to block_first
  uint32_t changes_ = 0;  // since the last flush of flush_every
};

}  // namespace weft::tools
