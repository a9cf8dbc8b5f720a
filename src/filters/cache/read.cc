// SPDX-License-Identifier: BSD-3-Clause
// Reading through the cache.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "filters/cache/aligned_buffer.h"
#include "filters/cache/export_cache.h"

namespace weft::filters {

// ---- Finding ----------------------------------------------------------------------------------

// The first part of `rest` whose blocks are all in the cache, or all not.
ExportCache::Piece ExportCache::next_piece(Range rest) {
  Blocks blocks = around(rest);
  blocks.end = std::min(blocks.end, blocks.first + kBlocksMax);
  const Lock lock(mutex_);
  uint64_t index = blocks.first;
  bool cached = false;
  for (; index < blocks.end; index++) {
    Block* const block = table_.find(index);
    if (index == blocks.first) cached = block != nullptr;
    if (cached != (block != nullptr)) break;
    if (block) {
      block->pins++;
      table_.touch(*block);
    }
  }
  const uint64_t end = std::min(rest.end(), index * block_size_);
  return {{rest.offset, end - rest.offset}, cached};
}

void ExportCache::unpin(Range range) {
  const Blocks blocks = around(range);
  bool ring = false;
  {
    const Lock lock(mutex_);
    table_.for_range(blocks.first, blocks.end, [&](Block& block) {
      if (--block.pins == 0 && block.leaving) ring = true;
    });
  }
  if (ring) bell_.ring();
}

// ---- Reading ----------------------------------------------------------------------------------

ExportCache::Task ExportCache::read(Loop& loop, uint64_t offset, MutableByteSpan into) {
  const Range range{offset, into.size()};
  const Piece first = next_piece(range);
  if (first.cached && first.range == range) return read_cached(loop, range, into.data());
  return read_pieces(loop, range, into.data(), first);
}

// The blocks are pinned.
ExportCache::Task ExportCache::read_cached(Loop& loop, Range range, std::byte* into) {
  Task reading = scratch_->read(loop, range.offset, {into, range.length});
  if (!reading.ready()) return end_read(std::move(reading), range);
  unpin(range);
  return reading;
}

ExportCache::Task ExportCache::end_read(Task reading, Range range) {
  const Status done = co_await reading;
  unpin(range);
  co_return done;
}

ExportCache::Task ExportCache::read_pieces(Loop& loop, Range range, std::byte* into, Piece piece) {
  const bool keeps = co_await keeps_reads(loop);
  for (;;) {
    uint64_t length = piece.range.length;
    if (piece.cached) {
      const Status done = co_await read_cached(loop, piece.range, into);
      if (!done) co_return done;
    } else if (keeps) {
      const Result<uint64_t> filled = co_await fill(loop, piece.range, into);
      if (!filled) co_return std::unexpected(filled.error());
      length = *filled;
    } else {
      const Status done = co_await below_->read(loop, piece.range.offset, {into, length});
      if (!done) co_return done;
    }
    into += length;
    range = {range.offset + length, range.length - length};
    if (range.empty()) co_return Status{};
    piece = next_piece(range);
  }
}

engine::Task<bool> ExportCache::keeps_reads(Loop& loop) {
  if (settings_.on_read_path.empty()) return settings_.on_read;
  return path_exists(loop);
}

engine::Task<bool> ExportCache::path_exists(Loop& loop) {
  co_return co_await loop.pool().general_lane().run(
      loop, engine::BlockingReason::kMetadata, engine::BlockingKind::kShort,
      [this] { return ::access(settings_.on_read_path.c_str(), F_OK) == 0; });
}

// Brings absent blocks at the start of `range` into the cache, and what it asks for of them `into`
// (null: nowhere). Returns how much of the range was dealt with: 0 when its first block has come in
// meanwhile, by whoever had it.
engine::Task<Result<uint64_t>> ExportCache::fill(Loop& loop, Range range, std::byte* into) {
  Blocks blocks = around(range);
  blocks.end = std::min(blocks.end, blocks.first + run_blocks_);
  Hold hold(holds_, bytes_of(blocks), loop);
  co_await hold;
  uint64_t reserved = 0;
  {
    const Lock lock(mutex_);
    uint64_t end = blocks.first;
    while (end < blocks.end && !table_.find(end)) end++;
    blocks.end = end;
    if (blocks.count() == 0) co_return uint64_t{0};
    reserved = reserve(blocks.count());
  }
  if (reserved == 0) {
    hold.leave();  // nothing is kept
    const uint64_t length = std::min(range.end(), bytes_of(blocks).end()) - range.offset;
    if (into) {
      const Status done = co_await below_->read(loop, range.offset, {into, length});
      if (!done) co_return std::unexpected(done.error());
    }
    co_return length;
  }
  blocks.end = blocks.first + reserved;
  const Range bytes = bytes_of(blocks);
  const AlignedBuffer buffer = make_aligned_buffer(bytes.length);
  Status done = buffer ? Status{} : fail(ENOMEM);
  if (done) done = co_await below_->read(loop, bytes.offset, {buffer.get(), bytes.length});
  if (!done) {
    const Lock lock(mutex_);
    give_back(reserved);
    co_return std::unexpected(done.error());
  }
  const bool is_in = co_await bring_in(loop, blocks, buffer.get(), false);
  (void)is_in;  // if not, the reader is served all the same
  const uint64_t length = std::min(range.end(), bytes.end()) - range.offset;
  if (into) std::memcpy(into, buffer.get() + (range.offset - bytes.offset), length);
  co_return length;
}

ExportCache::Task ExportCache::cache(Loop& loop, Range range) {
  while (!range.empty()) {
    const Piece piece = next_piece(range);
    uint64_t length = piece.range.length;
    if (piece.cached) {
      unpin(piece.range);
    } else {
      const Result<uint64_t> filled = co_await fill(loop, piece.range, nullptr);
      if (!filled) co_return std::unexpected(filled.error());
      length = *filled;
    }
    range = {range.offset + length, range.length - length};
  }
  co_return Status{};
}

// ---- Extents ----------------------------------------------------------------------------------

// What is dirty is data; of the rest the disk below knows best. The dirty blocks are noted before
// the disk is asked: one that is written back meanwhile is data in its answer or in our list.
ExportCache::Task ExportCache::extents(Loop& loop, Extents& into, bool one) {
  Range window = into.window();
  const std::vector<uint64_t> dirty = dirty_in(around(window), kBlocksMax);
  if (dirty.size() == kBlocksMax) {  // a part will do
    window.length = std::min(window.end(), (dirty.back() + 1) * block_size_) - window.offset;
  }
  Extents from_below(window);
  const Status done = co_await below_->extents(loop, from_below, one);
  if (!done) co_return done;
  uint64_t offset = window.offset;
  auto next = dirty.begin();
  for (const Extent& extent : from_below.list()) {
    const uint64_t end = offset + extent.length;
    while (offset < end) {
      while (next != dirty.end() && (*next + 1) * block_size_ <= offset) ++next;
      const uint64_t start = next == dirty.end() ? UINT64_MAX : *next * block_size_;
      const bool is_dirty = start <= offset;
      const uint64_t stop = std::min(end, is_dirty ? start + block_size_ : start);
      if (!into.append(stop - offset, is_dirty ? uint32_t{kExtentData} : extent.flags)) {
        co_return Status{};
      }
      offset = stop;
    }
  }
  co_return Status{};
}

}  // namespace weft::filters
