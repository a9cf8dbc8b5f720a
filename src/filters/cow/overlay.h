// SPDX-License-Identifier: BSD-3-Clause
// Overlay: what has been changed of a disk that is only read, shared by its connections.
//
// Each block is in one of three places (block_map.h). A block leaves the disk below for good: when
// its bytes are complete in the scratch file it is *here*, and what is written to it goes there;
// when it is zeroed as a whole it is *zero*, and its place in the scratch file is given back. The
// map is changed last, so a change that fails (the scratch folder is full) leaves the block as it
// was. Who reads while a block changes gets its old bytes, its new ones, or zeroes between them, as
// on any disk.
//
// Changes of one block exclude each other: whoever calls write(), zero() or trim() has entered
// order(), or the order of a layer above whose granularity is not smaller. Copies that are made
// because somebody reads are in nobody's order: where they are wanted, changes and copies meet in
// `copies`. A copy never waits there, a change waits for a copy.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/bytes.h"
#include "base/extents.h"
#include "base/range.h"
#include "base/result.h"
#include "disk/change_order.h"
#include "disk/disk.h"
#include "disk/scratch_file.h"
#include "engine/async_mutex.h"
#include "engine/blocking_pool.h"
#include "filters/cow/block_map.h"

namespace weft::filters::cow {

using disk::Task;

// Whether reads are copied to the overlay.
struct CopyOnRead {
  enum class When : uint8_t { kNever, kAlways, kIfPathExists };
  When when = When::kNever;
  std::string path;
};

struct Settings {
  uint64_t block_size = 64 << 10;  // bytes, a power of two
  bool on_cache = false;
  CopyOnRead on_read;
};

// Thread-safe. `below` is the caller's connection of the disk below, on `loop`, the caller's.
class Overlay {
 public:
  Overlay(engine::BlockingPool& pool, const Settings& settings, uint64_t size);

  // The part of `range` from its start on that is found in one place, and which.
  struct Piece {
    BlockState state;
    uint64_t length;  // bytes, > 0
  };
  [[nodiscard]] Piece piece(Range range) const;

  Task<Status> read_here(engine::Loop& loop, uint64_t offset, MutableByteSpan into);
  // From wherever it is.
  Task<Status> read(engine::Loop& loop, disk::Disk& below, Range range, std::byte* into);
  // The same; what is only below is copied on the way, where that can be done. `into` may be null.
  Task<Status> read_copying(engine::Loop& loop, disk::Disk& below, Range range, std::byte* into);

  Task<Status> write(engine::Loop& loop, disk::Disk& below, uint64_t offset, ByteSpan from);
  Task<Status> zero(engine::Loop& loop, disk::Disk& below, Range range, disk::ZeroFlags flags);
  // Parts of blocks stay as they are.
  Task<Status> trim(engine::Loop& loop, Range range);

  // Whether a read is to be copied now.
  Task<bool> copies_reads(engine::Loop& loop);
  [[nodiscard]] bool may_copy_reads() const {
    return settings_.on_read.when != CopyOnRead::When::kNever;
  }

  [[nodiscard]] const Settings& settings() const { return settings_; }
  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] bool zeroed() const { return map_.zeroed(); }
  // Of changes of what clients see.
  [[nodiscard]] disk::ChangeOrder& order() { return order_; }

 private:
  // The blocks around a range; the last may be cut by the disk's end.
  [[nodiscard]] Range blocks_around(Range range) const;
  // The blocks that a range has as a whole: maybe none.
  [[nodiscard]] Range whole_blocks(Range range) const;
  [[nodiscard]] bool all(Range range, BlockState state) const;
  void set(Range blocks, BlockState state);

  // Makes the scratch file when something is to be kept for the first time: clients that only read,
  // under many names, take no descriptors.
  Task<Status> prepare(engine::Loop& loop) {
    if (prepared_.load(std::memory_order_acquire)) return Status{};
    return make_scratch(loop);
  }
  Task<Status> make_scratch(engine::Loop& loop);

  Task<Status> write_now(engine::Loop& loop, disk::Disk& below, Range range, const std::byte* from);
  Task<Status> fill_block(engine::Loop& loop, disk::Disk& below, Range block, Range range,
                          const std::byte* from);
  Task<Status> write_direct(engine::Loop& loop, Range range, const std::byte* from);
  Task<Status> write_zeroes(engine::Loop& loop, disk::Disk& below, Range range);
  Task<Status> write_in_turn(engine::Loop& loop, disk::Disk& below, Range range,
                             const std::byte* from);
  Task<Status> zero_now(engine::Loop& loop, disk::Disk& below, Range range, disk::ZeroFlags flags);
  Task<Status> zero_in_turn(engine::Loop& loop, disk::Disk& below, Range range,
                            disk::ZeroFlags flags);
  Task<Status> zero_blocks(engine::Loop& loop, Range blocks);
  // Copies whole blocks and gives the bytes of `range`, a part of them, to `into` unless it is
  // null. False: they were not copied, and `into` is not complete.
  Task<bool> copy_up(engine::Loop& loop, disk::Disk& below, Range blocks, Range range,
                     std::byte* into);
  [[nodiscard]] bool copies() const { return may_copy_reads() || settings_.on_cache; }

  engine::BlockingPool& pool_;
  const Settings settings_;
  const uint64_t size_;
  engine::Lane lane_;
  BlockMap map_;
  disk::ChangeOrder order_;
  disk::ChangeOrder copies_;
  engine::AsyncMutex prepare_mutex_;
  std::unique_ptr<disk::ScratchFile> scratch_;  // before any block is here
  std::atomic<bool> prepared_{false};           // there is a scratch file
  std::atomic<bool> copy_failed_{false};        // it has been logged
};

}  // namespace weft::filters::cow
