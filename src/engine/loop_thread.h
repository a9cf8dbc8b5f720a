// SPDX-License-Identifier: BSD-3-Clause
// LoopThread: a loop with a thread of its own, for work that belongs to no connection.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "engine/loop.h"

namespace weft::engine {

class LoopThread {
 public:
  // `name`: of the thread, at most 15 characters. `pool` outlives it.
  LoopThread(EngineKind kind, BlockingPool& pool, const std::string& name);
  // Nothing is on the loop any more; waits for the thread.
  ~LoopThread();
  LoopThread(const LoopThread&) = delete;
  LoopThread& operator=(const LoopThread&) = delete;

  [[nodiscard]] Loop& loop() { return *loop_; }

 private:
  std::unique_ptr<Loop> loop_;
  std::thread thread_;
};

}  // namespace weft::engine
