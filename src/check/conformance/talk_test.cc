// SPDX-License-Identifier: BSD-3-Clause
// What Talk says of a server's bytes: each breach is one kind of finding, and what is right passes.
#include "check/conformance/talk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <functional>

namespace weft::check::conformance {
namespace {

using nbd::HeaderMode;
using std::chrono::milliseconds;

constexpr uint64_t kCookie = 77;

// A talk whose server is what the test writes.
class TalkTest : public ::testing::Test {
 protected:
  TalkTest() {
    std::array<int, 2> ends;
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()), 0);
    talk_.emplace(Fd(ends[0]), milliseconds(50), story_);
    server_ = Fd(ends[1]);
  }

  void says(ByteSpan bytes) {
    ASSERT_EQ(::send(server_.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }

  void says_option(uint32_t option, uint32_t type, std::string_view data = {},
                   uint64_t magic = nbd::kOptionReplyMagic) {
    std::array<std::byte, 20> header;
    std::byte* to = store_be<uint64_t>(header.data(), magic);
    to = store_be<uint32_t>(to, option);
    to = store_be<uint32_t>(to, type);
    store_be<uint32_t>(to, static_cast<uint32_t>(data.size()));
    says(header);
    if (!data.empty()) says(bytes_of(data));
  }

  // A READ of 1000 bytes at 4096 (or another request) is in flight.
  void asked(HeaderMode mode, uint16_t type = nbd::kCmdRead) {
    talk_->enter({.mode = mode, .size = 1 << 20, .contexts = {1}, .block_min = 1});
    talk_->expect({.type = type, .cookie = kCookie, .offset = 4096, .length = 1000});
  }

  void says_simple(uint32_t error, uint64_t cookie = kCookie) {
    std::array<std::byte, nbd::kSimpleReplySize> bytes;
    nbd::encode_simple_reply(bytes.data(), error, cookie);
    says(bytes);
  }

  void says_chunk(uint16_t type, uint16_t flags, ByteSpan payload, uint64_t cookie = kCookie) {
    std::array<std::byte, nbd::kStructuredReplySize> bytes;
    nbd::encode_structured_chunk(
        bytes.data(),
        {.flags = flags, .type = type, .cookie = cookie, .offset = 0, .length = payload.size()});
    says(bytes);
    if (!payload.empty()) says(payload);
  }

  void says_data(uint64_t offset, size_t length, uint16_t flags = 0) {
    std::vector<std::byte> payload(8 + length, std::byte{'d'});
    nbd::encode_offset_data(payload.data(), offset);
    says_chunk(nbd::kChunkOffsetData, flags, payload);
  }

  // The kind of the verdict, "" when there is none.
  static std::string kind_of(const std::function<void()>& what) {
    try {
      what();
    } catch (const Verdict& verdict) {
      return verdict.kind.empty() ? "no finding" : verdict.kind;
    }
    return "";
  }
  std::string answered() {
    return kind_of([&] { answer_ = talk_->next_answer(); });
  }
  std::string option_answered(uint32_t option) {
    return kind_of([&] { option_answer_ = talk_->answer(option); });
  }

  Story story_;
  std::optional<Talk> talk_;
  Fd server_;
  Answer answer_;
  OptionAnswer option_answer_;
};

TEST_F(TalkTest, AGreetingIsTakenApart) {
  std::array<std::byte, 18> bytes;
  std::byte* to = store_be<uint64_t>(bytes.data(), nbd::kMagic);
  to = store_be<uint64_t>(to, nbd::kOptionMagic);
  store_be<uint16_t>(to, 3);
  says(bytes);
  EXPECT_EQ(talk_->greeting(), 3);
  store_be<uint64_t>(bytes.data() + 8, nbd::kOldstyleMagic);
  says(bytes);
  EXPECT_EQ(kind_of([&] { (void)talk_->greeting(); }), "oldstyle");
  store_be<uint64_t>(bytes.data(), 1);
  says(bytes);
  EXPECT_EQ(kind_of([&] { (void)talk_->greeting(); }), "wrong-magic");
}

TEST_F(TalkTest, SilenceAndTheEndAreTold) {
  EXPECT_EQ(kind_of([&] { (void)talk_->greeting(); }), "no-answer");
  server_.reset();
  EXPECT_EQ(kind_of([&] { (void)talk_->greeting(); }), "disconnected");
  EXPECT_EQ(talk_->wait_for_end(), Got::kEnd);
}

TEST_F(TalkTest, OptionReplies) {
  says_option(3, nbd::kRepServer, std::string_view("\0\0\0\1a", 5));
  says_option(3, nbd::kRepAck);
  EXPECT_EQ(option_answered(3), "");
  EXPECT_TRUE(option_answer_.acked());
  EXPECT_EQ(option_answer_.before.size(), 1u);
  says_option(3, nbd::kRepErrPolicy, "not today");
  EXPECT_EQ(option_answered(3), "");
  EXPECT_TRUE(option_answer_.refused());
  EXPECT_EQ(option_answer_.text, "not today");
}

TEST_F(TalkTest, BadOptionReplies) {
  says_option(4, nbd::kRepAck);
  EXPECT_EQ(option_answered(3), "wrong-option");
  says_option(3, nbd::kRepAck, {}, 5);
  EXPECT_EQ(option_answered(3), "wrong-magic");
  says_option(3, nbd::kRepAck, "data");
  EXPECT_EQ(option_answered(3), "malformed-reply");
  says_option(3, nbd::kRepErrPolicy, "\xff\xfe");
  EXPECT_EQ(option_answered(3), "malformed-reply");
}

TEST_F(TalkTest, SimpleReplies) {
  asked(HeaderMode::kSimple);
  says_simple(nbd::kOk);
  says(std::vector<std::byte>(1000, std::byte{'x'}));
  EXPECT_EQ(answered(), "");
  EXPECT_TRUE(answer_.ok() && answer_.simple);
  EXPECT_EQ(answer_.data.size(), 1000u);
  asked(HeaderMode::kSimple);
  says_simple(nbd::kEinval);
  EXPECT_EQ(answered(), "");
  EXPECT_EQ(answer_.error, nbd::kEinval);
  asked(HeaderMode::kSimple);
  says_simple(nbd::kOk, 78);
  EXPECT_EQ(answered(), "wrong-cookie");
}

TEST_F(TalkTest, AReadThatEndsEarlyIsADisconnect) {
  asked(HeaderMode::kSimple);
  says_simple(nbd::kOk);
  says(std::vector<std::byte>(999));
  server_.reset();
  EXPECT_EQ(answered(), "disconnected");
}

TEST_F(TalkTest, StructuredRepliesNeedNegotiation) {
  asked(HeaderMode::kSimple);
  says_data(4096, 1000, nbd::kReplyDone);
  EXPECT_EQ(answered(), "wrong-magic");
}

TEST_F(TalkTest, SimpleRepliesWhereChunksWereAgreed) {
  asked(HeaderMode::kStructured, nbd::kCmdFlush);
  says_simple(nbd::kOk);
  EXPECT_EQ(answered(), "");
  asked(HeaderMode::kStructured);
  says_simple(nbd::kEinval);
  EXPECT_EQ(answered(), "simple-reply-to-read");
}

TEST_F(TalkTest, ASimpleReplyIsNoBlockStatus) {
  asked(HeaderMode::kStructured, nbd::kCmdBlockStatus);
  says_simple(nbd::kOk);
  EXPECT_EQ(answered(), "malformed-reply");
}

TEST_F(TalkTest, ChunksInAnyOrder) {
  asked(HeaderMode::kStructured);
  says_data(4500, 596);
  std::array<std::byte, nbd::kOffsetHoleSize> hole;
  nbd::encode_offset_hole(hole.data(), 4096, 404);
  says_chunk(nbd::kChunkOffsetHole, 0, hole);
  says_chunk(nbd::kChunkNone, nbd::kReplyDone, {});
  EXPECT_EQ(answered(), "");
  EXPECT_EQ(answer_.content_chunks, 2u);
  EXPECT_EQ(answer_.data.at(0), std::byte{0});
  EXPECT_EQ(answer_.data.at(999), std::byte{'d'});
}

TEST_F(TalkTest, AnErrorChunkAfterData) {
  asked(HeaderMode::kStructured);
  says_data(4096, 500);
  std::array<std::byte, 32> error;
  const std::byte* end = nbd::encode_error_offset(error.data(), nbd::kEio, "scratch", 4600);
  says_chunk(nbd::kChunkErrorOffset, nbd::kReplyDone, ByteSpan(error.data(), end));
  EXPECT_EQ(answered(), "");
  EXPECT_EQ(answer_.error, nbd::kEio);
  EXPECT_EQ(answer_.text, "scratch");
}

TEST_F(TalkTest, DataThatDoesNotCover) {
  asked(HeaderMode::kStructured);
  says_data(4096, 999, nbd::kReplyDone);
  EXPECT_EQ(answered(), "malformed-reply");
}

TEST_F(TalkTest, DataTwice) {
  asked(HeaderMode::kStructured);
  says_data(4096, 600);
  says_data(4600, 496, nbd::kReplyDone);
  EXPECT_EQ(answered(), "malformed-reply");
}

TEST_F(TalkTest, DataOutside) {
  asked(HeaderMode::kStructured);
  says_data(4095, 1000);
  EXPECT_EQ(answered(), "malformed-reply");
  asked(HeaderMode::kStructured);
  says_data(~uint64_t{0}, 10);
  EXPECT_EQ(answered(), "malformed-reply");
}

TEST_F(TalkTest, ChunksOutOfForm) {
  const std::array<std::byte, 5> five = {};
  struct Bad {
    uint16_t type;
    uint16_t flags;
    ByteSpan payload;
  };
  const Bad cases[] = {
      {nbd::kChunkNone, nbd::kReplyDone, five},         // with a payload
      {nbd::kChunkNone, 0, {}},                         // not the last
      {nbd::kChunkNone, nbd::kReplyDone | 2, {}},       // an unknown flag
      {nbd::kChunkOffsetData, nbd::kReplyDone, five},   // too short
      {nbd::kChunkOffsetHole, nbd::kReplyDone, five},   // too short
      {nbd::kChunkError, nbd::kReplyDone, five},        // too short
      {nbd::kChunkBlockStatus, nbd::kReplyDone, five},  // to a READ
      {9, nbd::kReplyDone, {}},                         // of no known type
  };
  for (const Bad& bad : cases) {
    asked(HeaderMode::kStructured);
    says_chunk(bad.type, bad.flags, bad.payload);
    EXPECT_EQ(answered(), "malformed-reply") << "type " << bad.type << " flags " << bad.flags;
  }
}

TEST_F(TalkTest, ExtendedRepliesEchoTheOffset) {
  const auto says_none = [&](uint64_t offset) {
    std::array<std::byte, nbd::kExtendedReplySize> bytes;
    nbd::encode_extended_chunk(bytes.data(), {.flags = nbd::kReplyDone,
                                              .type = nbd::kChunkNone,
                                              .cookie = kCookie,
                                              .offset = offset,
                                              .length = 0});
    says(bytes);
  };
  asked(HeaderMode::kExtended, nbd::kCmdFlush);
  says_none(4096);
  EXPECT_EQ(answered(), "");
  asked(HeaderMode::kExtended, nbd::kCmdFlush);
  says_none(0);
  EXPECT_EQ(answered(), "wrong-offset");
  asked(HeaderMode::kExtended, nbd::kCmdFlush);
  says_simple(nbd::kOk);
  EXPECT_EQ(answered(), "wrong-magic");
}

TEST(Strings, AreUtf8WithoutNul) {
  EXPECT_EQ(string_fault(bytes_of("")), "");
  EXPECT_EQ(string_fault(bytes_of("gr\xc3\xbc\xc3\x9f \xe2\x82\xac \xf0\x9f\x98\x80")), "");
  EXPECT_EQ(string_fault(bytes_of(std::string(4096, 'x'))), "");
  EXPECT_NE(string_fault(bytes_of(std::string(4097, 'x'))), "");
  for (const std::string_view bad : {std::string_view("a\0b", 3), std::string_view("\xff"),
                                     std::string_view("\xc3"),              // cut off
                                     std::string_view("\xc0\xaf"),          // overlong
                                     std::string_view("\xed\xa0\x80"),      // a surrogate
                                     std::string_view("\xf4\x90\x80\x80")}  // above U+10FFFF
  ) {
    EXPECT_NE(string_fault(bytes_of(bad)), "") << hex(bytes_of(bad));
  }
}

TEST(Stories, KeepTheBeginningAndTheEnd) {
  Story story;
  for (int i = 0; i < 24; ++i) story.add(std::to_string(i));
  EXPECT_EQ(story.lines().size(), 24u);
  for (int i = 24; i < 1000; ++i) story.add(std::to_string(i));
  const std::vector<std::string> lines = story.lines();
  ASSERT_EQ(lines.size(), 25u);
  EXPECT_EQ(lines[9], "9");
  EXPECT_EQ(lines[10], "... 976 more steps ...");
  EXPECT_EQ(lines[11], "986");
  EXPECT_EQ(lines.back(), "999");
}

}  // namespace
}  // namespace weft::check::conformance
