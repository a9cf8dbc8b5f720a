// SPDX-License-Identifier: BSD-3-Clause
// Writing back, flush and FUA.
#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "base/log.h"
#include "filters/cache/aligned_buffer.h"
#include "filters/cache/export_cache.h"

namespace weft::filters {

using disk::Support;

namespace {

constexpr int kWriters = 8;  // runs of blocks that one flush has on their way at once

constexpr const char* kFailedText =
    "an earlier write-back or flush of this disk failed: what was written may be lost";

}  // namespace

Status ExportCache::status() const {
  if (failed_.load(std::memory_order_acquire)) return fail(EIO, kFailedText);
  return {};
}

void ExportCache::mark_failed(Error error, const char* what) {
  if (failed_.exchange(true, std::memory_order_acq_rel)) return;
  log::error(
      "{}: {} failed: {}: acknowledged writes may be lost, and every flush and FUA write of this "
      "disk fails from now on; check its storage and its data, then restart",
      name_, what, errno_text(error.code));
}

// ---- Writing back -----------------------------------------------------------------------------

// What several coroutines of one loop take from until it is empty.
struct ExportCache::WriteBack {
  const std::vector<uint64_t>& indices;
  const bool fua;
  const bool save_all;  // go on after a failure
  size_t next = 0;
  bool mine = true;
  Status status{};
};

// Writes the blocks, which are in ascending order, that are dirty. True: each was, and was written
// by this call (and with FUA, if that was asked for). A failure marks the disk.
engine::Task<Result<bool>> ExportCache::write_back(Loop& loop, std::vector<uint64_t> indices,
                                                   bool fua, bool save_all) {
  WriteBack all{.indices = indices, .fua = fua, .save_all = save_all};
  if (indices.size() <= 1) {
    co_await write_back_some(loop, all);
  } else {
    engine::Scope writers(loop);
    for (int i = 0; i < kWriters && all.next < indices.size(); i++) {
      writers.spawn(write_back_some(loop, all));
    }
    co_await writers.join();
  }
  if (!all.status) co_return std::unexpected(all.status.error());
  co_return all.mine;
}

engine::Task<void> ExportCache::write_back_some(Loop& loop, WriteBack& all) {
  while ((all.status || all.save_all) && all.next < all.indices.size()) {
    const uint64_t first = all.indices[all.next++];
    uint64_t end = first + 1;
    while (all.next < all.indices.size() && all.indices[all.next] == end &&
           end - first < run_blocks_) {
      end++;
      all.next++;
    }
    const Result<bool> mine = co_await write_back_run(loop, {first, end}, all.fua);
    if (mine) {
      all.mine &= *mine;
    } else if (all.status) {
      all.status = std::unexpected(mine.error());
    }
  }
}

engine::Task<Result<bool>> ExportCache::write_back_run(Loop& loop, Blocks blocks, bool fua) {
  bool mine = true;
  std::vector<uint32_t> generations;
  while (blocks.count()) {
    const uint64_t seen = bell_.rings();
    generations.clear();
    if (begin_write_back(blocks, generations)) {
      co_await bell_.wait(loop, seen);  // somebody else writes it
      continue;
    }
    if (generations.empty()) {
      mine = false;  // it is clean, or gone
      blocks.first++;
      continue;
    }
    const Blocks part{blocks.first, blocks.first + generations.size()};
    const Range bytes = bytes_of(part);
    const AlignedBuffer buffer = make_aligned_buffer(bytes.length);
    Status done = buffer ? Status{} : fail(ENOMEM);
    if (buffer) {
      done = co_await scratch_->read(loop, bytes.offset, {buffer.get(), bytes.length});
      if (done) done = co_await write_below(loop, bytes, buffer.get(), fua);
      if (!done) mark_failed(done.error(), "writing back");
    }
    end_write_back(part, generations, done.has_value());
    if (!done) co_return std::unexpected(done.error());
    blocks.first = part.end;
  }
  co_return mine;
}

// Claims the dirty blocks at the start of `blocks`, and notes their generations: maybe none. True:
// the first is being written back already.
bool ExportCache::begin_write_back(Blocks blocks, std::vector<uint32_t>& generations) {
  const Lock lock(mutex_);
  for (uint64_t index = blocks.first; index < blocks.end; index++) {
    Block* const block = table_.find(index);
    if (!block || !block->dirty) break;
    if (block->writing_back) return index == blocks.first;
    block->writing_back = true;
    generations.push_back(block->generation);
  }
  return false;
}

void ExportCache::end_write_back(Blocks blocks, const std::vector<uint32_t>& generations,
                                 bool written) {
  {
    const Lock lock(mutex_);
    for (uint64_t index = blocks.first; index < blocks.end; index++) {
      Block& block = *table_.find(index);
      block.writing_back = false;
      if (written && block.generation == generations[index - blocks.first]) table_.clean(block);
    }
  }
  bell_.ring();
}

std::vector<uint64_t> ExportCache::dirty_in(Blocks blocks, size_t count_max) {
  std::vector<uint64_t> dirty;
  const Lock lock(mutex_);
  auto index = table_.dirty().lower_bound(blocks.first);
  for (; index != table_.dirty().end() && *index < blocks.end; ++index) {
    if (dirty.size() == count_max) break;
    dirty.push_back(*index);
  }
  return dirty;
}

// What is dirty now; and, in one pass over the disk, what becomes so before it gets there.
ExportCache::Task ExportCache::write_back_all(Loop& loop, bool save_all) {
  Status result;
  for (uint64_t next = 0;;) {
    std::vector<uint64_t> dirty = dirty_in({next, UINT64_MAX}, kBlocksMax);
    if (dirty.empty()) co_return result;
    next = dirty.back() + 1;
    const Result<bool> written = co_await write_back(loop, std::move(dirty), false, save_all);
    if (!written && result) result = std::unexpected(written.error());
    if (!result && !save_all) co_return result;
  }
}

// ---- Flush ------------------------------------------------------------------------------------

ExportCache::Task ExportCache::flush(Loop& loop) {
  if (settings_.mode == CacheMode::kUnsafe) return Status{};
  if (Status failed = status(); !failed) return failed;
  return rounds_.flush(loop, [this, &loop] { return flush_round(loop); });
}

ExportCache::Task ExportCache::flush_round(Loop& loop) {
  if (Status failed = status(); !failed) co_return failed;
  const Status written = co_await write_back_all(loop, false);
  if (!written) co_return written;
  co_return co_await flush_below(loop);
}

// Makes durable what the disk below was told so far.
ExportCache::Task ExportCache::flush_below(Loop& loop) {
  if (below().flush != Support::kNone) {
    const Status done = co_await below_->flush(loop);
    if (!done) {
      mark_failed(done.error(), "a flush");
      co_return done;
    }
  }
  co_return status();  // something else may have failed meanwhile
}

// For FUA: what lies in `range` was changed before the call.
ExportCache::Task ExportCache::make_durable(Loop& loop, Range range) {
  const Blocks blocks = around(range);
  std::vector<uint64_t> dirty = dirty_in(blocks);
  const bool native = below().fua == Support::kNative;
  const bool all = dirty.size() == blocks.count();
  const Result<bool> mine = co_await write_back(loop, std::move(dirty), native);
  if (!mine) co_return std::unexpected(mine.error());
  if (native && all && *mine) co_return status();
  co_return co_await flush_below(loop);
}

ExportCache::Task ExportCache::finish(Loop& loop) {
  Status result;
  if (settings_.mode != CacheMode::kUnsafe && below().writable) {
    // Once marked a disk stays so, but what can be saved is.
    const Status written = co_await write_back_all(loop, true);
    const Status flushed = co_await flush_below(loop);
    result = written ? flushed : written;
  }
  const Status stopped = co_await stop_reclaim(loop);
  (void)stopped;
  const Status closed = co_await below_->close(loop);
  co_return result ? closed : result;
}

}  // namespace weft::filters
