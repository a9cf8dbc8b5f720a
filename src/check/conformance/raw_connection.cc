// SPDX-License-Identifier: BSD-3-Clause
#include "check/conformance/raw_connection.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace weft::check::conformance {
using std::chrono::milliseconds;

// A signal makes the wait longer by nothing that matters.
bool RawConnection::wait_ready(short events, milliseconds limit, short* ready) const {
  pollfd one = {.fd = fd_.get(), .events = events, .revents = 0};
  int count = 0;
  do {
    const auto life =
        std::chrono::duration_cast<milliseconds>(deadline_ - std::chrono::steady_clock::now());
    if (life <= milliseconds(0)) return false;
    count = ::poll(&one, 1, static_cast<int>(std::min(life, limit).count()));
  } while (count < 0 && errno == EINTR);
  if (ready) *ready = one.revents;
  return count > 0;
}

Got RawConnection::send(ByteSpan bytes) {
  while (!bytes.empty()) {
    if (!wait_ready(POLLOUT, limit_)) return Got::kSilence;
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent < 0) return Got::kEnd;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return Got::kAll;
}

Got RawConnection::send_until_readable(ByteSpan& bytes) {
  while (!bytes.empty()) {
    short ready = 0;
    if (!wait_ready(POLLIN | POLLOUT, limit_, &ready)) return Got::kSilence;
    if (ready & POLLIN) return Got::kAll;
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (sent < 0) return Got::kEnd;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return Got::kAll;
}

Got RawConnection::receive(MutableByteSpan into) {
  while (!into.empty()) {
    if (!wait_ready(POLLIN, limit_)) return Got::kSilence;
    const ssize_t got = ::recv(fd_.get(), into.data(), into.size(), MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return Got::kEnd;
    into = into.subspan(static_cast<size_t>(got));
  }
  return Got::kAll;
}

Got RawConnection::wait_for_end() {
  return wait_for_end(limit_);
}

Got RawConnection::wait_for_end(std::chrono::milliseconds limit) {
  return wait_for_bytes(limit);
}

Got RawConnection::wait_for_bytes(std::chrono::milliseconds limit) {
  while (true) {
    if (!wait_ready(POLLIN, limit)) return Got::kSilence;
    std::byte one;
    const ssize_t got = ::recv(fd_.get(), &one, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    return got > 0 ? Got::kAll : Got::kEnd;
  }
}

void RawConnection::end_sending() {
  ::shutdown(fd_.get(), SHUT_WR);
}

}  // namespace weft::check::conformance
