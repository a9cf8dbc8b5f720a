// SPDX-License-Identifier: BSD-3-Clause
// For tests of the cache filter: clients on threads of their own, over a disk whose calls wait,
// fail and are recorded.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "disk/open_layer.h"
#include "engine/async_mutex.h"
#include "engine/blocking_pool.h"
#include "engine/loop_thread.h"
#include "engine/scope.h"
#include "filters/cache/bell.h"
#include "filters/testing.h"
#include "server/scripted_disk.h"

namespace weft::filters {

using disk::Disk;
using disk::Support;
using disk::Task;
using engine::EngineKind;
using engine::Loop;
using server::Call;
using server::is;
using server::ScriptedPlugin;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kSize = 64 * kBlock + 1000;  // the last block is short

// One connection, on a loop and a thread of its own.
class Client {
 public:
  Client(disk::Plugin& plugin, engine::BlockingPool& pool, EngineKind kind, std::string name = "")
      : thread_(kind, pool, "client"), scope_(thread_.loop()) {
    opened_ = begin([this, &plugin, name](Loop& loop) { return open(plugin, name, loop, *this); });
  }
  ~Client() { leave(); }

  Status opened() { return opened_.get(); }

  // Runs a task on the client's loop, beside others.
  template <typename F>
  std::future<Status> begin(F make) {
    auto promise = std::make_shared<std::promise<Status>>();
    thread_.loop().call(
        [this, make, promise] { scope_.spawn(drive(make, thread_.loop(), promise)); });
    return promise->get_future();
  }

  std::future<Status> write(uint64_t offset, std::string data, bool fua = false) {
    return begin([this, offset, data, fua](Loop& loop) {
      return ordered_write(*disk_, loop, offset, data, fua);
    });
  }
  std::future<Status> zero(Range range, bool fua = false) {
    return begin([this, range, fua](Loop& loop) {
      return ordered_zero(*disk_, loop, range, {.fua = fua, .may_trim = true, .fast = false});
    });
  }
  std::future<Status> trim(Range range) {
    return begin([this, range](Loop& loop) { return ordered_trim(*disk_, loop, range); });
  }
  std::future<Status> flush() {
    return begin([this](Loop&) { return disk_->flush(); });
  }
  std::future<Status> cache(Range range) {
    return begin([this, range](Loop&) { return disk_->cache(range); });
  }
  // The bytes are in `into` when it is done.
  std::future<Status> read(uint64_t offset, std::string& into) {
    return begin([this, offset, &into](Loop&) {
      return disk_->read(offset, std::as_writable_bytes(std::span(into)));
    });
  }
  std::string read_now(Range range) {
    std::string into(range.length, '?');
    const Status done = read(range.offset, into).get();
    EXPECT_TRUE(done);
    return into;
  }
  std::vector<Extent> extents() {
    Extents into({0, disk_->capabilities().size});
    const Status done = begin([&](Loop&) { return disk_->extents(into, false); }).get();
    EXPECT_TRUE(done);
    return into.list();
  }
  const disk::Capabilities& capabilities() { return disk_->capabilities(); }

  void leave() {
    if (disk_) EXPECT_TRUE(begin([this](Loop&) { return disk_->close(); }).get());
    // With this, all that was begun has ended.
    std::promise<void> gone;
    thread_.loop().call([&] {
      disk_.reset();
      gone.set_value();
    });
    gone.get_future().wait();
  }

 private:
  template <typename F>
  static Task<void> drive(F make, Loop& loop, std::shared_ptr<std::promise<Status>> promise) {
    const Status done = co_await make(loop);
    promise->set_value(done);
  }
  static Task<Status> open(disk::Plugin& plugin, std::string name, Loop& loop, Client& self) {
    auto disk = co_await disk::open_layer(plugin, "cache", {.name = name, .loop = loop});
    if (!disk) co_return std::unexpected(disk.error());
    self.disk_ = std::move(*disk);
    co_return Status{};
  }
  static Task<Status> ordered_write(Disk& disk, Loop& loop, uint64_t offset, std::string data,
                                    bool fua) {
    Hold turn(*disk.order(), {offset, data.size()}, loop);
    co_await turn;
    co_return co_await disk.write(offset, std::as_bytes(std::span(data)), fua);
  }
  static Task<Status> ordered_zero(Disk& disk, Loop& loop, Range range, disk::ZeroFlags flags) {
    Hold turn(*disk.order(), range, loop);
    co_await turn;
    co_return co_await disk.zero(range, flags);
  }
  static Task<Status> ordered_trim(Disk& disk, Loop& loop, Range range) {
    Hold turn(*disk.order(), range, loop);
    co_await turn;
    co_return co_await disk.trim(range, false);
  }

  engine::LoopThread thread_;
  engine::Scope scope_;
  std::unique_ptr<Disk> disk_;
  std::future<Status> opened_;
};

inline bool is_pending(std::future<Status>& future) {
  return future.wait_for(std::chrono::milliseconds(50)) == std::future_status::timeout;
}

inline Status result(std::future<Status>& future) {
  if (future.wait_for(std::chrono::seconds(30)) != std::future_status::ready)
    throw std::runtime_error("it hangs");
  return future.get();
}

inline std::string block_of(char letter) {
  return std::string(kBlock, letter);
}

class CacheTest : public testing::TestWithParam<EngineKind> {
 public:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring &&
        engine::choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
  }
  void TearDown() override {
    a.reset();
    b.reset();
    c.reset();
    if (stack && !finished) EXPECT_TRUE(finish());
  }

  // The cache over `scripted`, and three clients.
  void start(Parameters parameters = {}) {
    auto made = std::make_unique<ScriptedPlugin>(kSize, granularity);
    scripted = made.get();
    if (adjust) adjust(*scripted);
    start_over(std::move(made), std::move(parameters));
    for (std::unique_ptr<Client>* client : {&a, &b, &c}) {
      *client = std::make_unique<Client>(*stack, pool, GetParam());
      ASSERT_TRUE((*client)->opened());
    }
  }
  void start_over(std::unique_ptr<disk::Plugin> plugin, Parameters parameters) {
    parameters.insert(parameters.begin(), {"cache-min-block-size", "4096"});
    stack = make_filtered("cache", parameters, std::move(plugin));
    stack->start({.pool = pool});
  }
  Status finish() {
    finished = true;
    const std::unique_ptr<Loop> loop = Loop::create(GetParam(), pool);
    return loop->run_until_done(stack->finish(*loop));
  }
  size_t count(Call::Kind kind) const {
    const std::vector<Call> calls = scripted->started();
    return static_cast<size_t>(
        std::ranges::count_if(calls, [&](const Call& call) { return call.kind == kind; }));
  }
  void hold(Call::Kind kind) {
    scripted->hold([kind](const Call& call) { return is(call, kind); });
  }
  void fail_with(Call::Kind kind, int code) {
    scripted->answer([kind, code](const Call& call) -> Status {
      if (is(call, kind)) return fail(code);
      return {};
    });
  }
  bool soon(const std::function<bool()>& condition) {
    for (int i = 0; i < 3000; i++) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  engine::BlockingPool pool;
  std::function<void(ScriptedPlugin&)> adjust;
  uint64_t granularity = 1;  // of the order of the disk below
  std::unique_ptr<disk::Plugin> stack;
  ScriptedPlugin* scripted = nullptr;  // part of the stack
  std::unique_ptr<Client> a, b, c;
  bool finished = false;
};

using Kind = Call::Kind;

}  // namespace weft::filters
