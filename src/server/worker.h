// SPDX-License-Identifier: BSD-3-Clause
// Worker: one thread with its loop and the connections that belong to it.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "base/fd.h"
#include "engine/loop.h"
#include "engine/scope.h"
#include "server/connection.h"

namespace weft::server {

class Worker {
 public:
  // `ended` is called on the worker's thread for each connection that has ended.
  Worker(Shared& shared, engine::EngineKind engine, engine::BlockingPool& pool,
         std::function<void()> ended);
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Serves until stop() was called and the last connection has ended. Awaited on the worker's loop
  // by who runs that, or run by a thread of the worker's own: start() and join().
  engine::Task<void> serve();
  void start();
  void join() { thread_.join(); }

  // From any thread.
  void adopt(Fd in, Fd out);
  void drain();
  void give_up();
  void end_all();
  void stop();
  // Looks for clients that hold others up, as if it were `now`; done at intervals anyway.
  void check_progress(engine::Clock::time_point now);

  [[nodiscard]] engine::Loop& loop() { return *loop_; }

 private:
  engine::Task<void> serve_connection(Fd in, Fd out);
  engine::Task<void> watch_progress();
  void check_connections(engine::Clock::time_point now);

  Shared& shared_;
  std::unique_ptr<engine::Loop> loop_;
  LoopResources resources_;
  engine::Scope connections_;
  engine::Signal changed_;
  engine::Timer progress_timer_;
  std::function<void()> ended_;
  Connection* first_ = nullptr;
  bool draining_ = false;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace weft::server
