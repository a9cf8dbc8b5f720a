// SPDX-License-Identifier: BSD-3-Clause
// BlockMap: where each block of an overlay's disk is found.
//
// Blocks are kept in chunks of 4096. A chunk whose blocks differ has a word for each of them;
// chunks in a row whose blocks are all alike are one entry, however many; where nothing has been
// changed there is none. So a map takes memory where changes are scattered, and not by the disk's
// size.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

namespace weft::filters::cow {

enum class BlockState : uint8_t {
  kBelow,  // as in the disk below
  kHere,   // in the scratch file
  kZero,   // zeroes
};

// Thread-safe. No call waits for anything but a short lock.
class BlockMap {
 public:
  struct Run {
    BlockState state;
    uint64_t count;  // blocks
  };
  // The state of `block`, and how many blocks from there on have it: at most `count` (> 0).
  [[nodiscard]] Run run(uint64_t block, uint64_t count) const;
  // Whether any of `count` blocks from `block` on has the state.
  [[nodiscard]] bool any(uint64_t block, uint64_t count, BlockState state) const;

  void set(uint64_t block, uint64_t count, BlockState state);

  // A block has been zeroed at some time.
  [[nodiscard]] bool zeroed() const { return zeroed_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kChunkBlocks = 4096;

  // The blocks of a chunk, one by one.
  struct Blocks {
    std::array<BlockState, kChunkBlocks> states;
    std::array<uint32_t, 3> counts;  // of each state
    void set(uint64_t first, uint64_t count, BlockState state);
  };
  // `chunks` chunks in a row of one state; or, with `blocks`, a single one.
  struct Node {
    uint64_t chunks;
    BlockState state;
    std::unique_ptr<Blocks> blocks;
  };
  using Nodes = std::map<uint64_t, Node>;  // by the first chunk

  [[nodiscard]] Run run_here(uint64_t block, uint64_t count) const;
  [[nodiscard]] Nodes::const_iterator find(uint64_t chunk) const;
  void set_part(uint64_t chunk, uint64_t first, uint64_t count, BlockState state);
  void set_chunks(uint64_t chunk, uint64_t count, BlockState state);
  void clear_chunks(uint64_t chunk, uint64_t count);

  mutable std::mutex mutex_;
  Nodes nodes_;
  std::atomic<bool> zeroed_{false};
};

}  // namespace weft::filters::cow
