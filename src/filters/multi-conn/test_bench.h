// SPDX-License-Identifier: BSD-3-Clause
// For tests: the filter over a PrivatePlugin, with connections on loops that have threads of their
// own.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "disk/open_layer.h"
#include "disk/turn.h"
#include "engine/blocking_pool.h"
#include "engine/elsewhere.h"
#include "engine/loop_thread.h"
#include "engine/scope.h"
#include "filters/multi-conn/private_disk.h"
#include "filters/testing.h"

namespace weft::filters {

class MultiConnBench {
 public:
  struct Connection {
    std::unique_ptr<disk::Disk> disk;
    disk::Loop* loop;
  };

  explicit MultiConnBench(const Parameters& parameters, uint64_t blocks = 16) {
    auto made = std::make_unique<PrivatePlugin>(blocks);
    plugin = made.get();
    layer_ = {{&find_filter("multi-conn"), parameters}};
    stack = disk::make_stack(layer_, std::move(made), "private");
  }
  ~MultiConnBench() { EXPECT_EQ(plugin->open_disks(), 0); }

  // After the plugin's settings.
  void start(size_t loops = 2, bool one_connection = false) {
    stack->config_complete();
    stack->start({.pool = pool, .one_connection = one_connection});
    for (size_t i = 0; i < loops; i++) {
      threads.push_back(
          std::make_unique<engine::LoopThread>(engine::EngineKind::kEpoll, pool, "test"));
    }
  }

  // Runs what `make` returns on a loop, and waits for it here.
  template <typename F>
  auto run_on(disk::Loop& loop, F make) {
    return main->run_until_done(engine::run_elsewhere(*main, loop, std::move(make)));
  }

  Result<Connection> try_connect() {
    disk::Loop& loop = threads[next_++ % threads.size()]->loop();
    auto opened = run_on(loop, [&] {
      return disk::open_layer(*stack, "top", {.name = "", .read_only = false, .loop = loop});
    });
    if (!opened) return std::unexpected(opened.error());
    return Connection{std::move(*opened), &loop};
  }
  Connection connect() { return std::move(*try_connect()); }

  std::string read(Connection& on, uint64_t offset, size_t length) {
    std::vector<std::byte> bytes(length);
    EXPECT_TRUE(run_on(*on.loop, [&] { return on.disk->read(offset, bytes); }));
    return {reinterpret_cast<const char*>(bytes.data()), length};
  }
  // In its turn, as in a server.
  static disk::Task<Status> ordered_write(Connection& on, uint64_t offset, std::string text,
                                          bool fua) {
    disk::Turn turn(*on.disk, {offset, text.size()}, *on.loop);
    co_await turn;
    const Status done =
        co_await on.disk->write(offset, std::as_bytes(std::span<const char>(text)), fua);
    turn.leave();
    co_return done;
  }
  Status write(Connection& on, uint64_t offset, const std::string& text, bool fua = false) {
    return run_on(*on.loop, [&] { return ordered_write(on, offset, text, fua); });
  }
  Status trim(Connection& on, Range range) {
    return run_on(*on.loop, [&] { return on.disk->trim(range, false); });
  }
  Status flush(Connection& on) {
    return run_on(*on.loop, [&] { return on.disk->flush(); });
  }
  Status close(Connection& on) {
    const Status closed = run_on(*on.loop, [&] { return on.disk->close(); });
    run_on(*on.loop, [&]() -> disk::Task<Status> {
      on.disk.reset();
      return Status{};
    }).value();
    return closed;
  }

  engine::BlockingPool pool;
  PrivatePlugin* plugin;
  std::unique_ptr<disk::Plugin> stack;
  std::unique_ptr<disk::Loop> main = disk::Loop::create(engine::EngineKind::kEpoll, pool);
  std::vector<std::unique_ptr<engine::LoopThread>> threads;

 private:
  std::vector<disk::Layer> layer_;
  size_t next_ = 0;
};

}  // namespace weft::filters
