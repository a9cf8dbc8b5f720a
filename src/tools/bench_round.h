// SPDX-License-Identifier: BSD-3-Clause
// One round of all clients of nbdbench: their threads, and what the leading thread does meanwhile.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <thread>
#include <vector>

#include "tools/bench_client.h"

namespace weft::tools {

using Clients = std::vector<std::unique_ptr<BenchClient>>;

// The threads of one round. They end by themselves; the destructor waits for them.
class Round {
 public:
  // `clients` are those that have begun; they are shared out among at most `threads` threads.
  Round(const std::vector<BenchClient*>& clients, uint32_t threads);

  [[nodiscard]] bool over() const { return running_.load() == 0; }
  // When the last thread ended; once over().
  [[nodiscard]] uint64_t ended_ns() const { return ended_ns_.load(); }

 private:
  std::atomic<size_t> running_;
  std::atomic<uint64_t> ended_ns_ = 0;
  std::vector<std::jthread> threads_;
};

// Gives up clients whose server shows no sign of life.
class Watchdog {
 public:
  Watchdog(const Clients& clients, uint64_t timeout_ns)
      : clients_(clients), timeout_ns_(timeout_ns), seen_(clients.size()) {}

  void look();

 private:
  struct Seen {
    uint64_t activity = 0;
    uint64_t since_ns = 0;
  };
  const Clients& clients_;
  const uint64_t timeout_ns_;
  std::vector<Seen> seen_;
};

// A line on the terminal that says how it goes, twice a second; the destructor removes it.
class Progress {
 public:
  // `wanted` is without effect when standard error is no terminal.
  Progress(const Clients& clients, uint32_t block_size, bool wanted);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void look(std::string_view what);

 private:
  [[nodiscard]] uint64_t total() const;

  const bool shown_;
  const uint32_t block_size_;
  const Clients& clients_;
  const uint64_t start_ns_;
  uint64_t last_ns_;
  uint64_t last_operations_;
};

}  // namespace weft::tools
