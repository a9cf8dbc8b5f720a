// SPDX-License-Identifier: BSD-3-Clause
#include "tools/dial.h"

#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/result.h"

namespace weft::tools {
namespace {

[[noreturn]] void give_up(const Target& target, std::string_view why) {
  throw ConfigError(fmt::format("{}: {}", target.uri(), why));
}

std::string socket_error(int code) {
  if (code == EAGAIN || code == EINPROGRESS) return "the server does not answer (timeout)";
  return errno_text(code);
}

void set_timeout(int fd, std::chrono::milliseconds timeout) {
  const auto seconds = std::chrono::floor<std::chrono::seconds>(timeout);
  const timeval value = {.tv_sec = seconds.count(),
                         .tv_usec = std::chrono::microseconds(timeout - seconds).count()};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &value, sizeof value);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &value, sizeof value);
}

Fd connect_unix(const Target& target, std::chrono::milliseconds timeout) {
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) give_up(target, fmt::format("no socket: {}", errno_text(errno)));
  set_timeout(fd.get(), timeout);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, target.socket.data(), target.socket.size());
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    const int code = errno;
    give_up(target, fmt::format("cannot connect: {}{}", socket_error(code),
                                code == ENOENT || code == ECONNREFUSED
                                    ? "; is the server running, and is this its socket?"
                                    : ""));
  }
  return fd;
}

Fd connect_tcp(const Target& target, std::chrono::milliseconds timeout) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (const int code = ::getaddrinfo(target.host.c_str(), target.port.c_str(), &hints, &list)) {
    give_up(target, fmt::format("cannot find the host: {}", ::gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(list, &::freeaddrinfo);
  int code = 0;
  for (const addrinfo* a = list; a != nullptr; a = a->ai_next) {
    Fd fd(::socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol));
    if (!fd) {
      code = errno;
      continue;
    }
    set_timeout(fd.get(), timeout);
    if (::connect(fd.get(), a->ai_addr, a->ai_addrlen) == 0) {
      const int on = 1;
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return fd;
    }
    code = errno;
  }
  give_up(target, fmt::format("cannot connect: {}{}", socket_error(code),
                              code == ECONNREFUSED ? "; is the server running?" : ""));
}

void send_all(const Target& target, int fd, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) give_up(target, fmt::format("negotiation: {}", socket_error(errno)));
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
}

}  // namespace

Fd connect_to(const Target& target, std::chrono::milliseconds timeout) {
  return target.socket.empty() ? connect_tcp(target, timeout) : connect_unix(target, timeout);
}

Dialled dial(const Target& target, nbd::ClientConfig config, std::chrono::milliseconds timeout) {
  using Status = nbd::ClientHandshake::Status;
  Dialled dialled;
  dialled.fd = connect_to(target, timeout);
  const int fd = dialled.fd.get();
  config.export_name = target.export_name;
  nbd::ClientHandshake handshake(std::move(config));
  std::array<std::byte, 4096> buffer;
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (handshake.status() == Status::kNegotiating) {
    if (std::chrono::steady_clock::now() >= end) {
      give_up(target, fmt::format("{}: the handshake does not end", handshake.state_name()));
    }
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      give_up(target, fmt::format("{}: {}", handshake.state_name(), socket_error(errno)));
    }
    if (got == 0) {
      give_up(target, fmt::format("{}: the server closed the connection", handshake.state_name()));
    }
    const ByteSpan received(buffer.data(), static_cast<size_t>(got));
    const size_t used = handshake.consume(received);
    send_all(target, fd, handshake.output());
    handshake.clear_output();
    if (handshake.status() == Status::kDone && used != received.size()) {
      give_up(target, "the server sent data that nobody asked for");
    }
  }
  if (handshake.status() == Status::kFailed) give_up(target, handshake.error());
  dialled.result = handshake.result();
  set_timeout(fd, std::chrono::milliseconds(0));
  return dialled;
}

}  // namespace weft::tools
