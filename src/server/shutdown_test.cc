// SPDX-License-Identifier: BSD-3-Clause
// The server as a whole: listening, its limit on clients, one ready stream, and its end.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <future>
#include <thread>

#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kSize = uint64_t{64} << 20;
constexpr auto kLong = std::chrono::minutes(10);

bool is_write(const Call& call) {
  return is(call, Call::Kind::kWrite);
}

class Shutdown : public BothEngines {
 protected:
  void SetUp() override {
    BothEngines::SetUp();
    char name[] = "/tmp/weft-server-test-XXXXXX";
    directory = ::mkdtemp(name);
    config.drain_timeout = config.end_timeout = kLong;
    config.threads = 2;
  }
  void TearDown() override {
    if (thread.joinable()) {
      plugin.release();
      server->stop();
      thread.join();
    }
    std::filesystem::remove_all(directory);
  }

  [[nodiscard]] std::string path(int i) const { return directory + "/" + std::to_string(i); }

  void make_server() {
    server = std::make_unique<Server>(config, plugin, engine::EngineChoice{GetParam(), ""}, pool);
  }
  void listen(int sockets = 1) {
    std::vector<ListeningSocket> listening;
    for (int i = 0; i < sockets; i++) {
      Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      sockaddr_un address = address_of(i);
      ASSERT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
      ASSERT_EQ(::listen(fd.get(), 100), 0);
      listening.push_back({std::move(fd), path(i)});
    }
    server->listen(std::move(listening));
  }
  void run() {
    thread = std::thread([this] { status.set_value(server->run(requests)); });
  }
  void start(int sockets = 1) {
    make_server();
    listen(sockets);
    run();
  }
  // The exit status.
  int wait_for_end() {
    std::future<int> future = status.get_future();
    if (future.wait_for(TestClient::kPatience) != std::future_status::ready) {
      ADD_FAILURE() << "the server does not end";
      std::abort();
    }
    thread.join();
    EXPECT_EQ(plugin.open_disks(), 0);
    return future.get();
  }

  [[nodiscard]] sockaddr_un address_of(int i) const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path(i).copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
  }
  TestClient dial(int i = 0) {
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_un address = address_of(i);
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("connect: " + errno_text(errno));
    }
    return TestClient(std::move(fd));
  }
  TestClient connect(int i = 0) {
    TestClient client = dial(i);
    client.negotiate();
    return client;
  }

  std::string directory;
  Config config;
  ScriptedPlugin plugin{kSize};
  engine::BlockingPool pool;
  const StopRequests requests;
  std::unique_ptr<Server> server;
  std::thread thread;
  std::promise<int> status;
};

INSTANTIATE_TEST_SUITE_P(Engines, Shutdown,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         engine_name);

TEST_P(Shutdown, WhatIsInProgressIsFinishedAndAnswered) {
  start();
  plugin.hold([](const Call& call) { return !is(call, Call::Kind::kFlush); });
  TestClient idle = connect();
  TestClient negotiating = dial();
  TestClient half = connect();
  TestClient busy = connect();
  half.send_bytes(half.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 1 << 20}) + "some");
  std::vector<uint64_t> cookies;
  for (uint64_t i = 0; i < 5; i++) {
    // Each behind the one before.
    cookies.push_back(busy.send({.type = nbd::kCmdWrite, .offset = i, .length = 2},
                                std::string(2, static_cast<char>('a' + i))));
    cookies.push_back(busy.send({.type = nbd::kCmdRead, .offset = 0, .length = 1000}));
  }
  busy.flush();  // so all of them are read
  plugin.wait_until_held(6);
  server->stop();
  // The idle ones do not wait for the others.
  EXPECT_TRUE(idle.closed_by_server());
  EXPECT_TRUE(negotiating.closed_by_server());
  EXPECT_TRUE(half.closed_by_server());
  EXPECT_EQ(plugin.finishes(), 0);
  busy.send({.type = nbd::kCmdRead, .offset = 0, .length = 1000});  // comes too late
  plugin.release();
  for (const uint64_t cookie : cookies) EXPECT_EQ(busy.receive(cookie).error, nbd::kOk);
  EXPECT_TRUE(busy.closed_by_server());
  EXPECT_EQ(busy.unread(), 0u);
  EXPECT_EQ(wait_for_end(), 0);
  EXPECT_EQ(plugin.finishes(), 1);
  EXPECT_EQ(plugin.content({0, 6}), "abcdee");
}

TEST_P(Shutdown, StoppingBeforeRunningIsTheEnd) {
  make_server();
  listen();
  server->stop();
  run();
  EXPECT_EQ(wait_for_end(), 0);
  EXPECT_EQ(plugin.finishes(), 1);
}

TEST_P(Shutdown, StoppingTwiceIsStoppingOnce) {
  start();
  TestClient client = connect();
  server->stop();
  server->stop();
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(wait_for_end(), 0);
}

// What does not end in time is told so.
TEST_P(Shutdown, AfterTheDrainTimeoutTheRestIsToldEshutdown) {
  config.drain_timeout = std::chrono::milliseconds(20);
  start();
  plugin.hold(is_write);
  TestClient client = connect();
  const uint64_t write = client.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "held");
  const uint64_t behind = client.send({.type = nbd::kCmdWrite, .offset = 1, .length = 4}, "next");
  client.flush();
  plugin.wait_until_held(1);
  server->stop();
  EXPECT_EQ(client.receive(write).error, nbd::kEshutdown);
  plugin.release();
  EXPECT_EQ(client.receive(behind).error, nbd::kEshutdown);
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(client.unread(), 0u);  // no second answer
  EXPECT_EQ(wait_for_end(), 0);
  EXPECT_EQ(plugin.finishes(), 1);
}

// Its replies are ready, and it does not take them: the disks are synced all the same.
TEST_P(Shutdown, AClientThatDoesNotReceiveDoesNotKeepTheDisksFromBeingSynced) {
  config.drain_timeout = std::chrono::milliseconds(20);
  start();
  TestClient deaf = connect();
  for (int i = 0; i < 8; i++) deaf.send({.type = nbd::kCmdRead, .offset = 0, .length = 4 << 20});
  TestClient other = connect();
  ASSERT_EQ(other.write(0, "data").error, nbd::kOk);
  server->stop();
  EXPECT_EQ(wait_for_end(), 0);
  EXPECT_EQ(plugin.finishes(), 1);
}

TEST_P(Shutdown, AtTheLimitTheNextClientWaitsForAnEnd) {
  config.shared = 2;
  start(2);
  TestClient a = connect(0);
  TestClient b = connect(1);
  EXPECT_TRUE(a.session.transmission_flags & nbd::kCanMultiConn);
  TestClient c = dial(0);
  TestClient d = dial(1);
  ASSERT_EQ(a.write(0, "a").error, nbd::kOk);
  ASSERT_EQ(b.write(1, "b").error, nbd::kOk);
  EXPECT_FALSE(c.something_to_receive());
  EXPECT_FALSE(d.something_to_receive());
  a.disconnect();
  b.close();
  c.negotiate();
  d.negotiate();
  EXPECT_EQ(c.read(0, 2).data, "ab");
  // The limit holds while one waits and many come and go.
  for (int i = 0; i < 20; i++) {
    TestClient next = dial(i % 2);
    ASSERT_EQ(d.read(0, 2).data, "ab");
    EXPECT_FALSE(next.something_to_receive());
    std::swap(c, next);
    next.disconnect();
    c.negotiate();
  }
  EXPECT_LE(plugin.open_disks(), 2);
}

TEST_P(Shutdown, ALimitOfOneIsNoMultiConn) {
  config.shared = 1;
  start();
  TestClient a = connect();
  EXPECT_FALSE(a.session.transmission_flags & nbd::kCanMultiConn);
  TestClient b = dial();
  // Who waits at the limit does not hold up the end, nor is it served then.
  server->stop();
  EXPECT_TRUE(a.closed_by_server());
  EXPECT_EQ(wait_for_end(), 0);
  server.reset();
  EXPECT_TRUE(b.closed_by_server());
  EXPECT_EQ(b.unread(), 0u);
}

TEST_P(Shutdown, ManyClientsComeAndGo) {
  start();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; t++) {
    threads.emplace_back([this, t] {
      for (uint64_t i = 0; i < 40; i++) {
        TestClient client = i % 5 ? connect() : dial();
        if (i % 5 == 0) continue;
        const uint64_t offset = (static_cast<uint64_t>(t) * 40 + i) * 512;
        EXPECT_EQ(client.write(offset, std::string(512, 'm')).error, nbd::kOk);
        if (i % 2) client.disconnect();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  TestClient last = connect();
  server->stop();
  EXPECT_TRUE(last.closed_by_server());
  EXPECT_EQ(wait_for_end(), 0);
}

// Two sockets that run out of descriptors at the same time both go on when there are some again.
TEST_P(Shutdown, WithoutDescriptorsClientsWait) {
#if defined(__has_feature)
#if __has_feature(undefined_behavior_sanitizer)
  GTEST_SKIP() << "the sanitizer's own check of objects needs descriptors";
#endif
#endif
  start(2);
  connect(0).disconnect();
  Fd sockets[2];
  for (Fd& fd : sockets) fd = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  // No number below the highest one in use is free, and none above it is allowed.
  std::vector<Fd> fillers;
  while (fillers.empty() || fillers.back().get() < 200) {
    fillers.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  const rlimit low{static_cast<rlim_t>(fillers.back().get()) + 1, limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &low), 0);
  for (int i = 0; i < 2; i++) {
    const sockaddr_un address = address_of(i);
    EXPECT_EQ(
        ::connect(sockets[i].get(), reinterpret_cast<const sockaddr*>(&address), sizeof address),
        0);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(250));  // some failures to accept
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  for (Fd& fd : sockets) {
    TestClient client(std::move(fd));
    client.negotiate();
    EXPECT_EQ(client.write(0, "served").error, nbd::kOk);
  }
}

TEST_P(Shutdown, TheHandshakeHasItsTime) {
  config.handshake_timeout = std::chrono::milliseconds(20);
  start();
  TestClient slow = dial();
  TestClient done = dial();
  done.negotiate();
  EXPECT_TRUE(slow.closed_by_server());
  EXPECT_EQ(done.write(0, "in time").error, nbd::kOk);
}

TEST_P(Shutdown, OneStreamIsServedAndThenAllEnds) {
  for (const bool disc : {true, false}) {
    int fds[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    make_server();
    server->serve_stream(Fd(fds[0]), Fd());
    status = {};
    run();
    TestClient client(Fd{fds[1]});
    client.negotiate();
    EXPECT_EQ(client.write(0, "stream").error, nbd::kOk);
    if (disc) {
      client.disconnect();
      EXPECT_TRUE(client.closed_by_server());
    } else {
      client.close();
    }
    EXPECT_EQ(wait_for_end(), 0);
    EXPECT_EQ(plugin.content({0, 6}), "stream");
  }
}

TEST_P(Shutdown, TwoPipesAreAStream) {
  plugin.hesitant = true;
  for (const bool disc : {true, false}) {
    int in[2], out[2];
    ASSERT_EQ(::pipe2(in, O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
    make_server();
    server->serve_stream(Fd(in[0]), Fd(out[1]));
    status = {};
    run();
    TestClient client(Fd{out[0]}, Fd{in[1]});
    client.negotiate({.want_extended = true});
    const std::string data(3 << 20, 'p');
    EXPECT_EQ(client.write(0, data).error, nbd::kOk);
    std::string bytes;
    for (uint64_t i = 0; i < 1500; i++) {
      bytes += client.encode({.type = nbd::kCmdRead, .offset = i, .length = 4096});
    }
    client.send_bytes(bytes);
    for (int i = 0; i < 1500; i++) ASSERT_EQ(client.receive().data, std::string(4096, 'p'));
    if (disc) client.disconnect();
    client.shutdown_output();
    EXPECT_TRUE(client.closed_by_server());
    EXPECT_EQ(wait_for_end(), 0);
  }
}

// The end of the writing side, seen while the requests before it are looked at, loses no DISC.
TEST_P(Shutdown, APipeWithAWholeSessionInItIsServed) {
  int in[2], out[2];
  ASSERT_EQ(::pipe2(in, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(out, O_CLOEXEC), 0);
  config.oldstyle = true;  // needs no answers
  make_server();
  TestClient client(Fd{out[0]}, Fd{in[1]});
  for (uint64_t i = 0; i < 10; i++) {
    client.send({.type = nbd::kCmdWrite, .offset = i * 100, .length = 6}, "writes");
  }
  client.disconnect();
  client.shutdown_output();
  server->serve_stream(Fd(in[0]), Fd(out[1]));
  run();
  client.receive_bytes(152);
  for (int i = 0; i < 10; i++) EXPECT_EQ(client.receive().error, nbd::kOk);
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(wait_for_end(), 0);
  EXPECT_EQ(plugin.content({900, 6}), "writes");
}

}  // namespace
}  // namespace weft::server
