// SPDX-License-Identifier: BSD-3-Clause
// Names of the protocol's numbers, and what counts as a string.
#include "nbd/server_handshake.h"
#include "nbd/transmission.h"

namespace weft::nbd {

std::string_view command_name(uint16_t command) {
  switch (command) {
    case kCmdRead:
      return "NBD_CMD_READ";
    case kCmdWrite:
      return "NBD_CMD_WRITE";
    case kCmdDisc:
      return "NBD_CMD_DISC";
    case kCmdFlush:
      return "NBD_CMD_FLUSH";
    case kCmdTrim:
      return "NBD_CMD_TRIM";
    case kCmdCache:
      return "NBD_CMD_CACHE";
    case kCmdWriteZeroes:
      return "NBD_CMD_WRITE_ZEROES";
    case kCmdBlockStatus:
      return "NBD_CMD_BLOCK_STATUS";
    case kCmdResize:
      return "NBD_CMD_RESIZE";
    default:
      return "unknown command";
  }
}

std::string_view error_name(uint32_t error) {
  switch (error) {
    case kOk:
      return "success";
    case kEperm:
      return "NBD_EPERM";
    case kEio:
      return "NBD_EIO";
    case kEnomem:
      return "NBD_ENOMEM";
    case kEinval:
      return "NBD_EINVAL";
    case kEnospc:
      return "NBD_ENOSPC";
    case kEoverflow:
      return "NBD_EOVERFLOW";
    case kEnotsup:
      return "NBD_ENOTSUP";
    case kEshutdown:
      return "NBD_ESHUTDOWN";
    default:
      return "unknown error";
  }
}

std::string_view option_name(uint32_t option) {
  switch (option) {
    case kOptExportName:
      return "NBD_OPT_EXPORT_NAME";
    case kOptAbort:
      return "NBD_OPT_ABORT";
    case kOptList:
      return "NBD_OPT_LIST";
    case kOptPeekExport:
      return "NBD_OPT_PEEK_EXPORT";
    case kOptStarttls:
      return "NBD_OPT_STARTTLS";
    case kOptInfo:
      return "NBD_OPT_INFO";
    case kOptGo:
      return "NBD_OPT_GO";
    case kOptStructuredReply:
      return "NBD_OPT_STRUCTURED_REPLY";
    case kOptListMetaContext:
      return "NBD_OPT_LIST_META_CONTEXT";
    case kOptSetMetaContext:
      return "NBD_OPT_SET_META_CONTEXT";
    case kOptExtendedHeaders:
      return "NBD_OPT_EXTENDED_HEADERS";
    default:
      return "unknown option";
  }
}

std::string_view option_reply_name(uint32_t reply) {
  switch (reply) {
    case kRepAck:
      return "NBD_REP_ACK";
    case kRepServer:
      return "NBD_REP_SERVER";
    case kRepInfo:
      return "NBD_REP_INFO";
    case kRepMetaContext:
      return "NBD_REP_META_CONTEXT";
    case kRepErrUnsup:
      return "NBD_REP_ERR_UNSUP";
    case kRepErrPolicy:
      return "NBD_REP_ERR_POLICY";
    case kRepErrInvalid:
      return "NBD_REP_ERR_INVALID";
    case kRepErrPlatform:
      return "NBD_REP_ERR_PLATFORM";
    case kRepErrTlsReqd:
      return "NBD_REP_ERR_TLS_REQD";
    case kRepErrUnknown:
      return "NBD_REP_ERR_UNKNOWN";
    case kRepErrShutdown:
      return "NBD_REP_ERR_SHUTDOWN";
    case kRepErrBlockSizeReqd:
      return "NBD_REP_ERR_BLOCK_SIZE_REQD";
    case kRepErrTooBig:
      return "NBD_REP_ERR_TOO_BIG";
    case kRepErrExtHeaderReqd:
      return "NBD_REP_ERR_EXT_HEADER_REQD";
    default:
      return "unknown option reply";
  }
}

std::string_view chunk_type_name(uint16_t type) {
  switch (type) {
    case kChunkNone:
      return "NBD_REPLY_TYPE_NONE";
    case kChunkOffsetData:
      return "NBD_REPLY_TYPE_OFFSET_DATA";
    case kChunkOffsetHole:
      return "NBD_REPLY_TYPE_OFFSET_HOLE";
    case kChunkBlockStatus:
      return "NBD_REPLY_TYPE_BLOCK_STATUS";
    case kChunkBlockStatusExt:
      return "NBD_REPLY_TYPE_BLOCK_STATUS_EXT";
    case kChunkError:
      return "NBD_REPLY_TYPE_ERROR";
    case kChunkErrorOffset:
      return "NBD_REPLY_TYPE_ERROR_OFFSET";
    default:
      return "unknown chunk type";
  }
}

std::string_view header_mode_name(HeaderMode mode) {
  switch (mode) {
    case HeaderMode::kSimple:
      return "simple";
    case HeaderMode::kStructured:
      return "structured";
    case HeaderMode::kExtended:
      return "extended";
  }
  return "?";
}

bool valid_string(std::string_view text) {
  if (text.size() > kStringLengthMax) return false;
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i++]);
    if (first == 0) return false;
    if (first < 0x80) continue;
    // The length of the sequence, and the smallest code point that needs it (no overlong forms).
    size_t more = 0;
    uint32_t smallest = 0;
    uint32_t point = 0;
    if ((first & 0xe0) == 0xc0) {
      more = 1, smallest = 0x80, point = first & 0x1f;
    } else if ((first & 0xf0) == 0xe0) {
      more = 2, smallest = 0x800, point = first & 0x0f;
    } else if ((first & 0xf8) == 0xf0) {
      more = 3, smallest = 0x10000, point = first & 0x07;
    } else {
      return false;
    }
    for (; more > 0; more--) {
      if (i == text.size()) return false;
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xc0) != 0x80) return false;
      point = point << 6 | (next & 0x3f);
    }
    const bool surrogate = point >= 0xd800 && point <= 0xdfff;
    if (point < smallest || point > 0x10ffff || surrogate) return false;
  }
  return true;
}

}  // namespace weft::nbd
