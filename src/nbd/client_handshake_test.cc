// SPDX-License-Identifier: BSD-3-Clause
// The client against servers other than ours: exact bytes, old ones, refusing ones, broken ones.
#include "nbd/client_handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nbd/test_bytes.h"

namespace weft::nbd {
namespace {

using testing::Builder;
using testing::Bytes;
using ::testing::HasSubstr;
using testing::hex;
using testing::joined;
using Status = ClientHandshake::Status;

const char* const kGreeting = "'NBDMAGIC' 'IHAVEOPT' 0003";

Bytes reply(uint32_t option, uint32_t type, ByteSpan data = {}) {
  return Builder().u64(0x3e889045565a9).u32(option).u32(type).u32(data.size()).raw(data).bytes;
}

Bytes taken(ClientHandshake& client) {
  Bytes bytes(client.output().begin(), client.output().end());
  client.clear_output();
  return bytes;
}

// Gives the client the bytes and returns what it wants to send.
Bytes talk(ClientHandshake& client, const Bytes& bytes) {
  EXPECT_EQ(client.consume(bytes), bytes.size());
  return taken(client);
}

const Bytes kExport = hex("0000 0000000000001000 0001");

TEST(Client, ExactBytesOfAGo) {
  ClientHandshake client({.export_name = "x",
                          .want_extended = true,
                          .contexts = {"base:allocation"},
                          .infos = {kInfoBlockSize}});
  EXPECT_EQ(client.state_name(), "waiting for the greeting");
  EXPECT_EQ(talk(client, hex(kGreeting)), hex("00000003 'IHAVEOPT' 0000000b 00000000"));
  EXPECT_EQ(client.state_name(), "waiting for the reply to NBD_OPT_EXTENDED_HEADERS");
  EXPECT_EQ(talk(client, reply(11, kRepAck)),
            hex("'IHAVEOPT' 0000000a 0000001c 00000001 'x' 00000001 0000000f 'base:allocation'"));
  EXPECT_EQ(talk(client, joined({reply(10, kRepMetaContext, hex("00000009 'base:allocation'")),
                                 reply(10, kRepAck)})),
            hex("'IHAVEOPT' 00000007 00000009 00000001 'x' 0001 0003"));
  EXPECT_EQ(client.status(), Status::kNegotiating);
  const Bytes end = joined({reply(7, kRepInfo, kExport), reply(7, kRepInfo, hex("4711 00")),
                            reply(7, kRepAck), hex("6e8a")});
  EXPECT_EQ(client.consume(end), end.size() - 2);  // the rest is transmission
  EXPECT_EQ(client.status(), Status::kDone);
  EXPECT_EQ(client.state_name(), "done");
  EXPECT_EQ(client.result().mode, HeaderMode::kExtended);
  EXPECT_EQ(client.result().size, 4096u);
  EXPECT_EQ(client.result().transmission_flags, 1);
  EXPECT_EQ(client.result().context_id("base:allocation"), 9u);
  EXPECT_EQ(client.result().context_id("base:other"), std::nullopt);
  EXPECT_EQ(client.result().block_sizes, std::nullopt);
}

TEST(Client, FallsBackStepByStep) {
  ClientHandshake client(
      {.export_name = "x", .want_extended = true, .contexts = {"base:allocation"}});
  talk(client, hex(kGreeting));
  EXPECT_EQ(talk(client, reply(11, kRepErrUnsup)), hex("'IHAVEOPT' 00000008 00000000"));
  // Without structured replies there are no contexts.
  EXPECT_EQ(talk(client, reply(8, kRepErrUnsup, bytes_of("no"))),
            hex("'IHAVEOPT' 00000007 00000009 00000001 'x' 0001 0003"));
  EXPECT_EQ(talk(client, reply(7, kRepErrUnsup)), hex("'IHAVEOPT' 00000001 00000001 'x'"));
  talk(client, hex("0000000000001000 0001"));
  EXPECT_EQ(client.status(), Status::kDone);
  EXPECT_EQ(client.result().mode, HeaderMode::kSimple);
}

TEST(Client, ContextsCanBeRefused) {
  ClientHandshake client({.export_name = "x", .contexts = {"base:allocation"}});
  talk(client, hex(kGreeting));
  talk(client, reply(8, kRepAck));
  talk(client, joined({reply(10, kRepMetaContext, hex("00000009 'base:allocation'")),
                       reply(10, kRepErrUnsup)}));
  talk(client, joined({reply(7, kRepInfo, kExport), reply(7, kRepAck)}));
  EXPECT_EQ(client.status(), Status::kDone);
  EXPECT_TRUE(client.result().contexts.empty());
}

TEST(Client, UnsupportedGoAfterExtendedHeadersIsAnError) {  // ext
  ClientHandshake client({.export_name = "x", .want_extended = true});
  talk(client, hex(kGreeting));
  talk(client, reply(11, kRepAck));
  EXPECT_EQ(talk(client, reply(7, kRepErrUnsup)), hex("'IHAVEOPT' 00000002 00000000"));
  EXPECT_EQ(client.status(), Status::kFailed);
}

TEST(Client, FinalRefusalsEndItWithAnAbort) {
  for (const uint32_t error : {kRepErrShutdown, kRepErrTlsReqd}) {
    ClientHandshake client({.export_name = "x"});
    talk(client, hex(kGreeting));
    EXPECT_EQ(talk(client, reply(8, error, bytes_of("later"))),
              hex("'IHAVEOPT' 00000002 00000000"));
    EXPECT_EQ(client.status(), Status::kFailed);
    EXPECT_EQ(client.server_error(), error);
    EXPECT_THAT(client.error(), HasSubstr("later"));
  }
}

TEST(Client, Oldstyle) {
  const Bytes greeting =
      joined({hex("'NBDMAGIC' 0000420281861253 0000000000001000 0000 0003"), Bytes(124)});
  ClientHandshake client({.export_name = "ignored"});
  EXPECT_TRUE(talk(client, greeting).empty());
  EXPECT_EQ(client.status(), Status::kDone);
  EXPECT_TRUE(client.result().oldstyle);
  EXPECT_EQ(client.result().size, 4096u);
  EXPECT_EQ(client.result().transmission_flags, 3);
  ClientHandshake list({.goal = ClientGoal::kList});
  talk(list, greeting);
  EXPECT_EQ(list.status(), Status::kFailed);
}

TEST(Client, ExportNameWithZeroes) {
  ClientHandshake client(
      {.export_name = "x", .goal = ClientGoal::kExportName, .want_structured = false});
  EXPECT_EQ(talk(client, hex("'NBDMAGIC' 'IHAVEOPT' 0001")),
            hex("00000001 'IHAVEOPT' 00000001 00000001 'x'"));
  talk(client, joined({hex("0000000000001000 0001"), Bytes(123)}));
  EXPECT_EQ(client.status(), Status::kNegotiating);
  talk(client, Bytes(1));
  EXPECT_EQ(client.status(), Status::kDone);
}

// Servers that break the rules: an error with a text, never a crash or a wait for more.
TEST(Client, BrokenServers) {
  const auto error_after = [](ClientConfig config, std::vector<Bytes> answers) {
    ClientHandshake client(std::move(config));
    for (const Bytes& answer : answers) static_cast<void>(client.consume(answer));
    EXPECT_EQ(client.status(), Status::kFailed);
    return client.error();
  };
  const ClientConfig go = {.export_name = "x", .want_structured = false};
  const ClientConfig list = {.goal = ClientGoal::kList};
  const ClientConfig meta = {.export_name = "x", .contexts = {"base:allocation"}};
  const Bytes greeting = hex(kGreeting);
  EXPECT_THAT(error_after(go, {hex("'HTTP/1.1 200 OK.'")}), HasSubstr("no NBD server"));
  EXPECT_THAT(error_after(go, {hex("'NBDMAGIC' 'IHAVEOPX'")}), HasSubstr("unknown handshake"));
  EXPECT_THAT(error_after(go, {greeting, Bytes(20)}), HasSubstr("magic"));
  EXPECT_THAT(error_after(go, {greeting, reply(6, kRepAck)}), HasSubstr("NBD_OPT_INFO"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, kRepAck)}), HasSubstr("NBD_INFO_EXPORT"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, kRepServer)}), HasSubstr("NBD_REP_SERVER"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, 77)}), HasSubstr("unknown option reply"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, kRepInfo, hex("00"))}), HasSubstr("too short"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, kRepInfo, hex("0000 00"))}),
              HasSubstr("NBD_INFO_EXPORT"));
  EXPECT_THAT(error_after(go, {greeting, reply(7, kRepInfo, hex("0003 00"))}),
              HasSubstr("NBD_INFO_BLOCK_SIZE"));
  for (const char* sizes :
       {"00000000 00001000 02000000", "00000003 00001000 02000000", "00020000 00020000 02000000",
        "00000200 00000100 02000000", "00000200 00001001 02000000", "00000200 00001000 00000000"}) {
    EXPECT_THAT(error_after(go, {greeting, reply(7, kRepInfo, hex(std::string("0003") + sizes))}),
                HasSubstr("block sizes"));
  }
  EXPECT_THAT(error_after(go, {greeting, hex("0003e889045565a9 00000007 00000003 ffffffff")}),
              HasSubstr("4294967295 bytes"));
  EXPECT_THAT(error_after(list, {greeting, reply(3, kRepServer, hex("0000"))}),
              HasSubstr("too short"));
  EXPECT_THAT(error_after(list, {greeting, reply(3, kRepServer, hex("00000005 'four'"))}),
              HasSubstr("wrong length"));
  EXPECT_THAT(error_after(list, {greeting, reply(3, kRepServer, hex("ffffffff 'four'"))}),
              HasSubstr("wrong length"));
  EXPECT_THAT(
      error_after(meta, {greeting, reply(8, kRepAck), reply(10, kRepMetaContext, hex("0000"))}),
      HasSubstr("metadata context"));
}

TEST(Client, ListsAreLimited) {
  ClientHandshake client({.goal = ClientGoal::kList, .list_count_max = 3});
  talk(client, hex(kGreeting));
  for (int i = 0; i < 3; i++) talk(client, reply(3, kRepServer, hex("00000001 'x'")));
  EXPECT_EQ(client.status(), Status::kNegotiating);
  talk(client, reply(3, kRepServer, hex("00000001 'x'")));
  EXPECT_EQ(client.status(), Status::kFailed);
}

TEST(Client, CorruptedAnswersNeverCrash) {
  const Bytes answers =
      joined({hex(kGreeting), reply(8, kRepAck),
              reply(10, kRepMetaContext, hex("00000009 'base:allocation'")), reply(10, kRepAck),
              reply(7, kRepInfo, kExport),
              reply(7, kRepInfo, hex("0003 00000200 00001000 02000000")), reply(7, kRepAck)});
  const ClientConfig config = {.export_name = "x", .contexts = {"base:allocation"}};
  ClientHandshake whole(config);
  EXPECT_EQ(whole.consume(answers), answers.size());
  EXPECT_EQ(whole.status(), Status::kDone);
  for (size_t bit = 0; bit < answers.size() * 8; bit++) {
    Bytes bytes = answers;
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    ClientHandshake client(config);
    const size_t used = client.consume(bytes);
    EXPECT_LE(used, bytes.size());
    if (client.status() == Status::kNegotiating) {
      EXPECT_EQ(used, bytes.size());
    }
  }
  for (size_t cut = 0; cut < answers.size(); cut++) {
    ClientHandshake client(config);
    EXPECT_EQ(client.consume(ByteSpan(answers).first(cut)), cut);
    EXPECT_EQ(client.status(), Status::kNegotiating);
    EXPECT_EQ(client.consume(ByteSpan(answers).subspan(cut)), answers.size() - cut);
    EXPECT_EQ(client.status(), Status::kDone);
  }
}

}  // namespace
}  // namespace weft::nbd
