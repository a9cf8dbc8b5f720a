// SPDX-License-Identifier: BSD-3-Clause
// RawConnection: a socket that sends any bytes and waits for a bounded time. It knows nothing of
// the protocol.
#pragma once

#include <chrono>

#include "base/bytes.h"
#include "base/fd.h"

namespace weft::check::conformance {

enum class Got : uint8_t {
  kAll,      // what was waited for
  kEnd,      // the peer has closed the connection
  kSilence,  // nothing came, or nothing was taken, for the limit
};

class RawConnection {
 public:
  // A peer that moves no byte for `limit` is silent; and so is one that trickles or floods, once
  // the connection is older than kLifeMax.
  static constexpr std::chrono::seconds kLifeMax{120};
  RawConnection(Fd fd, std::chrono::milliseconds limit)
      : fd_(std::move(fd)), limit_(limit), deadline_(std::chrono::steady_clock::now() + kLifeMax) {}

  // All bytes, unless the peer closes or takes no more.
  Got send(ByteSpan bytes);
  // Sends until all is taken, or there is something to receive; shortens `bytes` by what was sent.
  Got send_until_readable(ByteSpan& bytes);
  // Exactly so many bytes.
  Got receive(MutableByteSpan into);
  // kEnd: the peer closed and had sent nothing more. kAll: something came. kSilence.
  Got wait_for_end();
  // The same with another limit.
  Got wait_for_end(std::chrono::milliseconds limit);
  // Something has come (kAll), the end, or nothing within the limit; takes nothing.
  Got wait_for_bytes(std::chrono::milliseconds limit);
  // No more is sent; the peer sees the end of the stream.
  void end_sending();
  void close() { fd_.reset(); }

  void set_limit(std::chrono::milliseconds limit) { limit_ = limit; }
  [[nodiscard]] std::chrono::milliseconds limit() const { return limit_; }
  [[nodiscard]] int fd() const { return fd_.get(); }

 private:
  // False: not within the limit.
  bool wait_ready(short events, std::chrono::milliseconds limit, short* ready = nullptr) const;

  Fd fd_;
  std::chrono::milliseconds limit_;
  std::chrono::steady_clock::time_point deadline_;
};

}  // namespace weft::check::conformance
