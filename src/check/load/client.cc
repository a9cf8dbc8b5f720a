// SPDX-License-Identifier: BSD-3-Clause
#include "check/load/client.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/result.h"

namespace weft::check {
namespace {

constexpr size_t kReceiveSize = 256 << 10;  // bytes, the most of one receive
// More than any chunk of a reply to requests as ours: what claims to be longer is a wrong length.
constexpr uint64_t kChunkMax = 80 << 20;

}  // namespace

Client::Client(tools::Dialled dialled)
    : fd_(std::move(dialled.fd)),
      negotiated_(std::move(dialled.result)),
      allocation_id_(negotiated_.context_id(nbd::kBaseAllocation)) {
  ::fcntl(fd_.get(), F_SETFL, ::fcntl(fd_.get(), F_GETFL) | O_NONBLOCK);
}

uint64_t Client::submit(nbd::Request request, ByteSpan payload) {
  request.cookie = next_cookie_++;
  if (lost()) return request.cookie;
  const size_t at = output_.size();
  if (negotiated_.mode == nbd::HeaderMode::kExtended) {
    if (request.type == nbd::kCmdWrite) request.flags |= nbd::kFlagPayloadLen;
    output_.resize(at + nbd::kExtendedRequestSize);
    nbd::encode_extended_request(&output_[at], request);
  } else {
    output_.resize(at + nbd::kRequestSize);
    nbd::encode_request(&output_[at], request);
  }
  output_.insert(output_.end(), payload.begin(), payload.end());
  Waiting waiting{.request = request, .reply = {}, .covered = {}};
  waiting.reply.cookie = request.cookie;
  if (request.type == nbd::kCmdRead) waiting.reply.data.resize(request.length);
  waiting_.emplace(request.cookie, std::move(waiting));
  send();
  return request.cookie;
}

void Client::send() {
  while (!lost() && wants_to_send()) {
    const ssize_t done =
        ::send(fd_.get(), &output_[sent_], output_.size() - sent_, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (done < 0) {
      if (errno == EINTR) continue;
      // What the server said last may still be there to be received.
      if (errno != EAGAIN) output_.clear(), sent_ = 0;
      return;
    }
    sent_ += static_cast<size_t>(done);
  }
  output_.clear();
  sent_ = 0;
}

void Client::receive(std::vector<Reply>& replies) {
  while (!lost()) {
    if (taken_ > 0) input_.erase(input_.begin(), input_.begin() + static_cast<ptrdiff_t>(taken_));
    taken_ = 0;
    const size_t have = input_.size();
    input_.resize(have + kReceiveSize);
    const ssize_t got = ::recv(fd_.get(), &input_[have], kReceiveSize, MSG_DONTWAIT);
    const int code = errno;
    input_.resize(have + static_cast<size_t>(std::max<ssize_t>(got, 0)));
    if (got < 0 && code == EINTR) continue;
    if (got < 0 && code == EAGAIN) return;
    if (got < 0) return lose(errno_text(code));
    if (got == 0) {
      return lose(have > 0 ? "the server closed the connection in the middle of a reply" : "");
    }
    while (take_reply(replies)) {
    }
    if (static_cast<size_t>(got) < kReceiveSize) return;
  }
}

void Client::cut(bool reset) {
  if (lost()) return;
  if (reset) {
    const linger now = {.l_onoff = 1, .l_linger = 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  lose("cut by nbdcheck");
}

void Client::disconnect() {
  if (lost()) return;
  const size_t at = output_.size();
  const bool extended = negotiated_.mode == nbd::HeaderMode::kExtended;
  const nbd::Request request{.type = nbd::kCmdDisc};
  output_.resize(at + nbd::request_size(negotiated_.mode));
  if (extended) {
    nbd::encode_extended_request(&output_[at], request);
  } else {
    nbd::encode_request(&output_[at], request);
  }
  send();
}

// ---- Replies ------------------------------------------------------------------------------------

bool Client::take_reply(std::vector<Reply>& replies) {
  if (lost() || unread().size() < 4) return false;
  const bool extended = negotiated_.mode == nbd::HeaderMode::kExtended;
  switch (nbd::reply_kind(unread().data())) {
    case nbd::ReplyKind::kSimple:
      if (extended) return violate("a simple reply where extended headers were negotiated");
      return take_simple(replies);
    case nbd::ReplyKind::kStructured:
      if (negotiated_.mode == nbd::HeaderMode::kStructured) return take_chunk(replies);
      return violate(fmt::format("a structured reply where {} headers were negotiated",
                                 nbd::header_mode_name(negotiated_.mode)));
    case nbd::ReplyKind::kExtended:
      if (extended) return take_chunk(replies);
      return violate(fmt::format("an extended reply where {} headers were negotiated",
                                 nbd::header_mode_name(negotiated_.mode)));
    case nbd::ReplyKind::kUnknown:
      break;
  }
  return violate(fmt::format("a reply began with {:#010x}, which is no reply's magic",
                             load_be<uint32_t>(unread().data())));
}

bool Client::take_simple(std::vector<Reply>& replies) {
  if (unread().size() < nbd::kSimpleReplySize) return false;
  nbd::SimpleReply header;
  (void)nbd::decode_simple_reply(unread().data(), header);
  const auto at = waiting_.find(header.cookie);
  if (at == waiting_.end()) {
    return violate(fmt::format("a reply to cookie {:#x}, which nobody waits for", header.cookie));
  }
  Waiting& waiting = at->second;
  const bool read = waiting.request.type == nbd::kCmdRead;
  const bool status = waiting.request.type == nbd::kCmdBlockStatus;
  if (negotiated_.mode == nbd::HeaderMode::kStructured && (read || (status && header.error == 0))) {
    return violate(fmt::format("a simple reply to {} where structured replies were negotiated",
                               nbd::command_name(waiting.request.type)));
  }
  const size_t data = read && header.error == 0 ? waiting.reply.data.size() : 0;
  if (unread().size() < nbd::kSimpleReplySize + data) return false;
  waiting.reply.error = header.error;
  if (data > 0) {
    std::memcpy(waiting.reply.data.data(), &unread()[nbd::kSimpleReplySize], data);
    waiting.covered = {{waiting.request.offset, data}};
  }
  taken_ += nbd::kSimpleReplySize + data;
  complete(at, replies);
  return true;
}

bool Client::take_chunk(std::vector<Reply>& replies) {
  const size_t header_size = nbd::chunk_header_size(negotiated_.mode);
  if (unread().size() < header_size) return false;
  nbd::ReplyChunk chunk;
  if (negotiated_.mode == nbd::HeaderMode::kExtended) {
    (void)nbd::decode_extended_chunk(unread().data(), chunk);
  } else {
    (void)nbd::decode_structured_chunk(unread().data(), chunk);
  }
  const auto at = waiting_.find(chunk.cookie);
  if (at == waiting_.end()) {
    return violate(fmt::format("a reply to cookie {:#x}, which nobody waits for", chunk.cookie));
  }
  if (chunk.length > kChunkMax) {
    return violate(fmt::format("a chunk that says it is {} bytes long", chunk.length));
  }
  if (unread().size() < header_size + chunk.length) return false;
  Waiting& waiting = at->second;
  if (negotiated_.mode == nbd::HeaderMode::kExtended && chunk.offset != waiting.request.offset) {
    return violate(fmt::format("an extended reply for offset {} to a request for {}", chunk.offset,
                               waiting.request.offset));
  }
  if (!take_payload(waiting, chunk, unread().subspan(header_size, chunk.length))) return false;
  taken_ += header_size + chunk.length;
  if (chunk.flags & nbd::kReplyDone) {
    uint64_t covered = 0;
    for (const Range& range : waiting.covered) covered += range.length;
    if (waiting.request.type == nbd::kCmdRead && waiting.reply.error == nbd::kOk &&
        covered != waiting.request.length) {
      return violate(fmt::format("the reply to a read of {} bytes at {} has {} of them",
                                 waiting.request.length, waiting.request.offset, covered));
    }
    if (waiting.request.type == nbd::kCmdBlockStatus && waiting.reply.error == nbd::kOk &&
        waiting.reply.extents.empty()) {
      return violate("a BLOCK_STATUS that succeeded without a chunk of base:allocation");
    }
    complete(at, replies);
  }
  return true;
}

bool Client::take_payload(Waiting& waiting, const nbd::ReplyChunk& chunk, ByteSpan payload) {
  const auto not_decoded = [&] {
    return violate(fmt::format("a chunk {} of {} bytes that cannot be understood",
                               nbd::chunk_type_name(chunk.type), payload.size()));
  };
  const nbd::Request& request = waiting.request;
  if (chunk.type & nbd::kChunkErrorBit) {
    nbd::ErrorChunk error;
    if (!nbd::decode_error(chunk.type, payload, error)) return not_decoded();
    if (waiting.reply.error == nbd::kOk) {
      waiting.reply.error = error.error;
      waiting.reply.text = error.text;
    }
    return true;
  }
  switch (chunk.type) {
    case nbd::kChunkNone:
      return payload.empty() || not_decoded();
    case nbd::kChunkOffsetData: {
      uint64_t offset = 0;
      ByteSpan data;
      if (!nbd::decode_offset_data(payload, offset, data)) return not_decoded();
      if (!cover(waiting, {offset, data.size()})) return false;
      std::memcpy(&waiting.reply.data[offset - request.offset], data.data(), data.size());
      return true;
    }
    case nbd::kChunkOffsetHole: {
      nbd::OffsetHole hole;
      if (!nbd::decode_offset_hole(payload, hole)) return not_decoded();
      if (!cover(waiting, {hole.offset, hole.length})) return false;
      std::memset(&waiting.reply.data[hole.offset - request.offset], 0, hole.length);
      return true;
    }
    case nbd::kChunkBlockStatus:
    case nbd::kChunkBlockStatusExt: {
      nbd::BlockStatus status;
      if (!nbd::decode_block_status(chunk.type, payload, status)) return not_decoded();
      if (request.type != nbd::kCmdBlockStatus || !allocation_id_ ||
          status.context_id != *allocation_id_ || !waiting.reply.extents.empty()) {
        return violate(fmt::format("a chunk of block status for context {} that was not asked for",
                                   status.context_id));
      }
      waiting.reply.extents = std::move(status.extents);
      return true;
    }
    default:
      return violate(fmt::format("a chunk of type {}, which is not defined", chunk.type));
  }
}

// A chunk of a read's data or of a hole must lie in the request, and cover no byte twice.
bool Client::cover(Waiting& waiting, Range range) {
  const nbd::Request& request = waiting.request;
  if (request.type != nbd::kCmdRead) {
    return violate(fmt::format("data in the reply to {}", nbd::command_name(request.type)));
  }
  // What the server says may be anything: no sum of it is safe.
  const uint64_t begin = range.offset - request.offset;
  if (range.empty() || range.offset < request.offset || begin >= request.length ||
      range.length > request.length - begin) {
    return violate(fmt::format("{} bytes at {} in the reply to a read of {} bytes at {}",
                               range.length, range.offset, request.length, request.offset));
  }
  for (const Range& other : waiting.covered) {
    if (range.overlaps(other)) {
      return violate(fmt::format("the bytes at {} twice in the reply to one read", range.offset));
    }
  }
  waiting.covered.push_back(range);
  return true;
}

void Client::complete(Table::iterator at, std::vector<Reply>& replies) {
  at->second.reply.time_ns = now_ns();
  replies.push_back(std::move(at->second.reply));
  waiting_.erase(at);
}

bool Client::violate(std::string why) {
  violated_ = true;
  lose(std::move(why));
  return false;
}

void Client::lose(std::string why) {
  fd_.reset();
  failure_ = std::move(why);
  input_.clear();
  output_.clear();
  taken_ = sent_ = 0;
}

}  // namespace weft::check
