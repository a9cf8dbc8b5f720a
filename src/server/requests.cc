// SPDX-License-Identifier: BSD-3-Clause
// What becomes of a request that has arrived: its order, its call of the disk, its reply.
#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>

#include "server/transmission.h"

namespace weft::server {
namespace {

constexpr size_t kExtentsMax = 32768;          // in one reply
constexpr size_t kBatchMax = 16;               // changes that are started together
constexpr uint64_t kSparseReadMin = 32 << 10;  // bytes; asking for holes costs more below
constexpr size_t kSparseExtentsMax = 256;

bool is_change(uint16_t type) {
  return type == nbd::kCmdWrite || type == nbd::kCmdTrim || type == nbd::kCmdWriteZeroes;
}

Range range_of(const nbd::Request& header) {
  return {header.offset, header.length};
}

}  // namespace

void Request::may_start() {
  owner->change_may_start(*this);
}

// ---- The life of a request --------------------------------------------------------------------

Request& Transmission::make_request(const nbd::Request& header) {
  Request* request = resources_.get_request();
  request->header = header;
  request->owner = this;
  request->in_order = request->started = request->answered = false;
  request->next = nullptr;
  request->previous = last_;
  (last_ ? last_->next : first_) = request;
  last_ = request;
  in_flight_++;
  return *request;
}

void Transmission::arrived(Request& request) {
  if (!order_ || !is_change(request.header.type)) {
    start(request);
    return;
  }
  // Neighbours in one batch do not wait for each other: the earlier ones are started first.
  const Range range = range_of(request.header).rounded_out(order_->granularity());
  const auto overlaps = [&](const Request* earlier) {
    return range_of(earlier->header).overlaps(range);
  };
  if (deferred_.size() >= kBatchMax || std::ranges::any_of(deferred_, overlaps)) start_arrived();
  request.in_order = true;
  if (order_->enter(request, range_of(request.header), loop_)) deferred_.push_back(&request);
}

// Starts the changes of this batch, unless the client is gone by now: it may have given up on them
// long ago, and have sent them again by another connection, with newer data after them. What a
// client that is still there sends again comes after them in the order, for they have entered it.
void Transmission::start_arrived() {
  if (deferred_.empty() || dead_ || (!disconnected_ && stream_.peer_gone())) return;
  for (Request* request : deferred_) start(*request);
  deferred_.clear();
}

// Nothing earlier overlaps the change any more.
void Transmission::change_may_start(Request& request) {
  if (!request.in_order) {
    forget(request);  // dropped while this was on its way
    return;
  }
  const bool gone = dead_ || (!disconnected_ && stream_.peer_gone());
  if (!gone) {
    start(request);
  } else if (dead_ || ended_) {
    order_->leave(request);
    forget(request);
  } else {
    // Dead, or gone with a DISC that is still unread: the end of the stream will tell.
    deferred_.push_back(&request);
    if (taker_) taker_->cancel();
    replies_.progress().notify_all();
  }
}

void Transmission::start(Request& request) {
  if (requests_max_ != 0 && running_ >= requests_max_) {
    waiting_for_slot_.push_back(&request);
    return;
  }
  request.started = true;
  running_++;
  run_request(request);
}

void Transmission::finish(Request& request, Status status) {
  if (request.in_order) order_->leave(request);
  request.in_order = false;
  running_--;
  if (!request.answered) {
    if (status && request.header.type == nbd::kCmdRead) {
      Reply* reply = replies_.make();
      reply->buffer = std::move(request.buffer);
      reply->charge = std::move(request.charge);
      const std::byte* data = reply->buffer.data();
      reply->lease.pieces.push_back({data, request.header.length});
      reply_data(request.header, reply, reply->lease.pieces);
    } else {
      reply_status(request.header, status);
    }
  }
  forget(request);
  if (starting_) return;  // called by the loop below
  starting_ = true;
  while (!waiting_for_slot_.empty() && running_ < requests_max_ && !dead_) {
    Request* next = waiting_for_slot_.front();
    waiting_for_slot_.pop_front();
    start(*next);
  }
  starting_ = false;
}

void Transmission::forget(Request& request) {
  (request.previous ? request.previous->next : first_) = request.next;
  (request.next ? request.next->previous : last_) = request.previous;
  request.payload = {};
  request.buffer = engine::Buffer();
  request.charge = Charge();
  Chunk* chunk = std::exchange(request.chunk, nullptr);
  if (chunk) resources_.unreference(chunk);
  resources_.give_back(&request);
  in_flight_--;
  replies_.progress().notify_all();
  if (chunk && chunk == chunk_ && chunk->references == 1) {
    // Nobody else uses it any more: whoever waits for the client gives it back, whoever waits for
    // memory to have another one goes on with this.
    if (idle_) stash();
    if (taker_) taker_->cancel();
  }
}

void Transmission::drop_not_started() {
  waiting_for_slot_.clear();
  for (Request* request = first_; request;) {
    Request* next = request->next;
    if (!request->started) {
      const bool awaited = request->in_order && !order_->leave(*request);
      request->in_order = false;
      if (!awaited) forget(*request);
    }
    request = next;
  }
}

// ---- Calls of the disk ------------------------------------------------------------------------

// A READ whose bytes are at hand is answered with them where they lie.
bool Transmission::answer_at_once(const nbd::Request& header) {
  Reply* reply = replies_.make();
  if (!disk_.lend(range_of(header), reply->lease)) {
    replies_.discard(reply);
    return false;
  }
  reply_data(header, reply, reply->lease.pieces);
  return true;
}

void Transmission::run_request(Request& request) {
  const nbd::Request& header = request.header;
  const auto proceed = [&](engine::Task<Status> task) {
    if (task.ready()) {
      finish(request, task.take());
    } else {
      scope_.spawn(await_task(request, std::move(task)));
    }
  };
  switch (header.type) {
    case nbd::kCmdRead:
      if (!request.buffer) {
        finish(request, fail(ENOMEM, "the system has no memory for the reply"));
      } else if (rules_.mode != nbd::HeaderMode::kSimple && !(header.flags & nbd::kFlagDf) &&
                 header.length >= kSparseReadMin && disk_.may_have_holes()) {
        scope_.spawn(sparse_read(request));
      } else {
        proceed(disk_.read(header.offset, {request.buffer.data(), header.length}));
      }
      break;
    case nbd::kCmdWrite:
      proceed(disk_.write(header.offset, request.payload, header.fua()));
      break;
    case nbd::kCmdTrim:
    case nbd::kCmdWriteZeroes:
      if (header.length <= kPieceMin) {
        proceed(zero_or_trim(header, range_of(header), header.fua()));
      } else {
        scope_.spawn(long_change(request));
      }
      break;
    case nbd::kCmdFlush:
      proceed(disk_.flush());
      break;
    case nbd::kCmdCache:
      proceed(disk_.cache(range_of(header)));
      break;
    case nbd::kCmdBlockStatus:
      scope_.spawn(block_status(request));
      break;
    default:
      assert(false);
      finish(request, fail(EINVAL, "unknown command"));
  }
}

engine::Task<void> Transmission::await_task(Request& request, engine::Task<Status> task) {
  const Status status = co_await task;
  finish(request, status);
}

engine::Task<Status> Transmission::zero_or_trim(const nbd::Request& header, Range range, bool fua) {
  if (header.type == nbd::kCmdTrim) return disk_.trim(range, fua);
  return disk_.zero(range, {.fua = fua,
                            .may_trim = !(header.flags & nbd::kFlagNoHole),
                            .fast = (header.flags & nbd::kFlagFastZero) != 0});
}

// A long TRIM or WRITE_ZEROES, in pieces, each given to those who wait for it as soon as it is
// done. The pieces grow while they take no time (nothing is stored there), up to the whole.
engine::Task<void> Transmission::long_change(Request& request) {
  const nbd::Request header = request.header;
  const uint64_t end = header.offset + header.length;
  const bool flush_at_end = header.fua() && disk_.capabilities().flush != disk::Support::kNone;
  uint64_t piece = kPieceMin;
  Status status;
  for (uint64_t offset = header.offset; status && offset < end;) {
    const uint64_t stop =
        end - offset <= piece ? end : std::max((offset + piece) & ~(kPieceMin - 1), offset + 1);
    const engine::Clock::time_point begun = engine::Clock::now();
    status = co_await zero_or_trim(header, {offset, stop - offset}, header.fua() && !flush_at_end);
    offset = stop;
    if (!status || offset == end) break;
    if (request.in_order) order_->advance(request, offset);
    const auto took = engine::Clock::now() - begun;
    if (took < std::chrono::milliseconds(1) && piece < (uint64_t{1} << 62)) piece *= 2;
    if (took > std::chrono::milliseconds(20)) piece = std::max(kPieceMin, piece / 2);
    co_await loop_.yield();
    if (dead_) status = fail(ECONNRESET, "the client is gone");
  }
  if (status && flush_at_end) status = co_await disk_.flush();
  finish(request, status);
}

// A READ of a disk with holes: asks where they are and reads the rest.
engine::Task<void> Transmission::sparse_read(Request& request) {
  const nbd::Request header = request.header;
  Extents extents(range_of(header), kSparseExtentsMax);
  Status status = co_await disk_.extents(extents, false);
  std::vector<disk::Lease::Piece> pieces;
  std::byte* data = request.buffer.data();
  if (status) {
    for (const Extent& extent : extents.list()) {
      const bool hole = extent.flags & kExtentZero;
      pieces.push_back({hole ? nullptr : data, extent.length});
      data += extent.length;
    }
  }
  const auto described = static_cast<uint64_t>(data - request.buffer.data());
  if (described < header.length) pieces.push_back({data, header.length - described});
  status = Status{};
  uint64_t offset = header.offset;
  for (const disk::Lease::Piece& piece : pieces) {
    if (piece.data && status) {
      std::byte* to = request.buffer.data() + (offset - header.offset);
      status = co_await disk_.read(offset, {to, piece.length});
    }
    offset += piece.length;
  }
  if (status && !request.answered) {
    Reply* reply = replies_.make();
    reply->buffer = std::move(request.buffer);
    reply->charge = std::move(request.charge);
    reply_data(header, reply, pieces);
    request.answered = true;
  }
  finish(request, status);
}

engine::Task<void> Transmission::block_status(Request& request) {
  nbd::Request header = request.header;
  if (!request.payload.empty()) {
    const nbd::Check check = nbd::check_block_status(header, request.payload, rules_);
    if (check.error) {
      if (!request.answered) reply_error(header, check.error, check.text);
      request.answered = true;
      finish(request, Status{});
      co_return;
    }
  }
  const bool one = header.flags & nbd::kFlagReqOne;
  Extents extents(range_of(header), one ? 1 : kExtentsMax);
  const Status status = co_await disk_.extents(extents, one);
  if (status && !request.answered) {
    reply_extents(header, extents);
    request.answered = true;
  }
  finish(request, status);
}

// ---- Replies ----------------------------------------------------------------------------------

// A chunk's header and the first `inline_length` bytes of its payload, which are returned to be
// filled; `length` is the payload's, whatever follows included.
std::byte* Transmission::add_chunk(Reply& reply, const nbd::Request& header, uint16_t type,
                                   size_t inline_length, uint64_t length, bool done) {
  const size_t head_size = nbd::chunk_header_size(rules_.mode);
  std::byte* head = reply.add_head(head_size + inline_length);
  nbd::encode_chunk(head, rules_.mode,
                    {.flags = static_cast<uint16_t>(done ? nbd::kReplyDone : 0),
                     .type = type,
                     .cookie = header.cookie,
                     .offset = header.offset,
                     .length = length});
  return head + head_size;
}

void Transmission::reply_error(const nbd::Request& header, uint32_t error, const char* text) {
  Reply* reply = replies_.make();
  if (rules_.mode == nbd::HeaderMode::kSimple) {
    nbd::encode_simple_reply(reply->add_head(nbd::kSimpleReplySize), error, header.cookie);
  } else {
    const std::string_view words = text ? text : "";
    const size_t length = nbd::kErrorSizeMin + words.size();
    reply->reserve_head(nbd::kReplyHeaderSizeMax + length);
    nbd::encode_error(add_chunk(*reply, header, nbd::kChunkError, length, length, true), error,
                      words);
  }
  replies_.queue(reply);
}

void Transmission::reply_status(const nbd::Request& header, Status status) {
  if (!status) {
    const Error& error = status.error();
    reply_error(header, nbd::nbd_error(error.code, header.type, header.flags),
                error.text ? error.text : errno_text(error.code).c_str());
    return;
  }
  Reply* reply = replies_.make();
  if (rules_.mode == nbd::HeaderMode::kExtended ||
      (rules_.mode == nbd::HeaderMode::kStructured && header.type == nbd::kCmdRead)) {
    add_chunk(*reply, header, nbd::kChunkNone, 0, 0, true);
  } else {
    nbd::encode_simple_reply(reply->add_head(nbd::kSimpleReplySize), nbd::kOk, header.cookie);
  }
  replies_.queue(reply);
}

// The data of a READ: pieces that stay until the reply has left, and holes.
void Transmission::reply_data(const nbd::Request& header, Reply* reply,
                              const std::vector<disk::Lease::Piece>& pieces) {
  const auto add = [&](const disk::Lease::Piece& piece) {
    if (piece.data) {
      reply->add_piece(piece.data, piece.length);
    } else {
      reply->add_zeroes(piece.length);
    }
  };
  if (rules_.mode == nbd::HeaderMode::kSimple) {
    nbd::encode_simple_reply(reply->add_head(nbd::kSimpleReplySize), nbd::kOk, header.cookie);
    for (const disk::Lease::Piece& piece : pieces) add(piece);
    replies_.queue(reply);
    return;
  }
  const bool whole = header.flags & nbd::kFlagDf;
  reply->reserve_head((whole ? 1 : pieces.size()) *
                      (nbd::chunk_header_size(rules_.mode) + nbd::kOffsetHoleSize));
  uint64_t offset = header.offset;
  for (size_t i = 0; i < pieces.size();) {
    // A chunk for each run of pieces of one kind.
    const bool hole = !whole && !pieces[i].data;
    size_t after = i;
    uint64_t length = 0;
    while (after < pieces.size() && (whole || !pieces[after].data == hole)) {
      length += pieces[after++].length;
    }
    const bool done = after == pieces.size();
    if (hole) {
      nbd::encode_offset_hole(add_chunk(*reply, header, nbd::kChunkOffsetHole, nbd::kOffsetHoleSize,
                                        nbd::kOffsetHoleSize, done),
                              offset, static_cast<uint32_t>(length));
    } else {
      nbd::encode_offset_data(
          add_chunk(*reply, header, nbd::kChunkOffsetData, nbd::kOffsetDataPrefixSize,
                    nbd::kOffsetDataPrefixSize + length, done),
          offset);
      for (; i < after; i++) add(pieces[i]);
    }
    offset += length;
    i = after;
  }
  replies_.queue(reply);
}

void Transmission::reply_extents(const nbd::Request& header, const Extents& extents) {
  Reply* reply = replies_.make();
  const bool wide = rules_.mode == nbd::HeaderMode::kExtended;
  // The compact form may end early, so its size is known only when it is encoded.
  std::vector<std::byte> payload(wide ? nbd::block_status_ext_size(extents)
                                      : nbd::block_status_size_max(extents));
  const std::byte* end =
      wide ? nbd::encode_block_status_ext(payload.data(), nbd::kBaseAllocationId, extents)
           : nbd::encode_block_status(payload.data(), nbd::kBaseAllocationId, extents);
  const auto length = static_cast<size_t>(end - payload.data());
  reply->reserve_head(nbd::kReplyHeaderSizeMax + length);
  std::byte* to =
      add_chunk(*reply, header, wide ? nbd::kChunkBlockStatusExt : nbd::kChunkBlockStatus, length,
                length, true);
  std::memcpy(to, payload.data(), length);
  replies_.queue(reply);
}

}  // namespace weft::server
