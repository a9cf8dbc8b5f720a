// SPDX-License-Identifier: BSD-3-Clause
#include "server/reply_queue.h"

#include <algorithm>
#include <cassert>
#include <cerrno>

namespace weft::server {
namespace {

constexpr size_t kZeroesSize = 256 << 10;
alignas(4096) constexpr std::byte kZeroes[kZeroesSize]{};

constexpr size_t kPartsMax = 1024;  // IOV_MAX

}  // namespace

// ---- Reply ------------------------------------------------------------------------------------

void Reply::reserve_head(size_t size) {
  if (size > kHeadMax) long_head_.resize(size);
}

std::byte* Reply::add_head(size_t size) {
  std::byte* memory = long_head_.empty() ? head_memory_.data() : long_head_.data();
  assert(head_ + size <= (long_head_.empty() ? kHeadMax : long_head_.size()));
  std::byte* place = memory + head_;
  head_ += size;
  add_piece(place, size);
  return place;
}

void Reply::add_piece(const std::byte* data, size_t size) {
  parts_.push_back({const_cast<std::byte*>(data), size});
  size_ += size;
}

void Reply::add_zeroes(uint64_t size) {
  while (size > 0) {
    const size_t step = std::min<uint64_t>(size, kZeroesSize);
    add_piece(kZeroes, step);
    size -= step;
  }
}

// ---- ReplyPool --------------------------------------------------------------------------------

ReplyPool::~ReplyPool() {
  while (free_) delete std::exchange(free_, free_->next_);
}

Reply* ReplyPool::get() {
  if (!free_) return new Reply;
  Reply* reply = free_;
  free_ = reply->next_;
  count_--;
  return reply;
}

void ReplyPool::give_back(Reply* reply) {
  if (count_ >= kKeptMax || reply->parts_.capacity() > 64 || reply->long_head_.capacity() > 4096) {
    delete reply;  // what it holds goes back with it
    return;
  }
  reply->lease.give_back();
  reply->buffer = engine::Buffer();
  reply->charge = Charge();
  reply->size_ = 0;
  reply->head_ = 0;
  reply->long_head_.clear();
  reply->parts_.clear();
  reply->next_ = free_;
  free_ = reply;
  count_++;
}

// ---- ReplyQueue -------------------------------------------------------------------------------

ReplyQueue::ReplyQueue(engine::Loop& loop, net::Stream& stream, ReplyPool& pool,
                       engine::Scope& scope)
    : loop_(loop), stream_(stream), pool_(pool), scope_(scope), progress_(loop) {}

ReplyQueue::~ReplyQueue() {
  assert(!waiting_);
  loop_.cancel_turn_end(*this);
  drop_all();
}

void ReplyQueue::queue(Reply* reply) {
  if (broken_) {
    pool_.give_back(reply);
    return;
  }
  reply->next_ = nullptr;
  *last_ = reply;
  last_ = &reply->next_;
  bytes_ += reply->size_;
  count_++;
  if (!waiting_) loop_.at_turn_end(*this);
}

void ReplyQueue::flush() {
  while (first_ && !waiting_ && !broken_) {
    static thread_local std::array<iovec, kPartsMax> parts;
    size_t count = 0;
    size_t wanted = 0;
    size_t skip = sent_of_first_;
    for (const Reply* reply = first_; reply && count < kPartsMax; reply = reply->next_) {
      for (const iovec& part : reply->parts_) {
        if (skip >= part.iov_len) {
          skip -= part.iov_len;
          continue;
        }
        if (count == kPartsMax) break;
        parts[count++] = {static_cast<std::byte*>(part.iov_base) + skip, part.iov_len - skip};
        wanted += part.iov_len - skip;
        skip = 0;
      }
    }
    const ssize_t n = stream_.send(parts.data(), count);
    if (n >= 0) sent(static_cast<size_t>(n));
    if (n >= 0 && static_cast<size_t>(n) == wanted) continue;
    if (n < 0 && n != -EAGAIN) {
      abandon();
      return;
    }
    waiting_ = true;
    scope_.spawn(send_when_writable());
  }
}

void ReplyQueue::abandon() {
  if (broken_) return;
  broken_ = true;
  drop_all();
  progress_.notify_all();
}

engine::Task<void> ReplyQueue::send_when_writable() {
  const bool writable = co_await stream_.writable();
  waiting_ = false;
  if (writable) {
    flush();
  } else {
    abandon();
  }
}

void ReplyQueue::sent(size_t bytes) {
  bytes_ -= bytes;
  bytes_sent_ += bytes;
  sent_of_first_ += bytes;
  while (first_ && sent_of_first_ >= first_->size_) {
    Reply* reply = first_;
    sent_of_first_ -= reply->size_;
    first_ = reply->next_;
    if (!first_) last_ = &first_;
    count_--;
    pool_.give_back(reply);
  }
  if (bytes > 0) progress_.notify_all();
}

void ReplyQueue::drop_all() {
  while (first_) {
    Reply* reply = first_;
    first_ = reply->next_;
    pool_.give_back(reply);
  }
  last_ = &first_;
  bytes_ = count_ = sent_of_first_ = 0;
}

}  // namespace weft::server
