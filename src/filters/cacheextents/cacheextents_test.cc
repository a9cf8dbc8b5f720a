// SPDX-License-Identifier: BSD-3-Clause
// What is remembered while others change the disk.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "disk/open_layer.h"
#include "engine/blocking_pool.h"
#include "filters/gated_disk.h"
#include "filters/testing.h"

namespace weft::filters {
namespace {

using disk::Disk;
using disk::Task;

constexpr uint64_t kSize = 1 << 20;
constexpr uint32_t kHole = kExtentHole | kExtentZero;

Task<void> ask(Disk& disk, uint32_t& flags) {
  Extents extents({0, kSize});
  EXPECT_TRUE(co_await disk.extents(extents, true));
  EXPECT_EQ(extents.list().size(), 1u);
  flags = extents.list().at(0).flags;
}

Task<void> change(Disk& disk, bool& done) {
  const std::vector<std::byte> bytes(512);
  EXPECT_TRUE(co_await disk.write(0, bytes, false));
  done = true;
}

class CacheextentsTest : public testing::Test {
 protected:
  void SetUp() override {
    plugin = make_filtered("cacheextents", {}, std::make_unique<GatedPlugin>(gates, kSize));
    plugin->start({.pool = pool});
    one = open();
    two = open();
  }
  void TearDown() override {
    EXPECT_TRUE(loop->run_until_done(one->close()));
    EXPECT_TRUE(loop->run_until_done(two->close()));
  }
  std::unique_ptr<Disk> open() {
    return std::move(*loop->run_until_done(disk::open_layer(
        *plugin, "cacheextents", {.name = "", .read_only = false, .loop = *loop})));
  }
  uint32_t ask_now(Disk& disk) {
    uint32_t flags = 99;
    loop->run_until_done(ask(disk, flags));
    return flags;
  }
  void settle() { loop->run_until_done(engine::done()); }
  void open_gates_and_join(engine::Scope& scope) {
    gates.open_all();
    auto join = [](engine::Scope& all) -> Task<void> { co_await all.join(); };
    loop->run_until_done(join(scope));
  }

  engine::BlockingPool pool;
  std::unique_ptr<engine::Loop> loop = engine::Loop::create(engine::EngineKind::kEpoll, pool);
  Gates gates{*loop};
  std::unique_ptr<disk::Plugin> plugin;
  std::unique_ptr<Disk> one;
  std::unique_ptr<Disk> two;
};

TEST_F(CacheextentsTest, RemembersForAllConnections) {
  EXPECT_EQ(ask_now(*one), kHole);
  EXPECT_EQ(ask_now(*two), kHole);
  EXPECT_EQ(gates.extents_calls, 1);
}

TEST_F(CacheextentsTest, AnAnswerThatAChangeOvertookIsNotRemembered) {
  engine::Scope scope(*loop);
  uint32_t old = 99;
  bool changed = false;
  gates.hold_extents = true;
  scope.spawn(ask(*one, old));
  scope.spawn(change(*two, changed));
  settle();
  ASSERT_TRUE(changed);
  open_gates_and_join(scope);
  EXPECT_EQ(old, kHole);  // it was asked for before
  EXPECT_EQ(ask_now(*one), kExtentData);
  EXPECT_EQ(ask_now(*two), kExtentData);
}

TEST_F(CacheextentsTest, AnAnswerGivenDuringAChangeIsNotRemembered) {
  engine::Scope scope(*loop);
  bool changed = false;
  gates.hold_write = true;
  scope.spawn(change(*two, changed));
  settle();
  ASSERT_FALSE(changed);
  EXPECT_EQ(ask_now(*one), kHole);
  EXPECT_EQ(ask_now(*one), kHole);
  EXPECT_EQ(gates.extents_calls, 2);
  open_gates_and_join(scope);
  ASSERT_TRUE(changed);
  EXPECT_EQ(ask_now(*one), kExtentData);
}

TEST_F(CacheextentsTest, AnAnswerAskedForDuringAChangeThatEndsFirstIsNotRemembered) {
  engine::Scope scope(*loop);
  bool changed = false;
  uint32_t old = 99;
  gates.hold_write = gates.hold_extents = true;
  scope.spawn(change(*two, changed));
  scope.spawn(ask(*one, old));
  settle();
  gates.hold_write = false;
  gates.signal.notify_all();
  settle();
  ASSERT_TRUE(changed);
  open_gates_and_join(scope);
  EXPECT_EQ(ask_now(*one), kExtentData);
  EXPECT_EQ(ask_now(*one), kExtentData);
  EXPECT_EQ(gates.extents_calls, 2);
}

}  // namespace
}  // namespace weft::filters
