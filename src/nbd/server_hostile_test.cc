// SPDX-License-Identifier: BSD-3-Clause
// ServerHandshake against clients that break the rules, its limits, and bytes in pieces.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "nbd/server_handshake_fixture.h"

namespace weft::nbd {
namespace {

using testing::Builder;
using testing::Bytes;
using testing::disk;
using testing::go_data;
using ::testing::HasSubstr;
using testing::hex;
using testing::joined;
using testing::kFixed;
using testing::meta_data;
using testing::Negotiating;
using testing::option;
using testing::Reply;
using testing::Server;
using testing::Types;

// --- hostile clients ---------------------------------------------------------------------------

TEST(Hostile, OptionOf4GiBClosesAtOnce) {  // other servers wait for the data
  for (uint32_t number = 0; number < 13; number++) {
    Negotiating server;
    server.send(Builder().text("IHAVEOPT").u32(number).u32(0xffffffff).bytes);
    ASSERT_TRUE(server.closed()) << number;
    EXPECT_EQ(server.closed()->cause,
              number == kOptAbort ? CloseCause::kAbort : CloseCause::kLimit);
  }
}

TEST(Hostile, LongOptionsAreSkippedUpToTheLimit) {
  const Bytes chunk(1 << 20);
  for (const uint32_t number : std::array<uint32_t, 3>{kOptGo, kOptInfo, 4711}) {
    Negotiating server;
    server.send(Builder().text("IHAVEOPT").u32(number).u32(kOptionDataSkippedMax).bytes);
    EXPECT_THAT(server.handshake.state_name(), HasSubstr("skipping"));
    for (uint32_t sent = 0; sent < kOptionDataSkippedMax; sent += chunk.size()) server.send(chunk);
    ASSERT_TRUE(split_replies(server.output(), server.replies));
    ASSERT_EQ(server.replies.size(), 1u);
    EXPECT_EQ(server.replies[0].type, number == 4711 ? kRepErrUnsup : kRepErrTooBig);
    EXPECT_EQ(server.ask(kOptGo, go_data("disk", {})), (Types{kRepInfo, kRepAck}));
  }
  Negotiating server;
  server.send(Builder().text("IHAVEOPT").u32(kOptGo).u32(kOptionDataSkippedMax + 1).bytes);
  EXPECT_TRUE(server.closed());
}

TEST(Hostile, TheLongestLegalGoIsUnderstood) {
  Negotiating server;
  const Bytes data = go_data(std::string(4096, 'n'), std::vector<uint16_t>(65535, kInfoName));
  EXPECT_EQ(data.size(), kOptionDataBufferedMax);
  EXPECT_EQ(server.ask(kOptGo, data), (Types{kRepErrUnknown}));
}

TEST(Hostile, GoWithWrongLengths) {  // other servers read past the data
  const Bytes good = go_data("disk", {kInfoName, kInfoBlockSize});
  for (const uint32_t number : {kOptInfo, kOptGo}) {
    Negotiating server;
    for (size_t size = 0; size < good.size(); size++) {
      EXPECT_EQ(server.ask(number, ByteSpan(good).first(size)), (Types{kRepErrInvalid})) << size;
    }
    EXPECT_EQ(server.ask(number, joined({good, hex("00")})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, joined({good, hex("0000")})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("00000004 'disk' ffff")), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("ffffffff 'disk' 0000")), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("fffffffe 'disk' 0000")), (Types{kRepErrInvalid}));
    EXPECT_TRUE(server.asked.empty());
    EXPECT_EQ(server.ask(number, good), (Types{kRepInfo, kRepInfo, kRepInfo, kRepAck}));
  }
}

TEST(Hostile, NamesThatAreNoStrings) {
  using namespace std::string_literals;
  const std::string names[] = {
      "a\0b"s,      "\0"s,          std::string(4097, 'x'), "\xff",
      "\xc0\x80",   "\xe0\x80\x80", "\xed\xa0\x80",         "\xf4\x90\x80\x80",
      "ab\xe2\x82", "\x80",         std::string(5000, 'x')};
  for (const std::string& name : names) {
    EXPECT_FALSE(valid_string(name));
    Negotiating server;
    server.ask(kOptStructuredReply);
    EXPECT_EQ(server.ask(kOptGo, go_data(name, {})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(kOptInfo, go_data(name, {})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(kOptSetMetaContext, meta_data(name, {})), (Types{kRepErrInvalid}));
    server.handshake.clear_output();
    server.send(option(kOptExportName, bytes_of(name)));
    ASSERT_TRUE(server.closed());
    EXPECT_TRUE(server.output().empty());
    EXPECT_TRUE(server.asked.empty());
  }
  for (const char* name : {"", "a", "gr\xc3\xbc\xc3\x9f", "\xe2\x82\xac", "\xf0\x9f\x92\xbe",
                           "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_TRUE(valid_string(name));
  }
  EXPECT_TRUE(valid_string(std::string(4096, 'x')));
}

TEST(Hostile, TooManyOptions) {
  Negotiating server({.option_count_max = 100});
  for (int i = 0; i < 100; i++) EXPECT_EQ(server.ask(99), (Types{kRepErrUnsup}));
  server.send(option(99));
  ASSERT_TRUE(server.closed());
  EXPECT_EQ(server.closed()->cause, CloseCause::kLimit);

  Negotiating usual;  // 3000 options are answered
  for (int i = 0; i < 3000; i++) ASSERT_EQ(usual.ask(99), (Types{kRepErrUnsup}));
  EXPECT_FALSE(usual.closed());
}

TEST(Hostile, EveryWrongOptionMagicCloses) {
  for (size_t bit = 0; bit < 64; bit++) {
    Bytes bytes = option(kOptList);
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    Negotiating server;
    server.send(bytes);
    ASSERT_TRUE(server.closed());
    EXPECT_EQ(server.closed()->cause, CloseCause::kViolation);
    EXPECT_TRUE(server.output().empty());
  }
}

TEST(Shutdown, AnswersErrorsButAcknowledgesAbort) {
  Negotiating server;
  server.handshake.begin_shutdown();
  for (const uint32_t number : {kOptList, kOptStarttls, kOptInfo, kOptGo, kOptStructuredReply,
                                kOptListMetaContext, kOptSetMetaContext, kOptExtendedHeaders}) {
    EXPECT_EQ(server.ask(number, go_data("disk", {})), (Types{kRepErrShutdown}));
  }
  EXPECT_EQ(server.ask(4711), (Types{kRepErrShutdown}));
  EXPECT_EQ(server.ask(kOptAbort), (Types{kRepAck}));
  EXPECT_EQ(server.closed()->cause, CloseCause::kAbort);

  Negotiating other;
  other.handshake.begin_shutdown();
  other.send(option(kOptExportName, bytes_of("disk")));
  ASSERT_TRUE(other.closed());
  EXPECT_EQ(other.closed()->cause, CloseCause::kRefused);
}

// --- pieces, events, states ------------------------------------------------------------------

Bytes long_session() {
  return joined({kFixed, option(kOptList), option(77, Bytes(33)), option(kOptStructuredReply),
                 option(kOptSetMetaContext, meta_data("disk", {"base:allocation"})),
                 option(kOptInfo, go_data("disk", {kInfoName})),
                 option(kOptGo, go_data("disk", {kInfoBlockSize}))});
}

TEST(Pieces, CutAtEveryPosition) {
  const Bytes session = long_session();
  Server whole;
  whole.send(session);
  ASSERT_TRUE(whole.established());
  for (size_t cut = 0; cut <= session.size(); cut++) {
    Server server;
    server.send(ByteSpan(session).first(cut));
    EXPECT_EQ(server.established() != nullptr, cut == session.size());
    EXPECT_FALSE(server.handshake.state_name().empty());
    server.send(ByteSpan(session).subspan(cut));
    ASSERT_EQ(server.output(), whole.output()) << cut;
    ASSERT_TRUE(server.established());
  }
  for (size_t piece = 1; piece < 40; piece++) {
    Server server;
    for (size_t at = 0; at < session.size(); at += piece) {
      server.send(ByteSpan(session).subspan(at, std::min(piece, session.size() - at)));
    }
    ASSERT_EQ(server.output(), whole.output()) << piece;
  }
}

// Every flipped bit and every missing byte leads to well-formed replies or to a closed connection.
TEST(Pieces, CorruptedAndShifted) {
  const Bytes session = long_session();
  const auto check = [](const Bytes& bytes) {
    Server server;
    server.send(bytes);
    std::vector<Reply> replies;
    const bool export_name =
        !server.asked.empty() && server.asked.back().query == ExportQuery::kExportName;
    if (!export_name) {
      ASSERT_TRUE(split_replies(server.handshake.output(), replies));
    }
    if (!server.closed() && !server.established()) {
      EXPECT_EQ(server.left, 0u);
    }
  };
  for (size_t bit = 0; bit < session.size() * 8; bit++) {
    Bytes bytes = session;
    bytes[bit / 8] ^= std::byte(1 << bit % 8);
    check(bytes);
  }
  for (size_t at = 0; at < session.size(); at++) {
    Bytes shorter = session;
    shorter.erase(shorter.begin() + static_cast<ptrdiff_t>(at));
    check(shorter);
    Bytes longer = session;
    longer.insert(longer.begin() + static_cast<ptrdiff_t>(at), std::byte{0x49});
    check(longer);
  }
}

TEST(Events, NothingIsConsumedWhileOneIsPending) {
  ServerHandshake handshake({});
  const Bytes bytes = joined({kFixed, option(kOptList), option(kOptList)});
  EXPECT_EQ(handshake.consume(bytes), 20u);
  EXPECT_EQ(handshake.consume(ByteSpan(bytes).subspan(20)), 0u);
  EXPECT_EQ(handshake.state_name(), "answering NBD_OPT_LIST");
  handshake.answer_list({});
  EXPECT_EQ(handshake.consume(ByteSpan(bytes).subspan(20)), 16u);
}

TEST(Events, FinalOnesStay) {
  Negotiating server;
  server.ask(kOptAbort);
  EXPECT_EQ(server.handshake.consume(option(kOptList)), 0u);
  EXPECT_TRUE(server.closed());
  EXPECT_EQ(server.handshake.state_name(), "closed");
}

TEST(StateName, SaysWhereItIs) {
  ServerHandshake handshake({});
  EXPECT_EQ(handshake.state_name(), "waiting for the client flags");
  EXPECT_EQ(handshake.consume(kFixed), 4u);
  EXPECT_EQ(handshake.state_name(), "waiting for option 1");
  const Bytes go = option(kOptGo, go_data("disk", {}));
  EXPECT_EQ(handshake.consume(ByteSpan(go).first(3)), 3u);
  EXPECT_EQ(handshake.state_name(), "reading the header of option 1, 3 of 16 bytes");
  EXPECT_EQ(handshake.consume(ByteSpan(go).subspan(3, 18)), 18u);
  EXPECT_EQ(handshake.state_name(), "reading NBD_OPT_GO (7), 5 of 10 bytes");
}

}  // namespace
}  // namespace weft::nbd
