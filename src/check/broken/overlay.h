// SPDX-License-Identifier: BSD-3-Clause
// Overlay: bytes that lie over the store's, to the byte. Not for several threads.
#pragma once

#include <algorithm>
#include <array>
#include <bitset>
#include <cstdint>
#include <map>

#include "base/bytes.h"
#include "base/range.h"

namespace weft::check::broken {

class Overlay {
 public:
  static constexpr uint64_t kBlock = 4096;  // bytes

  void put(uint64_t offset, ByteSpan from) {
    each({offset, from.size()}, [&](uint64_t at, uint64_t in_block) {
      Block& block = blocks_[at / kBlock];
      block.bytes[in_block] = from[at - offset];
      block.there.set(in_block);
    });
  }

  // Puts what is here over `into`, which lies at `offset`.
  void cover(uint64_t offset, MutableByteSpan into) const {
    each({offset, into.size()}, [&](uint64_t at, uint64_t in_block) {
      const auto found = blocks_.find(at / kBlock);
      if (found == blocks_.end() || !found->second.there.test(in_block)) return;
      into[at - offset] = found->second.bytes[in_block];
    });
  }

  void drop(Range range) {
    each(range, [&](uint64_t at, uint64_t in_block) {
      const auto found = blocks_.find(at / kBlock);
      if (found != blocks_.end()) found->second.there.reset(in_block);
    });
  }

  // Hands every run of bytes in the blocks around `range` to put(offset, bytes), and drops it.
  template <typename Put>
  void take(Range range, Put put) {
    const Range whole = range.rounded_out(kBlock);
    auto at = blocks_.lower_bound(whole.offset / kBlock);
    while (at != blocks_.end() && at->first * kBlock < whole.end()) {
      const Block& block = at->second;
      for (uint64_t from = 0; from < kBlock;) {
        uint64_t to = from;
        while (to < kBlock && block.there.test(to)) ++to;
        if (to > from)
          put(at->first * kBlock + from, ByteSpan(block.bytes).subspan(from, to - from));
        from = to + 1;
      }
      at = blocks_.erase(at);
    }
  }

 private:
  struct Block {
    std::array<std::byte, kBlock> bytes = {};
    std::bitset<kBlock> there;
  };

  template <typename Function>
  static void each(Range range, Function function) {
    for (uint64_t at = range.offset; at < range.end(); ++at) function(at, at % kBlock);
  }

  std::map<uint64_t, Block> blocks_;
};

}  // namespace weft::check::broken
