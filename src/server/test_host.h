// SPDX-License-Identifier: BSD-3-Clause
// For tests: some workers, each with its thread, that serve a plugin to clients on socket pairs.
#pragma once

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "engine/blocking_pool.h"
#include "server/scripted_disk.h"
#include "server/test_client.h"
#include "server/worker.h"

namespace weft::server {

class TestHost {
 public:
  static constexpr uint64_t kMemory = uint64_t{256} << 20;

  TestHost(engine::EngineKind engine, ScriptedPlugin& plugin, uint64_t memory = kMemory,
           const Config& config = {}, size_t workers = 2)
      : plugin_(plugin), shared_(config, plugin, memory) {
    for (size_t i = 0; i < workers; i++) {
      workers_.push_back(
          std::make_unique<Worker>(shared_, engine, pool_, [this] { connection_ended(); }));
      workers_.back()->start();
    }
  }

  // The clients are gone, or are gone when they are drained.
  ~TestHost() {
    plugin_.release();
    for (auto& worker : workers_) worker->drain();
    for (auto& worker : workers_) worker->stop();
    for (auto& worker : workers_) worker->join();
    EXPECT_EQ(memory_used(), 0u);
    EXPECT_EQ(plugin_.open_disks(), 0);
  }

  // A client that has not said anything yet.
  TestClient connect_raw(size_t worker = 0) {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
      throw std::runtime_error("socketpair failed");
    }
    adopt(Fd(fds[0]), worker);
    return TestClient(Fd(fds[1]));
  }
  void adopt(Fd stream, size_t worker) {
    {
      std::lock_guard lock(mutex_);
      connections_++;
    }
    workers_[worker]->adopt(std::move(stream), Fd());
  }
  TestClient connect(size_t worker = 0, nbd::ClientConfig config = {}) {
    TestClient client = connect_raw(worker);
    client.negotiate(std::move(config));
    return client;
  }

  // Calls f on a worker's thread, and waits until it was called.
  template <typename F>
  void run_on(size_t worker, F f) {
    std::promise<void> called;
    workers_[worker]->loop().call([&] {
      f();
      called.set_value();
    });
    called.get_future().wait();
  }

  void wait_until_connections(size_t count) {
    std::unique_lock lock(mutex_);
    const auto reached = [&] { return connections_ == count; };
    if (!changed_.wait_for(lock, TestClient::kPatience, reached)) {
      throw std::runtime_error("a connection did not end");
    }
  }

  [[nodiscard]] uint64_t memory_used() const { return shared_.budget.used(); }
  Worker& worker(size_t i) { return *workers_[i]; }

 private:
  void connection_ended() {
    std::lock_guard lock(mutex_);
    connections_--;
    changed_.notify_all();
  }

  ScriptedPlugin& plugin_;
  engine::BlockingPool pool_;
  Shared shared_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t connections_ = 0;
  std::vector<std::unique_ptr<Worker>> workers_;
};

// The tests of a suite, on both engines.
class BothEngines : public testing::TestWithParam<engine::EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == engine::EngineKind::kUring &&
        engine::choose_engine("auto").kind != engine::EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
  }
};

inline std::string engine_name(const testing::TestParamInfo<engine::EngineKind>& info) {
  return info.param == engine::EngineKind::kUring ? "IoUring" : "Epoll";
}

}  // namespace weft::server
