// SPDX-License-Identifier: BSD-3-Clause
#include "nbd/server_handshake.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nbd/server_handshake_fixture.h"
#include "nbd/transmission.h"

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

// --- exact bytes -----------------------------------------------------------------------------

TEST(Greeting, ExactBytes) {  // "Newstyle negotiation"
  EXPECT_EQ(ServerHandshake({}).greeting(), hex("'NBDMAGIC' 'IHAVEOPT' 0003"));
  EXPECT_EQ(ServerHandshake({.handshake_flags = 0}).greeting(), hex("'NBDMAGIC' 'IHAVEOPT' 0000"));
}

TEST(Greeting, OldstyleExactBytes) {  // "Oldstyle negotiation"
  ExportInfo info = disk();
  info.transmission_flags |= kSendDf | kBlockStatusPayload;
  EXPECT_EQ(oldstyle_greeting(info), joined({hex("'NBDMAGIC' 0000420281861253 0000000012345678"
                                                 "0000 0007"),
                                             Bytes(124)}));
}

TEST(ExportName, ExactBytes) {
  Server server;
  server.send(joined({hex("00000003 'IHAVEOPT' 00000001 00000004 'disk'"), hex("2560")}));
  EXPECT_EQ(server.output(), hex("0000000012345678 0007"));
  ASSERT_TRUE(server.established());
  EXPECT_EQ(server.established()->name, "disk");
  EXPECT_EQ(server.established()->mode, HeaderMode::kSimple);
  EXPECT_EQ(server.established()->transmission_flags, 7);
  EXPECT_EQ(server.left, 2u);  // of the transmission phase

  Server zeroes;
  zeroes.send(hex("00000001 'IHAVEOPT' 00000001 00000000"));
  EXPECT_EQ(zeroes.output(), joined({hex("0000000012345678 0007"), Bytes(124)}));
}

TEST(Go, ExactBytes) {
  Server server;
  server.send(hex("00000003 'IHAVEOPT' 00000008 00000000"));
  EXPECT_EQ(server.output(), hex("0003e889045565a9 00000008 00000001 00000000"));
  server.handshake.clear_output();
  server.send(hex("'IHAVEOPT' 00000007 00000010 00000004 'disk' 0003 0001 0002 0003"));
  EXPECT_EQ(server.output(),
            hex("0003e889045565a9 00000007 00000003 0000000c 0000 0000000012345678 0087"
                "0003e889045565a9 00000007 00000003 0000000b 0001 'canonical'"
                "0003e889045565a9 00000007 00000003 00000008 0002 'a disk'"
                "0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 02000000"
                "0003e889045565a9 00000007 00000001 00000000"));
  ASSERT_TRUE(server.established());
  EXPECT_EQ(server.established()->mode, HeaderMode::kStructured);
  EXPECT_TRUE(server.established()->block_sizes_sent);
}

TEST(List, ExactBytes) {
  Negotiating server;
  server.send(hex("'IHAVEOPT' 00000003 00000000"));
  EXPECT_EQ(server.output(),
            hex("0003e889045565a9 00000003 00000002 0000000e 00000004 'disk' 'a disk'"
                "0003e889045565a9 00000003 00000002 00000004 00000000"
                "0003e889045565a9 00000003 00000001 00000000"));
}

// ext, "NBD_OPT_EXTENDED_HEADERS", "NBD_OPT_SET_META_CONTEXT", "NBD_FLAG_BLOCK_STATUS_PAYLOAD"
TEST(ExtendedHeaders, ExactBytes) {
  Negotiating server;
  server.send(hex("'IHAVEOPT' 0000000b 00000000"));
  EXPECT_EQ(server.output(), hex("0003e889045565a9 0000000b 00000001 00000000"));
  server.handshake.clear_output();
  server.send(
      hex("'IHAVEOPT' 0000000a 0000001f 00000004 'disk' 00000001"
          "0000000f 'base:allocation'"));
  EXPECT_EQ(server.output(), hex("0003e889045565a9 0000000a 00000004 00000013 00000001"
                                 "'base:allocation' 0003e889045565a9 0000000a 00000001 00000000"));
  server.handshake.clear_output();
  server.send(hex("'IHAVEOPT' 00000007 0000000a 00000004 'disk' 0000"));
  EXPECT_EQ(server.output(),
            hex("0003e889045565a9 00000007 00000003 0000000c 0000 0000000012345678 1087"
                "0003e889045565a9 00000007 00000001 00000000"));
  ASSERT_TRUE(server.established());
  EXPECT_EQ(server.established()->mode, HeaderMode::kExtended);
  EXPECT_TRUE(server.established()->allocation_context);
  EXPECT_FALSE(server.established()->block_sizes_sent);
}

// --- the beginning -----------------------------------------------------------------------------

TEST(ClientFlags, UnknownOnesClose) {
  for (int bit = 0; bit < 32; bit++) {
    Server server;
    server.send(Builder().u32(uint64_t{1} << bit).bytes);
    EXPECT_EQ(server.closed() != nullptr, bit > 1) << bit;
  }
}

TEST(ClientFlags, OnlyWhatWasOfferedIsAccepted) {
  for (uint16_t offered = 0; offered < 4; offered++) {
    for (uint32_t flags = 0; flags < 4; flags++) {
      Server server({.handshake_flags = offered});
      server.send(Builder().u32(flags).bytes);
      EXPECT_EQ(server.closed() != nullptr, (flags & ~uint32_t{offered}) != 0);
    }
  }
}

TEST(ClientFlags, WithoutFixedNewstyleOnlyExportNameExists) {
  for (uint32_t number = 0; number < 14; number++) {
    Server server;
    server.send(joined({hex("00000000"), option(number)}));
    EXPECT_EQ(server.closed() != nullptr, number != kOptExportName);
    EXPECT_EQ(server.established() != nullptr, number == kOptExportName);
    if (server.closed()) {
      EXPECT_TRUE(server.output().empty());
    }
  }
}

// --- each option -------------------------------------------------------------------------------

TEST(Options, UnknownOnesAreUnsupportedAndSkipped) {
  for (const uint32_t number : {0u, 4u, 12u, 13u, 0x7fffffffu, 0xffffffffu}) {
    for (const size_t size : {0u, 1u, 100u, 300'000u}) {
      Negotiating server;
      EXPECT_EQ(server.ask(number, Bytes(size)), (Types{kRepErrUnsup}));
      EXPECT_EQ(server.ask(kOptGo, go_data("disk", {})), (Types{kRepInfo, kRepAck}));
    }
  }
}

TEST(Options, DataWhereNoneIsAllowed) {
  for (const uint32_t number : {kOptList, kOptStarttls, kOptStructuredReply, kOptExtendedHeaders}) {
    Negotiating server;
    EXPECT_EQ(server.ask(number, Bytes(1)), (Types{kRepErrInvalid})) << number;
    EXPECT_EQ(server.ask(number, Bytes(1 << 20)), (Types{kRepErrInvalid})) << number;
    EXPECT_THAT(server.text(), HasSubstr("takes no data"));
    EXPECT_EQ(server.ask(kOptGo, go_data("disk", {})), (Types{kRepInfo, kRepAck}));
    EXPECT_EQ(server.established()->mode, HeaderMode::kSimple);
  }
}

TEST(Options, AbortIsAcknowledgedAndClosed) {
  for (const size_t size : {0u, 1u, 5000u}) {
    Negotiating server;
    EXPECT_EQ(server.ask(kOptAbort, Bytes(size)), (Types{kRepAck}));
    ASSERT_TRUE(server.closed());
    EXPECT_EQ(server.closed()->cause, CloseCause::kAbort);
  }
  Negotiating server;  // does not wait for the data
  server.send(hex("'IHAVEOPT' 00000002 ffffffff"));
  ASSERT_TRUE(server.closed());
  EXPECT_EQ(server.output(), hex("0003e889045565a9 00000002 00000001 00000000"));
}

TEST(Options, ListCanBeRefused) {
  ServerHandshake handshake({});
  EXPECT_EQ(handshake.consume(joined({kFixed, option(kOptList)})), 20u);
  ASSERT_TRUE(std::holds_alternative<WantList>(handshake.event()));
  handshake.refuse_list(kRepErrPolicy, "no");
  EXPECT_TRUE(std::holds_alternative<std::monostate>(handshake.event()));
  EXPECT_EQ(Bytes(handshake.output().begin(), handshake.output().end()),
            hex("0003e889045565a9 00000003 80000002 00000002 'no'"));
}

TEST(Options, StarttlsIsRefusedByPolicy) {
  Negotiating server;
  EXPECT_EQ(server.ask(kOptStarttls), (Types{kRepErrPolicy}));
  EXPECT_THAT(server.text(), HasSubstr("TLS is not available"));
}

// CVE-2021-3716 and its kin: bytes after STARTTLS are not taken for part of something else, and
// a refusal forgets nothing.
TEST(Options, StarttlsRefusedKeepsTheNegotiation) {
  Negotiating server;
  EXPECT_EQ(server.ask(kOptStructuredReply), (Types{kRepAck}));
  server.handshake.clear_output();
  server.send(joined({option(kOptStarttls), option(kOptGo, go_data("disk", {}))}));
  ASSERT_TRUE(split_replies(server.output(), server.replies));
  EXPECT_EQ(server.replies.front().type, uint32_t{kRepErrPolicy});
  ASSERT_TRUE(server.established());
  EXPECT_EQ(server.established()->mode, HeaderMode::kStructured);
}

TEST(Options, HeadersCanBeNegotiatedOnce) {
  Negotiating server;
  EXPECT_EQ(server.ask(kOptStructuredReply), (Types{kRepAck}));
  EXPECT_EQ(server.ask(kOptStructuredReply), (Types{kRepErrInvalid}));
  EXPECT_EQ(server.ask(kOptExtendedHeaders), (Types{kRepAck}));  // may follow structured replies
  EXPECT_EQ(server.ask(kOptExtendedHeaders), (Types{kRepErrInvalid}));
  EXPECT_EQ(server.ask(kOptStructuredReply), (Types{kRepErrExtHeaderReqd}));
  EXPECT_THAT(server.text(), HasSubstr("already"));
  EXPECT_EQ(server.ask(kOptGo, go_data("disk", {})), (Types{kRepInfo, kRepAck}));
  EXPECT_EQ(server.established()->mode, HeaderMode::kExtended);
}

TEST(Options, CanBeDisabled) {
  Negotiating no_sr({.structured_replies = false});
  EXPECT_EQ(no_sr.ask(kOptStructuredReply), (Types{kRepErrUnsup}));
  EXPECT_EQ(no_sr.ask(kOptExtendedHeaders), (Types{kRepErrUnsup}));
  Negotiating no_mc({.meta_contexts = false});
  EXPECT_EQ(no_mc.ask(kOptStructuredReply), (Types{kRepAck}));
  EXPECT_EQ(no_mc.ask(kOptListMetaContext, meta_data("disk", {})), (Types{kRepErrUnsup}));
  EXPECT_EQ(no_mc.ask(kOptSetMetaContext, meta_data("disk", {"base:allocation"})),
            (Types{kRepErrUnsup}));
  Negotiating no_ext({.extended_headers = false});
  EXPECT_EQ(no_ext.ask(kOptExtendedHeaders), (Types{kRepErrUnsup}));
  EXPECT_EQ(no_ext.ask(kOptStructuredReply), (Types{kRepAck}));
}

TEST(Options, InfoAndGoAnswerTheSame) {
  for (const std::vector<uint16_t>& infos :
       {std::vector<uint16_t>{},
        {kInfoName},
        {kInfoDescription},
        {kInfoBlockSize},
        {kInfoExport, kInfoName, kInfoName, kInfoBlockSize, 77}}) {
    Negotiating server;
    server.ask(kOptStructuredReply);
    server.ask(kOptSetMetaContext, meta_data("disk", {"base:allocation"}));
    const Types types = server.ask(kOptInfo, go_data("disk", infos));
    const std::vector<Reply> info = server.replies;
    EXPECT_EQ(server.ask(kOptGo, go_data("disk", infos)), types);
    for (size_t i = 0; i < info.size(); i++) EXPECT_EQ(info[i].data, server.replies[i].data);
    EXPECT_TRUE(server.established());
  }
}

TEST(Options, OnlyRequestedInformationIsSent) {
  Negotiating server;
  EXPECT_EQ(server.ask(kOptInfo, go_data("disk", {})), (Types{kRepInfo, kRepAck}));
  EXPECT_EQ(server.ask(kOptInfo, go_data("disk", {kInfoBlockSize})),
            (Types{kRepInfo, kRepInfo, kRepAck}));
  EXPECT_EQ(server.ask(kOptInfo, go_data("disk", {4, 5, 0xffff})), (Types{kRepInfo, kRepAck}));
  EXPECT_FALSE(server.established());
}

TEST(Options, GoOfAnUnknownExport) {
  Negotiating server;
  EXPECT_EQ(server.ask(kOptGo, go_data("other", {})), (Types{kRepErrUnknown}));
  EXPECT_EQ(server.text(), "no such export");
  EXPECT_EQ(server.ask(kOptInfo, go_data("other", {})), (Types{kRepErrUnknown}));
  EXPECT_EQ(server.ask(kOptGo, go_data("", {})), (Types{kRepInfo, kRepAck}));
  EXPECT_EQ(server.established()->name, "");
  ASSERT_EQ(server.asked.size(), 3u);
  EXPECT_EQ(server.asked[0].query, ExportQuery::kGo);
  EXPECT_EQ(server.asked[1].query, ExportQuery::kInfo);
}

TEST(Options, ExportNameCannotBeRefusedPolitely) {
  Negotiating server;
  server.send(option(kOptExportName, bytes_of("other")));
  ASSERT_TRUE(server.closed());
  EXPECT_EQ(server.closed()->cause, CloseCause::kRefused);
  EXPECT_THAT(server.closed()->reason, HasSubstr("other"));
  EXPECT_TRUE(server.output().empty());
}

TEST(Options, ExportNameAfterExtendedHeadersCloses) {  // ext
  Negotiating server;
  server.ask(kOptExtendedHeaders);
  server.handshake.clear_output();
  server.send(option(kOptExportName, bytes_of("disk")));
  ASSERT_TRUE(server.closed());
  EXPECT_TRUE(server.asked.empty());
  EXPECT_TRUE(server.output().empty());
}

// --- metadata contexts ---------------------------------------------------------------------------

struct MetaContext : ::testing::Test {
  MetaContext() { server.ask(kOptStructuredReply); }
  Types set(const std::string& name, const std::vector<std::string>& queries) {
    return server.ask(kOptSetMetaContext, meta_data(name, queries));
  }
  Types list(const std::string& name, const std::vector<std::string>& queries) {
    return server.ask(kOptListMetaContext, meta_data(name, queries));
  }
  // Ends with a GO: is the context there?
  bool selected_for(const std::string& name) {
    EXPECT_EQ(server.ask(kOptGo, go_data(name, {})), (Types{kRepInfo, kRepAck}));
    EXPECT_EQ(server.established()->transmission_flags & kBlockStatusPayload, 0);  // ext only
    return server.established()->allocation_context;
  }
  Negotiating server;
};

TEST_F(MetaContext, List) {
  const Types one = {kRepMetaContext, kRepAck};
  EXPECT_EQ(list("disk", {}), one);
  EXPECT_EQ(server.replies[0].data, hex("00000000 'base:allocation'"));
  EXPECT_EQ(list("disk", {"base:"}), one);
  EXPECT_EQ(list("disk", {"base:allocation"}), one);
  EXPECT_EQ(list("disk", {"x-other:thing", "base:allocation", "base:"}), one);
  for (const char* query :
       {"", ":", "base", "base:alloc", "base:allocation2", "qemu:", "allocation"}) {
    EXPECT_EQ(list("disk", {query}), (Types{kRepAck})) << query;
  }
  EXPECT_EQ(list("other", {}), (Types{kRepErrUnknown}));
  EXPECT_FALSE(selected_for("disk"));
}

TEST_F(MetaContext, Set) {
  EXPECT_EQ(set("disk", {"base:allocation", "base:allocation"}), (Types{kRepMetaContext, kRepAck}));
  EXPECT_EQ(server.replies[0].data, hex("00000001 'base:allocation'"));
  EXPECT_EQ(server.asked.back().query, ExportQuery::kMetaContext);
  EXPECT_TRUE(selected_for("disk"));
}

TEST_F(MetaContext, SetNothing) {
  EXPECT_EQ(set("disk", {"base:allocation"}), (Types{kRepMetaContext, kRepAck}));
  EXPECT_EQ(set("disk", {}), (Types{kRepAck}));
  EXPECT_FALSE(selected_for("disk"));
}

TEST_F(MetaContext, SetOfAWildcardSelectsNothing) {
  EXPECT_EQ(set("disk", {"base:"}), (Types{kRepAck}));
  EXPECT_FALSE(selected_for("disk"));
}

TEST_F(MetaContext, FailingSetsReplaceTheSelection) {
  const std::pair<Bytes, uint32_t> failures[] = {
      {meta_data("other", {"base:allocation"}), kRepErrUnknown},
      {hex("00000004 'disk'"), kRepErrInvalid},
      {{}, kRepErrInvalid},
      {Bytes(kOptionDataBufferedMax + 1), kRepErrTooBig},
  };
  for (const auto& [data, error] : failures) {
    Negotiating fresh;
    fresh.ask(kOptStructuredReply);
    fresh.ask(kOptSetMetaContext, meta_data("disk", {"base:allocation"}));
    EXPECT_EQ(fresh.ask(kOptSetMetaContext, data), (Types{error}));
    fresh.ask(kOptGo, go_data("disk", {}));
    EXPECT_FALSE(fresh.established()->allocation_context);
  }
}

TEST_F(MetaContext, SelectionIsBoundToTheName) {
  set("disk", {"base:allocation"});
  EXPECT_FALSE(selected_for(""));
}

TEST_F(MetaContext, InfoOfAnotherExportForgetsNothing) {
  set("disk", {"base:allocation"});
  server.ask(kOptInfo, go_data("", {}));
  server.ask(kOptGo, go_data("other", {}));
  list("", {});
  EXPECT_TRUE(selected_for("disk"));
}

TEST_F(MetaContext, BadLengths) {
  const Bytes good = meta_data("disk", {"base:allocation", "x:y"});
  for (const uint32_t number : {kOptListMetaContext, kOptSetMetaContext}) {
    for (size_t size = 0; size < good.size(); size++) {
      EXPECT_EQ(server.ask(number, ByteSpan(good).first(size)), (Types{kRepErrInvalid})) << size;
    }
    EXPECT_EQ(server.ask(number, joined({good, hex("00")})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("ffffffff 'disk' 00000000")), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("00000004 'disk' ffffffff")), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("00000004 'disk' 00000001 fffffff0 'a'")),
              (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, hex("00000004 'disk' 00000001 00000001 00")),
              (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, meta_data("disk", {std::string(4097, 'q')})),
              (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, meta_data(std::string(4097, 'n'), {})), (Types{kRepErrInvalid}));
    EXPECT_EQ(server.ask(number, meta_data("disk", {std::string(4096, 'q')})), (Types{kRepAck}));
  }
}

TEST(MetaContextAlone, NeedsStructuredReplies) {
  Negotiating server;
  for (const uint32_t number : {kOptListMetaContext, kOptSetMetaContext}) {
    EXPECT_EQ(server.ask(number, meta_data("disk", {"base:allocation"})), (Types{kRepErrInvalid}));
  }
  EXPECT_TRUE(server.asked.empty());
}

}  // namespace
}  // namespace weft::nbd
