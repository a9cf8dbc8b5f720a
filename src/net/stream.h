// SPDX-License-Identifier: BSD-3-Clause
// Stream: a client's byte stream on a loop: a connected socket, or a pair of pipes (-s).
// Non-blocking calls, and waits for when they would block.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/fd.h"
#include "engine/loop.h"

namespace weft::net {

class Stream {
 public:
  // Takes one descriptor for both directions, or two. They are made non-blocking.
  Stream(engine::Loop& loop, Fd in, Fd out);
  Stream(engine::Loop& loop, Fd both) : Stream(loop, std::move(both), Fd()) {}

  // The number of bytes received, 0 at the end of the stream, or -errno (-EAGAIN: would block).
  ssize_t receive(MutableByteSpan into);
  // The number of bytes sent, or -errno. `count` is at most IOV_MAX.
  ssize_t send(const iovec* pieces, size_t count);

  engine::Watch::Awaiter readable() { return in_watch_->readable(); }
  engine::Watch::Awaiter writable() {
    return out_watch_ ? out_watch_->writable() : in_watch_->writable();
  }

  // The peer has closed its end, even if bytes are still to be received.
  [[nodiscard]] bool peer_gone() const;

  // Wakes the reader (everybody who waits) with false, for ever.
  void cancel_input() { in_watch_->cancel_input(); }
  void cancel();

  // TCP: no delay for small replies; `keepalive`: SO_KEEPALIVE. Nothing on other streams.
  void tune(bool keepalive);

  // Who is there, for log lines: "127.0.0.1:40122", "unix pid 4711 uid 0".
  [[nodiscard]] std::string peer() const;
  // What is received from, for questions about the socket.
  [[nodiscard]] int fd() const { return in_.get(); }

 private:
  [[nodiscard]] int out_fd() const { return out_ ? out_.get() : in_.get(); }

  Fd in_;
  Fd out_;  // when it is not the same as in_
  bool is_socket_ = false;
  std::optional<engine::Watch> in_watch_;  // after the descriptors: goes first
  std::optional<engine::Watch> out_watch_;
};

}  // namespace weft::net
