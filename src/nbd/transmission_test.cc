// SPDX-License-Identifier: BSD-3-Clause
#include "nbd/transmission.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>

#include "nbd/test_bytes.h"

namespace weft::nbd {
namespace {

using testing::Bytes;
using testing::hex;

// Runs an encoder into more memory than it may need, and returns what it wrote.
template <typename Encode>
Bytes written(size_t room, Encode encode) {
  Bytes memory(room + 8, std::byte{0xee});
  std::byte* end = encode(memory.data());
  const size_t size = static_cast<size_t>(end - memory.data());
  EXPECT_LE(size, room);
  for (size_t i = size; i < memory.size(); i++) EXPECT_EQ(memory[i], std::byte{0xee});
  memory.resize(size);
  return memory;
}

// --- exact bytes ---------------------------------------------------------------------------

TEST(Request, ExactBytes) {  // "Request message"
  const Request request = {0x0001, kCmdWrite, 0x1122334455667788, 0x0102030405060708, 0x0a0b0c0d};
  const Bytes bytes = hex("25609513 0001 0001 1122334455667788 0102030405060708 0a0b0c0d");
  ASSERT_EQ(bytes.size(), kRequestSize);
  EXPECT_EQ(written(kRequestSize, [&](auto* to) { return encode_request(to, request); }), bytes);
  Request decoded;
  ASSERT_TRUE(decode_request(bytes.data(), decoded));
  EXPECT_EQ(decoded, request);
  EXPECT_TRUE(decoded.fua());
}

TEST(Request, ExtendedExactBytes) {  // ext, "Request message"
  const Request request = {0x0020, kCmdWriteZeroes, 0x1122334455667788, 0x0102030405060708,
                           0x0000001000000000};
  const Bytes bytes = hex("21e41c71 0020 0006 1122334455667788 0102030405060708 0000001000000000");
  ASSERT_EQ(bytes.size(), kExtendedRequestSize);
  EXPECT_EQ(
      written(kExtendedRequestSize, [&](auto* to) { return encode_extended_request(to, request); }),
      bytes);
  Request decoded;
  ASSERT_TRUE(decode_extended_request(bytes.data(), decoded));
  EXPECT_EQ(decoded, request);
}

TEST(Request, EveryWrongMagicIsSeen) {
  Bytes compact(kRequestSize), extended(kExtendedRequestSize);
  encode_request(compact.data(), {});
  encode_extended_request(extended.data(), {});
  Request decoded;
  for (size_t bit = 0; bit < 32; bit++) {
    Bytes bad = compact;
    bad[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_FALSE(decode_request(bad.data(), decoded));
    bad = extended;
    bad[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_FALSE(decode_extended_request(bad.data(), decoded));
  }
  compact.resize(kExtendedRequestSize);
  EXPECT_FALSE(decode_extended_request(compact.data(), decoded));
  EXPECT_FALSE(decode_request(extended.data(), decoded));
}

TEST(Reply, SimpleExactBytes) {  // "Simple reply message"
  const Bytes bytes = hex("67446698 00000005 1122334455667788");
  EXPECT_EQ(written(kSimpleReplySize,
                    [](auto* to) { return encode_simple_reply(to, kEio, 0x1122334455667788); }),
            bytes);
  SimpleReply decoded;
  ASSERT_TRUE(decode_simple_reply(bytes.data(), decoded));
  EXPECT_EQ(decoded, (SimpleReply{kEio, 0x1122334455667788}));
  EXPECT_EQ(reply_kind(bytes.data()), ReplyKind::kSimple);
}

TEST(Reply, StructuredChunkExactBytes) {  // "Structured reply chunk message"
  const ReplyChunk chunk = {kReplyDone, kChunkOffsetData, 0x1122334455667788, 0, 0x208};
  const Bytes bytes = hex("668e33ef 0001 0001 1122334455667788 00000208");
  ASSERT_EQ(bytes.size(), kStructuredReplySize);
  EXPECT_EQ(written(kStructuredReplySize,
                    [&](auto* to) { return encode_chunk(to, HeaderMode::kStructured, chunk); }),
            bytes);
  ReplyChunk decoded;
  ASSERT_TRUE(decode_structured_chunk(bytes.data(), decoded));
  EXPECT_EQ(decoded, chunk);
  EXPECT_EQ(reply_kind(bytes.data()), ReplyKind::kStructured);
}

TEST(Reply, ExtendedChunkExactBytes) {  // ext, "Extended reply chunk message"
  const ReplyChunk chunk = {kReplyDone, kChunkOffsetData, 0x1122334455667788, 0x0102030405060708,
                            0x208};
  const Bytes bytes = hex("6e8a278c 0001 0001 1122334455667788 0102030405060708 0000000000000208");
  ASSERT_EQ(bytes.size(), kExtendedReplySize);
  EXPECT_EQ(written(kExtendedReplySize,
                    [&](auto* to) { return encode_chunk(to, HeaderMode::kExtended, chunk); }),
            bytes);
  ReplyChunk decoded;
  ASSERT_TRUE(decode_extended_chunk(bytes.data(), decoded));
  EXPECT_EQ(decoded, chunk);
  EXPECT_EQ(reply_kind(bytes.data()), ReplyKind::kExtended);
  EXPECT_FALSE(decode_structured_chunk(bytes.data(), decoded));
}

TEST(Payload, OffsetDataAndHole) {  // "Structured reply types"
  EXPECT_EQ(written(kOffsetDataPrefixSize,
                    [](auto* to) { return encode_offset_data(to, 0x0102030405060708); }),
            hex("0102030405060708"));
  const Bytes hole = hex("0102030405060708 0a0b0c0d");
  EXPECT_EQ(
      written(kOffsetHoleSize,
              [](auto* to) { return encode_offset_hole(to, 0x0102030405060708, 0x0a0b0c0d); }),
      hole);
  OffsetHole decoded;
  ASSERT_TRUE(decode_offset_hole(hole, decoded));
  EXPECT_EQ(decoded.offset, 0x0102030405060708u);
  EXPECT_EQ(decoded.length, 0x0a0b0c0du);
  EXPECT_FALSE(decode_offset_hole(hex("0102030405060708 00000000"), decoded));
  EXPECT_FALSE(decode_offset_hole(hex("0102030405060708 00000001 00"), decoded));
  EXPECT_FALSE(decode_offset_hole(ByteSpan(hole).first(11), decoded));

  uint64_t offset = 0;
  ByteSpan data;
  const Bytes with_data = hex("0000000000000100 'xyz'");
  ASSERT_TRUE(decode_offset_data(with_data, offset, data));
  EXPECT_EQ(offset, 0x100u);
  EXPECT_EQ(text_of(data), "xyz");
  for (size_t size = 0; size <= 8; size++) {
    EXPECT_FALSE(decode_offset_data(ByteSpan(with_data).first(size), offset, data));
  }
}

TEST(Payload, Errors) {
  const Bytes error = hex("00000005 0003 'bad'");
  EXPECT_EQ(written(9, [](auto* to) { return encode_error(to, kEio, "bad"); }), error);
  const Bytes at = hex("00000005 0003 'bad' 0102030405060708");
  EXPECT_EQ(
      written(17,
              [](auto* to) { return encode_error_offset(to, kEio, "bad", 0x0102030405060708); }),
      at);
  EXPECT_EQ(written(6, [](auto* to) { return encode_error(to, kEinval, {}); }),
            hex("00000016 0000"));

  ErrorChunk decoded;
  ASSERT_TRUE(decode_error(kChunkError, error, decoded));
  EXPECT_EQ(decoded.error, uint32_t{kEio});
  EXPECT_EQ(decoded.text, "bad");
  EXPECT_FALSE(decoded.has_offset);
  ASSERT_TRUE(decode_error(kChunkErrorOffset, at, decoded));
  EXPECT_EQ(decoded.text, "bad");
  EXPECT_TRUE(decoded.has_offset);
  EXPECT_EQ(decoded.offset, 0x0102030405060708u);
  // Of an error type unknown to us the common part is understood.
  const Bytes unknown = hex("0000001c 0001 '!' 00ff00ff");
  ASSERT_TRUE(decode_error(0x8077, unknown, decoded));
  EXPECT_EQ(decoded.error, uint32_t{kEnospc});
  EXPECT_EQ(decoded.text, "!");

  EXPECT_FALSE(decode_error(kChunkError, hex("00000000 0003 'bad'"), decoded));  // no error
  EXPECT_FALSE(decode_error(kChunkOffsetData, error, decoded));
  for (size_t size = 0; size < error.size(); size++) {
    EXPECT_FALSE(decode_error(kChunkError, ByteSpan(error).first(size), decoded));
  }
  for (size_t size = 0; size < at.size(); size++) {
    EXPECT_FALSE(decode_error(kChunkErrorOffset, ByteSpan(at).first(size), decoded));
  }
}

TEST(Payload, ErrorTextIsCutToALegalString) {
  const std::string text(100'000, 'x');
  const Bytes bytes =
      written(kErrorSizeMax, [&](auto* to) { return encode_error_offset(to, kEio, text, 7); });
  EXPECT_EQ(bytes.size(), kErrorSizeMax);
  ErrorChunk decoded;
  ASSERT_TRUE(decode_error(kChunkErrorOffset, bytes, decoded));
  EXPECT_EQ(decoded.text.size(), kStringLengthMax);
  EXPECT_EQ(decoded.offset, 7u);
}

Extents some_extents() {
  Extents extents({0, 0x30000});
  extents.append(0x10000, kExtentData);
  extents.append(0x20000, kExtentHole | kExtentZero);
  return extents;
}

TEST(BlockStatus, ExactBytes) {
  const Extents extents = some_extents();
  const Bytes narrow = hex("00000001 00010000 00000000 00020000 00000003");
  EXPECT_EQ(written(block_status_size_max(extents),
                    [&](auto* to) { return encode_block_status(to, kBaseAllocationId, extents); }),
            narrow);
  // ext, NBD_REPLY_TYPE_BLOCK_STATUS_EXT: id, count, then 64-bit lengths and flags
  const Bytes wide =
      hex("00000001 00000002 0000000000010000 0000000000000000 0000000000020000 0000000000000003");
  EXPECT_EQ(
      written(block_status_ext_size(extents),
              [&](auto* to) { return encode_block_status_ext(to, kBaseAllocationId, extents); }),
      wide);
  const std::vector<StatusExtent> expected = {{0x10000, 0}, {0x20000, 3}};
  BlockStatus decoded;
  ASSERT_TRUE(decode_block_status(kChunkBlockStatus, narrow, decoded));
  EXPECT_EQ(decoded.context_id, kBaseAllocationId);
  EXPECT_EQ(decoded.extents, expected);
  ASSERT_TRUE(decode_block_status(kChunkBlockStatusExt, wide, decoded));
  EXPECT_EQ(decoded.context_id, kBaseAllocationId);
  EXPECT_EQ(decoded.extents, expected);
  EXPECT_FALSE(decode_block_status(kChunkOffsetData, narrow, decoded));
  for (size_t size = 0; size < narrow.size(); size++) {
    EXPECT_EQ(decode_block_status(kChunkBlockStatus, ByteSpan(narrow).first(size), decoded),
              size == 12);
  }
  for (size_t size = 0; size < wide.size(); size++) {
    EXPECT_FALSE(decode_block_status(kChunkBlockStatusExt, ByteSpan(wide).first(size), decoded));
  }
}

TEST(BlockStatus, BadContents) {
  BlockStatus decoded;
  EXPECT_FALSE(decode_block_status(kChunkBlockStatus, hex("00000001 00000000 00000000"), decoded));
  const std::string rest = "0000000000010000 0000000000000000";
  // A count of 0 leaves it to the length of the payload; a wrong one is an error.
  EXPECT_TRUE(decode_block_status(kChunkBlockStatusExt, hex("00000001 00000000" + rest), decoded));
  EXPECT_FALSE(decode_block_status(kChunkBlockStatusExt, hex("00000001 00000002" + rest), decoded));
  EXPECT_FALSE(decode_block_status(
      kChunkBlockStatusExt,
      hex("00000001 00000002 ffffffffffffffff 0000000000000000 0000000000000001 0000000000000000"),
      decoded));
}

TEST(BlockStatus, LongExtentsAreClippedTo32Bits) {
  const uint64_t tib = uint64_t{1} << 40;
  Extents extents({0, tib});
  extents.append(0x1000, kExtentData);
  extents.append(tib / 2, kExtentHole);
  extents.append(0x1000, kExtentData);
  const Bytes bytes = written(block_status_size_max(extents), [&](auto* to) {
    return encode_block_status(to, kBaseAllocationId, extents);
  });
  BlockStatus decoded;
  ASSERT_TRUE(decode_block_status(kChunkBlockStatus, bytes, decoded));
  EXPECT_EQ(decoded.extents, (std::vector<StatusExtent>{{0x1000, 0}, {kExtent32Max, 1}}));
  EXPECT_EQ(kExtent32Max % (32u << 20), 0u);

  Extents longest({0, UINT32_MAX});
  longest.append(UINT32_MAX, kExtentZero);
  const Bytes whole = written(block_status_size_max(longest), [&](auto* to) {
    return encode_block_status(to, kBaseAllocationId, longest);
  });
  EXPECT_EQ(whole, hex("00000001 ffffffff 00000002"));
}

TEST(BlockStatusPayload, ExactBytesAndSizes) {  // ext, NBD_CMD_BLOCK_STATUS
  const Bytes bytes = hex("0000001000000000 00000001 00000007");
  EXPECT_EQ(
      written(16, [](auto* to) { return encode_block_status_payload(to, {0x1000000000, {1, 7}}); }),
      bytes);
  BlockStatusPayload decoded;
  for (size_t size = 0; size <= bytes.size(); size++) {
    EXPECT_EQ(decode_block_status_payload(ByteSpan(bytes).first(size), decoded),
              size >= 8 && size % 4 == 0);
  }
  EXPECT_EQ(decoded.length, 0x1000000000u);
  EXPECT_EQ(decoded.context_ids, (std::vector<uint32_t>{1, 7}));
}

// --- the rules -----------------------------------------------------------------------------

constexpr uint64_t kSize = 1 << 20;
constexpr uint16_t kEverything = kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes |
                                 kSendDf | kCanMultiConn | kSendCache | kSendFastZero |
                                 kBlockStatusPayload;

TransmissionRules all_rules(HeaderMode mode) {
  return {.size = kSize,
          .transmission_flags = kEverything,
          .mode = mode,
          .allocation_context_selected = true,
          .block_min = 1};
}

// What the specification wants, as a list of laws; the first that is broken decides. Written
// apart from the code under test, in another shape.
Check expected_check(const Request& r, const TransmissionRules& rules) {
  const bool ext = rules.mode == HeaderMode::kExtended;
  const auto offered = [&](uint16_t flag) { return (rules.transmission_flags & flag) != 0; };
  const auto has = [&](uint16_t flag) { return (r.flags & flag) != 0; };
  const bool is_write = r.type == 1, is_trim = r.type == 4, is_zero = r.type == 6;
  const bool is_read = r.type == 0, is_status = r.type == 7, is_flush = r.type == 3;
  const uint64_t payload = (ext ? has(1 << 5) : is_write) ? r.length : 0;
  if (payload > rules.payload_max) return {.error = 22, .text = "", .disconnect = true};
  Check check{.payload_length = payload};
  if (r.type == 2) return check;
  const bool status_payload = is_status && ext && has(1 << 5) && offered(1 << 12);
  const __int128 end = static_cast<__int128>(r.offset) + r.length;
  const bool sized = !is_flush && !status_payload;
  const std::pair<bool, uint32_t> laws[] = {
      {r.type > 7, 22},
      {has(static_cast<uint16_t>(~0x3f)), 22},
      {has(1 << 0) && !offered(1 << 3), 22},
      {has(1 << 1) && !is_zero, 22},
      {has(1 << 2) && (!is_read || rules.mode == HeaderMode::kSimple), 22},
      {has(1 << 3) && !is_status, 22},
      {has(1 << 4) && !(is_zero && offered(1 << 11)), 22},
      {has(1 << 5) && !(ext && is_write) && !status_payload, 22},
      {ext && is_write && !has(1 << 5), 22},
      {(is_write || is_trim || is_zero) && offered(1 << 1), 1},
      {is_flush && !offered(1 << 2), 22},
      {is_trim && !offered(1 << 5), 22},
      {is_zero && !offered(1 << 6), 22},
      {r.type == 5 && !offered(1 << 10), 22},
      {is_status && (rules.mode == HeaderMode::kSimple || !rules.allocation_context_selected), 22},
      {status_payload && r.length != 12 && r.length != 8, 22},
      {sized && end > static_cast<__int128>(rules.size), is_write || is_zero ? 28u : 22u},
      {sized && (r.offset % rules.block_min != 0 || r.length % rules.block_min != 0), 22},
      {is_read && r.length > rules.payload_max, has(1 << 2) ? 75u : 22u},
      {is_status && r.length == 0, 22},
  };
  for (const auto& [broken, error] : laws) {
    if (!broken) continue;
    check.error = error;
    check.text = "";
    return check;
  }
  check.no_work = sized && r.length == 0;
  return check;
}

struct Counts {
  uint64_t cases = 0;
  uint64_t errors = 0;
};

void compare(const Request& request, const TransmissionRules& rules, Counts& counts) {
  const Check got = check_request(request, rules);
  const Check want = expected_check(request, rules);
  counts.cases++;
  counts.errors += want.error != 0;
  if (got.error == want.error && got.payload_length == want.payload_length &&
      got.disconnect == want.disconnect && got.no_work == want.no_work &&
      (got.text != nullptr) == (want.error != 0)) {
    return;
  }
  ADD_FAILURE() << command_name(request.type) << " flags " << request.flags << " offset "
                << request.offset << " length " << request.length << " mode "
                << header_mode_name(rules.mode) << " advertised " << rules.transmission_flags
                << " block " << rules.block_min << ": error " << got.error << " for " << want.error
                << ", payload " << got.payload_length << " for " << want.payload_length
                << ", no work " << got.no_work << " for " << want.no_work;
}

// Every command x flag combination x alignment x mode x what is advertised.
TEST(CheckRequest, Enumeration) {
  const uint16_t advertised[] = {kEverything, kEverything | kReadOnly, kHasFlags,
                                 kHasFlags | kReadOnly};
  const std::pair<uint64_t, uint64_t> ranges[] = {{0, 0},
                                                  {0, 1},
                                                  {0, 4096},
                                                  {512, 4096},
                                                  {1, 512},
                                                  {kSize, 0},
                                                  {kSize - 4096, 4096},
                                                  {kSize - 4096, 4097},
                                                  {kSize + 1, 0},
                                                  {0, 8},
                                                  {0, 12},
                                                  {4096, 16},
                                                  {UINT64_MAX, 1},
                                                  {UINT64_MAX, 2}};
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (const uint16_t flags_advertised : advertised) {
      for (const uint32_t block : {1u, 512u, 4096u}) {
        for (const bool context : {false, true}) {
          TransmissionRules rules = all_rules(mode);
          rules.transmission_flags = flags_advertised;
          rules.block_min = block;
          rules.allocation_context_selected = context;
          for (uint16_t type = 0; type <= 9; type++) {
            for (uint16_t flags = 0; flags < 128; flags++) {
              for (const auto& [offset, length] : ranges) {
                compare({flags, type, 7, offset, length}, rules, counts);
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(counts.cases, 3u * 4 * 3 * 2 * 10 * 128 * std::size(ranges));
  EXPECT_GT(counts.errors, counts.cases / 2);
  EXPECT_LT(counts.errors, counts.cases);
}

TEST(CheckRequest, EachFlagBitAdvertisedAlone) {
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (int bit = 0; bit < 16; bit++) {
      TransmissionRules rules = all_rules(mode);
      for (const bool only : {true, false}) {
        rules.transmission_flags = static_cast<uint16_t>(only ? 1 << bit : kEverything ^ 1 << bit);
        for (uint16_t type = 0; type < 10; type++) {
          for (uint16_t flags = 0; flags < 64; flags++) {
            compare({flags, type, 7, 4096, 12}, rules, counts);
          }
        }
      }
    }
  }
  EXPECT_GT(counts.cases, 50'000u);
}

TEST(CheckRequest, UnknownCommandsAndHighFlags) {
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (uint32_t type = 0; type <= 0xffff; type++) {
      compare({0, static_cast<uint16_t>(type), 7, 0, 4096}, all_rules(mode), counts);
    }
    for (int bit = 6; bit < 16; bit++) {
      for (uint16_t type = 0; type < 9; type++) {
        compare({static_cast<uint16_t>(1 << bit), type, 7, 0, 4096}, all_rules(mode), counts);
      }
    }
  }
}

// Lengths around every limit, on an export that is larger than all of them.
TEST(CheckRequest, Lengths) {
  Counts counts;
  const uint64_t limits[] = {0,
                             8,
                             12,
                             kDfLengthMin,
                             kPayloadAdvertisedMax,
                             kPayloadAcceptedMax,
                             UINT32_MAX,
                             uint64_t{1} << 40,
                             uint64_t{1} << 62,
                             INT64_MAX,
                             UINT64_MAX};
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    TransmissionRules rules = all_rules(mode);
    rules.size = INT64_MAX;
    for (const uint64_t limit : limits) {
      for (const uint64_t length : {limit - 1, limit, limit + 1}) {
        if (mode != HeaderMode::kExtended && length > UINT32_MAX) continue;
        for (const uint64_t offset : {uint64_t{0}, uint64_t{4096}, INT64_MAX - limit, limit}) {
          for (uint16_t type = 0; type < 9; type++) {
            for (uint16_t flags = 0; flags < 64; flags++) {
              compare({flags, type, 7, offset, length}, rules, counts);
            }
          }
        }
      }
    }
  }
  EXPECT_GT(counts.cases, 100'000u);
}

// The rules that a reader looks for first, by hand.
TEST(CheckRequest, TheTable) {
  const TransmissionRules simple = all_rules(HeaderMode::kSimple);
  TransmissionRules large = simple;
  large.size = uint64_t{1} << 40;
  const auto error = [](const Request& request, const TransmissionRules& rules) {
    return check_request(request, rules).error;
  };
  EXPECT_EQ(error({0, kCmdRead, 1, kSize - 1, 2}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdWrite, 1, kSize - 1, 2}, simple), uint32_t{kEnospc});
  EXPECT_EQ(error({0, kCmdWriteZeroes, 1, kSize - 1, 2}, simple), uint32_t{kEnospc});
  EXPECT_EQ(error({0, kCmdTrim, 1, kSize - 1, 2}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdRead, 1, UINT64_MAX - 511, 512}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdResize, 1, 0, 0}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({kFlagDf, kCmdRead, 1, 0, 1}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({kFlagFua, kCmdRead, 1, 0, 1}, simple), uint32_t{kOk});
  EXPECT_EQ(error({kFlagFua, kCmdFlush, 1, 0, 0}, simple), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdFlush, 1, 1, UINT32_MAX}, simple), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdRead, 1, 0, kPayloadAcceptedMax}, large), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdRead, 1, 0, kPayloadAcceptedMax + 1}, large), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdTrim, 1, 0, UINT32_MAX}, large), uint32_t{kOk});

  TransmissionRules read_only = simple;
  read_only.transmission_flags |= kReadOnly;
  const Check refused = check_request({0, kCmdWrite, 1, 0, 512}, read_only);
  EXPECT_EQ(refused.error, uint32_t{kEperm});
  EXPECT_EQ(refused.payload_length, 512u);  // still to be consumed
  EXPECT_FALSE(refused.disconnect);

  const Check whole = check_request({0, kCmdWrite, 1, 0, kPayloadAcceptedMax}, large);
  EXPECT_EQ(whole.error, uint32_t{kOk});
  EXPECT_EQ(whole.payload_length, kPayloadAcceptedMax);
  const Check too_long = check_request({0, kCmdWrite, 1, 0, kPayloadAcceptedMax + 1}, large);
  EXPECT_TRUE(too_long.disconnect);
  EXPECT_EQ(too_long.payload_length, 0u);

  EXPECT_TRUE(check_request({0, kCmdRead, 1, 0, 0}, simple).no_work);
  EXPECT_TRUE(check_request({0, kCmdWrite, 1, kSize, 0}, simple).no_work);
}

TEST(CheckBlockStatus, Payload) {  // ext
  const TransmissionRules rules = all_rules(HeaderMode::kExtended);
  const auto check = [&](uint64_t offset, ByteSpan payload, uint64_t* length = nullptr) {
    Request request = {kFlagPayloadLen, kCmdBlockStatus, 1, offset, payload.size()};
    const Check result = check_block_status(request, payload, rules);
    if (length) *length = request.length;
    return result.error;
  };
  uint64_t length = 0;
  EXPECT_EQ(check(0, hex("0000000000100000 00000001"), &length), uint32_t{kOk});
  EXPECT_EQ(length, kSize);
  EXPECT_EQ(check(1, hex("0000000000100000 00000001")), uint32_t{kEinval});  // past the end
  EXPECT_EQ(check(UINT64_MAX, hex("0000000000000001 00000001")), uint32_t{kEinval});
  EXPECT_EQ(check(0, hex("0000000000000000 00000001")), uint32_t{kEinval});           // length 0
  EXPECT_EQ(check(0, hex("0000000000100000 00000002")), uint32_t{kEinval});           // unknown id
  EXPECT_EQ(check(0, hex("0000000000100000")), uint32_t{kEinval});                    // no id
  EXPECT_EQ(check(0, hex("0000000000100000 00000001 00000001")), uint32_t{kEinval});  // twice
  EXPECT_EQ(check(0, {}), uint32_t{kEinval});
  TransmissionRules blocks = rules;
  blocks.block_min = 512;
  Request request = {kFlagPayloadLen, kCmdBlockStatus, 1, 0, 12};
  EXPECT_EQ(check_block_status(request, hex("0000000000000100 00000001"), blocks).error,
            uint32_t{kEinval});
}

// --- errors and names ------------------------------------------------------------------------

TEST(NbdError, Mapping) {
  EXPECT_EQ(nbd_error(0, kCmdRead, 0), uint32_t{kOk});
  for (const int code : {EPERM, EROFS}) EXPECT_EQ(nbd_error(code, kCmdWrite, 0), uint32_t{kEperm});
  for (const int code : {ENOSPC, EDQUOT, EFBIG}) {
    EXPECT_EQ(nbd_error(code, kCmdWrite, 0), uint32_t{kEnospc});
  }
  EXPECT_EQ(nbd_error(EINVAL, kCmdWrite, 0), uint32_t{kEinval});
  EXPECT_EQ(nbd_error(ESHUTDOWN, kCmdFlush, 0), uint32_t{kEshutdown});
  for (const int code : {EIO, ENOMEM, EACCES, ENOENT, EBADF, ECONNRESET, ETIMEDOUT, ENXIO, 9999}) {
    EXPECT_EQ(nbd_error(code, kCmdRead, kFlagDf), uint32_t{kEio});
  }
  EXPECT_EQ(nbd_error(EOPNOTSUPP, kCmdWriteZeroes, kFlagFastZero), uint32_t{kEnotsup});
  EXPECT_EQ(nbd_error(EOPNOTSUPP, kCmdWriteZeroes, kFlagNoHole), uint32_t{kEio});
  EXPECT_EQ(nbd_error(EOPNOTSUPP, kCmdTrim, kFlagFastZero), uint32_t{kEio});
  EXPECT_EQ(nbd_error(EOVERFLOW, kCmdRead, kFlagDf), uint32_t{kEoverflow});
  EXPECT_EQ(nbd_error(EOVERFLOW, kCmdRead, 0), uint32_t{kEinval});
  EXPECT_EQ(nbd_error(EOVERFLOW, kCmdWrite, 0), uint32_t{kEinval});
  EXPECT_EQ(nbd_error(EOVERFLOW, kCmdCache, 0), uint32_t{kEoverflow});
}

// An ErrorValue that comes back from another server keeps its meaning.
TEST(NbdError, ErrnosAndBack) {
  for (const uint32_t error : {kOk, kEperm, kEio, kEinval, kEnospc, kEshutdown}) {
    EXPECT_EQ(nbd_error(errno_of(error), kCmdRead, 0), error);
  }
  EXPECT_EQ(errno_of(kEnomem), ENOMEM);
  EXPECT_EQ(errno_of(kEoverflow), EOVERFLOW);
  EXPECT_EQ(errno_of(kEnotsup), EOPNOTSUPP);
  EXPECT_EQ(errno_of(4711), EIO);
}

TEST(Names, AreTheSpecifications) {
  EXPECT_EQ(command_name(7), "NBD_CMD_BLOCK_STATUS");
  EXPECT_EQ(command_name(77), "unknown command");
  EXPECT_EQ(error_name(28), "NBD_ENOSPC");
  EXPECT_EQ(option_name(11), "NBD_OPT_EXTENDED_HEADERS");
  EXPECT_EQ(option_reply_name(0x80000009), "NBD_REP_ERR_TOO_BIG");
  EXPECT_EQ(chunk_type_name(0x8002), "NBD_REPLY_TYPE_ERROR_OFFSET");
  EXPECT_EQ(header_mode_name(HeaderMode::kExtended), "extended");
  for (uint16_t command = 0; command <= 8; command++) {
    EXPECT_THAT(std::string(command_name(command)), ::testing::StartsWith("NBD_CMD_"));
  }
  for (uint32_t option = 1; option <= 11; option++) {
    EXPECT_THAT(std::string(option_name(option)), ::testing::StartsWith("NBD_OPT_"));
  }
  for (uint32_t reply = 1; reply <= 10; reply++) {
    EXPECT_THAT(std::string(option_reply_name(kRepErrorBit + reply)),
                ::testing::StartsWith("NBD_REP_ERR_"));
  }
}

}  // namespace
}  // namespace weft::nbd
