// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <iterator>

#include "check/conformance/talk.h"

namespace weft::check::conformance {
namespace {

constexpr uint64_t kChunkMax = (64u << 20) + 8;  // bytes that are taken of one chunk
constexpr uint32_t kChunksMax = 1u << 20;        // in one reply

std::string bit_names(uint16_t flags) {
  constexpr std::array<const char*, 6> kNames = {"FUA",     "NO_HOLE",   "DF",
                                                 "REQ_ONE", "FAST_ZERO", "PAYLOAD_LEN"};
  std::string names;
  for (unsigned bit = 0; bit < 16; ++bit) {
    if (!(flags & (1u << bit))) continue;
    if (!names.empty()) names += '|';
    names += bit < kNames.size() ? kNames[bit] : fmt::format("bit {}", bit);
  }
  return names;
}

}  // namespace

std::string describe(const nbd::Request& request) {
  const auto known = request.type <= nbd::kCmdResize;
  return fmt::format("{}{}{} offset {} length {}",
                     known ? std::string(nbd::command_name(request.type))
                           : fmt::format("command {}", request.type),
                     request.flags ? " with " : "", bit_names(request.flags), request.offset,
                     request.length);
}

Got Talk::request(const nbd::Request& request, ByteSpan payload) {
  std::array<std::byte, nbd::kExtendedRequestSize> header;
  const bool extended = terms_.mode == nbd::HeaderMode::kExtended;
  const std::byte* end = extended ? nbd::encode_extended_request(header.data(), request)
                                  : nbd::encode_request(header.data(), request);
  const ByteSpan bytes(header.data(), end);
  story_->add(fmt::format("sent {}{} ({} {} {} {} {} {})", describe(request),
                          payload.empty() ? "" : fmt::format(" and {} bytes", payload.size()),
                          hex(bytes.subspan(0, 4)), hex(bytes.subspan(4, 2)),
                          hex(bytes.subspan(6, 2)), hex(bytes.subspan(8, 8)),
                          hex(bytes.subspan(16, 8)), hex(bytes.subspan(24))));
  if (request.type != nbd::kCmdDisc) expect(request);
  Got got = raw_.send(bytes);
  if (got == Got::kAll) got = raw_.send(payload);
  if (got == Got::kEnd) story_->add("the server has closed the connection");
  if (got == Got::kSilence) story_->add("the server takes no more bytes");
  return got;
}

void Talk::expect(const nbd::Request& request) {
  Waiting& waiting = waiting_[request.cookie];
  waiting = {};
  waiting.request = request;
  waiting.answer.cookie = request.cookie;
}

Answer Talk::try_next_answer() {
  std::optional<uint64_t> done;
  while (!done) {
    std::array<std::byte, 4> magic;
    Got got = receive(magic);
    if (got == Got::kAll) {
      const nbd::ReplyKind kind = nbd::reply_kind(magic.data());
      const bool extended = terms_.mode == nbd::HeaderMode::kExtended;
      if (kind == nbd::ReplyKind::kSimple && !extended) {
        got = take_simple(done);
      } else if (kind == nbd::ReplyKind::kStructured &&
                 terms_.mode == nbd::HeaderMode::kStructured) {
        got = take_chunk(false, done);
      } else if (kind == nbd::ReplyKind::kExtended && extended) {
        got = take_chunk(true, done);
      } else {
        story_->add(fmt::format("received {}", hex(magic)));
        broken("wrong-magic",
               fmt::format("a reply that begins with {}, which is none in {} mode", hex(magic),
                           nbd::header_mode_name(terms_.mode)),
               terms_.mode == nbd::HeaderMode::kSimple       ? "67446698"
               : terms_.mode == nbd::HeaderMode::kStructured ? "668e33ef (or 67446698)"
                                                             : "6e8a278c",
               {"Look whether the payload of an earlier, refused request was consumed."});
      }
    }
    if (got != Got::kAll) {
      Answer none;
      none.got = got;
      return none;
    }
  }
  auto node = waiting_.extract(*done);
  return std::move(node.mapped().answer);
}

Talk::Waiting& Talk::waiting_for(uint64_t cookie) {
  const auto at = waiting_.find(cookie);
  if (at == waiting_.end()) {
    broken("wrong-cookie",
           fmt::format("a reply with cookie {:016x}, which no request waits for", cookie),
           "the cookie of a request in flight");
  }
  return at->second;
}

Got Talk::take_simple(std::optional<uint64_t>& done) {
  std::array<std::byte, nbd::kSimpleReplySize> header;
  store_be<uint32_t>(header.data(), nbd::kSimpleReplyMagic);
  if (const Got got = receive(std::span(header).subspan(4)); got != Got::kAll) return got;
  nbd::SimpleReply reply;
  (void)nbd::decode_simple_reply(header.data(), reply);
  story_->add(fmt::format("received a simple reply: {} ({})",
                          reply.error ? nbd::error_name(reply.error) : "success", hex(header)));
  Waiting& waiting = waiting_for(reply.cookie);
  const bool read = waiting.request.type == nbd::kCmdRead;
  if (terms_.mode == nbd::HeaderMode::kStructured) {
    if (read) {
      broken("simple-reply-to-read",
             "a simple reply to a READ, though structured replies were agreed",
             "a structured reply, also for an error");
    }
    if (waiting.request.type == nbd::kCmdBlockStatus && reply.error == nbd::kOk) {
      broken("malformed-reply", "a simple reply says that a BLOCK_STATUS succeeded",
             "a structured reply with the status");
    }
  }
  waiting.answer.error = reply.error;
  waiting.answer.simple = true;
  done = reply.cookie;
  if (!read || reply.error != nbd::kOk) return Got::kAll;
  if (waiting.request.length > kChunkMax) {
    unclear(fmt::format("the server sends {} bytes, which are not taken", waiting.request.length));
  }
  waiting.answer.data.resize(waiting.request.length);
  return receive(waiting.answer.data);
}

Got Talk::take_chunk(bool extended, std::optional<uint64_t>& done) {
  std::array<std::byte, nbd::kExtendedReplySize> bytes;
  const std::span header =
      std::span(bytes).first(extended ? nbd::kExtendedReplySize : nbd::kStructuredReplySize);
  store_be<uint32_t>(header.data(),
                     extended ? nbd::kExtendedReplyMagic : nbd::kStructuredReplyMagic);
  if (const Got got = receive(header.subspan(4)); got != Got::kAll) return got;
  nbd::ReplyChunk chunk;
  (void)(extended ? nbd::decode_extended_chunk(header.data(), chunk)
                  : nbd::decode_structured_chunk(header.data(), chunk));
  story_->add(fmt::format("received a chunk {}{}, {} bytes ({})", nbd::chunk_type_name(chunk.type),
                          chunk.flags & nbd::kReplyDone ? ", the last" : "", chunk.length,
                          hex(header)));
  Waiting& waiting = waiting_for(chunk.cookie);
  if (++waiting.chunks > kChunksMax) unclear("the server sends chunks without end");
  if (extended && chunk.offset != waiting.request.offset) {
    broken("wrong-offset",
           fmt::format("the reply's offset is {}, the request's was {}", chunk.offset,
                       waiting.request.offset),
           "the reply echoes the request's offset");
  }
  if (chunk.flags & ~nbd::kReplyDone) {
    broken("malformed-reply", fmt::format("reply flags {:#06x}", chunk.flags),
           "no other flag than NBD_REPLY_FLAG_DONE, for no other was agreed");
  }
  if (chunk.length > kChunkMax) {
    broken("malformed-reply", fmt::format("a chunk of {} bytes", chunk.length),
           "chunks that the request can explain");
  }
  std::vector<std::byte> payload(chunk.length);
  if (const Got got = receive(payload); got != Got::kAll) return got;
  take_payload(waiting, chunk, payload);
  if (chunk.flags & nbd::kReplyDone) {
    finish_chunks(waiting);
    done = chunk.cookie;
  }
  return Got::kAll;
}

void Talk::cover(Waiting& waiting, Range range) {
  const Range asked{waiting.request.offset, waiting.request.length};
  if (range.offset < asked.offset || range.length > asked.length ||
      range.offset - asked.offset > asked.length - range.length) {
    broken("malformed-reply",
           fmt::format("a chunk of {} bytes at {}, outside of what was asked for", range.length,
                       range.offset),
           "content inside of the request's range");
  }
  const auto after = waiting.covered.lower_bound(range.offset);
  const bool twice = (after != waiting.covered.end() && after->first < range.end()) ||
                     (after != waiting.covered.begin() && std::prev(after)->second > range.offset);
  if (twice) {
    broken("malformed-reply", fmt::format("content at {} was sent twice", range.offset),
           "chunks that do not overlap");
  }
  waiting.covered[range.offset] = range.end();
  ++waiting.answer.content_chunks;
}

void Talk::take_payload(Waiting& waiting, const nbd::ReplyChunk& chunk, ByteSpan payload) {
  Answer& answer = waiting.answer;
  const auto malformed = [&](std::string_view why) {
    broken("malformed-reply", fmt::format("a chunk {} {}", nbd::chunk_type_name(chunk.type), why),
           fmt::format("see \"Structured reply types\"; the payload was {}", hex(payload)));
  };
  const bool read = waiting.request.type == nbd::kCmdRead;
  if (chunk.type & nbd::kChunkErrorBit) {
    nbd::ErrorChunk error;
    if (!nbd::decode_error(chunk.type, payload, error))
      malformed("that is too short, or has error 0");
    if (const std::string fault = string_fault(bytes_of(error.text)); !fault.empty()) {
      malformed("whose text is " + fault);
    }
    story_->add(fmt::format("... which says {} \"{}\"", nbd::error_name(error.error), error.text));
    if (answer.error == nbd::kOk) answer.error = error.error;
    answer.text = error.text;
  } else if (chunk.type == nbd::kChunkNone) {
    if (!payload.empty()) malformed("with a payload");
    if (!(chunk.flags & nbd::kReplyDone)) malformed("that is not the last");
  } else if (chunk.type == nbd::kChunkOffsetData && read) {
    uint64_t offset = 0;
    ByteSpan data;
    if (!nbd::decode_offset_data(payload, offset, data)) malformed("without data");
    cover(waiting, {offset, data.size()});
    answer.data.resize(waiting.request.length);
    std::ranges::copy(
        data, answer.data.begin() + static_cast<ptrdiff_t>(offset - waiting.request.offset));
  } else if (chunk.type == nbd::kChunkOffsetHole && read) {
    nbd::OffsetHole hole;
    if (!nbd::decode_offset_hole(payload, hole) || hole.length == 0) malformed("of a wrong size");
    cover(waiting, {hole.offset, hole.length});
    answer.data.resize(waiting.request.length);
  } else if ((chunk.type == nbd::kChunkBlockStatus ||
              (chunk.type == nbd::kChunkBlockStatusExt &&
               terms_.mode == nbd::HeaderMode::kExtended)) &&
             waiting.request.type == nbd::kCmdBlockStatus) {
    nbd::BlockStatus status;
    if (!nbd::decode_block_status(chunk.type, payload, status)) {
      malformed("of a wrong size, or with an extent of length 0");
    }
    answer.status.push_back(std::move(status));
  } else {
    malformed(fmt::format("in the reply to {}", nbd::command_name(waiting.request.type)));
  }
}

void Talk::finish_chunks(const Waiting& waiting) {
  const Answer& answer = waiting.answer;
  if (answer.error != nbd::kOk || waiting.request.type != nbd::kCmdRead) return;
  uint64_t covered = 0;
  for (const auto& [offset, end] : waiting.covered) covered += end - offset;
  if (covered != waiting.request.length) {
    broken(
        "malformed-reply",
        fmt::format("a READ of {} bytes succeeded with {} bytes", waiting.request.length, covered),
        "content that covers all that was asked for");
  }
}

Answer Talk::next_answer(State on_loss) {
  Answer answer = try_next_answer();
  if (answer.got != Got::kAll) {
    lost(answer.got, on_loss,
         waiting_.size() == 1 ? "a reply to " + describe(waiting_.begin()->second.request)
                              : fmt::format("replies to {} requests", waiting_.size()));
  }
  return answer;
}

std::vector<Answer> Talk::exchange_all(std::span<const nbd::Request> requests) {
  const size_t size = nbd::request_size(terms_.mode);
  std::vector<std::byte> bytes(size * requests.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    std::byte* to = bytes.data() + i * size;
    terms_.mode == nbd::HeaderMode::kExtended ? nbd::encode_extended_request(to, requests[i])
                                              : nbd::encode_request(to, requests[i]);
    expect(requests[i]);
  }
  story_->add(fmt::format("sent {} requests without waiting, the first {}", requests.size(),
                          describe(requests.front())));
  std::vector<Answer> answers;
  for (ByteSpan rest = bytes; !rest.empty();) {
    const Got got = raw_.send_until_readable(rest);
    if (got != Got::kAll) lost(got, State::kFailed, "replies to all requests of a pipeline");
    if (!rest.empty()) answers.push_back(next_answer());
  }
  while (in_flight() > 0) answers.push_back(next_answer());
  return answers;
}

Answer Talk::try_exchange(const nbd::Request& request, ByteSpan payload) {
  (void)this->request(request, payload);
  return try_next_answer();
}

Answer Talk::exchange(const nbd::Request& request, ByteSpan payload, State on_loss) {
  (void)this->request(request, payload);
  return next_answer(on_loss);
}

}  // namespace weft::check::conformance
