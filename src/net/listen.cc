// SPDX-License-Identifier: BSD-3-Clause
#include "net/listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
// After sys/socket.h.
#include <linux/vm_sockets.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "base/log.h"
#include "base/result.h"

namespace weft::net {
namespace {

constexpr int kInheritedFirst = 3;  // SD_LISTEN_FDS_START
constexpr unsigned kInheritedMax = 16;

Fd new_socket(int family) {
  return Fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

const sockaddr* generic(const auto& address) {
  return reinterpret_cast<const sockaddr*>(&address);
}

// Why bind() says that `path` exists, and what to do about it.
std::string describe_existing(const std::string& path) {
  struct stat status{};
  if (::lstat(path.c_str(), &status) != 0) {
    return fmt::format("cannot listen on the Unix socket {}: {}", path, errno_text(EADDRINUSE));
  }
  if (!S_ISSOCK(status.st_mode)) {
    return fmt::format(
        "cannot listen on the Unix socket {}: a file of that name exists, and it is not a socket; "
        "choose another path",
        path);
  }
  const Fd probe = new_socket(AF_UNIX);
  const sockaddr_un address = unix_address(path);
  if (::connect(probe.get(), generic(address), sizeof address) != 0 && errno == ECONNREFUSED) {
    return fmt::format(
        "cannot listen on the Unix socket {}: it was left behind by a server that is gone; "
        "remove it (rm '{}') and start again",
        path, path);
  }
  return fmt::format(
      "cannot listen on the Unix socket {}: another server listens there; "
      "stop it or choose another path",
      path);
}

std::string numeric_name(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST];
  char port[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "?";
  }
  return address->sa_family == AF_INET6 ? fmt::format("[{}]:{}", host, port)
                                        : fmt::format("{}:{}", host, port);
}

void set_port(sockaddr* address, uint16_t port) {
  if (address->sa_family == AF_INET6) {
    reinterpret_cast<sockaddr_in6*>(address)->sin6_port = htons(port);
  } else {
    reinterpret_cast<sockaddr_in*>(address)->sin_port = htons(port);
  }
}

struct TcpFailure {
  int code = 0;
  bool no_such_family = false;  // this machine has no such addresses: others may do
};

// Returns a listening socket, or why there is none.
Fd listen_tcp_one(const addrinfo& entry, TcpFailure& failure) {
  failure = {};
  Fd fd = new_socket(entry.ai_family);
  if (!fd) {
    failure = {errno, errno == EAFNOSUPPORT};
    return fd;
  }
  const int one = 1;
  // A server that restarts need not wait for old connections to time out.
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  // IPv4 clients come through a socket of their own.
  if (entry.ai_family == AF_INET6) {
    ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  }
  if (::bind(fd.get(), entry.ai_addr, entry.ai_addrlen) != 0) {
    failure = {errno, errno == EADDRNOTAVAIL && entry.ai_family == AF_INET6};
    return {};
  }
  if (::listen(fd.get(), SOMAXCONN) != 0) {
    failure = {errno, false};
    return {};
  }
  return fd;
}

std::string tcp_mend(int code) {
  switch (code) {
    case EADDRINUSE:
      return "; stop the server that has it or choose another port with -p";
    case EACCES:
      return "; ports below 1024 need privileges: choose another with -p";
    case EADDRNOTAVAIL:
      return "; this machine has no such address";
    default:
      return "";
  }
}

std::optional<unsigned> parse_decimal(const char* text) {
  unsigned value = 0;
  const char* end = text + std::strlen(text);
  const auto [rest, error] = std::from_chars(text, end, value);
  if (error != std::errc() || rest != end || text == end) return std::nullopt;
  return value;
}

[[noreturn]] void throw_bad_port(const std::string& port) {
  throw ConfigError(fmt::format(
      "cannot listen on TCP port '{}': it is neither a number from 0 to 65535 nor a service name",
      port));
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

AddressList resolve(const std::string& address, const std::string& port, AddressFamily family) {
  // getaddrinfo() would take a number that is too large, modulo 65536.
  const bool digits = !port.empty() && port.find_first_not_of("0123456789") == std::string::npos;
  if (digits && parse_decimal(port.c_str()).value_or(65536) > 65535) throw_bad_port(port);
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_family = family == AddressFamily::kIpv4   ? AF_INET
                    : family == AddressFamily::kIpv6 ? AF_INET6
                                                     : AF_UNSPEC;
  addrinfo* list = nullptr;
  const int code =
      ::getaddrinfo(address.empty() ? nullptr : address.c_str(), port.c_str(), &hints, &list);
  if (code == EAI_SERVICE) throw_bad_port(port);
  if (code != 0) {
    throw ConfigError(fmt::format("cannot listen on the address '{}', port {}: {}",
                                  address.empty() ? "*" : address, port,
                                  code == EAI_SYSTEM ? errno_text(errno) : ::gai_strerror(code)));
  }
  return {list, &::freeaddrinfo};
}

// One try. With `free_port`, another process may take the port between two addresses: then empty.
std::vector<ListeningSocket> listen_list(const addrinfo* list, bool free_port) {
  std::vector<ListeningSocket> sockets;
  std::optional<std::string> skipped;
  uint16_t chosen = 0;
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    if (free_port) set_port(entry->ai_addr, chosen);
    TcpFailure failure;
    Fd fd = listen_tcp_one(*entry, failure);
    const std::string name = numeric_name(entry->ai_addr, entry->ai_addrlen);
    if (fd) {
      const BoundAddress bound = bound_address(fd.get());
      chosen = static_cast<uint16_t>(bound.port);
      if (free_port) set_port(entry->ai_addr, chosen);
      sockets.push_back({std::move(fd), numeric_name(entry->ai_addr, entry->ai_addrlen)});
      continue;
    }
    if (free_port && chosen != 0 && failure.code == EADDRINUSE) return {};
    std::string text = fmt::format("cannot listen on {}: {}{}", name, errno_text(failure.code),
                                   tcp_mend(failure.code));
    if (!failure.no_such_family) throw ConfigError(text);
    skipped = std::move(text);
  }
  if (sockets.empty()) throw ConfigError(skipped.value_or("there is no address to listen on"));
  return sockets;
}

}  // namespace

ListeningSocket listen_unix(const std::string& path) {
  if (path.empty())
    throw ConfigError("the path of the Unix socket is empty; name one with -U PATH");
  constexpr size_t kPathMax = sizeof(sockaddr_un::sun_path) - 1;
  if (path.size() > kPathMax) {
    throw ConfigError(fmt::format(
        "cannot listen on the Unix socket {}: the path has {} bytes and the system allows {}; "
        "choose a shorter one",
        path, path.size(), kPathMax));
  }
  Fd fd = new_socket(AF_UNIX);
  const sockaddr_un address = unix_address(path);
  if (!fd || ::bind(fd.get(), generic(address), sizeof address) != 0) {
    const int code = errno;
    if (code == EADDRINUSE) throw ConfigError(describe_existing(path));
    throw ConfigError(
        fmt::format("cannot listen on the Unix socket {}: {}", path, errno_text(code)));
  }
  if (::listen(fd.get(), SOMAXCONN) != 0) {
    const int code = errno;
    ::unlink(path.c_str());
    throw ConfigError(
        fmt::format("cannot listen on the Unix socket {}: {}", path, errno_text(code)));
  }
  return {std::move(fd), path};
}

std::vector<ListeningSocket> listen_tcp(const std::string& address, const std::string& port,
                                        AddressFamily family) {
  const AddressList list = resolve(address, port, family);
  const bool free_port = port.find_first_not_of('0') == std::string::npos;
  constexpr int kTries = 20;
  for (int i = 0; i < kTries; ++i) {
    auto sockets = listen_list(list.get(), free_port);
    if (!sockets.empty()) return sockets;
  }
  throw ConfigError("cannot find a TCP port that is free on all addresses; choose one with -p");
}

ListeningSocket listen_vsock(uint32_t port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  Fd fd = new_socket(AF_VSOCK);
  if (!fd || ::bind(fd.get(), generic(address), sizeof address) != 0 ||
      ::listen(fd.get(), SOMAXCONN) != 0) {
    const int code = errno;
    throw ConfigError(fmt::format("cannot listen on the vsock port {}: {}{}", port,
                                  errno_text(code),
                                  code == EAFNOSUPPORT ? "; load the kernel's vsock module" : ""));
  }
  return {std::move(fd), fmt::format("vsock:{}", port)};
}

std::vector<ListeningSocket> inherited_sockets() {
  const char* pid = std::getenv("LISTEN_PID");
  const char* fds = std::getenv("LISTEN_FDS");
  if (pid == nullptr || fds == nullptr) return {};
  const std::string pid_text = pid;
  const std::string fds_text = fds;
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");

  if (parse_decimal(pid_text.c_str()) != static_cast<unsigned>(::getpid())) {
    log::warning("socket activation is ignored: LISTEN_PID={} is not this process ({})", pid_text,
                 ::getpid());
    return {};
  }
  const std::optional<unsigned> count = parse_decimal(fds_text.c_str());
  if (!count || *count < 1 || *count > kInheritedMax) {
    throw ConfigError(fmt::format("socket activation: LISTEN_FDS={} is not a number from 1 to {}",
                                  fds_text, kInheritedMax));
  }
  std::vector<ListeningSocket> sockets;
  for (unsigned i = 0; i < *count; ++i) {
    const int fd = kInheritedFirst + static_cast<int>(i);
    int listening = 0;
    socklen_t length = sizeof listening;
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) != 0 || listening == 0) {
      throw ConfigError(
          fmt::format("socket activation: descriptor {} is not a listening socket (LISTEN_FDS={})",
                      fd, fds_text));
    }
    ::fcntl(fd, F_SETFD, FD_CLOEXEC);
    ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
    const BoundAddress bound = bound_address(fd);
    std::string name;
    switch (bound.kind) {
      case BoundAddress::Kind::kUnix:
        name = bound.path;
        break;
      case BoundAddress::Kind::kVsock:
        name = fmt::format("vsock:{}", bound.port);
        break;
      case BoundAddress::Kind::kTcp:
        name = fmt::format(fmt::runtime(bound.ipv6 ? "[{}]:{}" : "{}:{}"),
                           !bound.host.empty() ? bound.host
                           : bound.ipv6        ? "::"
                                               : "0.0.0.0",
                           bound.port);
        break;
      case BoundAddress::Kind::kOther:
        break;
    }
    if (name.empty()) name = fmt::format("descriptor {}", fd);
    sockets.push_back({Fd(fd), std::move(name)});
  }
  return sockets;
}

BoundAddress bound_address(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  BoundAddress result;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return result;
  char text[INET6_ADDRSTRLEN] = "";
  switch (storage.ss_family) {
    case AF_UNIX: {
      const auto& address = reinterpret_cast<const sockaddr_un&>(storage);
      result.kind = BoundAddress::Kind::kUnix;
      const size_t size = length - offsetof(sockaddr_un, sun_path);
      result.path.assign(address.sun_path, ::strnlen(address.sun_path, size));
      break;
    }
    case AF_INET: {
      const auto& address = reinterpret_cast<const sockaddr_in&>(storage);
      result.kind = BoundAddress::Kind::kTcp;
      result.port = ntohs(address.sin_port);
      if (address.sin_addr.s_addr != htonl(INADDR_ANY)) {
        result.host = ::inet_ntop(AF_INET, &address.sin_addr, text, sizeof text);
      }
      break;
    }
    case AF_INET6: {
      const auto& address = reinterpret_cast<const sockaddr_in6&>(storage);
      result.kind = BoundAddress::Kind::kTcp;
      result.ipv6 = true;
      result.port = ntohs(address.sin6_port);
      if (!IN6_IS_ADDR_UNSPECIFIED(&address.sin6_addr)) {
        result.host = ::inet_ntop(AF_INET6, &address.sin6_addr, text, sizeof text);
      }
      break;
    }
    case AF_VSOCK:
      result.kind = BoundAddress::Kind::kVsock;
      result.port = reinterpret_cast<const sockaddr_vm&>(storage).svm_port;
      break;
    default:
      break;
  }
  return result;
}

}  // namespace weft::net
