// SPDX-License-Identifier: BSD-3-Clause
// Changes through the cache.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/log.h"
#include "filters/cache/aligned_buffer.h"
#include "filters/cache/export_cache.h"

namespace weft::filters {

using disk::Support;

namespace {

constexpr uint64_t kZeroPieceSize = 1 << 20;  // bytes

// Never written; costs no memory until it is read.
alignas(4096) std::byte zeroes[kZeroPieceSize];

// The folder of the temporary file has no room. (A file system may also have a largest file.)
bool is_full(const Status& status) {
  return !status && (status.error().code == ENOSPC || status.error().code == EDQUOT);
}

}  // namespace

// ---- Write ------------------------------------------------------------------------------------

ExportCache::Task ExportCache::write(Loop& loop, uint64_t offset, ByteSpan from, bool fua) {
  const Range range{offset, from.size()};
  if (settings_.mode == CacheMode::kUnsafe) fua = false;
  if (Status failed = status(); fua && !failed) co_return failed;
  Hold hold(holds_, range, loop);
  co_await hold;
  if (settings_.mode == CacheMode::kWritethrough) {
    const bool native = fua && below_->capabilities().fua != disk::Support::kNone;
    const Status done = co_await write_through(loop, range, from.data(), native);
    hold.leave();
    if (!done || !fua || native) co_return done;
    co_return co_await make_durable(loop, range);
  }
  const Status done = co_await write_cached(loop, range, from.data());
  hold.leave();
  if (!done || !fua) co_return done;
  co_return co_await make_durable(loop, range);
}

// The first of `blocks` that are all in the cache, or all not.
ExportCache::Run ExportCache::next_run(Blocks blocks) {
  blocks.end = std::min(blocks.end, blocks.first + kBlocksMax);
  const Lock lock(mutex_);
  const bool cached = table_.find(blocks.first) != nullptr;
  uint64_t end = blocks.first + 1;
  while (end < blocks.end && (table_.find(end) != nullptr) == cached) end++;
  return {{blocks.first, end}, cached};
}

ExportCache::Task ExportCache::write_cached(Loop& loop, Range range, const std::byte* from) {
  while (!range.empty()) {
    const Run run = next_run(around(range));
    const uint64_t run_end = std::min(range.end(), bytes_of(run.blocks).end());
    Range part{range.offset, run_end - range.offset};
    Status done;
    if (run.cached) {
      done = co_await write_present(loop, part, from);
    } else if (Blocks whole = inside(part); whole.first == run.blocks.first && whole.count()) {
      whole.end = std::min(whole.end, whole.first + run_blocks_);
      part = bytes_of(whole);
      done = co_await write_absent(loop, whole, from);
    } else {
      const uint64_t end = bytes_of({run.blocks.first, run.blocks.first + 1}).end();
      part.length = std::min(part.end(), end) - part.offset;
      done = co_await write_part(loop, part, from);
    }
    if (!done) co_return done;
    from += part.length;
    range = {part.end(), range.end() - part.end()};
  }
  co_return Status{};
}

// Of a write that fails any part may have been done: what there is has to be written back.
ExportCache::Task ExportCache::write_present(Loop& loop, Range range, const std::byte* from) {
  const Status done = co_await scratch_->write(loop, range.offset, {from, range.length});
  const Blocks blocks = around(range);
  {
    const Lock lock(mutex_);
    table_.for_range(blocks.first, blocks.end, [&](Block& block) {
      table_.changed(block);
      table_.touch(block);
    });
  }
  if (is_full(done)) folder_is_full();
  co_return done;
}

// Whole blocks: what they held is not needed.
ExportCache::Task ExportCache::write_absent(Loop& loop, Blocks blocks, const std::byte* from) {
  uint64_t reserved = 0;
  {
    const Lock lock(mutex_);
    reserved = reserve(blocks.count());
  }
  const Blocks in{blocks.first, blocks.first + reserved};
  Blocks past{in.end, blocks.end};
  if (in.count() && !co_await bring_in(loop, in, from, true)) past = blocks;
  if (!past.count()) co_return Status{};
  const Range bytes = bytes_of(past);
  co_return co_await write_below(loop, bytes, from + (past.first - blocks.first) * block_size_);
}

// A part of one block: the rest is read first.
ExportCache::Task ExportCache::write_part(Loop& loop, Range range, const std::byte* from) {
  uint64_t reserved = 0;
  {
    const Lock lock(mutex_);
    reserved = reserve(1);
  }
  if (reserved == 0) co_return co_await write_below(loop, range, from);
  const Blocks block = around(range);
  const Range bytes = bytes_of(block);
  const AlignedBuffer buffer = make_aligned_buffer(bytes.length);
  Status done = buffer ? Status{} : fail(ENOMEM);
  if (done) done = co_await below_->read(loop, bytes.offset, {buffer.get(), bytes.length});
  if (!done) {
    const Lock lock(mutex_);
    give_back(1);
    co_return done;
  }
  std::memcpy(buffer.get() + (range.offset - bytes.offset), from, range.length);
  if (co_await bring_in(loop, block, buffer.get(), true)) co_return Status{};
  co_return co_await write_below(loop, range, from);
}

// Blocks that are held, absent and reserved. False: there was no room for them after all.
engine::Task<bool> ExportCache::bring_in(Loop& loop, Blocks blocks, const std::byte* data,
                                         bool dirty) {
  const Range bytes = bytes_of(blocks);
  const Status done = co_await scratch_->write(loop, bytes.offset, {data, bytes.length});
  if (done) {
    const Lock lock(mutex_);
    for (uint64_t index = blocks.first; index < blocks.end; index++) table_.insert(index, dirty);
    co_return true;
  }
  const Status released = co_await scratch_->release(loop, bytes);
  (void)released;  // the next write there overwrites it
  {
    const Lock lock(mutex_);
    give_back(blocks.count());
  }
  if (is_full(done)) folder_is_full();
  co_return false;
}

ExportCache::Task ExportCache::write_below(Loop& loop, Range range, const std::byte* from,
                                           bool fua) {
  return below_->write(loop, range.offset, {from, range.length}, fua || always_fua_);
}

// The disk below comes first. A block that cannot be brought up to date is dropped.
ExportCache::Task ExportCache::write_through(Loop& loop, Range range, const std::byte* from,
                                             bool fua) {
  const Status done = co_await write_below(loop, range, from, fua);
  if (!done) {
    co_await drop(loop, around(range));
    co_return done;
  }
  for (Range rest = range; !rest.empty();) {
    const Run run = next_run(around(rest));
    const uint64_t end = std::min(rest.end(), bytes_of(run.blocks).end());
    const Range part{rest.offset, end - rest.offset};
    const std::byte* const data = from + (part.offset - range.offset);
    if (run.cached) {
      const Status kept = co_await scratch_->write(loop, part.offset, {data, part.length});
      if (!kept) {
        if (is_full(kept)) folder_is_full();
        co_await drop(loop, run.blocks);
      } else {
        const Lock lock(mutex_);
        table_.for_range(run.blocks.first, run.blocks.end,
                         [&](Block& block) { table_.touch(block); });
      }
    } else if (Blocks whole = inside(part); whole.count()) {
      {
        const Lock lock(mutex_);
        whole.end = whole.first + reserve(whole.count());
      }
      const uint64_t skip = bytes_of(whole).offset - part.offset;
      if (whole.count()) (void)co_await bring_in(loop, whole, data + skip, false);
    }
    rest = {end, rest.end() - end};
  }
  co_return Status{};
}

// ---- Zero and trim ----------------------------------------------------------------------------

// Whole blocks are zeroed below, at once, whatever the mode: that takes no room here.
ExportCache::Task ExportCache::zero(Loop& loop, Range range, disk::ZeroFlags flags) {
  const bool fua = flags.fua && settings_.mode != CacheMode::kUnsafe;
  flags.fua = false;
  if (Status failed = status(); fua && !failed) co_return failed;
  Hold hold(holds_, range, loop);
  co_await hold;
  const Status done = co_await zero_held(loop, range, flags);
  hold.leave();
  if (!done || !fua) co_return done;
  co_return co_await make_durable(loop, range);
}

ExportCache::Task ExportCache::zero_held(Loop& loop, Range range, disk::ZeroFlags flags) {
  if (below().zero != Support::kNative) co_return co_await write_zeroes(loop, range);
  const Blocks whole = inside(range);
  if (!whole.count()) {
    if (flags.fast) co_return fail(ENOTSUP, "a part of a block is zeroed by writing");
    co_return co_await write_zeroes(loop, range);
  }
  // The middle comes first: if it cannot be zeroed fast, nothing has been changed.
  const Range middle = bytes_of(whole);
  Status done = co_await zero_below(loop, whole, flags);
  if (done && middle.offset > range.offset) {
    done = co_await write_zeroes(loop, {range.offset, middle.offset - range.offset});
  }
  if (done && range.end() > middle.end()) {
    done = co_await write_zeroes(loop, {middle.end(), range.end() - middle.end()});
  }
  co_return done;
}

ExportCache::Task ExportCache::write_zeroes(Loop& loop, Range range) {
  while (!range.empty()) {
    const uint64_t length = std::min(range.length, kZeroPieceSize);
    const Range piece{range.offset, length};
    const Status done = settings_.mode == CacheMode::kWritethrough
                            ? co_await write_through(loop, piece, zeroes, false)
                            : co_await write_cached(loop, piece, zeroes);
    if (!done) co_return done;
    range = {range.offset + length, range.length - length};
  }
  co_return Status{};
}

// Keeps the dirty blocks among these from being written back, until `writing_back` is taken away.
// They are held, so that no more become dirty.
engine::Task<void> ExportCache::claim_dirty(Loop& loop, Blocks blocks) {
  for (;;) {
    const uint64_t seen = bell_.rings();
    bool busy = false;
    {
      const Lock lock(mutex_);
      table_.for_range(blocks.first, blocks.end, [&](Block& block) { busy |= block.writing_back; });
      if (!busy) {
        table_.for_range(blocks.first, blocks.end,
                         [&](Block& block) { block.writing_back = block.dirty; });
      }
    }
    if (!busy) co_return;
    co_await bell_.wait(loop, seen);
  }
}

ExportCache::Task ExportCache::zero_below(Loop& loop, Blocks blocks, disk::ZeroFlags flags) {
  co_await claim_dirty(loop, blocks);
  flags.fua = always_fua_;
  const Status done = co_await below_->zero(loop, bytes_of(blocks), flags);
  {
    // What is dirty was overwritten; or, if that failed, is as good as before.
    const Lock lock(mutex_);
    table_.for_range(blocks.first, blocks.end, [&](Block& block) {
      if (done) table_.clean(block);
      block.writing_back = false;
    });
  }
  bell_.ring();
  if (!done && flags.fast && done.error().code == ENOTSUP) co_return done;
  co_await drop(loop, blocks);
  co_return done;
}

// Parts of blocks keep what they hold: a trim promises nothing.
ExportCache::Task ExportCache::trim(Loop& loop, Range range, bool fua) {
  if (settings_.mode == CacheMode::kUnsafe) fua = false;
  if (Status failed = status(); fua && !failed) co_return failed;
  const Blocks blocks = inside(range);
  if (!blocks.count()) co_return Status{};
  Hold hold(holds_, range, loop);
  co_await hold;
  const Status done = co_await trim_held(loop, blocks);
  hold.leave();
  if (!done || !fua) co_return done;
  co_return co_await make_durable(loop, range);
}

// After the trim the disk below is what is read. It must not show what it had before newer data
// came into the cache: where there is any, the blocks are zeroed, or written back first.
ExportCache::Task ExportCache::trim_held(Loop& loop, Blocks blocks) {
  std::vector<uint64_t> dirty = dirty_in(blocks);
  if (!dirty.empty() && below().zero == Support::kNative) {
    co_return co_await zero_below(loop, blocks, {.fua = false, .may_trim = true, .fast = false});
  }
  if (!dirty.empty()) {
    const Result<bool> written = co_await write_back(loop, std::move(dirty), false);
    if (!written) co_return std::unexpected(written.error());
  }
  const Status done = co_await below_->trim(loop, bytes_of(blocks), always_fua_);
  co_await drop(loop, blocks);
  co_return done;
}

// ---- Dropping ---------------------------------------------------------------------------------

// Takes blocks that are held and clean out of the cache; leaves those that are dirty.
engine::Task<void> ExportCache::drop(Loop& loop, Blocks blocks) {
  std::vector<uint64_t> leaving;
  {
    const Lock lock(mutex_);
    table_.for_range(blocks.first, blocks.end, [&](Block& block) {
      if (block.dirty) return;
      block.leaving = true;
      leaving.push_back(block.index);
    });
  }
  if (leaving.empty()) co_return;
  std::ranges::sort(leaving);
  for (;;) {
    const uint64_t seen = bell_.rings();
    bool busy = false;
    {
      const Lock lock(mutex_);
      for (const uint64_t index : leaving) busy |= table_.leaving(index).pins != 0;
      if (!busy) {
        for (const uint64_t index : leaving) table_.erase(table_.leaving(index));
      }
    }
    if (!busy) break;
    co_await bell_.wait(loop, seen);
  }
  co_await release(loop, leaving);
}

// The data of blocks that have no entry any more.
engine::Task<void> ExportCache::release(Loop& loop, const std::vector<uint64_t>& indices) {
  for (size_t first = 0; first < indices.size();) {
    size_t end = first + 1;
    while (end < indices.size() && indices[end] == indices[end - 1] + 1) end++;
    const Status done =
        co_await scratch_->release(loop, bytes_of({indices[first], indices[end - 1] + 1}));
    if (!done) log::debug("{}: the temporary file: {}", name_, errno_text(done.error().code));
    const Lock lock(mutex_);
    give_back(end - first);
    first = end;
  }
}

}  // namespace weft::filters
