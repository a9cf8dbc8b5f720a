// SPDX-License-Identifier: BSD-3-Clause
// Layout: which bytes of the export are tested, and how they are cut into cells; and content: the
// bytes that tell a tag.
#pragma once

#include <cstdint>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"
#include "check/model/history.h"

namespace weft::check {

// Cells are consecutive: each begins where the one before it ends. A block is a run of cells. Where
// the server takes requests of any alignment, cells begin at uneven offsets and differ in size.
class Layout {
 public:
  // `blocks` blocks of `block_size` bytes from `offset` on. `granularity` is the server's smallest
  // block, a power of two that divides offset and block_size; cells are at least 16 bytes.
  Layout(uint64_t offset, uint32_t blocks, uint32_t block_size, uint32_t granularity);

  [[nodiscard]] uint32_t cells() const { return static_cast<uint32_t>(bounds_.size() - 1); }
  [[nodiscard]] uint32_t cells_per_block() const { return cells_per_block_; }
  [[nodiscard]] uint32_t blocks() const { return cells() / cells_per_block_; }
  // Bytes in the export.
  [[nodiscard]] Range range(uint32_t cell, uint32_t count = 1) const {
    return {bounds_[cell], bounds_[cell + count] - bounds_[cell]};
  }
  [[nodiscard]] Range whole() const { return range(0, cells()); }
  [[nodiscard]] std::vector<CellPlace> places() const;

 private:
  std::vector<uint64_t> bounds_;
  uint32_t cells_per_block_;
};

// Fills `into`, which lies at `offset` of the export, with the content of `tag`. Each 8-byte word
// (of the export) holds the tag and a check sum of tag, place and `salt`; kZeroTag is all zeroes.
// Each load has a salt of its own: what an earlier one has left is garbage to it.
void fill(Tag tag, uint64_t salt, uint64_t offset, MutableByteSpan into);

// What the bytes of one cell say: appends one observation for each tag that was recognised
// (kGarbageTag for bytes that no tag explains). Bytes that are torn inside a word, or lie in a
// partial word at the edge, are explained by any tag of `candidates` and then leave no observation
// of their own; only when no candidate fits is it garbage. `candidates` is called at most once.
class Candidates {
 public:
  virtual std::vector<Tag> candidates(uint32_t cell) = 0;

 protected:
  ~Candidates() = default;
};
void recognise(uint32_t cell, uint64_t salt, uint64_t offset, ByteSpan bytes, Candidates& known,
               std::vector<Observation>& into);

}  // namespace weft::check
