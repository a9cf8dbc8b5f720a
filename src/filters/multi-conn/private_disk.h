// SPDX-License-Identifier: BSD-3-Clause
// For tests: a disk that remembers blocks for each connection, in the ways that hurt most.
//
// A connection keeps every block that it reads or writes. What it writes stays with it until it is
// flushed, and is published in whole blocks; then it forgets what is clean. Each call hesitates at
// random between its steps, so that a read may fetch a block, sleep through a flush, and only then
// put into the connection's memory what it has fetched.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <vector>

#include "disk/change_order.h"
#include "disk/disk.h"
#include "engine/async_mutex.h"

namespace weft::filters {

class PrivatePlugin final : public disk::Plugin {
 public:
  static constexpr uint32_t kBlock = 512;

  explicit PrivatePlugin(uint64_t blocks)
      : content_(blocks, std::vector<std::byte>(kBlock)), order_(kBlock) {}

  // Before the first connection.
  bool remembers = true;  // false: all connections see each other's writes at once
  bool can_flush = true;
  bool hesitates = false;
  disk::ThreadModel model = disk::ThreadModel::kParallel;

  // What a flush of a connection ends with, and what it waits for before. The connections are
  // numbered from 0 in the order in which they were opened. Called on their loops' threads.
  std::function<Status(int connection)> flush_result;
  std::function<disk::Task<void>(disk::Loop& loop, int connection)> before_flush;
  std::function<disk::Task<void>(disk::Loop& loop, int connection)> before_write_ends;

  [[nodiscard]] int flushes() const { return flushes_; }
  [[nodiscard]] int flushes_at_once_max() const { return at_once_max_; }
  [[nodiscard]] bool overlapped() const { return overlapped_; }  // two calls of one connection
  [[nodiscard]] int open_disks() const { return open_disks_; }

  void config(std::string_view, std::string_view) override {}
  [[nodiscard]] disk::ThreadModel own_thread_model() const override { return model; }
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override;

 private:
  friend class PrivateDisk;
  std::mutex mutex_;
  std::vector<std::vector<std::byte>> content_;  // published
  disk::ChangeOrder order_;
  std::atomic<int> opened_{0};
  std::atomic<int> open_disks_{0};
  std::atomic<int> flushes_{0};
  std::atomic<int> flushing_{0};
  std::atomic<int> at_once_max_{0};
  std::atomic<bool> overlapped_{false};
};

}  // namespace weft::filters
