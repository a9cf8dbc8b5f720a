// SPDX-License-Identifier: BSD-3-Clause
// The transmission phase as bytes in memory: decoding and encoding of requests and replies, the
// rules a request must keep, and the mapping of errnos. Nothing here allocates (except where a
// decoder fills the caller's vector), keeps state, or can fail in any other way than it says.
//
// Encoders write into the caller's memory, which must have the stated size, and return the address
// after what they wrote. Decoders of headers want exactly the stated number of bytes; decoders of
// payloads take any bytes and return false for what breaks the specification.
//
// A server's way with a request: wait for request_size(mode) bytes; decode_request or
// decode_extended_request (false: close); check_request; if `disconnect`, close; receive or skip
// `payload_length` bytes; on `error` answer it, otherwise do the work.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/extents.h"
#include "nbd/constants.h"

namespace weft::nbd {

// ---------------------------------------------------------------------------------------------
// Requests ("Request message").

inline constexpr size_t kRequestSize = 28;
inline constexpr size_t kExtendedRequestSize = 32;

[[nodiscard]] constexpr size_t request_size(HeaderMode mode) {
  return mode == HeaderMode::kExtended ? kExtendedRequestSize : kRequestSize;
}

struct Request {
  uint16_t flags = 0;   // CommandFlag bits, and any other
  uint16_t type = 0;    // Command, or anything else
  uint64_t cookie = 0;  // opaque, echoed in replies
  uint64_t offset = 0;  // bytes
  uint64_t length = 0;  // bytes; of the payload where kFlagPayloadLen is set in extended mode

  [[nodiscard]] bool fua() const { return flags & kFlagFua; }
  friend bool operator==(const Request&, const Request&) = default;
};

// Reads kRequestSize bytes. False: the magic is wrong, the stream cannot be trusted any more.
[[nodiscard]] inline bool decode_request(const std::byte* from, Request& request) {
  request.flags = load_be<uint16_t>(from + 4);
  request.type = load_be<uint16_t>(from + 6);
  request.cookie = load_be<uint64_t>(from + 8);
  request.offset = load_be<uint64_t>(from + 16);
  request.length = load_be<uint32_t>(from + 24);
  return load_be<uint32_t>(from) == kRequestMagic;
}

// The same for kExtendedRequestSize bytes of an extended request (ext).
[[nodiscard]] inline bool decode_extended_request(const std::byte* from, Request& request) {
  request.flags = load_be<uint16_t>(from + 4);
  request.type = load_be<uint16_t>(from + 6);
  request.cookie = load_be<uint64_t>(from + 8);
  request.offset = load_be<uint64_t>(from + 16);
  request.length = load_be<uint64_t>(from + 24);
  return load_be<uint32_t>(from) == kExtendedRequestMagic;
}

// Writes kRequestSize bytes. `length` must be below 4 GiB: the upper half is cut off.
inline std::byte* encode_request(std::byte* to, const Request& request) {
  to = store_be<uint32_t>(to, kRequestMagic);
  to = store_be<uint16_t>(to, request.flags);
  to = store_be<uint16_t>(to, request.type);
  to = store_be<uint64_t>(to, request.cookie);
  to = store_be<uint64_t>(to, request.offset);
  return store_be<uint32_t>(to, static_cast<uint32_t>(request.length));
}

// Writes kExtendedRequestSize bytes. The caller sets kFlagPayloadLen on a WRITE.
inline std::byte* encode_extended_request(std::byte* to, const Request& request) {
  to = store_be<uint32_t>(to, kExtendedRequestMagic);
  to = store_be<uint16_t>(to, request.flags);
  to = store_be<uint16_t>(to, request.type);
  to = store_be<uint64_t>(to, request.cookie);
  to = store_be<uint64_t>(to, request.offset);
  return store_be<uint64_t>(to, request.length);
}

// What one connection has negotiated, as far as it decides about requests. Fixed when the handshake
// ends (Established has it all).
struct TransmissionRules {
  uint64_t size = 0;                // of the export, bytes, at most 2^63 - 1
  uint16_t transmission_flags = 0;  // as sent to the client
  HeaderMode mode = HeaderMode::kSimple;
  bool allocation_context_selected = false;    // base:allocation, under kBaseAllocationId
  uint32_t block_min = 1;                      // bytes, a power of two
  uint32_t payload_max = kPayloadAcceptedMax;  // bytes of a READ or WRITE
};

// What to do with a request.
struct Check {
  uint32_t error = kOk;         // ErrorValue to answer; kOk: do the work
  const char* text = nullptr;   // why, static; null when error is kOk and disconnect is false
  uint64_t payload_length = 0;  // bytes that follow the header on the wire. To be consumed, whether
                                // there is an error or not; at most payload_max. 0 on disconnect.
  bool disconnect = false;      // close the connection, because a payload is too long to be skipped
  bool no_work = false;         // length 0: answer success without asking the disk
};

// The rules of "Request types", "Command flags" and "Block size constraints", in this order:
//   a payload longer than payload_max: disconnect (its bytes are not worth reading)
//   DISC: nothing is checked, the caller ends the connection
//   unknown command, unknown or misplaced flag: EINVAL; FUA is fine on every command iff
//     SEND_FUA; DF on READ iff replies are structured or extended; FAST_ZERO iff SEND_FAST_ZERO
//   extended: a WRITE without PAYLOAD_LEN: EINVAL, without a payload; PAYLOAD_LEN on anything else
//     but a BLOCK_STATUS that may have it: EINVAL
//   WRITE, WRITE_ZEROES, TRIM on a read-only export: EPERM
//   a command whose feature is not advertised, BLOCK_STATUS without a context: EINVAL
//   past the end (no wrapping): ENOSPC for WRITE and WRITE_ZEROES, EINVAL for the others
//   not aligned to block_min: EINVAL
//   READ longer than payload_max: EINVAL, with DF EOVERFLOW ("Error values")
//   length 0: no_work, but EINVAL for BLOCK_STATUS, whose reply cannot be empty
// FLUSH ignores offset and length, as peers do: the specification only binds the client there.
// TRIM, WRITE_ZEROES, CACHE and BLOCK_STATUS may be of any length.
//
// A BLOCK_STATUS with PAYLOAD_LEN that comes out without an error is checked again with
// check_block_status once its payload is there; its `length` is that of the payload.
[[nodiscard]] Check check_request_slowly(const Request& request, const TransmissionRules& rules);

[[nodiscard]] inline Check check_request(const Request& request, const TransmissionRules& rules) {
  // The common case without a call: a plain READ, or a plain compact WRITE of a writable export.
  if (request.flags == 0 && request.type <= kCmdWrite && request.length != 0 &&
      request.length <= rules.payload_max && request.length <= rules.size &&
      request.offset <= rules.size - request.length &&
      ((request.offset | request.length) & (rules.block_min - 1)) == 0) {
    if (request.type == kCmdRead) return {};
    if (rules.mode != HeaderMode::kExtended && !(rules.transmission_flags & kReadOnly)) {
      return {.payload_length = request.length};
    }
  }
  return check_request_slowly(request, rules);
}

// ---------------------------------------------------------------------------------------------
// BLOCK_STATUS with a payload (ext): an effect length and the ids of the contexts to report.

// weft has one context, so a longer payload has duplicate or unknown ids and is not worth
// buffering: check_request answers it with EINVAL.
inline constexpr size_t kBlockStatusPayloadSizeMax = 8 + 4 * 1;

struct BlockStatusPayload {
  uint64_t length = 0;  // effect length, bytes
  std::vector<uint32_t> context_ids = {};
};

// False: the size is not 8 + 4 n.
[[nodiscard]] bool decode_block_status_payload(ByteSpan payload, BlockStatusPayload& out);
// Writes 8 + 4 n bytes.
std::byte* encode_block_status_payload(std::byte* to, const BlockStatusPayload& payload);

// Checks a BLOCK_STATUS that check_request let pass with a payload, and sets request.length to the
// effect length. A wrong size, an id that is unknown or there twice, and no id at all are EINVAL.
// So a request that passes wants base:allocation reported, as one without a payload does.
[[nodiscard]] Check check_block_status(Request& request, ByteSpan payload,
                                       const TransmissionRules& rules);

// ---------------------------------------------------------------------------------------------
// Replies: headers ("Simple reply message", "Structured reply chunk message", ext "Extended reply
// chunk message").

inline constexpr size_t kSimpleReplySize = 16;
inline constexpr size_t kStructuredReplySize = 20;
inline constexpr size_t kExtendedReplySize = 32;
inline constexpr size_t kReplyHeaderSizeMax = 32;

[[nodiscard]] constexpr size_t chunk_header_size(HeaderMode mode) {
  return mode == HeaderMode::kExtended ? kExtendedReplySize : kStructuredReplySize;
}

struct SimpleReply {
  uint32_t error = kOk;
  uint64_t cookie = 0;
  friend bool operator==(const SimpleReply&, const SimpleReply&) = default;
};

struct ReplyChunk {
  uint16_t flags = 0;   // ReplyFlag bits
  uint16_t type = 0;    // ChunkType
  uint64_t cookie = 0;  // of the request
  uint64_t offset = 0;  // of the request; extended only, 0 otherwise
  uint64_t length = 0;  // bytes of payload; below 4 GiB in structured replies
  friend bool operator==(const ReplyChunk&, const ReplyChunk&) = default;
};

inline std::byte* encode_simple_reply(std::byte* to, uint32_t error, uint64_t cookie) {
  to = store_be<uint32_t>(to, kSimpleReplyMagic);
  to = store_be<uint32_t>(to, error);
  return store_be<uint64_t>(to, cookie);
}

inline std::byte* encode_structured_chunk(std::byte* to, const ReplyChunk& chunk) {
  to = store_be<uint32_t>(to, kStructuredReplyMagic);
  to = store_be<uint16_t>(to, chunk.flags);
  to = store_be<uint16_t>(to, chunk.type);
  to = store_be<uint64_t>(to, chunk.cookie);
  return store_be<uint32_t>(to, static_cast<uint32_t>(chunk.length));
}

inline std::byte* encode_extended_chunk(std::byte* to, const ReplyChunk& chunk) {
  to = store_be<uint32_t>(to, kExtendedReplyMagic);
  to = store_be<uint16_t>(to, chunk.flags);
  to = store_be<uint16_t>(to, chunk.type);
  to = store_be<uint64_t>(to, chunk.cookie);
  to = store_be<uint64_t>(to, chunk.offset);
  return store_be<uint64_t>(to, chunk.length);
}

// The header that `mode` wants: chunk_header_size(mode) bytes. Not for HeaderMode::kSimple.
inline std::byte* encode_chunk(std::byte* to, HeaderMode mode, const ReplyChunk& chunk) {
  return mode == HeaderMode::kExtended ? encode_extended_chunk(to, chunk)
                                       : encode_structured_chunk(to, chunk);
}

// ---------------------------------------------------------------------------------------------
// Replies: payloads ("Structured reply types"). A chunk's header carries their size as `length`.

inline constexpr size_t kOffsetDataPrefixSize = 8;  // then the data
inline constexpr size_t kOffsetHoleSize = 12;
inline constexpr size_t kErrorSizeMin = 6;         // then the text
inline constexpr size_t kErrorOffsetSizeMin = 14;  // with the text in the middle
inline constexpr size_t kErrorSizeMax = kErrorOffsetSizeMin + kStringLengthMax;

// The prefix of an OFFSET_DATA payload; chunk length is kOffsetDataPrefixSize + the data's.
inline std::byte* encode_offset_data(std::byte* to, uint64_t offset) {
  return store_be<uint64_t>(to, offset);
}

inline std::byte* encode_offset_hole(std::byte* to, uint64_t offset, uint32_t length) {
  to = store_be<uint64_t>(to, offset);
  return store_be<uint32_t>(to, length);
}

// ERROR: kErrorSizeMin + text. ERROR_OFFSET: kErrorOffsetSizeMin + text. `error` is not kOk. A text
// beyond kStringLengthMax is cut, so kErrorSizeMax bytes always suffice.
std::byte* encode_error(std::byte* to, uint32_t error, std::string_view text);
std::byte* encode_error_offset(std::byte* to, uint32_t error, std::string_view text,
                               uint64_t offset);

// BLOCK_STATUS: at most block_status_size_max(extents) bytes. An extent too long for 32 bits is
// clipped to kExtent32Max and ends the list (a reply may describe less than was asked for).
// `extents` is not empty.
inline constexpr uint32_t kExtent32Max = UINT32_MAX - (32u << 20) + 1;  // 4 GiB - 32 MiB
[[nodiscard]] inline size_t block_status_size_max(const Extents& extents) {
  return 4 + 8 * extents.list().size();
}
std::byte* encode_block_status(std::byte* to, uint32_t context_id, const Extents& extents);

// BLOCK_STATUS_EXT (ext): exactly block_status_ext_size(extents) bytes.
[[nodiscard]] inline size_t block_status_ext_size(const Extents& extents) {
  return 8 + 16 * extents.list().size();
}
std::byte* encode_block_status_ext(std::byte* to, uint32_t context_id, const Extents& extents);

// ---------------------------------------------------------------------------------------------
// The client's side of replies. Safe on arbitrary bytes.

// Which reply begins with these 4 bytes.
enum class ReplyKind : uint8_t { kUnknown, kSimple, kStructured, kExtended };
[[nodiscard]] inline ReplyKind reply_kind(const std::byte* from) {
  switch (load_be<uint32_t>(from)) {
    case kSimpleReplyMagic:
      return ReplyKind::kSimple;
    case kStructuredReplyMagic:
      return ReplyKind::kStructured;
    case kExtendedReplyMagic:
      return ReplyKind::kExtended;
    default:
      return ReplyKind::kUnknown;
  }
}

// Each reads the header's size in bytes; false: the magic is wrong.
[[nodiscard]] inline bool decode_simple_reply(const std::byte* from, SimpleReply& reply) {
  reply.error = load_be<uint32_t>(from + 4);
  reply.cookie = load_be<uint64_t>(from + 8);
  return load_be<uint32_t>(from) == kSimpleReplyMagic;
}

[[nodiscard]] inline bool decode_structured_chunk(const std::byte* from, ReplyChunk& chunk) {
  chunk.flags = load_be<uint16_t>(from + 4);
  chunk.type = load_be<uint16_t>(from + 6);
  chunk.cookie = load_be<uint64_t>(from + 8);
  chunk.offset = 0;
  chunk.length = load_be<uint32_t>(from + 16);
  return load_be<uint32_t>(from) == kStructuredReplyMagic;
}

[[nodiscard]] inline bool decode_extended_chunk(const std::byte* from, ReplyChunk& chunk) {
  chunk.flags = load_be<uint16_t>(from + 4);
  chunk.type = load_be<uint16_t>(from + 6);
  chunk.cookie = load_be<uint64_t>(from + 8);
  chunk.offset = load_be<uint64_t>(from + 16);
  chunk.length = load_be<uint64_t>(from + 24);
  return load_be<uint32_t>(from) == kExtendedReplyMagic;
}

struct ErrorChunk {
  uint32_t error = kOk;
  std::string_view text = {};  // points into the payload
  bool has_offset = false;     // ERROR_OFFSET
  uint64_t offset = 0;
};

// Any chunk type with kChunkErrorBit; of types unknown to us the common part is read. False: the
// text does not fit, or the error is 0.
[[nodiscard]] bool decode_error(uint16_t chunk_type, ByteSpan payload, ErrorChunk& out);

struct OffsetHole {
  uint64_t offset = 0;
  uint32_t length = 0;
};
[[nodiscard]] bool decode_offset_hole(ByteSpan payload, OffsetHole& out);

// `data` points into the payload. False: there is no data.
[[nodiscard]] bool decode_offset_data(ByteSpan payload, uint64_t& offset, ByteSpan& data);

struct StatusExtent {
  uint64_t length = 0;  // bytes
  uint64_t flags = 0;   // as the context defines them
  friend bool operator==(const StatusExtent&, const StatusExtent&) = default;
};
struct BlockStatus {
  uint32_t context_id = 0;
  std::vector<StatusExtent> extents = {};
};
// BLOCK_STATUS or BLOCK_STATUS_EXT. False: a wrong size or count, no extent, one of length 0, or
// lengths whose sum wraps.
[[nodiscard]] bool decode_block_status(uint16_t chunk_type, ByteSpan payload, BlockStatus& out);

// ---------------------------------------------------------------------------------------------
// Errors and names.

// The ErrorValue for a failure of a request with this command and these flags. What the client
// got wrong keeps its name, and so does ENOMEM; ENOTSUP is for FAST_ZERO only, EOVERFLOW for an
// unfragmented READ and for commands without a payload only; whatever else storage or network
// reports is EIO.
[[nodiscard]] uint32_t nbd_error(int errno_code, uint16_t command, uint16_t flags);

// The errno nearest to an ErrorValue, for clients (EIO for an unknown one, 0 for kOk).
[[nodiscard]] int errno_of(uint32_t error);

// The specification's spelling ("NBD_CMD_READ"), for log lines; static. "unknown ..." for a number
// that has no name.
[[nodiscard]] std::string_view command_name(uint16_t command);
[[nodiscard]] std::string_view error_name(uint32_t error);
[[nodiscard]] std::string_view option_name(uint32_t option);
[[nodiscard]] std::string_view option_reply_name(uint32_t reply);
[[nodiscard]] std::string_view chunk_type_name(uint16_t type);
[[nodiscard]] std::string_view header_mode_name(HeaderMode mode);  // "simple", ...

}  // namespace weft::nbd
