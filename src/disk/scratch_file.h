// SPDX-License-Identifier: BSD-3-Clause
// ScratchFile: a sparse file without a name, for what a filter keeps beside the disk (an overlay, a
// cache). It goes with the process, whatever ends that.
#pragma once

#include "base/bytes.h"
#include "base/fd.h"
#include "base/range.h"
#include "base/result.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"
#include "engine/task.h"

namespace weft::disk {

// Made in $TMPDIR, or in /var/tmp. Thread-safe; outlives the tasks of its calls.
class ScratchFile {
 public:
  // `what`: the filter, for messages. Throws ConfigError with the folder and the mend. May block.
  ScratchFile(engine::BlockingPool& pool, const char* what);
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;

  // Bytes that were never written, or were released, read as zeroes. To be awaited on `loop`.
  engine::Task<Status> read(engine::Loop& loop, uint64_t offset, MutableByteSpan into);
  // ENOSPC when the folder's file system is full.
  engine::Task<Status> write(engine::Loop& loop, uint64_t offset, ByteSpan from);
  // Gives the range's space back. Where that cannot be done the bytes are zeroed all the same.
  engine::Task<Status> release(engine::Loop& loop, Range range);

  // Bytes that the file takes on its file system.
  [[nodiscard]] uint64_t used_bytes() const;
  // The block size of its file system, in bytes: what can be released.
  [[nodiscard]] uint64_t block_size() const;

 private:
  engine::Task<Status> read_cold(engine::Loop& loop, uint64_t offset, MutableByteSpan into);

  Fd fd_;
  engine::Lane lane_;
};

}  // namespace weft::disk
