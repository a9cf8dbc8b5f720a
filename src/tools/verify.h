// SPDX-License-Identifier: BSD-3-Clause
// --verify: what every block of the window must hold, and what it holds instead.
//
// A block that nbdbench writes is filled with words that follow from the seed, its offset and its
// generation (how often it was changed before). The first two words tell generation and offset, so
// that a wrong block can be named: an older one (a lost or undone write), one from elsewhere (a
// misplaced write), zeroes. Reads of a block may overlap each other; a change excludes everything
// else on its block, so that exactly one content is right when a read is checked. Blocks that this
// run has not written, has trimmed, or whose change failed, may hold anything and are not checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace weft::tools {

enum class BlockContent : uint8_t { kAnything, kTagged, kZeroes };

struct BlockState {
  BlockContent content = BlockContent::kAnything;
  uint32_t generation = 0;
};

// The state of all blocks, 8 bytes each, in memory that is taken when a block is first touched.
// Safe from any thread. begin_... and end_... are called in pairs, by whoever began.
class BlockTable {
 public:
  // Throws ConfigError when there is not enough memory.
  explicit BlockTable(uint64_t block_count);
  ~BlockTable();
  BlockTable(const BlockTable&) = delete;
  BlockTable& operator=(const BlockTable&) = delete;

  // False: the block is being changed. Otherwise `state` holds until end_read.
  [[nodiscard]] bool begin_read(uint64_t block, BlockState& state);
  void end_read(uint64_t block);
  // False: the block is being read or changed. Otherwise `generation` is that of the change.
  [[nodiscard]] bool begin_change(uint64_t block, uint32_t& generation);
  void end_change(uint64_t block, BlockContent content);

 private:
  std::atomic<uint64_t>* entries_;  // generation, content, a bit for a change, a count of readers
  uint64_t block_count_;
};

inline constexpr uint32_t kVerifyBlockMin = 16;  // bytes; a multiple of it

// Fills a block of kVerifyBlockMin or more bytes, a multiple of it, that begins at `offset` of the
// export.
void fill_block(MutableByteSpan block, uint64_t seed, uint64_t offset, uint32_t generation);

// "" when the block is what `expected` says; otherwise one line that says where it differs and what
// was found: "at offset 8192, byte 17: expected generation 3, found generation 2 (older)".
[[nodiscard]] std::string check_block(ByteSpan block, uint64_t seed, uint64_t offset,
                                      BlockState expected);

}  // namespace weft::tools
