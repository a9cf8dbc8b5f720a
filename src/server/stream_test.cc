// SPDX-License-Identifier: BSD-3-Clause
// Requests as the socket brings them: cut anywhere, many at once, of any size, wrong ones among
// them; the stream stays in step.
#include <gtest/gtest.h>
#include <sys/ioctl.h>

#include <random>

#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kSize = uint64_t{80} << 20;
constexpr uint64_t kMiB = 1 << 20;

struct Param {
  engine::EngineKind engine;
  nbd::HeaderMode mode;
};

class Stream : public testing::TestWithParam<Param> {
 protected:
  void SetUp() override {
    if (GetParam().engine == engine::EngineKind::kUring &&
        engine::choose_engine("auto").kind != engine::EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
  }
  static nbd::ClientConfig client_config() {
    const nbd::HeaderMode mode = GetParam().mode;
    nbd::ClientConfig config;
    config.want_structured = mode != nbd::HeaderMode::kSimple;
    config.want_extended = mode == nbd::HeaderMode::kExtended;
    if (config.want_structured) config.contexts = {nbd::kBaseAllocation};
    return config;
  }
  static TestClient connect(TestHost& host) {
    TestClient client = host.connect(0, client_config());
    EXPECT_EQ(client.session.mode, GetParam().mode);
    return client;
  }
  // Waits until the server has taken all that the client has sent.
  static void settle(TestHost& host, TestClient& client) {
    int unread = 1;
    while (unread > 0) {
      host.run_on(0, [] {});
      ASSERT_EQ(::ioctl(client.fd(), TIOCOUTQ, &unread), 0);
    }
    host.run_on(0, [] {});
  }

  ScriptedPlugin plugin{kSize};
};

std::vector<Param> all_params() {
  std::vector<Param> params;
  for (const auto engine : {engine::EngineKind::kUring, engine::EngineKind::kEpoll}) {
    for (const auto mode :
         {nbd::HeaderMode::kSimple, nbd::HeaderMode::kStructured, nbd::HeaderMode::kExtended}) {
      params.push_back({engine, mode});
    }
  }
  return params;
}
INSTANTIATE_TEST_SUITE_P(Engines, Stream, testing::ValuesIn(all_params()), [](const auto& info) {
  return std::string(info.param.engine == engine::EngineKind::kUring ? "IoUring" : "Epoll") +
         std::string(nbd::header_mode_name(info.param.mode));
});

std::string pattern(size_t size, uint64_t seed) {
  std::string data(size, '\0');
  std::mt19937_64 random(seed);
  for (size_t i = 0; i + 8 <= size; i += 8) {
    const uint64_t word = random();
    std::memcpy(data.data() + i, &word, 8);
  }
  if (size > 0) data.back() = static_cast<char>(seed);
  return data;
}

TEST_P(Stream, RequestsCutAtEveryByteAreAnsweredAlike) {
  TestHost host(GetParam().engine, plugin);
  TestClient client = connect(host);
  const bool structured = GetParam().mode != nbd::HeaderMode::kSimple;
  const bool extended = GetParam().mode == nbd::HeaderMode::kExtended;
  ASSERT_EQ(client.write(100, "read me").error, nbd::kOk);
  size_t length = 2;
  for (size_t cut = 1; cut < length; cut++) {
    std::vector<std::pair<uint64_t, uint32_t>> expected;
    std::string bytes;
    const auto add = [&](const nbd::Request& request, uint32_t error,
                         std::string_view payload = {}) {
      uint64_t cookie;
      bytes += client.encode(request, payload, &cookie);
      expected.emplace_back(cookie, error);
    };
    const std::string data = pattern(23, cut);
    add({.type = nbd::kCmdWrite, .offset = 4096, .length = data.size()}, nbd::kOk, data);
    add({.type = nbd::kCmdRead, .offset = 100, .length = 7}, nbd::kOk);
    add({.type = nbd::kCmdWrite, .offset = kSize - 5, .length = 9}, nbd::kEnospc, "beyond it");
    add({.type = nbd::kCmdRead, .offset = 0, .length = 0}, nbd::kOk);
    add({.flags = 0x8000, .type = nbd::kCmdWrite, .offset = 4096, .length = 11}, nbd::kEinval,
        "wrong flags");
    add({.type = 77, .offset = 0, .length = 3}, nbd::kEinval);
    add({.type = nbd::kCmdTrim, .offset = 8192, .length = 4096}, nbd::kOk);
    add({.type = nbd::kCmdFlush}, nbd::kOk);
    if (structured) add({.type = nbd::kCmdBlockStatus, .offset = 0, .length = kMiB}, nbd::kOk);
    if (extended) {
      std::string payload(12, '\0');
      nbd::encode_block_status_payload(reinterpret_cast<std::byte*>(payload.data()),
                                       {512, {nbd::kBaseAllocationId}});
      nbd::Request request{
          .flags = nbd::kFlagPayloadLen, .type = nbd::kCmdBlockStatus, .offset = 0, .length = 12};
      add(request, nbd::kOk, payload);
      payload[11] = 9;  // no such context
      add(request, nbd::kEinval, payload);
      // No context at all, and too many to be looked at.
      request.length = 8;
      add(request, nbd::kEinval, std::string_view(payload).substr(0, 8));
      request.length = 30;
      add(request, nbd::kEinval, std::string(30, 'x'));
    }
    add({.type = nbd::kCmdWrite, .offset = 0, .length = 1}, nbd::kOk, "w");
    length = bytes.size();
    client.send_bytes(std::string_view(bytes).substr(0, cut));
    settle(host, client);
    client.send_bytes(std::string_view(bytes).substr(cut));
    for (size_t i = 0; i < expected.size(); i++) {
      const Answer answer = client.receive(expected[i].first);
      ASSERT_EQ(answer.error, expected[i].second) << "cut " << cut << ", request " << i;
      if (i == 1) {
        ASSERT_EQ(answer.data, "read me") << "cut " << cut;
      }
      if (answer.error != nbd::kOk && structured) {
        EXPECT_NE(answer.text, "");
      }
    }
    ASSERT_EQ(plugin.content({4096, data.size()}), data) << "cut " << cut;
  }
  EXPECT_GT(length, 200u);
}

TEST_P(Stream, UpToTwoThousandRequestsAtOnce) {
  for (const bool hesitant : {false, true}) {
    plugin.hesitant = hesitant;
    TestHost host(GetParam().engine, plugin);
    TestClient client = connect(host);
    for (const size_t count : {1, 2, 3, 31, 32, 33, 1023, 1024, 1025, 2000}) {
      std::string bytes;
      std::vector<uint64_t> cookies;
      for (size_t i = 0; i < count; i++) {
        if (i % 4 == 1) {
          bytes += client.encode({.type = nbd::kCmdRead, .offset = i * 512, .length = 512}, {},
                                 &cookies.emplace_back());
        } else {
          // Neighbours overlap.
          bytes += client.encode({.type = nbd::kCmdWrite, .offset = i * 512, .length = 1024},
                                 std::string(1024, static_cast<char>('a' + i % 26)),
                                 &cookies.emplace_back());
        }
      }
      client.send_bytes(bytes);
      for (const uint64_t cookie : cookies) {
        ASSERT_EQ(client.receive(cookie).error, nbd::kOk) << count;
      }
      const size_t last = count - 1;
      if (last % 4 != 1) {
        EXPECT_EQ(plugin.content({last * 512, 1}), std::string(1, char('a' + last % 26)));
      }
    }
  }
}

TEST_P(Stream, RandomPiecesOfRandomRequests) {
  plugin.hesitant = true;
  TestHost host(GetParam().engine, plugin);
  TestClient client = connect(host);
  constexpr uint64_t kSlot = 2 * kMiB;
  constexpr size_t kSlots = kSize / kSlot;
  // Around the sizes at which a payload is treated otherwise: small ones, chunks and what is kept
  // free in them.
  const uint64_t sizes[] = {1,           100,         4096,   65535,  65536,  65537,
                            65568,       65569,       65600,  131072, 196575, 262144 - 65568,
                            262144 - 28, 262144 - 32, 262143, 262144, 262145, 300000,
                            524288,      1048577};
  std::mt19937_64 random(4711);
  for (int round = 0; round < 12; round++) {
    std::vector<std::string> content(kSlots);
    std::string bytes;
    std::vector<uint64_t> cookies;
    size_t refused = 0;
    for (size_t slot = 0; slot < kSlots; slot++) {
      const uint64_t size = sizes[random() % std::size(sizes)];
      const bool refuse = random() % 8 == 0;
      const std::string data = pattern(size, random());
      bytes += client.encode({.type = nbd::kCmdWrite,
                              .offset = refuse ? kSize - size + 1 : slot * kSlot,
                              .length = size},
                             data, &cookies.emplace_back());
      if (!refuse) content[slot] = data;
      refused += refuse;
      if (random() % 3 == 0) {
        bytes += client.encode(
            {.type = nbd::kCmdRead, .offset = kSize - 600'000, .length = 1 + random() % 600'000},
            {}, &cookies.emplace_back());
      }
    }
    for (size_t sent = 0; sent < bytes.size();) {
      const size_t step = random() % 4 == 0 ? 1 + random() % 100 : 1 + random() % 300'000;
      client.send_bytes(std::string_view(bytes).substr(sent, step));
      sent += std::min(step, bytes.size() - sent);
    }
    size_t failed = 0;
    for (const uint64_t cookie : cookies) failed += client.receive(cookie).error == nbd::kEnospc;
    EXPECT_EQ(failed, refused);
    for (size_t slot = 0; slot < kSlots; slot++) {
      const Answer answer = client.read(slot * kSlot, std::max<size_t>(content[slot].size(), 1));
      if (!content[slot].empty()) {
        ASSERT_TRUE(answer.data == content[slot]) << "round " << round << ", slot " << slot;
      }
    }
  }
}

TEST_P(Stream, PayloadsUpTo64MiB) {
  TestHost host(GetParam().engine, plugin);
  TestClient client = connect(host);
  const uint64_t largest = 64 * kMiB;
  const std::string data = pattern(largest, 1);
  EXPECT_EQ(client.write(123, data).error, nbd::kOk);
  EXPECT_TRUE(client.read(123, largest).data == data);
  // A longer read is an error, a longer write the end: its payload is not worth waiting for.
  EXPECT_EQ(client.read(0, largest + 1).error, nbd::kEinval);
  if (GetParam().mode != nbd::HeaderMode::kSimple) {
    EXPECT_EQ(client.read(0, largest + 1, nbd::kFlagDf).error, nbd::kEoverflow);
  }
  EXPECT_EQ(client.write(5, "last").error, nbd::kOk);
  const uint64_t cookie =
      client.send({.type = nbd::kCmdWrite, .offset = 0, .length = largest + 1}, "not all of it");
  EXPECT_EQ(client.receive(cookie).error, nbd::kEinval);
  EXPECT_TRUE(client.closed_by_server());
  EXPECT_EQ(plugin.content({5, 4}), "last");
}

TEST_P(Stream, RefusedWritesOfAnySizeLeaveTheStreamInStep) {
  plugin.capabilities.block_size.minimum = 512;
  Config config;
  config.read_only = true;
  TestHost host(GetParam().engine, plugin, TestHost::kMemory, config);
  TestClient client = connect(host);
  for (const uint64_t size : {0, 1, 512, 65536, 65537, 262144, 1048576, 33 << 20, 64 << 20}) {
    EXPECT_EQ(client.write(0, std::string(size, 'x')).error, nbd::kEperm) << size;
    EXPECT_EQ(client.read(512, 512).error, nbd::kOk) << size;
    EXPECT_EQ(client.read(512, 511).error, nbd::kEinval) << size;
  }
  EXPECT_TRUE(std::ranges::none_of(plugin.started(),
                                   [](const Call& call) { return is(call, Call::Kind::kWrite); }));
  EXPECT_LE(host.memory_used(), 64u << 10);
}

TEST_P(Stream, AWrongMagicEndsTheConnectionAfterWhatWasAskedBefore) {
  TestHost host(GetParam().engine, plugin);
  for (size_t garbage : {28, 32, 100, 100'000}) {
    TestClient client = connect(host);
    const uint64_t cookie = client.send({.type = nbd::kCmdWrite, .offset = 0, .length = 4}, "good");
    client.send_some(std::string(garbage < 32 ? 32 : garbage, 'g'));
    EXPECT_EQ(client.receive(cookie).error, nbd::kOk);
    EXPECT_TRUE(client.closed_by_server());
    EXPECT_EQ(client.unread(), 0u);
  }
  host.wait_until_connections(0);
}

// All of a session in one piece, and the same cut off anywhere and then nothing more.
TEST_P(Stream, ASessionThatEndsAnywhereLeavesNothing) {
  TestHost host(GetParam().engine, plugin);
  std::string session;
  {
    // What a client says does not depend on the answers here: record it.
    TestClient recorder = host.connect_raw(0);
    nbd::ClientHandshake handshake(client_config());
    while (handshake.status() == nbd::ClientHandshake::Status::kNegotiating) {
      const std::string byte = recorder.receive_bytes(1);
      ASSERT_EQ(handshake.consume(bytes_of(byte)), 1u);
      session += text_of(handshake.output());
      recorder.send_bytes(text_of(handshake.output()));
      handshake.clear_output();
    }
    recorder.session = handshake.result();
    session += recorder.encode({.type = nbd::kCmdWrite, .offset = 0, .length = 6}, "in one");
    session += recorder.encode({.type = nbd::kCmdRead, .offset = 0, .length = 6});
    session += recorder.encode({.type = nbd::kCmdDisc});
  }
  for (size_t cut = 0; cut <= session.size(); cut++) {
    TestClient client = host.connect_raw(0);
    client.send_bytes(std::string_view(session).substr(0, cut));
    if (cut % 2) client.shutdown_output();
    if (cut % 3 == 0) settle(host, client);
    client.close();
  }
  TestClient whole = host.connect_raw(0);
  whole.send_bytes(session);
  EXPECT_TRUE(whole.closed_by_server());
  EXPECT_EQ(plugin.content({0, 6}), "in one");
  whole.close();
  host.wait_until_connections(0);
}

}  // namespace
}  // namespace weft::server
