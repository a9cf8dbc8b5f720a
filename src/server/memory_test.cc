// SPDX-License-Identifier: BSD-3-Clause
// The budget: clients that hold memory and do not get on never hold up the others, and all of it
// comes back (which every TestHost looks at in its end).
#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kSize = uint64_t{64} << 20;
constexpr uint64_t kMiB = 1 << 20;

bool is_write(const Call& call) {
  return is(call, Call::Kind::kWrite);
}

class Memory : public BothEngines {
 protected:
  // Lets half a minute pass for the host, again and again, until `done`.
  template <typename Done>
  static void let_time_pass(TestHost& host, Done done) {
    auto now = engine::Clock::now();
    const auto patience = now + TestClient::kPatience;
    while (!done() && engine::Clock::now() < patience) {
      now += std::chrono::seconds(31);
      for (size_t i = 0; i < 2; i++) {
        host.worker(i).check_progress(now);
        host.run_on(i, [] {});
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_TRUE(done());
  }

  // Sends reads until the server takes no more of them.
  static void ask_and_never_listen(TestClient& client, uint64_t length) {
    std::string requests;
    for (int i = 0; i < 20000; i++) {
      requests += client.encode({.type = nbd::kCmdRead, .offset = 0, .length = length});
    }
    client.send_some(requests);
  }

  // Small requests of another client are served, many at once, though no memory is left.
  static void expect_served(TestClient& client) {
    for (int round = 0; round < 3; round++) {
      std::vector<uint64_t> cookies;
      for (uint64_t i = 0; i < 64; i++) {
        const nbd::Request read{.type = nbd::kCmdRead, .offset = i * 4096, .length = 4096};
        const nbd::Request write{.type = nbd::kCmdWrite, .offset = i * 4096, .length = 4096};
        cookies.push_back(client.send(write, std::string(4096, 'w')));
        cookies.push_back(client.send(read));
      }
      for (const uint64_t cookie : cookies) EXPECT_EQ(client.receive(cookie).error, nbd::kOk);
    }
    EXPECT_EQ(client.write(4096, std::string(65536, 'x')).error, nbd::kOk);
    EXPECT_EQ(client.read(4096, 65536).data, std::string(65536, 'x'));
  }

  ScriptedPlugin plugin{kSize};
};

INSTANTIATE_TEST_SUITE_P(Engines, Memory,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         engine_name);

TEST_P(Memory, AClientThatNeverReceivesHoldsNobodyUp) {
  TestHost host(GetParam(), plugin, 4 * kMiB);
  TestClient other = host.connect(1);
  for (const size_t worker : {0, 1}) {
    TestClient bad = host.connect(worker);
    ask_and_never_listen(bad, kMiB);
    EXPECT_LE(host.memory_used(), 4 * kMiB);
    expect_served(other);
    // What needs more than the small share waits for the bad client's end.
    const uint64_t large = other.send({.type = nbd::kCmdRead, .offset = 0, .length = 4 * kMiB});
    let_time_pass(host, [&] { return other.something_to_receive(); });
    EXPECT_EQ(other.receive(large).data.size(), 4 * kMiB);
    EXPECT_TRUE(bad.closed_by_server());
  }
}

// Its end is seen before its silence: the half-closed connection must not last for ever either.
TEST_P(Memory, AClientThatEndsItsSideAndNeverReceivesIsEnded) {
  TestHost host(GetParam(), plugin, 64 * kMiB);
  for (const bool disc : {false, true}) {
    TestClient bad = host.connect(0);
    std::string requests;
    for (int i = 0; i < 4; i++) {
      requests += bad.encode({.type = nbd::kCmdRead, .offset = 0, .length = kMiB});
    }
    if (disc) requests += bad.encode({.type = nbd::kCmdDisc});
    bad.send_bytes(requests);
    bad.shutdown_output();
    std::mutex mutex;
    bool ended = false;
    std::thread waiter([&] {
      host.wait_until_connections(0);
      std::lock_guard lock(mutex);
      ended = true;
    });
    let_time_pass(host, [&] {
      std::lock_guard lock(mutex);
      return ended;
    });
    waiter.join();
  }
}

TEST_P(Memory, ClientsThatPromiseMuchAndStallHoldNobodyUp) {
  TestHost host(GetParam(), plugin, 64 * kMiB);
  TestClient other = host.connect(1);
  std::vector<TestClient> bad;
  for (size_t i = 0; i < 7; i++) {
    bad.push_back(host.connect(i % 2));
    // All but the last byte of it, or next to nothing.
    const nbd::Request request{.type = nbd::kCmdWrite, .offset = 0, .length = 32 * kMiB};
    bad.back().send_some(bad.back().encode(request) + std::string(i % 2 ? 100'000 : 1, 'p'));
  }
  EXPECT_LE(host.memory_used(), 64 * kMiB);
  expect_served(other);
  let_time_pass(host, [&] {
    return std::ranges::all_of(bad,
                               [](TestClient& client) { return client.something_to_receive(); });
  });
  EXPECT_EQ(other.write(0, std::string(32 * kMiB, 'l')).error, nbd::kOk);
  EXPECT_EQ(plugin.content({32 * kMiB - 1, 1}), "l");
  for (TestClient& client : bad) EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(std::ranges::count_if(plugin.started(),
                                  [](const Call& call) { return call.range.length == 32 * kMiB; }),
            1);
}

// Slow is not stalled: who gets on, and who holds nothing, stays.
TEST_P(Memory, ASlowClientAndAnIdleOneStay) {
  TestHost host(GetParam(), plugin, 64 * kMiB);
  TestClient idle = host.connect(0);
  TestClient slow = host.connect(0);
  const std::string data(32 * kMiB, 's');
  uint64_t cookie = 0;
  const std::string bytes =
      slow.encode({.type = nbd::kCmdWrite, .offset = 0, .length = data.size()}, data, &cookie);
  auto now = engine::Clock::now();
  constexpr size_t kStep = 50'000;
  size_t sent = 0;
  for (int i = 0; i < 20; i++, sent += kStep) {
    slow.send_bytes(std::string_view(bytes).substr(sent, kStep));
    now += std::chrono::seconds(29);
    // The bytes are taken by the server before the time passes.
    int unread = 1;
    while (unread > 0) {
      host.run_on(0, [] {});
      ASSERT_EQ(::ioctl(slow.fd(), TIOCOUTQ, &unread), 0);
    }
    host.run_on(0, [] {});
    host.worker(0).check_progress(now);
  }
  slow.send_bytes(std::string_view(bytes).substr(sent));
  EXPECT_EQ(slow.receive(cookie).error, nbd::kOk);
  EXPECT_EQ(idle.write(0, "still there").error, nbd::kOk);
}

TEST_P(Memory, ARequestLargerThanAllMemoryIsServedWhenItIsAlone) {
  TestHost host(GetParam(), plugin, kMiB);
  std::vector<TestClient> clients;
  std::vector<uint64_t> cookies;
  for (size_t i = 0; i < 4; i++) {
    clients.push_back(host.connect(i % 2));
    cookies.push_back(
        clients.back().send({.type = nbd::kCmdRead, .offset = 0, .length = 8 * kMiB}));
    // Small writes of the same client, which its large request must not wait for for ever.
    clients.back().send({.type = nbd::kCmdWrite, .offset = 0, .length = 1000},
                        std::string(1000, 'w'));
  }
  // They get their turns in no order that is known here, so all of them must listen.
  const auto lacks = [](TestClient& client) {
    return !client.something_to_receive() || client.unread() < 8 * kMiB;
  };
  while (std::ranges::count_if(clients, lacks) > 0) std::this_thread::yield();
  for (size_t i = 0; i < 4; i++) {
    EXPECT_EQ(clients[i].receive(cookies[i]).data.size(), 8 * kMiB);
  }
}

// Many writes behind one that is stuck: they take no more than what there is, and the client may
// still do other things as long as there is any.
TEST_P(Memory, WritesBehindAStuckOneTakeNoMoreThanThereIs) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin, 2 * kMiB);
  TestClient client = host.connect(0);
  TestClient other = host.connect(1);
  std::string bytes;
  std::vector<uint64_t> cookies;
  for (int i = 0; i < 400; i++) {
    bytes += client.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 60'000},
                           std::string(60'000, 'w'), &cookies.emplace_back());
  }
  const size_t sent = client.send_some(bytes);
  EXPECT_LT(sent, bytes.size());
  EXPECT_LE(host.memory_used(), 2 * kMiB);
  for (int i = 0; i < 100; i++) EXPECT_EQ(other.read(0, 60'000).error, nbd::kOk);
  plugin.release();
  client.send_bytes(std::string_view(bytes).substr(sent));
  for (const uint64_t cookie : cookies) EXPECT_EQ(client.receive(cookie).error, nbd::kOk);
}

TEST_P(Memory, TinyWritesBehindAStuckOneTakeLittle) {
  plugin.hold(is_write);
  TestHost host(GetParam(), plugin, 2 * kMiB);
  TestClient client = host.connect(0);
  std::vector<uint64_t> cookies;
  for (int i = 0; i < 1000; i++) {  // one by one
    cookies.push_back(
        client.send({.type = nbd::kCmdWrite, .offset = 0, .length = 10}, std::string(10, 'w')));
    ASSERT_EQ(client.flush().error, nbd::kOk);
  }
  EXPECT_EQ(host.memory_used(), 0u);
  plugin.release();
  for (const uint64_t cookie : cookies) EXPECT_EQ(client.receive(cookie).error, nbd::kOk);
}

// A client dies while it waits for memory, with a write in the order that others wait for.
TEST_P(Memory, AClientThatDiesWaitingForMemoryLetsGoOfItsWrites) {
  TestHost host(GetParam(), plugin, kMiB);
  TestClient hog = host.connect(0);
  ask_and_never_listen(hog, kMiB);
  plugin.hold(is_write);
  TestClient first = host.connect(1);
  const uint64_t one = first.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "1111");
  plugin.wait_until_held(1);
  TestClient dying = host.connect(1);
  dying.send_bytes(dying.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "dead") +
                   dying.encode({.type = nbd::kCmdFlush}) +
                   dying.encode({.type = nbd::kCmdRead, .offset = 0, .length = kMiB}));
  dying.receive();  // the flush: the others are read
  TestClient last = host.connect(0);
  const uint64_t two = last.send({.type = nbd::kCmdWrite, .offset = 0, .length = 2}, "22");
  last.flush();
  dying.close();
  plugin.release();
  EXPECT_EQ(first.receive(one).error, nbd::kOk);
  EXPECT_EQ(last.receive(two).error, nbd::kOk);
  EXPECT_EQ(plugin.content({0, 4}), "2211");
  host.wait_until_connections(3);
}

// Gone at every state that has memory: nothing is left over, and nothing hangs.
TEST_P(Memory, ClientsThatGoAtAnyMomentLeaveNothing) {
  plugin.hold([](const Call& call) { return call.range.offset == 0 && call.range.length != 0; });
  TestHost host(GetParam(), plugin, 8 * kMiB);
  std::vector<TestClient> clients;
  for (size_t i = 0; i < 40; i++) {
    TestClient client = host.connect(i % 2);
    const uint64_t large = 3 * kMiB;
    std::string bytes;
    // Waiting in the disk, in the order, for memory; with a payload half there.
    if (i & 1) bytes += client.encode({.type = nbd::kCmdRead, .offset = 0, .length = kMiB});
    if (i & 2)
      bytes += client.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 9}, "123456789");
    if (i & 4) bytes += client.encode({.type = nbd::kCmdRead, .offset = 4096, .length = large});
    if (i & 8) {
      bytes += client.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 70'000},
                             std::string(70'000, 'a'));
    }
    bytes += client.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 1000});
    if (i & 16) bytes += "half";
    client.send_some(bytes);
    if (i % 3 != 0) clients.push_back(std::move(client));
  }
  host.run_on(0, [] {});
  host.run_on(1, [] {});
  clients.clear();
  plugin.release();
  host.wait_until_connections(0);
}

}  // namespace
}  // namespace weft::server
