// SPDX-License-Identifier: BSD-3-Clause
// Store: the bytes of the disk, in memory or in a file. It has no faults of its own but one:
// whether a failed sync stays an error is the caller's choice.
//
// Any thread, any overlap. A byte is a register: reads and writes of it are linearizable.
#pragma once

#include <cstdint>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/range.h"
#include "base/result.h"

namespace weft::check::broken {

class Store {
 public:
  // In memory, zeroes. Bytes.
  explicit Store(uint64_t size) : memory_(size), size_(size) {}
  // A file that exists, its content and its size. Throws ConfigError.
  explicit Store(const std::string& path);

  [[nodiscard]] uint64_t size() const { return size_; }  // bytes

  // Each within size().
  Status read(uint64_t offset, MutableByteSpan into);
  Status write(uint64_t offset, ByteSpan from);
  // ENOTSUP with `fast`: it would take a write.
  Status zero(Range range, bool fast);
  Status trim(Range range);
  // Everything written before is durable. One at a time; from the first that fails on each one
  // fails, because what was lost cannot be found again; unless `forgetful`.
  Status sync(bool forgetful);

 private:
  Status fallocate(int mode, Range range);

  Fd file_;
  std::vector<std::byte> memory_;
  std::shared_mutex memory_lock_;
  uint64_t size_;
  std::mutex sync_lock_;
  int sync_error_ = 0;  // errno
};

}  // namespace weft::check::broken
