// SPDX-License-Identifier: BSD-3-Clause
// All decoders of the transmission phase on arbitrary bytes; what they accept must come out of the
// encoders again, and what check_request lets pass must be safe to do.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "nbd/transmission.h"

using namespace weft;
using namespace weft::nbd;

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void same(ByteSpan a, const std::byte* begin, const std::byte* end) {
  check(std::ranges::equal(a, ByteSpan(begin, end)));
}

void fuzz_request(ByteSpan bytes, const TransmissionRules& rules) {
  Request request;
  std::byte memory[kExtendedRequestSize];
  const size_t size = request_size(rules.mode);
  if (bytes.size() < size) return;
  bytes = bytes.first(size);
  if (rules.mode == HeaderMode::kExtended) {
    if (decode_extended_request(bytes.data(), request)) {
      same(bytes, memory, encode_extended_request(memory, request));
    }
  } else if (decode_request(bytes.data(), request)) {
    same(bytes, memory, encode_request(memory, request));
  }
  // The magic does not matter to the rules: fuzz them with every request.
  request.type %= 12;
  const Check result = check_request(request, rules);
  const Check slow = check_request_slowly(request, rules);
  check(result.error == slow.error && result.payload_length == slow.payload_length &&
        result.no_work == slow.no_work && result.disconnect == slow.disconnect);
  check(result.payload_length <= rules.payload_max);
  check((result.text != nullptr) == (result.error != kOk));
  check(!result.disconnect || result.payload_length == 0);
  if (result.error != kOk || request.type == kCmdDisc || request.type == kCmdFlush) return;
  const bool with_payload =
      request.type == kCmdBlockStatus && (request.flags & kFlagPayloadLen) != 0;
  if (with_payload) {
    check(result.payload_length <= kBlockStatusPayloadSizeMax);
    return;
  }
  check(request.offset <= rules.size && request.length <= rules.size - request.offset);
  if (request.type == kCmdWrite) check(result.payload_length == request.length);
  if (request.type == kCmdRead) check(request.length <= rules.payload_max);
  if (rules.transmission_flags & kReadOnly) {
    check(request.type != kCmdWrite && request.type != kCmdTrim && request.type != kCmdWriteZeroes);
  }
}

void fuzz_replies(ByteSpan bytes, uint16_t type) {
  if (bytes.size() >= kExtendedReplySize) {
    SimpleReply simple;
    ReplyChunk chunk;
    std::byte memory[kReplyHeaderSizeMax];
    if (decode_simple_reply(bytes.data(), simple)) {
      check(reply_kind(bytes.data()) == ReplyKind::kSimple);
      same(bytes.first(kSimpleReplySize), memory,
           encode_simple_reply(memory, simple.error, simple.cookie));
    }
    if (decode_structured_chunk(bytes.data(), chunk)) {
      same(bytes.first(kStructuredReplySize), memory,
           encode_chunk(memory, HeaderMode::kStructured, chunk));
    }
    if (decode_extended_chunk(bytes.data(), chunk)) {
      same(bytes.first(kExtendedReplySize), memory,
           encode_chunk(memory, HeaderMode::kExtended, chunk));
    }
  }
  ErrorChunk error;
  if (decode_error(type, bytes, error)) {
    check(error.error != kOk && error.text.size() <= bytes.size());
    if (!error.text.empty()) {
      check(error.text.data() + error.text.size() <=
            reinterpret_cast<const char*>(bytes.data() + bytes.size()));
    }
    check(!error_name(error.error).empty() && errno_of(error.error) != 0);
  }
  OffsetHole hole;
  if (decode_offset_hole(bytes, hole)) {
    std::byte memory[kOffsetHoleSize];
    same(bytes, memory, encode_offset_hole(memory, hole.offset, hole.length));
  }
  uint64_t offset = 0;
  ByteSpan rest;
  if (decode_offset_data(bytes, offset, rest)) check(rest.size() == bytes.size() - 8);
  BlockStatus status;
  if (decode_block_status(type, bytes, status)) {
    check(!status.extents.empty());
    uint64_t sum = 0;
    for (const StatusExtent& extent : status.extents) {
      check(extent.length != 0 && sum + extent.length > sum);
      sum += extent.length;
    }
    // Through Extents and the encoder, as far as it can hold them: the same bytes of the disk have
    // the same flags.
    Extents extents({0, INT64_MAX});
    for (const StatusExtent& extent : status.extents) {
      extents.append(extent.length, static_cast<uint32_t>(extent.flags));
    }
    if (extents.list().empty()) return;
    std::vector<std::byte> memory(block_status_ext_size(extents));
    check(encode_block_status_ext(memory.data(), status.context_id, extents) ==
          memory.data() + memory.size());
    BlockStatus again;
    check(decode_block_status(kChunkBlockStatusExt, memory, again));
    check(again.extents.size() == extents.list().size());
    memory.assign(block_status_size_max(extents), std::byte{});
    const std::byte* end = encode_block_status(memory.data(), status.context_id, extents);
    check(end <= memory.data() + memory.size());
    check(decode_block_status(kChunkBlockStatus, ByteSpan(memory.data(), end), again));
    for (size_t i = 0; i < again.extents.size(); i++) {
      check(again.extents[i].length <= extents.list()[i].length);
      check(again.extents[i].flags == extents.list()[i].flags);
    }
  }
}

void fuzz_block_status_payload(ByteSpan bytes, const TransmissionRules& rules) {
  BlockStatusPayload payload;
  if (decode_block_status_payload(bytes, payload)) {
    std::vector<std::byte> memory(bytes.size());
    same(bytes, memory.data(), encode_block_status_payload(memory.data(), payload));
  }
  Request request = {kFlagPayloadLen, kCmdBlockStatus, 0, 4096, bytes.size()};
  const Check result = check_block_status(request, bytes, rules);
  if (result.error == kOk) {
    check(request.length != 0 && request.offset + request.length <= rules.size);
    check(payload.context_ids == std::vector<uint32_t>{kBaseAllocationId});
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 8) return 0;
  const ByteSpan bytes = std::as_bytes(std::span(data, size));
  const unsigned bits = data[0];
  const TransmissionRules rules = {
      .size = bits & 4 ? uint64_t{1} << 20 : uint64_t{INT64_MAX},
      .transmission_flags = load_be<uint16_t>(bytes.data() + 1),
      .mode = static_cast<HeaderMode>((bits & 3) % 3),
      .allocation_context_selected = (bits & 8) != 0,
      .block_min = 1u << (bits >> 4),
  };
  const ByteSpan rest = bytes.subspan(5);
  // An exact copy on the heap, so that a read beyond the end is seen.
  const std::vector<std::byte> copy(rest.begin(), rest.end());
  switch (data[3] % 3) {
    case 0:
      fuzz_request(copy, rules);
      break;
    case 1: {
      const uint16_t types[] = {
          kChunkBlockStatus, kChunkBlockStatusExt, kChunkError, kChunkErrorOffset, 0x8044, 3};
      fuzz_replies(copy, types[data[4] % std::size(types)]);
      break;
    }
    default:
      fuzz_block_status_payload(copy, rules);
      break;
  }
  return 0;
}
