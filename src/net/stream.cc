// SPDX-License-Identifier: BSD-3-Clause
#include "net/stream.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <cerrno>

namespace weft::net {

Stream::Stream(engine::Loop& loop, Fd in, Fd out) : in_(std::move(in)), out_(std::move(out)) {
  struct stat status{};
  is_socket_ = ::fstat(in_.get(), &status) == 0 && S_ISSOCK(status.st_mode) && !out_;
  for (const int fd : {in_.get(), out_.get()}) {
    if (fd >= 0) ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
  }
  in_watch_.emplace(loop, in_.get());
  if (out_) out_watch_.emplace(loop, out_.get());
}

ssize_t Stream::receive(MutableByteSpan into) {
  ssize_t n;
  do {
    n = is_socket_ ? ::recv(in_.get(), into.data(), into.size(), 0)
                   : ::read(in_.get(), into.data(), into.size());
  } while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

ssize_t Stream::send(const iovec* pieces, size_t count) {
  ssize_t n;
  do {
    if (is_socket_) {
      msghdr message{};
      message.msg_iov = const_cast<iovec*>(pieces);
      message.msg_iovlen = count;
      n = ::sendmsg(in_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } else {
      n = ::writev(out_fd(), pieces, static_cast<int>(count));
    }
  } while (n < 0 && errno == EINTR);
  return n < 0 ? -errno : n;
}

bool Stream::peer_gone() const {
  pollfd entry{in_.get(), POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

void Stream::cancel() {
  in_watch_->cancel();
  if (out_watch_) out_watch_->cancel();
}

void Stream::tune(bool keepalive) {
  if (!is_socket_) return;
  const int one = 1;
  // Fails on Unix sockets, which have no delay to turn off.
  ::setsockopt(in_.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (keepalive) ::setsockopt(in_.get(), SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
}

std::string Stream::peer() const {
  if (!is_socket_) return "stdin";
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(in_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return "?";
  char text[INET6_ADDRSTRLEN] = "?";
  if (address.ss_family == AF_INET) {
    const auto& a = reinterpret_cast<const sockaddr_in&>(address);
    ::inet_ntop(AF_INET, &a.sin_addr, text, sizeof text);
    return fmt::format("{}:{}", text, ntohs(a.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& a = reinterpret_cast<const sockaddr_in6&>(address);
    ::inet_ntop(AF_INET6, &a.sin6_addr, text, sizeof text);
    return fmt::format("[{}]:{}", text, ntohs(a.sin6_port));
  }
  if (address.ss_family == AF_UNIX) {
    ucred who{};
    socklen_t size = sizeof who;
    if (::getsockopt(in_.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0) {
      return fmt::format("unix pid {} uid {}", who.pid, who.uid);
    }
    return "unix";
  }
  return fmt::format("family {}", address.ss_family);
}

}  // namespace weft::net
