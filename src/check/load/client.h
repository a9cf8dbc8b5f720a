// SPDX-License-Identifier: BSD-3-Clause
// Client: one connection in its transmission phase. Never blocks: the caller polls its descriptor
// and many clients share one thread. Takes simple, structured and extended replies, in any order.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "nbd/client_handshake.h"
#include "nbd/transmission.h"
#include "tools/clock.h"
#include "tools/dial.h"

namespace weft::check {

using tools::now_ns;

struct Reply {
  uint64_t cookie = 0;
  uint32_t error = nbd::kOk;               // ErrorValue
  std::string text;                        // the server's own words, of an error chunk
  std::vector<std::byte> data;             // of a READ that succeeded: all of it
  std::vector<nbd::StatusExtent> extents;  // of a BLOCK_STATUS: of base:allocation
  uint64_t time_ns = 0;                    // after its last byte had come
};

class Client {
 public:
  // Makes the socket non-blocking.
  explicit Client(tools::Dialled dialled);
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Queues a request and sends what the socket takes; returns its cookie. The time to note as its
  // sending is one taken before this call. Nothing happens on a client that is lost.
  uint64_t submit(nbd::Request request, ByteSpan payload = {});
  // Sends what is queued. For when the socket takes more.
  void send();
  // Takes what has come; appends replies that are complete.
  void receive(std::vector<Reply>& replies);
  // Cuts the connection at once, without a word; with `reset` by RST where it is TCP.
  void cut(bool reset = false);
  // NBD_CMD_DISC, after what is queued; nothing may be submitted afterwards.
  void disconnect();

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] bool wants_to_send() const { return sent_ < output_.size(); }
  [[nodiscard]] size_t in_flight() const { return waiting_.size(); }
  // The connection has ended: by the peer, by cut(), or because the server broke the protocol.
  [[nodiscard]] bool lost() const { return !fd_; }
  // Why; "" when the peer closed it in order, between replies.
  [[nodiscard]] const std::string& failure() const { return failure_; }
  // The failure is the server's breach of the protocol (a wrong magic, a cookie nobody waits for,
  // data outside of what was asked for ...), not a connection that ended.
  [[nodiscard]] bool violated() const { return violated_; }
  [[nodiscard]] const nbd::ClientResult& negotiated() const { return negotiated_; }
  [[nodiscard]] bool has(uint16_t transmission_flag) const {
    return negotiated_.transmission_flags & transmission_flag;
  }

 private:
  struct Waiting {
    nbd::Request request;
    Reply reply;
    std::vector<Range> covered;  // of a READ
  };
  using Table = std::unordered_map<uint64_t, Waiting>;

  // Each false: more bytes are needed, or the connection is lost.
  bool take_reply(std::vector<Reply>& replies);
  bool take_simple(std::vector<Reply>& replies);
  bool take_chunk(std::vector<Reply>& replies);
  bool take_payload(Waiting& waiting, const nbd::ReplyChunk& chunk, ByteSpan payload);
  bool cover(Waiting& waiting, Range range);
  void complete(Table::iterator at, std::vector<Reply>& replies);
  bool violate(std::string why);  // always false
  void lose(std::string why);
  [[nodiscard]] ByteSpan unread() const { return ByteSpan(input_).subspan(taken_); }

  Fd fd_;
  const nbd::ClientResult negotiated_;
  const std::optional<uint32_t> allocation_id_;
  Table waiting_;
  uint64_t next_cookie_ = 1;
  std::vector<std::byte> output_;
  size_t sent_ = 0;
  std::vector<std::byte> input_;
  size_t taken_ = 0;
  std::string failure_;
  bool violated_ = false;
};

}  // namespace weft::check
