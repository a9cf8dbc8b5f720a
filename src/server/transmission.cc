// SPDX-License-Identifier: BSD-3-Clause
// Receiving: from bytes to requests that have arrived. What becomes of them is in requests.cc.
#include "server/transmission.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

namespace weft::server {
namespace {

// Payloads up to this size are received into the chunk, larger ones into a buffer of their own.
constexpr size_t kSmallPayload = 64 << 10;
constexpr size_t kChunkTailMin = kSmallPayload + nbd::kExtendedRequestSize;
static_assert(2 * kChunkTailMin <= Chunk::kSize);
static_assert(kSmallPayload <= Allowance::kShare);

constexpr auto kProgressTimeout = std::chrono::seconds(30);

}  // namespace

// ---- LoopResources ----------------------------------------------------------------------------

LoopResources::~LoopResources() {
  while (free_requests_) delete std::exchange(free_requests_, free_requests_->next);
  if (spare_chunk_) spare_chunk_->buffer = engine::Buffer();
}

Request* LoopResources::get_request() {
  if (!free_requests_) return new Request;
  return std::exchange(free_requests_, free_requests_->next);
}

void LoopResources::give_back(Request* request) {
  request->next = free_requests_;
  free_requests_ = request;
}

Chunk* LoopResources::get_chunk() {
  std::unique_ptr<Chunk> chunk = std::move(spare_chunk_);
  if (!chunk) chunk = std::make_unique<Chunk>();
  if (!chunk->buffer) chunk->buffer = buffers.get(Chunk::kSize);
  if (!chunk->buffer) return nullptr;
  chunk->references = 1;
  return chunk.release();
}

void LoopResources::unreference(Chunk* chunk) {
  if (--chunk->references > 0) return;
  chunk->charge = Charge();
  std::unique_ptr<Chunk> owned(chunk);
  if (!spare_chunk_) spare_chunk_ = std::move(owned);
}

// ---- Transmission -----------------------------------------------------------------------------

Transmission::Transmission(LoopResources& resources, net::Stream& stream, disk::Disk& disk,
                           const nbd::TransmissionRules& rules, engine::Budget& budget,
                           uint32_t requests_max, bool in_order)
    : resources_(resources),
      loop_(resources.loop),
      stream_(stream),
      disk_(disk),
      order_(disk.order()),
      rules_(rules),
      header_size_(nbd::request_size(rules.mode)),
      requests_max_(requests_max),
      in_flight_max_(in_order ? 1 : kInFlightMax),
      allowance_(budget),
      scope_(resources.loop),
      replies_(resources.loop, stream, resources.replies, scope_),
      progress_time_(engine::Clock::now()) {}

Transmission::~Transmission() {
  assert(in_flight_ == 0 && !chunk_ && !receiving_);
}

engine::Task<void> Transmission::run(ByteSpan received) {
  if (!received.empty()) {
    if (make_room()) {
      assert(received.size() <= Chunk::kSize);
      std::memcpy(chunk_->buffer.data(), received.data(), received.size());
      end_ = received.size();
    } else {
      kill("the system has no memory");
    }
  }
  while (!dead_) {
    const Need need = parse();
    start_arrived();
    if (need == Need::kEnd) break;
    if (need == Need::kInput) {
      if (draining_ || !co_await receive()) break;
      continue;
    }
    if (!deferred_.empty()) {
      kill("");
    } else if (need == Need::kMemory) {
      co_await wait_for_memory();
    } else {
      co_await replies_.progress().wait();
    }
    // What is still unread did not arrive while the client lived.
    if (!dead_ && stream_.peer_gone()) kill("");
  }
  co_await finish_all();
}

engine::Task<void> Transmission::finish_all() {
  ended_ = true;
  progress_time_ = engine::Clock::now();
  if (receiving_) {
    Request* request = std::exchange(receiving_, nullptr);
    request->buffer = engine::Buffer();
    request->charge = Charge();
    resources_.give_back(request);
  }
  release_chunk();
  granted_.reset();
  if (!disconnected_ && (!draining_ || stream_.peer_gone())) dead_ = true;
  std::vector<Request*> deferred = std::exchange(deferred_, {});
  if (dead_) {
    drop_not_started();
  } else {
    for (Request* request : deferred) start(*request);
  }
  if (dead_) tell_gone();
  while (in_flight_ > 0) co_await replies_.progress().wait();
  replies_.flush();
  while (!replies_.empty() && !replies_.broken()) co_await replies_.progress().wait();
  stream_.cancel();
  co_await scope_.join();
}

// What is in progress need not be hurried for anybody.
void Transmission::tell_gone() {
  if (in_flight_ > 0 && !std::exchange(told_gone_, true)) disk_.client_gone();
}

void Transmission::drain() {
  draining_ = true;
  stream_.cancel_input();
}

void Transmission::give_up() {
  for (Request* request = first_; request; request = request->next) {
    if (request->answered) continue;
    request->answered = true;
    reply_error(request->header, nbd::kEshutdown, "the server is stopping");
  }
  replies_.flush();
}

void Transmission::kill(std::string reason) {
  if (killed_) return;
  const bool finishing = ended_ && !dead_;
  killed_ = dead_ = true;
  reason_ = std::move(reason);
  stream_.cancel();
  replies_.abandon();
  if (taker_) taker_->cancel();
  if (finishing) {
    drop_not_started();  // nobody starts what still waits for its turn
    tell_gone();
  }
  replies_.progress().notify_all();
}

void Transmission::check_progress(engine::Clock::time_point now) {
  const uint64_t progress = bytes_received_ + replies_.bytes_sent();
  const bool holds = allowance_.budget_used() > 0 || ended_;
  const bool is_waited_for = receiving_ || replies_.blocked();
  if (progress != progress_seen_ || !holds || !is_waited_for) {
    progress_seen_ = progress;
    progress_time_ = now;
  } else if (now - progress_time_ >= kProgressTimeout) {
    kill(fmt::format("the client made no progress for {} s while it held {} bytes of memory",
                     kProgressTimeout.count(), allowance_.budget_used()));
  }
}

// ---- Bytes ------------------------------------------------------------------------------------

Transmission::Need Transmission::parse() {
  for (;;) {
    if (dead_) return Need::kEnd;
    if (skip_left_ > 0) {
      const size_t step = std::min<uint64_t>(skip_left_, end_ - begin_);
      begin_ += step;
      skip_left_ -= step;
      if (skip_left_ > 0) return Need::kInput;
    }
    if (receiving_ && !take_payload()) return Need::kInput;
    if (replies_.full()) {
      replies_.flush();
      if (replies_.full()) return Need::kRoom;
    }
    if (in_flight_ >= in_flight_max_) return Need::kRoom;
    if (end_ - begin_ < header_size_) return Need::kInput;

    const std::byte* at = chunk_->buffer.data() + begin_;
    nbd::Request header;
    const bool understood = rules_.mode == nbd::HeaderMode::kExtended
                                ? nbd::decode_extended_request(at, header)
                                : nbd::decode_request(at, header);
    if (!understood) {
      reason_ = "a request with a wrong magic number";
      return Need::kEnd;
    }
    if (header.type == nbd::kCmdDisc) {
      disconnected_ = true;
      return Need::kEnd;
    }
    const nbd::Check check = nbd::check_request(header, rules_);
    if (check.error || check.disconnect || check.no_work) {
      begin_ += header_size_;
      skip_left_ = check.payload_length;
      if (check.error || check.disconnect) {
        reply_error(header, check.error ? check.error : uint32_t{nbd::kEinval}, check.text);
      } else {
        reply_status(header, Status{});
      }
      if (check.disconnect) {
        reason_ = check.text;
        return Need::kEnd;
      }
      continue;
    }
    const Need need = begin(header, check.payload_length);
    if (need != Need::kEnd) return need;
  }
}

// Takes a request that passed its check from the chunk. kEnd: done, go on with the next.
Transmission::Need Transmission::begin(const nbd::Request& header, uint64_t payload_length) {
  if (payload_length == 0) {
    if (header.type == nbd::kCmdRead) {
      if (answer_at_once(header)) {
        granted_.reset();
      } else {
        std::optional<Charge> charge = charge_for(header.length);
        if (!charge) return Need::kMemory;
        Request& request = make_request(header);
        request.buffer = resources_.buffers.get(header.length);
        request.charge = std::move(*charge);
        arrived(request);
      }
    } else {
      arrived(make_request(header));
    }
    begin_ += header_size_;
    return Need::kEnd;
  }
  const size_t available = end_ - begin_ - header_size_;
  if (available >= payload_length) {
    Request& request = make_request(header);
    request.payload = {chunk_->buffer.data() + begin_ + header_size_, payload_length};
    request.chunk = chunk_;
    chunk_->references++;
    begin_ += header_size_ + payload_length;
    arrived(request);
    return Need::kEnd;
  }
  if (payload_length <= kSmallPayload) return Need::kInput;
  std::optional<Charge> charge = charge_for(payload_length);
  if (!charge) return Need::kMemory;
  begin_ += header_size_;
  if (!receive_apart(header, payload_length, std::move(*charge))) {
    skip_left_ = payload_length;
    reply_error(header, nbd::kEnomem, "the system has no memory for the payload");
  }
  return Need::kEnd;
}

// The payload that follows gets a buffer of its own. False: there is none.
bool Transmission::receive_apart(const nbd::Request& header, uint64_t payload_length,
                                 Charge charge) {
  engine::Buffer buffer = resources_.buffers.get(payload_length);
  if (!buffer) return false;
  receiving_ = resources_.get_request();
  receiving_->header = header;
  receiving_->buffer = std::move(buffer);
  receiving_->charge = std::move(charge);
  payload_length_ = payload_length;
  payload_have_ = 0;
  return true;
}

// Moves what the chunk has of the payload. True: it is complete, and the request has arrived.
bool Transmission::take_payload() {
  const size_t step = std::min(payload_length_ - payload_have_, end_ - begin_);
  if (step > 0) {
    std::memcpy(receiving_->buffer.data() + payload_have_, chunk_->buffer.data() + begin_, step);
    begin_ += step;
    payload_have_ += step;
  }
  if (payload_have_ < payload_length_) return false;
  Request* received = std::exchange(receiving_, nullptr);
  Request& request = make_request(received->header);
  request.buffer = std::move(received->buffer);
  request.charge = std::move(received->charge);
  request.payload = {request.buffer.data(), payload_length_};
  resources_.give_back(received);
  arrived(request);
  return true;
}

// Receives something, after waiting for it if need be. False: there is nothing more to come.
engine::Task<bool> Transmission::receive() {
  for (;;) {
    if (drained_) {
      if (!stash()) co_return false;
      drained_ = false;
      idle_ = true;
      const bool readable = co_await stream_.readable();
      idle_ = false;
      if (!readable || draining_ || dead_) co_return false;
    }
    const bool apart = receiving_ && begin_ == end_;
    if (!apart && chunk_full() && chunk_->references > 1 && !co_await retire_chunk()) {
      co_return false;
    }
    if (!apart && !make_room()) {
      kill("the system has no memory");
      co_return false;
    }
    const MutableByteSpan space =
        apart ? MutableByteSpan(receiving_->buffer.data() + payload_have_,
                                payload_length_ - payload_have_)
              : MutableByteSpan(chunk_->buffer.data() + end_, Chunk::kSize - end_);
    const ssize_t n = stream_.receive(space);
    if (n > 0) {
      (apart ? payload_have_ : end_) += static_cast<size_t>(n);
      bytes_received_ += static_cast<uint64_t>(n);
      drained_ = static_cast<size_t>(n) < space.size();
      // A client that never lets up must not keep the others of this loop waiting.
      if (!drained_) co_await loop_.yield();
      co_return !dead_;
    }
    if (n != -EAGAIN) {
      // An end without DISC is nothing unusual: clients are killed. It is no reason to complain.
      if (n < 0 && n != -ECONNRESET)
        reason_ = "receiving failed: " + errno_text(static_cast<int>(-n));
      co_return false;
    }
    drained_ = true;
  }
}

// The chunk is full of requests that are in progress: they have it, and pay for it, once there is
// memory; or they finish. False: the connection ends.
engine::Task<bool> Transmission::retire_chunk() {
  while (chunk_->references > 1) {
    std::optional<Charge> charge = charge_for(Chunk::kSize);
    if (charge) {
      Chunk* fresh = resources_.get_chunk();
      if (!fresh) {
        kill("the system has no memory");
        co_return false;
      }
      std::memcpy(fresh->buffer.data(), chunk_->buffer.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
      chunk_->charge = std::move(*charge);
      resources_.unreference(std::exchange(chunk_, fresh));
      break;
    }
    co_await wait_for_memory();
    if (!dead_ && stream_.peer_gone()) kill("");
    if (dead_ || draining_) co_return false;
  }
  granted_.reset();
  co_return true;
}

// Makes sure of a chunk with space for a small request behind what is unread; a full one that is
// still in use was retired before. False: no memory.
bool Transmission::make_room() {
  if (!chunk_) {
    chunk_ = resources_.get_chunk();
    if (!chunk_) return false;
    std::memcpy(chunk_->buffer.data(), partial_.data(), partial_size_);
    begin_ = 0;
    end_ = std::exchange(partial_size_, 0);
    return true;
  }
  const size_t unread = end_ - begin_;
  if (chunk_->references == 1 && (unread == 0 || chunk_full())) {
    std::memmove(chunk_->buffer.data(), chunk_->buffer.data() + begin_, unread);
    begin_ = 0;
    end_ = unread;
  }
  return true;
}

bool Transmission::chunk_full() const {
  return chunk_ && Chunk::kSize - end_ < kChunkTailMin;
}

// Before waiting for a client that may take its time: gives the chunk back, and what is unread of
// an incomplete request a place of its size. A chunk that requests hold on to is kept for what
// comes next: it would only be missed. False: no memory.
bool Transmission::stash() {
  if (!chunk_ || chunk_->references > 1) return true;
  const size_t unread = end_ - begin_;
  const std::byte* from = chunk_->buffer.data() + begin_;
  if (unread >= header_size_ && !receiving_ && skip_left_ == 0) {
    nbd::Request header;
    const bool understood = rules_.mode == nbd::HeaderMode::kExtended
                                ? nbd::decode_extended_request(from, header)
                                : nbd::decode_request(from, header);
    assert(understood);
    (void)understood;
    const uint64_t payload_length = nbd::check_request(header, rules_).payload_length;
    std::optional<Charge> charge = charge_for(payload_length);
    if (!charge) charge = allowance_.force(payload_length);  // small: not worth waiting for
    begin_ += header_size_;
    if (!receive_apart(header, payload_length, std::move(*charge))) {
      kill("the system has no memory");
      return false;
    }
    const bool complete = take_payload();
    assert(!complete);
    (void)complete;
  } else if (unread > 0) {
    std::memcpy(partial_.data(), from, unread);
    partial_size_ = unread;
  }
  release_chunk();
  return true;
}

void Transmission::release_chunk() {
  if (!chunk_) return;
  if (chunk_->references > 1) chunk_->charge = allowance_.force(Chunk::kSize);
  resources_.unreference(std::exchange(chunk_, nullptr));
  begin_ = end_ = 0;
}

// ---- Memory -----------------------------------------------------------------------------------

std::optional<Charge> Transmission::charge_for(uint64_t bytes) {
  if (granted_) return std::exchange(granted_, std::nullopt);
  std::optional<Charge> charge = allowance_.try_charge(bytes);
  if (!charge) wanted_memory_ = bytes;
  return charge;
}

engine::Task<void> Transmission::wait_for_memory() {
  engine::Budget::Taker taker(allowance_.budget(), loop_, wanted_memory_);
  taker_ = &taker;
  allowance_.begin_wait(taker, wanted_memory_);
  const bool granted = co_await taker;
  allowance_.end_wait();
  taker_ = nullptr;
  if (granted) granted_ = allowance_.taken(wanted_memory_);
}

}  // namespace weft::server
