// SPDX-License-Identifier: BSD-3-Clause
// ExportCache: the one cache of an export, for all its connections.
//
// The disk is cut into blocks. What is in the cache has an entry in the table and its data in the
// scratch file, at the block's own offset; everything else is on the disk below, which has one
// connection, ours. The table's mutex is held for short and never across I/O.
//
// A block is *absent*; or it is in the cache and *clean* (the disk below has the same), or *dirty*.
// Who may do what at the same time:
//  - Whoever brings a block in, changes it, drops it, or changes it below past the cache, has it
//    to himself: he has entered its range in holds_ (a fill of old data and a write exclude each
//    other; a reader that finds a block on its way in waits for it).
//  - Readers of data in the scratch file pin the block; it is not dropped before they are done. A
//    read that finds a block absent and does not fill it goes to the disk below and holds nothing:
//    a block becomes absent only when the disk below has its data.
//  - Writing a dirty block back needs no hold, so that a write need not wait for it. `writing_back`
//    keeps others from writing the same block below at the same time. A change meanwhile is told by
//    the block's generation: the block stays dirty then. (What goes below may be half of that
//    change; this is no worse than a power cut in its midst, since it is written again.)
//
// At cache-max-size, and when the scratch file's folder is full, a write goes past the cache, at
// the speed of the disk below, until the reclaimer has made room.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "disk/change_order.h"
#include "disk/scratch_file.h"
#include "disk/shared_disk.h"
#include "engine/scope.h"
#include "filters/cache/bell.h"
#include "filters/cache/block_table.h"
#include "filters/cache/flush_rounds.h"

namespace weft::filters {

enum class CacheMode : uint8_t { kWriteback, kWritethrough, kUnsafe };

struct CacheSettings {
  CacheMode mode = CacheMode::kWriteback;
  uint64_t block_size_min = 64 << 10;  // bytes, a power of two
  uint64_t size_max = UINT64_MAX;      // bytes
  unsigned high_threshold = 95;        // percent of size_max
  unsigned low_threshold = 80;
  bool on_read = false;
  std::string on_read_path;  // not empty: reads are cached while it exists
};

// Thread-safe. `loop` is always the caller's, on which the task is awaited. Changes come in the
// order of order(). Outlives its connections' disks; finish() is its last call.
class ExportCache {
 public:
  using Task = engine::Task<Status>;
  using Loop = engine::Loop;

  // `name`: for the log. `block_size`: bytes, a power of two, at least the disk's.
  ExportCache(std::string name, const CacheSettings& settings, uint64_t block_size,
              std::unique_ptr<disk::SharedDisk> below, std::unique_ptr<disk::ScratchFile> scratch);
  ~ExportCache();

  Task read(Loop& loop, uint64_t offset, MutableByteSpan into);
  Task write(Loop& loop, uint64_t offset, ByteSpan from, bool fua);
  Task zero(Loop& loop, Range range, disk::ZeroFlags flags);
  Task trim(Loop& loop, Range range, bool fua);
  Task cache(Loop& loop, Range range);
  Task flush(Loop& loop);
  Task extents(Loop& loop, Extents& into, bool one);

  // Writes back and makes durable what the mode promises, and closes the disk below.
  Task finish(Loop& loop);

  [[nodiscard]] disk::ChangeOrder& order() { return order_; }
  [[nodiscard]] const disk::Capabilities& below() const { return below_->capabilities(); }
  [[nodiscard]] const std::string& identity() const { return below_->identity(); }
  [[nodiscard]] const std::string& description() const { return below_->description(); }
  [[nodiscard]] uint64_t block_size() const { return block_size_; }

 private:
  // Looked at in one piece: others wait for the mutex meanwhile.
  static constexpr size_t kBlocksMax = 4096;
  using Lock = std::lock_guard<std::mutex>;
  // The blocks from `first` on; `end` is exclusive.
  struct Blocks {
    uint64_t first;
    uint64_t end;
    [[nodiscard]] uint64_t count() const { return end - first; }
  };
  struct Piece {
    Range range;
    bool cached;  // its blocks are, and have been pinned
  };

  // Geometry.
  [[nodiscard]] uint64_t size() const { return below().size; }
  [[nodiscard]] Blocks around(Range range) const;  // the blocks that hold it
  [[nodiscard]] Blocks inside(Range range) const;  // those that lie in it as a whole: maybe none
  [[nodiscard]] Range bytes_of(Blocks blocks) const;

  // Reading (read.cc).
  Piece next_piece(Range rest);
  void unpin(Range range);
  Task read_cached(Loop& loop, Range range, std::byte* into);
  Task end_read(Task reading, Range range);
  Task read_pieces(Loop& loop, Range range, std::byte* into, Piece piece);
  engine::Task<bool> keeps_reads(Loop& loop);
  engine::Task<bool> path_exists(Loop& loop);
  engine::Task<Result<uint64_t>> fill(Loop& loop, Range range, std::byte* into);

  // Changing (write.cc). Their blocks are held.
  Task write_cached(Loop& loop, Range range, const std::byte* from);
  Task write_present(Loop& loop, Range range, const std::byte* from);
  Task write_absent(Loop& loop, Blocks blocks, const std::byte* from);
  Task write_part(Loop& loop, Range range, const std::byte* from);
  Task write_through(Loop& loop, Range range, const std::byte* from, bool fua);
  Task write_zeroes(Loop& loop, Range range);
  Task zero_held(Loop& loop, Range range, disk::ZeroFlags flags);
  Task zero_below(Loop& loop, Blocks blocks, disk::ZeroFlags flags);
  Task trim_held(Loop& loop, Blocks blocks);
  engine::Task<bool> bring_in(Loop& loop, Blocks blocks, const std::byte* data, bool dirty);
  Task write_below(Loop& loop, Range range, const std::byte* from, bool fua = false);
  engine::Task<void> claim_dirty(Loop& loop, Blocks blocks);
  engine::Task<void> drop(Loop& loop, Blocks blocks);
  engine::Task<void> release(Loop& loop, const std::vector<uint64_t>& indices);
  struct Run {
    Blocks blocks;
    bool cached;
  };
  [[nodiscard]] Run next_run(Blocks blocks);

  // Writing back (writeback.cc).
  engine::Task<Result<bool>> write_back(Loop& loop, std::vector<uint64_t> indices, bool fua,
                                        bool save_all = false);
  engine::Task<Result<bool>> write_back_run(Loop& loop, Blocks blocks, bool fua);
  struct WriteBack;
  engine::Task<void> write_back_some(Loop& loop, WriteBack& all);
  Task write_back_all(Loop& loop, bool save_all);
  std::vector<uint64_t> dirty_in(Blocks blocks, size_t count_max = SIZE_MAX);
  bool begin_write_back(Blocks blocks, std::vector<uint32_t>& generations);
  void end_write_back(Blocks blocks, const std::vector<uint32_t>& generations, bool written);
  Task flush_round(Loop& loop);
  Task flush_below(Loop& loop);
  Task make_durable(Loop& loop, Range range);
  [[nodiscard]] Status status() const;
  void mark_failed(Error error, const char* what);

  // Room (reclaim.cc). With mutex_ locked.
  [[nodiscard]] uint64_t reserve(uint64_t count);
  void give_back(uint64_t count);
  void start_reclaim();
  // Not locked.
  void folder_is_full();
  engine::Task<void> reclaim();
  std::vector<uint64_t> choose_victims();
  engine::Task<size_t> evict(const std::vector<uint64_t>& indices);
  engine::Task<size_t> evict_run(Blocks blocks);
  Task stop_reclaim(Loop& loop);
  Task reclaimers_ended();

  const std::string name_;
  const CacheSettings& settings_;
  const uint64_t block_size_;
  const uint64_t run_blocks_;  // moved in one piece
  const uint64_t blocks_max_;
  const uint64_t blocks_high_;
  const uint64_t blocks_low_;
  const std::unique_ptr<disk::SharedDisk> below_;
  const std::unique_ptr<disk::ScratchFile> scratch_;
  disk::ChangeOrder order_;  // of the layers above
  disk::ChangeOrder holds_;
  Bell bell_;  // rings when a write-back ends, or the last pin of a block that is leaving
  FlushRounds rounds_;
  std::atomic<bool> failed_{false};
  const bool always_fua_;  // the disk below has no flush, but FUA

  std::mutex mutex_;
  BlockTable table_;
  uint64_t taken_ = 0;             // blocks that have, or will have, data in the scratch file
  uint64_t squeeze_ = UINT64_MAX;  // the folder is full: reclaim down to this many blocks
  bool reclaiming_ = false;
  bool stopping_ = false;
  engine::Scope reclaimers_;  // on the loop of below_
};

}  // namespace weft::filters
