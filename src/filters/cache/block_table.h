// SPDX-License-Identifier: BSD-3-Clause
// BlockTable: which blocks of a disk are in the cache, how they stand, and in which order they were
// used. Data and waiting are its owner's affair.
#pragma once

#include <cassert>
#include <cstdint>
#include <set>
#include <unordered_map>

namespace weft::filters {

// A block that is in the cache.
struct Block {
  uint64_t index = 0;
  Block* newer = nullptr;
  Block* older = nullptr;
  uint32_t pins = 0;          // readers of its data
  uint32_t generation = 0;    // counts the changes of its data
  bool dirty = false;         // newer than the disk below
  bool writing_back = false;  // somebody has the block of the disk below to itself
  bool leaving = false;       // about to be dropped: for readers it is not here any more
};

// Guarded by its owner's mutex.
class BlockTable {
 public:
  // Null: not in the cache, or about to go.
  [[nodiscard]] Block* find(uint64_t index) {
    const auto found = blocks_.find(index);
    return found == blocks_.end() || found->second.leaving ? nullptr : &found->second;
  }
  // One that is about to go.
  [[nodiscard]] Block& leaving(uint64_t index) {
    Block& block = blocks_.at(index);
    assert(block.leaving);
    return block;
  }
  [[nodiscard]] size_t count() const { return blocks_.size(); }
  // The indices of dirty blocks, in ascending order.
  [[nodiscard]] const std::set<uint64_t>& dirty() const { return dirty_; }

  // The block is not there. It is the newest from now on.
  Block& insert(uint64_t index, bool dirty) {
    const auto [entry, is_new] = blocks_.try_emplace(index);
    assert(is_new);
    Block& block = entry->second;
    block.index = index;
    link(block);
    if (dirty) changed(block);
    return block;
  }
  void erase(Block& block) {
    assert(block.pins == 0);
    clean(block);
    unlink(block);
    blocks_.erase(block.index);
  }
  void touch(Block& block) {
    if (newest_ == &block) return;
    unlink(block);
    link(block);
  }
  // Its data has changed.
  void changed(Block& block) {
    block.generation++;
    if (!block.dirty) dirty_.insert(block.index);
    block.dirty = true;
  }
  void clean(Block& block) {
    if (block.dirty) dirty_.erase(block.index);
    block.dirty = false;
  }
  // From the one that was not used for the longest time; the next is its `newer`.
  [[nodiscard]] Block* oldest() const { return oldest_; }

  // Calls f(Block&) for the blocks of [first, end), those that are leaving included.
  template <typename F>
  void for_range(uint64_t first, uint64_t end, F f) {
    if (end - first <= blocks_.size()) {
      for (uint64_t index = first; index < end; index++) {
        const auto found = blocks_.find(index);
        if (found != blocks_.end()) f(found->second);
      }
    } else {
      for (auto& [index, block] : blocks_) {
        if (index >= first && index < end) f(block);
      }
    }
  }

 private:
  void link(Block& block) {
    block.newer = nullptr;
    block.older = newest_;
    (newest_ ? newest_->newer : oldest_) = &block;
    newest_ = &block;
  }
  void unlink(Block& block) {
    (block.newer ? block.newer->older : newest_) = block.older;
    (block.older ? block.older->newer : oldest_) = block.newer;
  }

  std::unordered_map<uint64_t, Block> blocks_;
  std::set<uint64_t> dirty_;
  Block* newest_ = nullptr;
  Block* oldest_ = nullptr;
};

}  // namespace weft::filters
