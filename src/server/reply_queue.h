// SPDX-License-Identifier: BSD-3-Clause
// ReplyQueue: the replies of one connection on their way out.
//
// Replies are gathered: all that are queued in one turn of the loop leave in one call, headers and
// payloads from where they lie. What the socket does not take waits for it to become writable, by a
// coroutine that exists only as long. Replies, and the memory of their headers and lists, are
// recycled by a pool that the connections of a loop share.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "disk/disk.h"
#include "engine/buffer_pool.h"
#include "engine/loop.h"
#include "engine/scope.h"
#include "net/stream.h"
#include "server/allowance.h"

namespace weft::server {

// One reply: its bytes in order, and what they lie in until they are sent.
class Reply {
 public:
  static constexpr size_t kHeadMax = 64;

  // Room for `size` bytes of headers, at most kHeadMax over all calls, unless reserve() was called
  // with the sum before.
  std::byte* add_head(size_t size);
  void reserve_head(size_t size);
  // Bytes that stay where they are until the reply is recycled.
  void add_piece(const std::byte* data, size_t size);
  void add_zeroes(uint64_t size);

  disk::Lease lease;      // pieces may point in here,
  engine::Buffer buffer;  // or here
  Charge charge;          // the memory that ends with this reply

  [[nodiscard]] size_t size() const { return size_; }

 private:
  friend class ReplyQueue;
  friend class ReplyPool;

  Reply* next_ = nullptr;
  size_t size_ = 0;  // bytes, all parts
  size_t head_ = 0;  // bytes of head_memory_ or of long_head_ in use
  std::array<std::byte, kHeadMax> head_memory_;
  std::vector<std::byte> long_head_;
  std::vector<iovec> parts_;
};

// The free replies of a loop. Outlives the queues that use it.
class ReplyPool {
 public:
  ReplyPool() = default;
  ~ReplyPool();
  ReplyPool(const ReplyPool&) = delete;
  ReplyPool& operator=(const ReplyPool&) = delete;

  Reply* get();
  void give_back(Reply* reply);

 private:
  static constexpr size_t kKeptMax = 4096;
  Reply* free_ = nullptr;
  size_t count_ = 0;
};

class ReplyQueue final : engine::TurnEnd {
 public:
  // A client that has this much to receive is not read from any more.
  static constexpr size_t kBytesMax = size_t{8} << 20;
  static constexpr size_t kRepliesMax = 4096;

  ReplyQueue(engine::Loop& loop, net::Stream& stream, ReplyPool& pool, engine::Scope& scope);
  ~ReplyQueue();

  // An empty reply; give it back with queue(), or discard().
  Reply* make() { return pool_.get(); }
  void queue(Reply* reply);
  void discard(Reply* reply) { pool_.give_back(reply); }

  // Sends what can be sent now.
  void flush();
  // Nothing is sent any more: what is queued, or will be, is dropped.
  void abandon();

  [[nodiscard]] bool empty() const { return first_ == nullptr; }
  [[nodiscard]] bool full() const { return bytes_ >= kBytesMax || count_ >= kRepliesMax; }
  // The stream takes nothing any more.
  [[nodiscard]] bool broken() const { return broken_; }
  // Waiting for the client to receive.
  [[nodiscard]] bool blocked() const { return waiting_; }
  [[nodiscard]] uint64_t bytes_sent() const { return bytes_sent_; }

  // Notified whenever replies have left, and when the stream breaks.
  engine::Signal& progress() { return progress_; }

 private:
  void turn_end() override { flush(); }
  engine::Task<void> send_when_writable();
  void sent(size_t bytes);
  void drop_all();

  engine::Loop& loop_;
  net::Stream& stream_;
  ReplyPool& pool_;
  engine::Scope& scope_;
  engine::Signal progress_;
  Reply* first_ = nullptr;
  Reply** last_ = &first_;
  size_t bytes_ = 0;  // queued and not sent
  size_t count_ = 0;
  size_t sent_of_first_ = 0;
  uint64_t bytes_sent_ = 0;
  bool waiting_ = false;  // for the stream to become writable
  bool broken_ = false;
};

}  // namespace weft::server
