// SPDX-License-Identifier: BSD-3-Clause
// BenchClient: what the server sends, taken apart. Whatever breaks the protocol fails the client.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "tools/bench_client.h"

namespace weft::tools {
namespace {

// Chunks without data: errors with a text are the longest.
constexpr size_t kSmallPayloadMax = size_t{8} << 10;

}  // namespace

BenchClient::Slot* BenchClient::find(uint64_t cookie) {
  const uint64_t index = cookie & 0xffffffff;
  if (index >= slots_.size()) return nullptr;
  Slot& slot = slots_[index];
  return slot.busy && slot.sequence == cookie >> 32 ? &slot : nullptr;
}

bool BenchClient::parse() {
  const std::byte* at = buffer_.data();
  const std::byte* const end = at + have_;
  const size_t chunk_header = nbd::chunk_header_size(negotiated_.mode);
  for (;;) {
    auto available = static_cast<size_t>(end - at);
    if (data_left_ != 0) {
      const size_t part = std::min<uint64_t>(data_left_, available);
      if (!take_data(at, part)) return false;
      at += part;
      if (data_left_ != 0) break;
      continue;
    }
    if (available < nbd::kSimpleReplySize) break;
    const nbd::ReplyKind kind = nbd::reply_kind(at);
    if (kind == nbd::ReplyKind::kSimple) {
      if (!parse_simple(at)) return false;
      at += nbd::kSimpleReplySize;
      continue;
    }
    if (kind == nbd::ReplyKind::kUnknown) {
      return fail(fmt::format("protocol: a reply with the magic {:#x}", load_be<uint32_t>(at)));
    }
    if (available < chunk_header) break;
    size_t used = 0;
    if (!parse_chunk(at, available, used)) return false;
    if (used == 0) break;
    at += used;
  }
  have_ = static_cast<size_t>(end - at);
  if (have_ != 0) std::memmove(buffer_.data(), at, have_);
  return true;
}

bool BenchClient::parse_simple(const std::byte* at) {
  nbd::SimpleReply reply;
  (void)nbd::decode_simple_reply(at, reply);
  Slot* const slot = find(reply.cookie);
  if (slot == nullptr) return fail("protocol: a reply to no request");
  const bool data = slot->kind == OpKind::kRead && reply.error == nbd::kOk;
  if (negotiated_.mode == nbd::HeaderMode::kExtended ||
      (slot->kind == OpKind::kRead && negotiated_.mode != nbd::HeaderMode::kSimple)) {
    return fail("protocol: a simple reply where only chunks are allowed");
  }
  slot->error = reply.error;
  if (data) return begin_data(*slot, 0, workload_.block_size, true);
  complete(*slot);
  return true;
}

bool BenchClient::parse_chunk(const std::byte* at, size_t available, size_t& used) {
  nbd::ReplyChunk chunk;
  bool right = false;
  if (negotiated_.mode == nbd::HeaderMode::kStructured) {
    right = nbd::decode_structured_chunk(at, chunk);
  } else if (negotiated_.mode == nbd::HeaderMode::kExtended) {
    right = nbd::decode_extended_chunk(at, chunk);
  }
  if (!right) return fail("protocol: a chunk of a kind that was not negotiated");
  Slot* const slot = find(chunk.cookie);
  if (slot == nullptr) return fail("protocol: a chunk for no request");
  const uint64_t begin = workload_.offset + slot->block * workload_.block_size;
  const bool done = chunk.flags & nbd::kReplyDone;
  const size_t header = nbd::chunk_header_size(negotiated_.mode);
  const std::byte* const payload = at + header;

  if (chunk.type == nbd::kChunkOffsetData) {
    if (chunk.length <= nbd::kOffsetDataPrefixSize) return fail("protocol: an empty data chunk");
    used = header + nbd::kOffsetDataPrefixSize;
    if (available < used) {
      used = 0;
      return true;
    }
    return begin_data(*slot, load_be<uint64_t>(payload) - begin,
                      chunk.length - nbd::kOffsetDataPrefixSize, done);
  }
  if (chunk.length > kSmallPayloadMax) return fail("protocol: a chunk that is too long");
  if (available < header + chunk.length) return true;
  used = header + chunk.length;
  const ByteSpan bytes(payload, chunk.length);
  if (chunk.type == nbd::kChunkOffsetHole) {
    nbd::OffsetHole what;
    if (!nbd::decode_offset_hole(bytes, what)) return fail("protocol: a wrong hole chunk");
    if (!hole(*slot, what.offset - begin, what.length)) return false;
  } else if (chunk.type & nbd::kChunkErrorBit) {
    nbd::ErrorChunk error;
    if (!nbd::decode_error(chunk.type, bytes, error)) return fail("protocol: a wrong error chunk");
    slot->error = error.error;
  } else if (chunk.type != nbd::kChunkNone || chunk.length != 0 || !done) {
    return fail(fmt::format("protocol: a chunk of type {} that has no place here", chunk.type));
  }
  return !done || chunk_done(*slot);
}

bool BenchClient::begin_data(Slot& slot, uint64_t offset, uint64_t length, bool done) {
  if (slot.kind != OpKind::kRead || offset > workload_.block_size ||
      length > workload_.block_size - offset || length > workload_.block_size - slot.data_got) {
    return fail("protocol: data that was not asked for");
  }
  slot.data_got += static_cast<uint32_t>(length);
  data_slot_ = &slot;
  data_left_ = length;
  data_ends_reply_ = done;
  if (table_ != nullptr) data_to_ = slot_data(slot) + offset;
  return true;
}

bool BenchClient::take_data(const std::byte* at, size_t size) {
  if (table_ != nullptr) {
    std::memcpy(data_to_, at, size);
    data_to_ += size;
  }
  data_left_ -= size;
  return data_left_ != 0 || !data_ends_reply_ || chunk_done(*data_slot_);
}

bool BenchClient::hole(Slot& slot, uint64_t offset, uint64_t length) {
  if (!begin_data(slot, offset, length, false)) return false;
  data_left_ = 0;
  if (table_ != nullptr) std::memset(data_to_, 0, length);
  return true;
}

bool BenchClient::chunk_done(Slot& slot) {
  if (slot.kind == OpKind::kRead && slot.error == nbd::kOk &&
      slot.data_got != workload_.block_size) {
    return fail(
        fmt::format("protocol: {} bytes for a read of {}", slot.data_got, workload_.block_size));
  }
  complete(slot);
  return true;
}

}  // namespace weft::tools
