// SPDX-License-Identifier: BSD-3-Clause
// The numbers of the NBD protocol, with the specification's spelling beside ours. Sections in
// comments are those of doc/proto.md of NetworkBlockDevice/nbd; "ext" marks what its branch
// extension-ext-header defines. Everything on the wire is big-endian.
//
// The enums are plain ones over fixed-width integers: a field read from the wire may hold any
// value, and compares with these names without a cast.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weft::nbd {

// Magic numbers.
inline constexpr uint64_t kMagic = 0x4e42444d41474943;        // NBDMAGIC (INIT_PASSWD)
inline constexpr uint64_t kOptionMagic = 0x49484156454f5054;  // IHAVEOPT
inline constexpr uint64_t kOldstyleMagic = 0x00420281861253;  // cliserv_magic
inline constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;
inline constexpr uint32_t kRequestMagic = 0x25609513;          // NBD_REQUEST_MAGIC
inline constexpr uint32_t kSimpleReplyMagic = 0x67446698;      // NBD_SIMPLE_REPLY_MAGIC
inline constexpr uint32_t kStructuredReplyMagic = 0x668e33ef;  // NBD_STRUCTURED_REPLY_MAGIC
inline constexpr uint32_t kExtendedRequestMagic = 0x21e41c71;  // NBD_EXTENDED_REQUEST_MAGIC (ext)
inline constexpr uint32_t kExtendedReplyMagic = 0x6e8a278c;    // NBD_EXTENDED_REPLY_MAGIC (ext)

// Limits. What the specification gives is named; the rest is ours.
inline constexpr uint16_t kPort = 10809;              // IANA
inline constexpr size_t kStringLengthMax = 4096;      // "Conventions": bytes of any string
inline constexpr size_t kOldstyleReservedSize = 124;  // zeroes after EXPORT_NAME and oldstyle
// A READ or WRITE may carry this much; a longer READ is an error, a longer WRITE a disconnect.
inline constexpr uint32_t kPayloadAcceptedMax = 64u << 20;
// What INFO_BLOCK_SIZE says is the maximum, and what clients that did not ask may assume.
inline constexpr uint32_t kPayloadAdvertisedMax = 32u << 20;
inline constexpr size_t kExtentsPerChunkMax = size_t{1} << 20;  // NBD_CMD_BLOCK_STATUS
// Every legal INFO or GO fits: 65535 information requests after the longest name.
inline constexpr size_t kOptionDataBufferedMax = 4 + kStringLengthMax + 2 + 2 * size_t{65535};
// Longer options are no mistake but an attack: the connection is closed.
inline constexpr uint32_t kOptionDataSkippedMax = 32u << 20;
inline constexpr uint32_t kOptionCountMax = 8192;  // options in one handshake,
inline constexpr uint32_t kOptionsPerExport = 4;   // and more for each export that it listed
inline constexpr uint64_t kDfLengthMin = 65536;    // an unfragmented read that MUST be served

static_assert(kPayloadAdvertisedMax <= kPayloadAcceptedMax);
static_assert(kOptionDataBufferedMax <= kOptionDataSkippedMax);

// "Handshake flags": u16, from the server.
enum HandshakeFlag : uint16_t {
  kFixedNewstyle = 1 << 0,  // NBD_FLAG_FIXED_NEWSTYLE
  kNoZeroes = 1 << 1,       // NBD_FLAG_NO_ZEROES
};

// "Client flags": u32, from the client.
enum ClientFlag : uint32_t {
  kClientFixedNewstyle = 1 << 0,  // NBD_FLAG_C_FIXED_NEWSTYLE
  kClientNoZeroes = 1 << 1,       // NBD_FLAG_C_NO_ZEROES
};

// "Option types": u32.
enum Option : uint32_t {
  kOptExportName = 1,        // NBD_OPT_EXPORT_NAME
  kOptAbort = 2,             // NBD_OPT_ABORT
  kOptList = 3,              // NBD_OPT_LIST
  kOptPeekExport = 4,        // NBD_OPT_PEEK_EXPORT, withdrawn
  kOptStarttls = 5,          // NBD_OPT_STARTTLS
  kOptInfo = 6,              // NBD_OPT_INFO
  kOptGo = 7,                // NBD_OPT_GO
  kOptStructuredReply = 8,   // NBD_OPT_STRUCTURED_REPLY
  kOptListMetaContext = 9,   // NBD_OPT_LIST_META_CONTEXT
  kOptSetMetaContext = 10,   // NBD_OPT_SET_META_CONTEXT
  kOptExtendedHeaders = 11,  // NBD_OPT_EXTENDED_HEADERS (ext)
};

// "Option reply types": u32. Errors have bit 31 set and may carry a text.
enum OptionReply : uint32_t {
  kRepAck = 1,                               // NBD_REP_ACK
  kRepServer = 2,                            // NBD_REP_SERVER
  kRepInfo = 3,                              // NBD_REP_INFO
  kRepMetaContext = 4,                       // NBD_REP_META_CONTEXT
  kRepErrorBit = 1u << 31,                   // set in every error
  kRepErrUnsup = kRepErrorBit + 1,           // NBD_REP_ERR_UNSUP
  kRepErrPolicy = kRepErrorBit + 2,          // NBD_REP_ERR_POLICY
  kRepErrInvalid = kRepErrorBit + 3,         // NBD_REP_ERR_INVALID
  kRepErrPlatform = kRepErrorBit + 4,        // NBD_REP_ERR_PLATFORM
  kRepErrTlsReqd = kRepErrorBit + 5,         // NBD_REP_ERR_TLS_REQD
  kRepErrUnknown = kRepErrorBit + 6,         // NBD_REP_ERR_UNKNOWN
  kRepErrShutdown = kRepErrorBit + 7,        // NBD_REP_ERR_SHUTDOWN
  kRepErrBlockSizeReqd = kRepErrorBit + 8,   // NBD_REP_ERR_BLOCK_SIZE_REQD
  kRepErrTooBig = kRepErrorBit + 9,          // NBD_REP_ERR_TOO_BIG
  kRepErrExtHeaderReqd = kRepErrorBit + 10,  // NBD_REP_ERR_EXT_HEADER_REQD (ext)
};

// "NBD_INFO information types": u16.
enum InfoType : uint16_t {
  kInfoExport = 0,       // NBD_INFO_EXPORT
  kInfoName = 1,         // NBD_INFO_NAME
  kInfoDescription = 2,  // NBD_INFO_DESCRIPTION
  kInfoBlockSize = 3,    // NBD_INFO_BLOCK_SIZE
};

// "Transmission flags": u16.
enum TransmissionFlag : uint16_t {
  kHasFlags = 1 << 0,             // NBD_FLAG_HAS_FLAGS
  kReadOnly = 1 << 1,             // NBD_FLAG_READ_ONLY
  kSendFlush = 1 << 2,            // NBD_FLAG_SEND_FLUSH
  kSendFua = 1 << 3,              // NBD_FLAG_SEND_FUA
  kRotational = 1 << 4,           // NBD_FLAG_ROTATIONAL
  kSendTrim = 1 << 5,             // NBD_FLAG_SEND_TRIM
  kSendWriteZeroes = 1 << 6,      // NBD_FLAG_SEND_WRITE_ZEROES
  kSendDf = 1 << 7,               // NBD_FLAG_SEND_DF
  kCanMultiConn = 1 << 8,         // NBD_FLAG_CAN_MULTI_CONN
  kSendResize = 1 << 9,           // NBD_FLAG_SEND_RESIZE, experimental, never set by weft
  kSendCache = 1 << 10,           // NBD_FLAG_SEND_CACHE
  kSendFastZero = 1 << 11,        // NBD_FLAG_SEND_FAST_ZERO
  kBlockStatusPayload = 1 << 12,  // NBD_FLAG_BLOCK_STATUS_PAYLOAD (ext)
};

// "Request types": u16.
enum Command : uint16_t {
  kCmdRead = 0,         // NBD_CMD_READ
  kCmdWrite = 1,        // NBD_CMD_WRITE
  kCmdDisc = 2,         // NBD_CMD_DISC
  kCmdFlush = 3,        // NBD_CMD_FLUSH
  kCmdTrim = 4,         // NBD_CMD_TRIM
  kCmdCache = 5,        // NBD_CMD_CACHE
  kCmdWriteZeroes = 6,  // NBD_CMD_WRITE_ZEROES
  kCmdBlockStatus = 7,  // NBD_CMD_BLOCK_STATUS
  kCmdResize = 8,       // NBD_CMD_RESIZE, experimental, unknown to weft
};

// "Command flags": u16.
enum CommandFlag : uint16_t {
  kFlagFua = 1 << 0,         // NBD_CMD_FLAG_FUA
  kFlagNoHole = 1 << 1,      // NBD_CMD_FLAG_NO_HOLE
  kFlagDf = 1 << 2,          // NBD_CMD_FLAG_DF
  kFlagReqOne = 1 << 3,      // NBD_CMD_FLAG_REQ_ONE
  kFlagFastZero = 1 << 4,    // NBD_CMD_FLAG_FAST_ZERO
  kFlagPayloadLen = 1 << 5,  // NBD_CMD_FLAG_PAYLOAD_LEN (ext)
};

// "Structured reply flags": u16.
enum ReplyFlag : uint16_t {
  kReplyDone = 1 << 0,  // NBD_REPLY_FLAG_DONE
};

// "Structured reply types": u16. Errors have bit 15 set.
enum ChunkType : uint16_t {
  kChunkNone = 0,            // NBD_REPLY_TYPE_NONE
  kChunkOffsetData = 1,      // NBD_REPLY_TYPE_OFFSET_DATA
  kChunkOffsetHole = 2,      // NBD_REPLY_TYPE_OFFSET_HOLE
  kChunkBlockStatus = 5,     // NBD_REPLY_TYPE_BLOCK_STATUS
  kChunkBlockStatusExt = 6,  // NBD_REPLY_TYPE_BLOCK_STATUS_EXT (ext)
  kChunkErrorBit = 1 << 15,
  kChunkError = kChunkErrorBit + 1,        // NBD_REPLY_TYPE_ERROR
  kChunkErrorOffset = kChunkErrorBit + 2,  // NBD_REPLY_TYPE_ERROR_OFFSET
};

// "Error values": u32. They look like Linux errnos, and are not: the mapping is nbd_error().
enum ErrorValue : uint32_t {
  kOk = 0,
  kEperm = 1,        // NBD_EPERM
  kEio = 5,          // NBD_EIO
  kEnomem = 12,      // NBD_ENOMEM
  kEinval = 22,      // NBD_EINVAL
  kEnospc = 28,      // NBD_ENOSPC
  kEoverflow = 75,   // NBD_EOVERFLOW
  kEnotsup = 95,     // NBD_ENOTSUP
  kEshutdown = 108,  // NBD_ESHUTDOWN
};

// The one metadata context of weft ("base: namespace"), and the id under which it is selected.
// Its flags are weft::ExtentFlag (NBD_STATE_HOLE, NBD_STATE_ZERO).
inline constexpr char kBaseAllocation[] = "base:allocation";
inline constexpr uint32_t kBaseAllocationId = 1;

// Which headers the transmission phase uses.
enum class HeaderMode : uint8_t {
  kSimple,      // compact requests, simple replies
  kStructured,  // compact requests, structured replies (always for READ)
  kExtended,    // 32-byte requests and replies, never a simple reply
};

}  // namespace weft::nbd
