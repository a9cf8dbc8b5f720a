// SPDX-License-Identifier: BSD-3-Clause
#include "check/broken/connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <variant>

namespace weft::check::broken {
namespace {

constexpr uint32_t kInFlightMax = 64;           // then nothing more is received
constexpr uint64_t kStatusLengthMax = 1 << 20;  // bytes that one BLOCK_STATUS describes
constexpr uint64_t kZeroRunMin = 64;            // bytes: shorter runs of zeroes are data
constexpr uint32_t kBadMagic = 0x67446699;
constexpr uint32_t kLateTimes = 40;  // lingers: how late a late write is

bool is_change(uint16_t type) {
  return type == nbd::kCmdWrite || type == nbd::kCmdWriteZeroes || type == nbd::kCmdTrim;
}

Extents zero_runs(Range range, ByteSpan bytes) {
  Extents extents(range);
  for (size_t at = 0; at < bytes.size();) {
    size_t end = at;
    while (end < bytes.size() && bytes[end] == std::byte{0}) ++end;
    if (end - at >= kZeroRunMin) {
      extents.append(end - at, kExtentZero);
    } else {
      if (end == at) ++end;
      extents.append(end - at, kExtentData);
    }
    at = end;
  }
  return extents;
}

}  // namespace

Connection::Connection(Fd socket, const Settings& settings, Disk& disk, Dice& dice)
    : socket_(std::move(socket)), settings_(settings), disk_(disk), dice_(dice), view_(disk) {
  thread_ = std::jthread([this] { serve(); });
}

Connection::~Connection() {
  cut();
}

void Connection::serve() {
  if (negotiate()) {
    std::vector<std::jthread> workers;
    for (uint32_t i = 0; i < settings_.workers; ++i) workers.emplace_back([this] { work(); });
    receive_requests();
    {
      const std::scoped_lock guard(lock_);
      closing_ = true;
    }
    moved_.notify_all();
  }
  cut();
  finished_ = true;
}

void Connection::cut() {
  ::shutdown(socket_.get(), SHUT_RDWR);
}

bool Connection::negotiate() {
  nbd::ServerHandshake handshake({});
  if (!send(handshake.greeting())) return false;
  nbd::ExportInfo info = {.size = settings_.size,
                          .transmission_flags = settings_.transmission_flags};
  if (settings_.number % 2 == 1 && dice_.strikes(Fault::kTornSize)) {
    if (dice_.below(2) == 0) {
      info.transmission_flags &= static_cast<uint16_t>(~nbd::kSendFua);
    } else {
      info.size -= std::min<uint64_t>(info.size, 512);
    }
  }
  std::byte byte;
  for (;;) {
    // One byte at a time: what follows the handshake is not to be read here.
    if (!receive({&byte, 1})) return false;
    if (handshake.consume({&byte, 1}) != 1) return false;
    if (std::holds_alternative<nbd::WantList>(handshake.event())) {
      handshake.answer_list(std::array{nbd::ListEntry{}});
    }
    if (std::holds_alternative<nbd::WantExport>(handshake.event())) {
      handshake.answer_export(info);
    }
    if (!send(handshake.output())) return false;
    handshake.clear_output();
    if (const auto* established = std::get_if<nbd::Established>(&handshake.event())) {
      rules_ = {.size = info.size,
                .transmission_flags = established->transmission_flags,
                .mode = established->mode,
                .allocation_context_selected = established->allocation_context};
      return true;
    }
    if (std::holds_alternative<nbd::Closed>(handshake.event())) return false;
  }
}

void Connection::receive_requests() {
  std::array<std::byte, nbd::kExtendedRequestSize> header;
  for (;;) {
    nbd::Request request;
    if (!receive(std::span(header).first(nbd::request_size(rules_.mode)))) break;
    const bool right = rules_.mode == nbd::HeaderMode::kExtended
                           ? nbd::decode_extended_request(header.data(), request)
                           : nbd::decode_request(header.data(), request);
    if (!right) break;
    if (request.type == nbd::kCmdDisc) {
      if (dice_.strikes(Fault::kDropAtDisc)) mute_ = true;
      return;
    }
    if (!take(request)) break;
  }
  cut_ = true;
}

bool Connection::take(const nbd::Request& received) {
  nbd::Request request = received;
  nbd::Check check = nbd::check_request(request, rules_);
  if (check.disconnect) return false;
  std::vector<std::byte> data(check.payload_length);
  if (!receive(data)) return false;
  if (check.error == nbd::kOk && request.type == nbd::kCmdBlockStatus && !data.empty()) {
    check = nbd::check_block_status(request, data, rules_);
  }
  if (check.error != nbd::kOk || check.no_work) return refuse(request, check);
  Job job;
  job.request = request;
  job.data = std::move(data);
  if (is_change(request.type)) {
    // The order counts from here on. Only then is asked whether the client is still there: if so,
    // nothing that it sends on another connection later can have come before. What was left in the
    // socket by a client that is gone may be older than what others have done since.
    job.turn = disk_.arrive({request.offset, request.length});
    if (!dice_.has(Fault::kLateWrite) && peer_gone()) {
      disk_.leave(*job.turn);
      return false;
    }
  }
  queue(std::move(job));
  return true;
}

// Requests that the rules refuse, or that have nothing to do.
bool Connection::refuse(const nbd::Request& request, const nbd::Check& check) {
  if (request.type > nbd::kCmdBlockStatus && dice_.strikes(Fault::kUnknownCommand)) return false;
  const bool past_end = !Range{request.offset, request.length}.within(rules_.size);
  if (past_end && is_change(request.type) && dice_.strikes(Fault::kPastEnd)) {
    answer(request, {});
  } else if (check.error != nbd::kOk) {
    answer_error(request, check.error, check.text);
  } else {
    answer(request, {});
  }
  return true;
}

void Connection::queue(Job job) {
  {
    std::unique_lock guard(lock_);
    moved_.wait(guard, [this] { return in_flight_ < kInFlightMax; });
    ++in_flight_;
    unanswered_[job.request.cookie] = job.request;
    queue_.push_back(std::move(job));
  }
  moved_.notify_all();
}

void Connection::work() {
  for (;;) {
    Job job;
    {
      std::unique_lock guard(lock_);
      moved_.wait(guard, [this] { return !queue_.empty() || closing_; });
      if (queue_.empty()) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    perform(std::move(job));
    {
      const std::scoped_lock guard(lock_);
      --in_flight_;
    }
    moved_.notify_all();
  }
}

void Connection::perform(Job job) {
  const nbd::Request& request = job.request;
  const bool early = request.type == nbd::kCmdWrite && dice_.strikes(Fault::kEarlyAck);
  if (early) answer(request, {});
  dice_.linger();
  const bool late = job.turn && (cut_ || peer_gone()) && dice_.strikes(Fault::kLateWrite);
  if (early || late) {
    disk_.leave(*job.turn);
    job.turn.reset();
    dice_.linger(early ? 4 : kLateTimes);
  }
  if (job.turn) disk_.await(*job.turn);
  if (request.type == nbd::kCmdRead) {
    answer_read(request);
  } else if (request.type == nbd::kCmdBlockStatus) {
    answer_status(request);
  } else {
    const Status done = change(job);
    if (job.turn) disk_.leave(*job.turn);
    dice_.linger();
    if (!early) answer(request, done);
  }
}

Status Connection::change(const Job& job) {
  const nbd::Request& request = job.request;
  const Range range = {request.offset, request.length};
  switch (request.type) {
    case nbd::kCmdWrite:
      return view_.write(request.offset, job.data, request.fua());
    case nbd::kCmdWriteZeroes:
      return view_.zero(range, request.fua(), request.flags & nbd::kFlagFastZero);
    case nbd::kCmdTrim:
      return view_.trim(range, request.fua());
    case nbd::kCmdFlush:
      return view_.flush();
    default:  // CACHE: nothing is faster than what we have
      return {};
  }
}

// ---------------------------------------------------------------------------------------------
// Replies.

void Connection::answer_read(const nbd::Request& request) {
  const Range range = {request.offset, request.length};
  const size_t prefix = rules_.mode == nbd::HeaderMode::kSimple ? 0 : nbd::kOffsetDataPrefixSize;
  std::vector<std::byte> payload(prefix + range.length);
  const Status done = view_.read(range, std::span(payload).subspan(prefix));
  dice_.linger();
  if (!done) {
    if (dice_.strikes(Fault::kErrorHangup)) return cut();
    return answer(request, done);
  }
  if (prefix != 0) {
    nbd::encode_offset_data(payload.data(), request.offset);
    return send_chunk(request, nbd::kChunkOffsetData, payload);
  }
  std::vector<std::byte> reply(nbd::kSimpleReplySize);
  nbd::encode_simple_reply(reply.data(), nbd::kOk, cookie_for(request));
  reply.insert(reply.end(), payload.begin(), payload.end());
  send_reply(std::move(reply));
}

void Connection::answer_status(const nbd::Request& request) {
  const Range range = {request.offset, std::min(request.length, kStatusLengthMax)};
  std::vector<std::byte> bytes(range.length);
  const Status done = view_.read(range, bytes);
  if (!done) return answer(request, done);
  Extents extents(range);
  if (dice_.strikes(Fault::kFalseZero)) {
    extents.append(range.length, kExtentZero);
  } else {
    const Extents found = zero_runs(range, bytes);
    const auto& list = found.list();
    const size_t count = request.flags & nbd::kFlagReqOne ? 1 : list.size();
    for (size_t i = 0; i < count; ++i) extents.append(list[i].length, list[i].flags);
  }
  dice_.linger();
  const bool extended = rules_.mode == nbd::HeaderMode::kExtended;
  std::vector<std::byte> payload(extended ? nbd::block_status_ext_size(extents)
                                          : nbd::block_status_size_max(extents));
  std::byte* const end =
      extended ? nbd::encode_block_status_ext(payload.data(), nbd::kBaseAllocationId, extents)
               : nbd::encode_block_status(payload.data(), nbd::kBaseAllocationId, extents);
  payload.resize(static_cast<size_t>(end - payload.data()));
  send_chunk(request, extended ? nbd::kChunkBlockStatusExt : nbd::kChunkBlockStatus, payload);
}

void Connection::answer(const nbd::Request& request, const Status& done) {
  if (!done) {
    const int code = done.error().code;
    return answer_error(request, nbd::nbd_error(code, request.type, request.flags),
                        done.error().text);
  }
  if (rules_.mode != nbd::HeaderMode::kSimple) return send_chunk(request, nbd::kChunkNone, {});
  std::vector<std::byte> reply(nbd::kSimpleReplySize);
  nbd::encode_simple_reply(reply.data(), nbd::kOk, cookie_for(request));
  send_reply(std::move(reply));
}

void Connection::answer_error(const nbd::Request& request, uint32_t error, const char* text) {
  if (rules_.mode == nbd::HeaderMode::kSimple) {
    std::vector<std::byte> reply(nbd::kSimpleReplySize);
    nbd::encode_simple_reply(reply.data(), error, cookie_for(request));
    return send_reply(std::move(reply));
  }
  std::vector<std::byte> payload(nbd::kErrorSizeMax);
  std::byte* const end = nbd::encode_error(payload.data(), error, text ? text : "");
  payload.resize(static_cast<size_t>(end - payload.data()));
  send_chunk(request, nbd::kChunkError, payload);
}

// The only chunk of a reply.
void Connection::send_chunk(nbd::Request request, uint16_t type, ByteSpan payload) {
  const size_t header = nbd::chunk_header_size(rules_.mode);
  std::vector<std::byte> reply(header + payload.size());
  nbd::encode_chunk(reply.data(), rules_.mode,
                    {.flags = nbd::kReplyDone,
                     .type = type,
                     .cookie = cookie_for(request),
                     .offset = request.offset,
                     .length = payload.size()});
  std::ranges::copy(payload, reply.begin() + static_cast<ptrdiff_t>(header));
  send_reply(std::move(reply));
}

void Connection::send_reply(std::vector<std::byte> reply) {
  if (mute_ || dice_.strikes(Fault::kHang)) return;
  if (dice_.strikes(Fault::kBadMagic)) store_be<uint32_t>(reply.data(), kBadMagic);
  const std::scoped_lock guard(send_lock_);
  (void)send(reply);  // a client that is gone needs no answer
}

uint64_t Connection::cookie_for(const nbd::Request& request) {
  const std::scoped_lock guard(lock_);
  unanswered_.erase(request.cookie);
  if (const auto swapped = swapped_cookies_.find(request.cookie);
      swapped != swapped_cookies_.end()) {
    const uint64_t cookie = swapped->second;
    swapped_cookies_.erase(swapped);
    return cookie;
  }
  if (!dice_.strikes(Fault::kWrongCookie)) return request.cookie;
  for (const auto& [cookie, other] : unanswered_) {
    if (other.type == request.type && other.length == request.length &&
        !swapped_cookies_.contains(cookie)) {
      swapped_cookies_[cookie] = request.cookie;
      return cookie;
    }
  }
  return request.cookie;
}

// ---------------------------------------------------------------------------------------------
// The socket.

// Closed from the other side, even when bytes are still to be received.
bool Connection::peer_gone() const {
  pollfd poll = {.fd = socket_.get(), .events = 0, .revents = 0};
  return ::poll(&poll, 1, 0) == 1 && (poll.revents & (POLLHUP | POLLERR)) != 0;
}

bool Connection::receive(MutableByteSpan into) {
  while (!into.empty()) {
    const ssize_t got = ::recv(socket_.get(), into.data(), into.size(), 0);
    if (got <= 0) return false;
    into = into.subspan(static_cast<size_t>(got));
  }
  return true;
}

bool Connection::send(ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return true;
}

}  // namespace weft::check::broken
