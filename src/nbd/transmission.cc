// SPDX-License-Identifier: BSD-3-Clause
#include "nbd/transmission.h"

#include <algorithm>
#include <cerrno>
#include <limits>

namespace weft::nbd {
namespace {

Check refuse(uint32_t error, const char* text, uint64_t payload_length) {
  return {.error = error, .text = text, .payload_length = payload_length};
}

bool writes(uint16_t command) {
  return command == kCmdWrite || command == kCmdTrim || command == kCmdWriteZeroes;
}

uint16_t allowed_flags(uint16_t command, const TransmissionRules& rules) {
  const bool extended = rules.mode == HeaderMode::kExtended;
  const uint16_t advertised = rules.transmission_flags;
  uint16_t allowed = advertised & kSendFua ? kFlagFua : 0;
  switch (command) {
    case kCmdRead:
      if (rules.mode != HeaderMode::kSimple) allowed |= kFlagDf;
      break;
    case kCmdWrite:
      if (extended) allowed |= kFlagPayloadLen;
      break;
    case kCmdWriteZeroes:
      allowed |= kFlagNoHole;
      if (advertised & kSendFastZero) allowed |= kFlagFastZero;
      break;
    case kCmdBlockStatus:
      allowed |= kFlagReqOne;
      if (extended && (advertised & kBlockStatusPayload)) allowed |= kFlagPayloadLen;
      break;
    default:
      break;
  }
  return allowed;
}

// Null, or why the command may not be sent on this connection.
const char* not_offered(uint16_t command, const TransmissionRules& rules) {
  const uint16_t advertised = rules.transmission_flags;
  switch (command) {
    case kCmdFlush:
      return advertised & kSendFlush ? nullptr : "flush is not offered";
    case kCmdTrim:
      return advertised & kSendTrim ? nullptr : "trim is not offered";
    case kCmdCache:
      return advertised & kSendCache ? nullptr : "cache is not offered";
    case kCmdWriteZeroes:
      return advertised & kSendWriteZeroes ? nullptr : "write zeroes is not offered";
    case kCmdBlockStatus:
      if (rules.mode == HeaderMode::kSimple || !rules.allocation_context_selected) {
        return "no metadata context was selected";
      }
      return nullptr;
    default:
      return nullptr;
  }
}

// Null, or why offset and length cannot be.
Check check_range(uint16_t command, uint64_t offset, uint64_t length,
                  const TransmissionRules& rules, uint64_t payload) {
  if (offset > rules.size || length > rules.size - offset) {
    const bool grows = command == kCmdWrite || command == kCmdWriteZeroes;
    return refuse(grows ? kEnospc : kEinval, "the request ends beyond the end of the export",
                  payload);
  }
  if (((offset | length) & (rules.block_min - 1)) != 0) {
    return refuse(kEinval, "offset or length is no multiple of the minimum block size", payload);
  }
  return {.payload_length = payload};
}

}  // namespace

Check check_request_slowly(const Request& request, const TransmissionRules& rules) {
  const bool extended = rules.mode == HeaderMode::kExtended;
  const bool has_payload =
      extended ? (request.flags & kFlagPayloadLen) != 0 : request.type == kCmdWrite;
  if (has_payload && request.length > rules.payload_max) {
    return {.error = kEinval, .text = "the payload is too long", .disconnect = true};
  }
  const uint64_t payload = has_payload ? request.length : 0;

  if (request.type == kCmdDisc) return {.payload_length = payload};
  if (request.type > kCmdBlockStatus) return refuse(kEinval, "unknown command", payload);
  if (request.flags & ~allowed_flags(request.type, rules)) {
    return refuse(kEinval, "a flag that is unknown or not for this command", payload);
  }
  if (extended && request.type == kCmdWrite && !has_payload) {
    return refuse(kEinval, "a write needs the payload flag here", payload);
  }
  if ((rules.transmission_flags & kReadOnly) && writes(request.type)) {
    return refuse(kEperm, "the export is read-only", payload);
  }
  if (const char* why = not_offered(request.type, rules)) return refuse(kEinval, why, payload);
  if (request.type == kCmdFlush) return {};
  if (request.type == kCmdBlockStatus && has_payload) {
    if (request.length < 8 || request.length % 4 != 0 ||
        request.length > kBlockStatusPayloadSizeMax) {
      return refuse(kEinval, "the payload is not a length and distinct selected contexts", payload);
    }
    return {.payload_length = payload};
  }

  Check check = check_range(request.type, request.offset, request.length, rules, payload);
  if (check.error != kOk) return check;
  if (request.type == kCmdRead && request.length > rules.payload_max) {
    return refuse(request.flags & kFlagDf ? kEoverflow : kEinval, "the read is too long", payload);
  }
  if (request.length == 0) {
    if (request.type == kCmdBlockStatus) return refuse(kEinval, "the length is 0", payload);
    check.no_work = true;
  }
  return check;
}

bool decode_block_status_payload(ByteSpan payload, BlockStatusPayload& out) {
  if (payload.size() < 8 || payload.size() % 4 != 0) return false;
  out.length = load_be<uint64_t>(payload.data());
  out.context_ids.clear();
  for (size_t at = 8; at < payload.size(); at += 4) {
    out.context_ids.push_back(load_be<uint32_t>(payload.data() + at));
  }
  return true;
}

std::byte* encode_block_status_payload(std::byte* to, const BlockStatusPayload& payload) {
  to = store_be<uint64_t>(to, payload.length);
  for (const uint32_t id : payload.context_ids) to = store_be<uint32_t>(to, id);
  return to;
}

Check check_block_status(Request& request, ByteSpan payload, const TransmissionRules& rules) {
  // One context exists, so its id alone is the only list without unknown and duplicate ids.
  if (payload.size() != kBlockStatusPayloadSizeMax ||
      load_be<uint32_t>(payload.data() + 8) != kBaseAllocationId) {
    return refuse(kEinval, "the payload is not a length and distinct selected contexts", 0);
  }
  request.length = load_be<uint64_t>(payload.data());
  Check check = check_range(request.type, request.offset, request.length, rules, 0);
  if (check.error == kOk && request.length == 0) return refuse(kEinval, "the length is 0", 0);
  return check;
}

std::byte* encode_error(std::byte* to, uint32_t error, std::string_view text) {
  text = text.substr(0, kStringLengthMax);
  to = store_be<uint32_t>(to, error);
  to = store_be<uint16_t>(to, static_cast<uint16_t>(text.size()));
  return std::copy_n(reinterpret_cast<const std::byte*>(text.data()), text.size(), to);
}

std::byte* encode_error_offset(std::byte* to, uint32_t error, std::string_view text,
                               uint64_t offset) {
  return store_be<uint64_t>(encode_error(to, error, text), offset);
}

std::byte* encode_block_status(std::byte* to, uint32_t context_id, const Extents& extents) {
  to = store_be<uint32_t>(to, context_id);
  for (const Extent& extent : extents.list()) {
    const bool too_long = extent.length > UINT32_MAX;
    to = store_be<uint32_t>(to, too_long ? kExtent32Max : static_cast<uint32_t>(extent.length));
    to = store_be<uint32_t>(to, extent.flags);
    if (too_long) break;  // what follows would begin at the wrong offset
  }
  return to;
}

std::byte* encode_block_status_ext(std::byte* to, uint32_t context_id, const Extents& extents) {
  to = store_be<uint32_t>(to, context_id);
  to = store_be<uint32_t>(to, static_cast<uint32_t>(extents.list().size()));
  for (const Extent& extent : extents.list()) {
    to = store_be<uint64_t>(to, extent.length);
    to = store_be<uint64_t>(to, extent.flags);
  }
  return to;
}

bool decode_error(uint16_t chunk_type, ByteSpan payload, ErrorChunk& out) {
  const bool has_offset = chunk_type == kChunkErrorOffset;
  const size_t size_min = has_offset ? kErrorOffsetSizeMin : kErrorSizeMin;
  if (!(chunk_type & kChunkErrorBit) || payload.size() < size_min) return false;
  const uint32_t error = load_be<uint32_t>(payload.data());
  const size_t text_length = load_be<uint16_t>(payload.data() + 4);
  if (error == kOk || text_length > payload.size() - size_min) return false;
  out.error = error;
  out.text = text_of(payload.subspan(kErrorSizeMin, text_length));
  out.has_offset = has_offset;
  out.offset = has_offset ? load_be<uint64_t>(payload.data() + kErrorSizeMin + text_length) : 0;
  return true;
}

bool decode_offset_hole(ByteSpan payload, OffsetHole& out) {
  if (payload.size() != kOffsetHoleSize) return false;
  out.offset = load_be<uint64_t>(payload.data());
  out.length = load_be<uint32_t>(payload.data() + 8);
  return out.length != 0;
}

bool decode_offset_data(ByteSpan payload, uint64_t& offset, ByteSpan& data) {
  if (payload.size() <= kOffsetDataPrefixSize) return false;
  offset = load_be<uint64_t>(payload.data());
  data = payload.subspan(kOffsetDataPrefixSize);
  return true;
}

bool decode_block_status(uint16_t chunk_type, ByteSpan payload, BlockStatus& out) {
  if (chunk_type != kChunkBlockStatus && chunk_type != kChunkBlockStatusExt) return false;
  const bool wide = chunk_type == kChunkBlockStatusExt;
  const size_t head = wide ? 8 : 4;
  const size_t each = wide ? 16 : 8;
  if (payload.size() < head + each || (payload.size() - head) % each != 0) return false;
  const size_t count = (payload.size() - head) / each;
  if (wide) {
    // A count of 0 leaves it to the payload's size.
    const uint32_t stated = load_be<uint32_t>(payload.data() + 4);
    if (stated != 0 && stated != count) return false;
  }
  out.context_id = load_be<uint32_t>(payload.data());
  out.extents.clear();
  out.extents.reserve(count);
  uint64_t sum = 0;
  for (size_t at = head; at < payload.size(); at += each) {
    StatusExtent extent;
    if (wide) {
      extent = {load_be<uint64_t>(payload.data() + at), load_be<uint64_t>(payload.data() + at + 8)};
    } else {
      extent = {load_be<uint32_t>(payload.data() + at), load_be<uint32_t>(payload.data() + at + 4)};
    }
    if (extent.length == 0 || extent.length > std::numeric_limits<uint64_t>::max() - sum) {
      return false;
    }
    sum += extent.length;
    out.extents.push_back(extent);
  }
  return true;
}

uint32_t nbd_error(int errno_code, uint16_t command, uint16_t flags) {
  switch (errno_code) {
    case 0:
      return kOk;
    case EPERM:
    case EROFS:
      return kEperm;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return kEnospc;
    case EINVAL:
      return kEinval;
    case ENOMEM:
      return kEnomem;
    case ESHUTDOWN:
      return kEshutdown;
    case EOPNOTSUPP: {
      const bool fast_zero = command == kCmdWriteZeroes && (flags & kFlagFastZero);
      return fast_zero ? kEnotsup : kEio;
    }
    case EOVERFLOW: {
      const bool payload = command == kCmdRead || command == kCmdWrite;
      const bool unfragmented = command == kCmdRead && (flags & kFlagDf);
      return unfragmented || !payload ? kEoverflow : kEinval;
    }
    default:
      return kEio;
  }
}

int errno_of(uint32_t error) {
  switch (error) {
    case kOk:
      return 0;
    case kEperm:
      return EPERM;
    case kEnomem:
      return ENOMEM;
    case kEinval:
      return EINVAL;
    case kEnospc:
      return ENOSPC;
    case kEoverflow:
      return EOVERFLOW;
    case kEnotsup:
      return EOPNOTSUPP;
    case kEshutdown:
      return ESHUTDOWN;
    default:
      return EIO;
  }
}

}  // namespace weft::nbd
