// SPDX-License-Identifier: BSD-3-Clause
// The order of overlapping changes, over connections on different threads.
#include <gtest/gtest.h>

#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kSize = uint64_t{64} << 20;

bool is_write(const Call& call) {
  return is(call, Call::Kind::kWrite);
}

class Order : public BothEngines {
 protected:
  [[nodiscard]] std::vector<uint64_t> started_offsets() const {
    std::vector<uint64_t> offsets;
    for (const Call& call : plugin.started()) offsets.push_back(call.range.offset);
    return offsets;
  }
  // A request that is answered after all that the client sent before has been looked at.
  static void settle(TestClient& client) { client.ask({.type = nbd::kCmdFlush}); }

  ScriptedPlugin plugin{kSize};
};

INSTANTIATE_TEST_SUITE_P(Engines, Order,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         engine_name);

TEST_P(Order, OverlappingWritesOfTwoConnectionsStartAsTheyArrived) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  std::vector<std::pair<TestClient*, uint64_t>> sent;
  for (uint64_t i = 0; i < 6; i++) {
    TestClient& client = i % 2 ? b : a;
    // Each overlaps the one before and the one after.
    sent.emplace_back(&client, client.send({.type = nbd::kCmdWrite, .offset = i, .length = 8},
                                           std::string(8, static_cast<char>('a' + i))));
    settle(client);
  }
  for (uint64_t i = 0; i < 6; i++) {
    plugin.wait_until_held(1);
    EXPECT_EQ(plugin.held(), 1u);
    plugin.release(is_write);
    EXPECT_EQ(sent[i].first->receive(sent[i].second).error, nbd::kOk);
  }
  std::vector<uint64_t> writes;
  for (const Call& call : plugin.started()) {
    if (is_write(call)) writes.push_back(call.range.offset);
  }
  EXPECT_EQ(writes, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(plugin.content({0, 13}), "abcdeffffffff");
}

TEST_P(Order, AStuckWriteDelaysWhatOverlapsItAndNothingElse) {
  TestHost host(GetParam(), plugin);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  plugin.hold([](const Call& call) { return is_write(call) && call.range.offset == 4096; });
  const uint64_t stuck =
      a.send({.type = nbd::kCmdWrite, .offset = 4096, .length = 4096}, std::string(4096, 's'));
  plugin.wait_until_held(1);
  const uint64_t behind =
      b.send({.type = nbd::kCmdWrite, .offset = 4000, .length = 200}, std::string(200, 'b'));
  const uint64_t zero_behind =
      a.send({.type = nbd::kCmdWriteZeroes, .offset = 8191, .length = uint64_t{32} << 20});
  for (TestClient* client : {&a, &b}) {
    EXPECT_EQ(client->write(0, "x").error, nbd::kOk);
    EXPECT_EQ(client->write(8192 + (uint64_t{32} << 20), "y").error, nbd::kOk);
    EXPECT_EQ(client->read(0, 16384).error, nbd::kOk);  // over all of them
    EXPECT_EQ(client->ask({.type = nbd::kCmdCache, .offset = 4096, .length = 4096}).error,
              nbd::kOk);
    EXPECT_EQ(client->flush().error, nbd::kOk);
  }
  EXPECT_EQ(plugin.held(), 1u);
  plugin.release();
  EXPECT_EQ(a.receive(stuck).error, nbd::kOk);
  EXPECT_EQ(b.receive(behind).error, nbd::kOk);
  EXPECT_EQ(a.receive(zero_behind).error, nbd::kOk);
  EXPECT_EQ(plugin.content({4096, 1}), "b");
  EXPECT_EQ(plugin.content({8190, 2}), std::string("s\0", 2));
}

TEST_P(Order, AWriteOfADeadConnectionThatHasNotStartedIsDropped) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  const uint64_t first = a.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "AAAA");
  plugin.wait_until_held(1);
  b.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "BBBB");
  b.send({.type = nbd::kCmdWrite, .offset = 2, .length = 4}, "bbbb");
  settle(b);
  b.close();
  host.wait_until_connections(1);
  plugin.release();
  EXPECT_EQ(a.receive(first).error, nbd::kOk);
  EXPECT_EQ(a.write(8, "end").error, nbd::kOk);
  EXPECT_EQ(plugin.content({0, 11}), std::string("AAAA\0\0\0\0end", 11));
  EXPECT_EQ(std::ranges::count_if(plugin.started(), is_write), 2);
}

// The connection is cut in the very moment in which its write may start.
TEST_P(Order, AWriteThatMayStartWhenItsConnectionIsFoundDeadIsDropped) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  const uint64_t first = a.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "AAAA");
  plugin.wait_until_held(1);
  b.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "BBBB");
  settle(b);
  std::promise<void> blocked, go_on;
  // The loop of B is busy while B goes and A's write ends: both wait for it afterwards.
  host.worker(1).loop().call([&] {
    blocked.set_value();
    go_on.get_future().wait();
  });
  blocked.get_future().wait();
  plugin.release();
  EXPECT_EQ(a.receive(first).error, nbd::kOk);
  b.close();
  go_on.set_value();
  host.wait_until_connections(1);
  EXPECT_EQ(a.write(4, "more").error, nbd::kOk);
  EXPECT_EQ(plugin.content({0, 8}), "AAAAmore");
}

TEST_P(Order, AWriteThatHasStartedIsWaitedForWhenItsConnectionIsDead) {
  plugin.hold([](const Call& call) { return is_write(call) && call.range.length == 4; });
  TestHost host(GetParam(), plugin);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  a.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "OLD!");
  plugin.wait_until_held(1);
  a.close();
  // B writes again what A gave up on, and newer data.
  const uint64_t again = b.send({.type = nbd::kCmdWrite, .offset = 0, .length = 8}, "new data");
  settle(b);
  EXPECT_FALSE(b.something_to_receive());
  plugin.release();
  EXPECT_EQ(b.receive(again).error, nbd::kOk);
  EXPECT_EQ(b.flush().error, nbd::kOk);
  host.wait_until_connections(1);
  EXPECT_EQ(plugin.content({0, 8}), "new data");
}

// A's write lies in the socket while A's loop is held up. A gives up and goes, B writes newer data
// and is told so: what A wrote must not come after that.
TEST_P(Order, AWriteThatIsReadAfterItsClientLeftNeverUndoesANewerOne) {
  TestHost host(GetParam(), plugin);
  for (const bool waits_for_another : {false, true}) {
    SCOPED_TRACE(waits_for_another);
    TestClient a = host.connect(0);
    TestClient b = host.connect(1);
    std::promise<void> blocked, go_on;
    host.worker(0).loop().call([&] {
      blocked.set_value();
      go_on.get_future().wait();
    });
    blocked.get_future().wait();
    a.send({.type = nbd::kCmdWrite, .offset = 0, .length = 8}, "OLD DATA");
    a.close();
    EXPECT_EQ(b.write(0, "new data").error, nbd::kOk);
    EXPECT_EQ(b.flush().error, nbd::kOk);
    uint64_t held = 0;
    if (waits_for_another) {
      plugin.hold(is_write);
      held = b.send({.type = nbd::kCmdWrite, .offset = 7, .length = 1}, "a");
      plugin.wait_until_held(1);
    }
    go_on.set_value();
    host.wait_until_connections(1);
    if (waits_for_another) {
      plugin.release();
      EXPECT_EQ(b.receive(held).error, nbd::kOk);
    }
    EXPECT_EQ(plugin.content({0, 8}), "new data");
    b.disconnect();
    host.wait_until_connections(0);
  }
}

TEST_P(Order, DiscLetsAllThatWasSentBeforeEndWell) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0);
  constexpr uint64_t kWrites = 20;
  for (uint64_t i = 0; i < kWrites; i++) {
    client.send({.type = nbd::kCmdWrite, .offset = i, .length = 20},
                std::string(20, static_cast<char>('a' + i)));
  }
  client.disconnect();
  plugin.wait_until_held(1);
  plugin.release();
  for (uint64_t i = 0; i < kWrites; i++) EXPECT_EQ(client.receive().error, nbd::kOk);
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(client.unread(), 0u);
  EXPECT_EQ(plugin.content({0, 20}), "abcdefghijklmnopqrst");
  EXPECT_EQ(std::ranges::count_if(plugin.started(), is_write), static_cast<long>(kWrites));
}

// DISC, and gone without waiting: the writes are done all the same.
TEST_P(Order, DiscCountsAlthoughTheClientHasGone) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0);
  std::string bytes;
  for (uint64_t i = 0; i < 3; i++) {
    bytes += client.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 4},
                           std::string(4, static_cast<char>('a' + i)));
  }
  client.send_bytes(bytes + client.encode({.type = nbd::kCmdDisc}));
  client.close();
  plugin.wait_until_held(1);
  plugin.release();
  host.wait_until_connections(0);
  EXPECT_EQ(plugin.content({0, 4}), "cccc");
}

TEST_P(Order, ALongZeroIsDoneAndGivenFreeInPieces) {
  constexpr uint64_t kPiece = Transmission::kPieceMin;
  ScriptedPlugin large(uint64_t{1} << 40);
  large.hold([](const Call& call) { return is(call, Call::Kind::kZero); });
  TestHost host(GetParam(), large);
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  {
    const uint64_t zero = a.send({.flags = nbd::kFlagFua,
                                  .type = nbd::kCmdWriteZeroes,
                                  .offset = 1000,
                                  .length = 3 * kPiece});
    large.wait_until_held(1);
    // What lies in the first piece waits for the first piece alone.
    const uint64_t first = b.send({.type = nbd::kCmdWrite, .offset = 5000, .length = 5}, "first");
    const uint64_t last =
        b.send({.type = nbd::kCmdWrite, .offset = 3 * kPiece, .length = 4}, "last");
    EXPECT_EQ(b.write(500, "before").error, nbd::kOk);
    EXPECT_EQ(b.write(1000 + 3 * kPiece, "after").error, nbd::kOk);
    large.release([](const Call&) { return true; });
    EXPECT_EQ(b.receive(first).error, nbd::kOk);
    large.wait_until_held(1);
    b.flush();
    EXPECT_FALSE(b.something_to_receive());
    large.release();
    EXPECT_EQ(b.receive(last).error, nbd::kOk);
    EXPECT_EQ(a.receive(zero).error, nbd::kOk);
    EXPECT_EQ(large.content({5000, 5}), "first");
  }
  uint64_t next = 1000;
  size_t pieces = 0;
  for (const Call& call : large.started()) {
    if (!is(call, Call::Kind::kZero)) continue;
    EXPECT_EQ(call.range.offset, next);
    EXPECT_FALSE(call.fua);  // a flush at the end instead
    next = call.range.end();
    pieces++;
  }
  EXPECT_EQ(next, 1000 + 3 * kPiece);
  EXPECT_GE(pieces, 2u);
  // One of them B's own.
  EXPECT_EQ(std::ranges::count_if(large.started(),
                                  [](const Call& call) { return is(call, Call::Kind::kFlush); }),
            2);
}

TEST_P(Order, ALongTrimEndsAtTheFirstErrorAndOnDeath) {
  ScriptedPlugin large((uint64_t{1} << 63) - 1);
  large.answer([](const Call& call) -> Status {
    if (is(call, Call::Kind::kTrim) && call.range.offset > 0) return fail(ENOSPC);
    return {};
  });
  TestHost host(GetParam(), large);
  TestClient a = host.connect(0, {.want_extended = true});
  EXPECT_EQ(a.ask({.type = nbd::kCmdTrim, .offset = 0, .length = (uint64_t{1} << 63) - 1}).error,
            nbd::kEnospc);
  // All of the largest disk, and all of it held up at the first piece when the client goes.
  large.answer(nullptr);
  EXPECT_EQ(a.ask({.type = nbd::kCmdTrim, .offset = 0, .length = (uint64_t{1} << 63) - 1}).error,
            nbd::kOk);
  const size_t before = large.started().size();
  large.hold([](const Call& call) { return is(call, Call::Kind::kTrim); });
  a.send({.type = nbd::kCmdTrim, .offset = 0, .length = (uint64_t{1} << 63) - 1});
  large.wait_until_held(1);
  a.close();
  TestClient b = host.connect(0);
  const uint64_t behind = b.send({.type = nbd::kCmdWrite, .offset = 0, .length = 1}, "x");
  b.flush();
  large.release();
  EXPECT_EQ(b.receive(behind).error, nbd::kOk);
  host.wait_until_connections(1);
  size_t trims = 0;
  for (size_t i = before; i < large.started().size(); i++) {
    trims += is(large.started()[i], Call::Kind::kTrim);
  }
  EXPECT_EQ(trims, 1u);
}

// With a limit on how many run at once the order is the same, and nothing is stuck.
TEST_P(Order, ALimitOnRunningRequestsKeepsTheOrder) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin, TestHost::kMemory, Config{.requests_max = 1});
  TestClient a = host.connect(0);
  TestClient b = host.connect(1);
  constexpr uint64_t kWrites = 1000;
  for (uint64_t i = 0; i < kWrites; i++) {
    const std::string data(100, static_cast<char>('a' + i % 26));
    (i % 2 ? a : b).send({.type = nbd::kCmdWrite, .offset = i * 10, .length = 100}, data);
  }
  plugin.wait_until_held(1);
  plugin.release();
  for (uint64_t i = 0; i < kWrites; i++) {
    ASSERT_EQ((i % 2 ? a : b).receive().error, nbd::kOk) << i;
  }
  // Dropped while they wait for their turn, having heard that they may start.
  plugin.hold(is_write);
  for (int i = 0; i < 5; i++) {
    a.send({.type = nbd::kCmdWrite, .offset = uint64_t(i / 2), .length = 1}, "z");
  }
  const uint64_t other = b.send({.type = nbd::kCmdWrite, .offset = 100, .length = 1}, "o");
  plugin.wait_until_held(2);
  a.close();
  plugin.release();
  EXPECT_EQ(b.receive(other).error, nbd::kOk);
  host.wait_until_connections(1);
}

}  // namespace
}  // namespace weft::server
