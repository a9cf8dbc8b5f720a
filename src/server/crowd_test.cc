// SPDX-License-Identifier: BSD-3-Clause
// A crowd of clients, good and bad, on a server with little memory and a disk that is now fast, now
// slow. The good ones find their data; nothing is left of the bad ones.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <thread>

#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kRegion = 4 * kMiB;  // of one client
constexpr int kGood = 3;
constexpr int kBad = 4;
constexpr uint64_t kSize = kRegion * (kGood + kBad);

class Crowd : public BothEngines {
 protected:
  void SetUp() override {
    BothEngines::SetUp();
    listening = Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    ASSERT_EQ(::bind(listening.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ASSERT_EQ(::listen(listening.get(), 100), 0);
    ASSERT_EQ(::getsockname(listening.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    port = address.sin_port;
  }

  // Half of them by TCP, where a close may be a reset.
  TestClient connect(TestHost& host, uint64_t choice) {
    const nbd::ClientConfig config{.want_extended = choice % 3 == 0};
    if (choice % 2) return host.connect(choice / 2 % 2, config);
    std::lock_guard lock(connecting);
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = port;
    if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("connect: " + errno_text(errno));
    }
    host.adopt(Fd(::accept4(listening.get(), nullptr, nullptr, SOCK_CLOEXEC)), choice / 2 % 2);
    TestClient client(std::move(fd));
    client.negotiate(config);
    return client;
  }

  static void reset_on_close(const TestClient& client) {
    const linger now{1, 0};
    ::setsockopt(client.fd(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }

  // Knows what its region holds; talks over two connections.
  void behave(TestHost& host, int number) {
    std::mt19937_64 random(static_cast<uint64_t>(number));
    const uint64_t base = static_cast<uint64_t>(number) * kRegion;
    std::string content(kRegion, '\0');
    TestClient clients[2] = {connect(host, random()), connect(host, random())};
    for (int step = 0; step < 150; step++) {
      TestClient& client = clients[random() % 2];
      const uint64_t length = 1 + (random() % 4 ? random() % 5000 : random() % 700'000);
      const uint64_t offset = random() % (kRegion - length);
      switch (random() % 5) {
        case 0:
        case 1: {
          const std::string data(length, static_cast<char>('a' + random() % 26));
          ASSERT_EQ(client.write(base + offset, data).error, nbd::kOk);
          content.replace(offset, length, data);
          break;
        }
        case 2: {
          const uint16_t type = random() % 2 ? nbd::kCmdTrim : nbd::kCmdWriteZeroes;
          ASSERT_EQ(client.ask({.type = type, .offset = base + offset, .length = length}).error,
                    nbd::kOk);
          content.replace(offset, length, length, '\0');
          break;
        }
        case 3: {  // two that overlap, at once: one of their orders, the same for both
          const std::string first(length, '1');
          const uint64_t a = client.send(
              {.type = nbd::kCmdWrite, .offset = base + offset, .length = length}, first);
          const uint64_t b =
              client.send({.type = nbd::kCmdWrite, .offset = base + offset, .length = 1}, "2");
          ASSERT_EQ(client.receive(b).error, nbd::kOk);
          ASSERT_EQ(client.receive(a).error, nbd::kOk);
          content.replace(offset, length, first);
          content[offset] = '2';
          break;
        }
        default: {
          const Answer answer = clients[random() % 2].read(base + offset, length);
          ASSERT_EQ(answer.error, nbd::kOk);
          ASSERT_TRUE(answer.data == content.substr(offset, length)) << "step " << step;
        }
      }
    }
    for (TestClient& client : clients) client.disconnect();
  }

  void misbehave(TestHost& host, int number) {
    std::mt19937_64 random(static_cast<uint64_t>(number));
    const uint64_t base = static_cast<uint64_t>(number) * kRegion;
    for (int visit = 0; visit < 12; visit++) {
      TestClient client = connect(host, random());
      if (random() % 2) reset_on_close(client);
      std::string bytes;
      for (uint64_t i = random() % 40; i > 0; i--) {
        const uint64_t length = random() % 3 ? random() % 5000 : random() % 900'000;
        const nbd::Request request{.flags = static_cast<uint16_t>(random() % 8 ? 0 : random()),
                                   .type = static_cast<uint16_t>(random() % 9),
                                   .offset = base + random() % (kRegion - length),
                                   .length = length};
        const bool payload = request.type == nbd::kCmdWrite;
        bytes += client.encode(request, payload ? std::string(length, 'b') : "");
        if (random() % 200 == 0) bytes += "what?";
      }
      if (random() % 4 == 0) bytes.resize(bytes.size() - random() % (bytes.size() + 1));
      for (size_t sent = 0; sent < bytes.size();) {
        const size_t step = 1 + random() % 200'000;
        const size_t wanted = std::min(step, bytes.size() - sent);
        if (client.send_some(std::string_view(bytes).substr(sent, wanted)) < wanted) break;
        sent += wanted;
        if (random() % 4 == 0) (void)client.something_to_receive();
        if (random() % 8 == 0) std::this_thread::yield();
      }
      if (random() % 3 == 0) client.shutdown_output();
    }
  }

  Fd listening;
  in_port_t port = 0;
  std::mutex connecting;
  ScriptedPlugin plugin{kSize};
};

INSTANTIATE_TEST_SUITE_P(Engines, Crowd,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         engine_name);

TEST_P(Crowd, TheGoodFindTheirDataAndNothingIsLeftOfTheBad) {
  plugin.hesitant = true;
  TestHost host(GetParam(), plugin, 4 * kMiB);
  std::vector<std::thread> threads;
  for (int i = 0; i < kGood + kBad; i++) {
    threads.emplace_back([this, &host, i] {
      try {
        i < kGood ? behave(host, i) : misbehave(host, i);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "client " << i << ": " << error.what();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  host.wait_until_connections(0);
}

// The end comes while all of them are busy.
TEST_P(Crowd, TheEndComesInTheMiddleOfEverything) {
  plugin.hesitant = true;
  for (int round = 0; round < 5; round++) {
    std::vector<TestClient> clients;
    TestHost host(GetParam(), plugin, 4 * kMiB);
    std::mt19937_64 random(static_cast<uint64_t>(round));
    for (size_t i = 0; i < 20; i++) {
      clients.push_back(i % 5 ? host.connect(i % 2) : host.connect_raw(i % 2));
      if (i % 5 == 0) continue;
      std::string bytes;
      for (uint64_t k = 0; k < 50; k++) {
        const uint64_t length = 1 + random() % 30'000;
        const uint64_t offset = random() % (kSize - length);
        if (random() % 2) {
          bytes += clients.back().encode({.offset = offset, .length = length});
        } else {
          bytes +=
              clients.back().encode({.type = nbd::kCmdWrite, .offset = offset, .length = length},
                                    std::string(length, 'e'));
        }
      }
      clients.back().send_some(std::string_view(bytes).substr(0, random() % bytes.size()));
    }
    for (size_t i = 0; i < 2; i++) host.worker(i).drain();
    if (round % 2) {
      for (size_t i = 0; i < 2; i++) host.worker(i).give_up();
    }
    for (TestClient& client : clients) EXPECT_TRUE(client.closed_by_server());
  }
}

}  // namespace
}  // namespace weft::server
