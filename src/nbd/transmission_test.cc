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

// --- errors and names ------------------------------------------------------------------------

TEST(NbdError, Mapping) {
  EXPECT_EQ(nbd_error(0, kCmdRead, 0), uint32_t{kOk});
  for (const int code : {EPERM, EROFS}) EXPECT_EQ(nbd_error(code, kCmdWrite, 0), uint32_t{kEperm});
  for (const int code : {ENOSPC, EDQUOT, EFBIG}) {
    EXPECT_EQ(nbd_error(code, kCmdWrite, 0), uint32_t{kEnospc});
  }
  EXPECT_EQ(nbd_error(EINVAL, kCmdWrite, 0), uint32_t{kEinval});
  EXPECT_EQ(nbd_error(ENOMEM, kCmdWrite, 0), uint32_t{kEnomem});
  EXPECT_EQ(nbd_error(ESHUTDOWN, kCmdFlush, 0), uint32_t{kEshutdown});
  for (const int code : {EIO, EACCES, ENOENT, EBADF, ECONNRESET, ETIMEDOUT, ENXIO, 9999}) {
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
  for (const uint32_t error : {kOk, kEperm, kEio, kEnomem, kEinval, kEnospc, kEshutdown}) {
    EXPECT_EQ(nbd_error(errno_of(error), kCmdRead, 0), error);
  }
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
