// SPDX-License-Identifier: BSD-3-Clause
// Replies, byte for byte, and what they say of failures.
#include <gtest/gtest.h>

#include "nbd/test_bytes.h"
#include "server/test_host.h"

namespace weft::server {
namespace {

constexpr uint64_t kSize = uint64_t{64} << 20;

std::string hex(std::string_view digits) {
  return std::string(text_of(nbd::testing::hex(digits)));
}

class Replies : public BothEngines {
 protected:
  static nbd::ClientConfig config(nbd::HeaderMode mode) {
    nbd::ClientConfig config;
    config.want_structured = mode != nbd::HeaderMode::kSimple;
    config.want_extended = mode == nbd::HeaderMode::kExtended;
    if (config.want_structured) config.contexts = {nbd::kBaseAllocation};
    return config;
  }
  static std::string exchange(TestClient& client, std::string_view request, size_t reply_size) {
    client.send_bytes(hex(request));
    return client.receive_bytes(reply_size);
  }

  ScriptedPlugin plugin{kSize};
};

INSTANTIATE_TEST_SUITE_P(Engines, Replies,
                         testing::Values(engine::EngineKind::kUring, engine::EngineKind::kEpoll),
                         engine_name);

TEST_P(Replies, Simple) {
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0, config(nbd::HeaderMode::kSimple));
  EXPECT_EQ(
      exchange(client, "25609513 0000 0001 00000000000000a1 0000000000001000 00000005 'hello'", 16),
      hex("67446698 00000000 00000000000000a1"));
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000a2 0000000000000fff 00000007", 23),
            hex("67446698 00000000 00000000000000a2 00 'hello' 00"));
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000a3 0000000004000000 00000001", 16),
            hex("67446698 00000016 00000000000000a3"));
  EXPECT_EQ(exchange(client, "25609513 0004 0000 00000000000000a4 0000000000000000 00000001", 16),
            hex("67446698 00000016 00000000000000a4"));  // DF means nothing here
}

TEST_P(Replies, Structured) {
  plugin.holes = {{8192, 4096}};
  plugin.lends = true;
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0, config(nbd::HeaderMode::kStructured));
  EXPECT_EQ(
      exchange(client, "25609513 0000 0001 00000000000000b1 0000000000001000 00000005 'hello'", 16),
      hex("67446698 00000000 00000000000000b1"));
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000b2 0000000000001000 00000005", 33),
            hex("668e33ef 0001 0001 00000000000000b2 0000000d 0000000000001000 'hello'"));
  // Data, a hole, data; then in one piece; then a hole alone.
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000b3 0000000000001ffe 00001004", 92),
            hex("668e33ef 0000 0001 00000000000000b3 0000000a 0000000000001ffe 0000"
                "668e33ef 0000 0002 00000000000000b3 0000000c 0000000000002000 00001000"
                "668e33ef 0001 0001 00000000000000b3 0000000a 0000000000003000 0000"));
  EXPECT_EQ(exchange(client, "25609513 0004 0000 00000000000000b4 0000000000001ffe 00000006", 34),
            hex("668e33ef 0001 0001 00000000000000b4 0000000e 0000000000001ffe 000000000000"));
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000b5 0000000000002000 00000010", 32),
            hex("668e33ef 0001 0002 00000000000000b5 0000000c 0000000000002000 00000010"));
  // Nothing, an error with its text, and the extents.
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000b6 0000000000000000 00000000", 20),
            hex("668e33ef 0001 0000 00000000000000b6 00000000"));
  const std::string text = "the request ends beyond the end of the export";
  EXPECT_EQ(exchange(client, "25609513 0000 0000 00000000000000b7 0000000004000000 00000001",
                     26 + text.size()),
            hex("668e33ef 0001 8001 00000000000000b7 00000033 00000016 002d '" + text + "'"));
  EXPECT_EQ(exchange(client, "25609513 0000 0007 00000000000000b8 0000000000001000 00003000", 48),
            hex("668e33ef 0001 0005 00000000000000b8 0000001c 00000001"
                "00001000 00000000 00001000 00000003 00001000 00000000"));
  EXPECT_EQ(exchange(client, "25609513 0008 0007 00000000000000b9 0000000000001000 00003000", 32),
            hex("668e33ef 0001 0005 00000000000000b9 0000000c 00000001 00001000 00000000"));
}

TEST_P(Replies, Extended) {
  plugin.holes = {{8192, 4096}};
  plugin.lends = true;
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0, config(nbd::HeaderMode::kExtended));
  const std::string offset = " 0000000000001000 ";
  EXPECT_EQ(
      exchange(client, "21e41c71 0020 0001 00000000000000c1" + offset + "0000000000000005 'hello'",
               32),
      hex("6e8a278c 0001 0000 00000000000000c1" + offset + "0000000000000000"));
  EXPECT_EQ(
      exchange(client, "21e41c71 0000 0000 00000000000000c2" + offset + "0000000000000005", 45),
      hex("6e8a278c 0001 0001 00000000000000c2" + offset +
          "000000000000000d 0000000000001000 'hello'"));
  EXPECT_EQ(
      exchange(client, "21e41c71 0000 0000 00000000000000c3 0000000000001fff 0000000000000003", 85),
      hex("6e8a278c 0000 0001 00000000000000c3 0000000000001fff 0000000000000009"
          "0000000000001fff 00"
          "6e8a278c 0001 0002 00000000000000c3 0000000000001fff 000000000000000c"
          "0000000000002000 00000002"));
  EXPECT_EQ(
      exchange(client, "21e41c71 0000 0003 00000000000000c4" + offset + "0000000000000000", 32),
      hex("6e8a278c 0001 0000 00000000000000c4" + offset + "0000000000000000"));
  // BLOCK_STATUS, without a payload and with one; a write without the payload flag.
  const std::string status = hex("6e8a278c 0001 0006 00000000000000c5" + offset +
                                 "0000000000000028 00000001 00000002"
                                 "0000000000001000 0000000000000000"
                                 "0000000000000800 0000000000000003");
  EXPECT_EQ(
      exchange(client, "21e41c71 0000 0007 00000000000000c5" + offset + "0000000000001800", 72),
      status);
  EXPECT_EQ(exchange(client,
                     "21e41c71 0020 0007 00000000000000c5" + offset +
                         "000000000000000c 0000000000001800 00000001",
                     72),
            status);
  const std::string text = "a write needs the payload flag here";
  EXPECT_EQ(exchange(client, "21e41c71 0000 0001 00000000000000c6" + offset + "0000000000000005",
                     38 + text.size()),
            hex("6e8a278c 0001 8001 00000000000000c6" + offset +
                "0000000000000029 00000016 0023 '" + text + "'"));
}

TEST_P(Replies, ExtentsAreClippedTo32BitsAndNotTo64) {
  ScriptedPlugin large((uint64_t{1} << 63) - 1);
  large.holes = {{4096, large.capabilities.size - 4096}};
  TestHost host(GetParam(), large);
  TestClient compact = host.connect(0, config(nbd::HeaderMode::kStructured));
  Answer answer = compact.ask({.type = nbd::kCmdBlockStatus, .offset = 4096, .length = UINT32_MAX});
  ASSERT_EQ(answer.extents.size(), 1u);
  EXPECT_LE(answer.extents[0].length, UINT32_MAX);
  TestClient wide = host.connect(0, config(nbd::HeaderMode::kExtended));
  answer = wide.ask({.type = nbd::kCmdBlockStatus, .offset = 0, .length = large.capabilities.size});
  EXPECT_EQ(answer.extents,
            (std::vector<nbd::StatusExtent>{{4096, 0}, {large.capabilities.size - 4096, 3}}));
}

// A disk that does not lend is asked where its holes are, when it says that it has any.
TEST_P(Replies, HolesOfALargeReadAreNotReadNorSent) {
  constexpr uint64_t kLength = 1 << 20;
  plugin.holes = {{65536, 131072}, {400'000, 100'000}};
  for (const nbd::HeaderMode mode : {nbd::HeaderMode::kStructured, nbd::HeaderMode::kExtended}) {
    TestHost host(GetParam(), plugin);
    TestClient client = host.connect(0, config(mode));
    const std::string data(65536, 'd');
    ASSERT_EQ(client.write(0, data).error, nbd::kOk);
    const size_t before = plugin.started().size();
    const Answer answer = client.read(0, kLength);
    EXPECT_EQ(answer.data, data + std::string(kLength - data.size(), '\0'));
    EXPECT_EQ(
        answer.chunk_types,
        (std::vector<uint16_t>{nbd::kChunkOffsetData, nbd::kChunkOffsetHole, nbd::kChunkOffsetData,
                               nbd::kChunkOffsetHole, nbd::kChunkOffsetData}));
    uint64_t read = 0;
    for (size_t i = before; i < plugin.started().size(); i++) {
      const Call call = plugin.started()[i];
      if (is(call, Call::Kind::kRead)) read += call.range.length;
    }
    EXPECT_EQ(read, kLength - 231'072);
    EXPECT_EQ(client.read(0, kLength, nbd::kFlagDf).chunk_types.size(), 1u);
  }
}

TEST_P(Replies, AFailureInTheMiddleOfASparseReadIsAnErrorAndNoData) {
  plugin.holes = {{65536, 65536}};
  plugin.answer([](const Call& call) -> Status {
    if (is(call, Call::Kind::kRead) && call.range.offset >= 65536) return fail(EIO, "bad sector");
    return {};
  });
  TestHost host(GetParam(), plugin);
  TestClient client = host.connect(0, config(nbd::HeaderMode::kStructured));
  const Answer answer = client.read(0, 1 << 20);
  EXPECT_EQ(answer.error, nbd::kEio);
  EXPECT_EQ(answer.text, "bad sector");
  EXPECT_EQ(answer.chunk_types, std::vector<uint16_t>{nbd::kChunkError});
}

TEST_P(Replies, FailuresOfTheDiskAreToldToTheClient) {
  TestHost host(GetParam(), plugin);
  struct Case {
    int code;
    uint32_t error;
  };
  constexpr Case kCases[] = {
      {EIO, nbd::kEio},       {ENOSPC, nbd::kEnospc}, {EDQUOT, nbd::kEnospc},
      {EFBIG, nbd::kEnospc},  {EPERM, nbd::kEperm},   {EROFS, nbd::kEperm},
      {EINVAL, nbd::kEinval}, {ENOMEM, nbd::kEnomem}, {ECONNRESET, nbd::kEio}};
  for (const nbd::HeaderMode mode :
       {nbd::HeaderMode::kSimple, nbd::HeaderMode::kStructured, nbd::HeaderMode::kExtended}) {
    TestClient client = host.connect(0, config(mode));
    for (const bool later : {false, true}) {
      for (const Case& c : kCases) {
        plugin.hesitant = later;
        plugin.answer([c](const Call&) -> Status { return fail(c.code); });
        EXPECT_EQ(client.flush().error, c.error) << c.code;
        EXPECT_EQ(client.write(0, "data").error, c.error) << c.code;
        EXPECT_EQ(client.write(0, "data", nbd::kFlagFua).error, c.error) << c.code;
        EXPECT_EQ(client.read(0, 10).error, c.error) << c.code;
        EXPECT_EQ(client.ask({.type = nbd::kCmdTrim, .length = 4096}).error, c.error) << c.code;
        EXPECT_EQ(client.ask({.type = nbd::kCmdWriteZeroes, .length = 4096}).error, c.error);
        EXPECT_EQ(client.ask({.type = nbd::kCmdCache, .length = 4096}).error, c.error);
        if (mode != nbd::HeaderMode::kSimple) {
          EXPECT_EQ(client.ask({.type = nbd::kCmdBlockStatus, .length = 4096}).error, c.error);
        }
      }
    }
    plugin.answer([](const Call&) -> Status { return fail(EOPNOTSUPP); });
    EXPECT_EQ(
        client.ask({.flags = nbd::kFlagFastZero, .type = nbd::kCmdWriteZeroes, .length = 4096})
            .error,
        nbd::kEnotsup);
    EXPECT_EQ(client.flush().error, nbd::kEio);
    plugin.answer(nullptr);
    plugin.hesitant = false;
    EXPECT_EQ(client.flush().error, nbd::kOk);
  }
}

// A long zero with FUA is one flush at its end: if that fails, the zero did.
TEST_P(Replies, AFailedFlushAtTheEndOfALongChangeIsItsFailure) {
  ScriptedPlugin large(uint64_t{1} << 40);
  large.answer([](const Call& call) -> Status {
    if (is(call, Call::Kind::kFlush)) return fail(EIO);
    return {};
  });
  TestHost host(GetParam(), large);
  TestClient client = host.connect(0);
  nbd::Request zero{.flags = nbd::kFlagFua, .type = nbd::kCmdWriteZeroes, .length = 1u << 31};
  EXPECT_EQ(client.ask(zero).error, nbd::kEio);
  zero.flags = 0;
  EXPECT_EQ(client.ask(zero).error, nbd::kOk);
}

}  // namespace
}  // namespace weft::server
