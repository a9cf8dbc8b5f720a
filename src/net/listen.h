// SPDX-License-Identifier: BSD-3-Clause
// Listening sockets: made here, or inherited from a service manager. All are non-blocking and
// close-on-exec, with the longest backlog that the system allows.
//
// These functions run at start-up, on one thread, and throw ConfigError with one line that names
// the address, says why it cannot be used, and what to do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"

namespace weft::net {

// A bound, listening socket. `description` names it in messages: "/tmp/sock", "[::]:10809".
struct ListeningSocket {
  Fd fd;
  std::string description;
};

enum class AddressFamily { kAny, kIpv4, kIpv6 };

// The Unix socket `path`, which must not exist: an existing file, even a socket that nobody listens
// on any more, is never removed. Nothing is left behind when this throws.
ListeningSocket listen_unix(const std::string& path);

// TCP on `address` (a name or number; empty: all addresses) and `port` (a service name or number;
// "0": one that is free, the same for all addresses). One socket for each address that the name
// stands for. An address of a family that this machine does not have is skipped as long as another
// one is left.
std::vector<ListeningSocket> listen_tcp(const std::string& address, const std::string& port,
                                        AddressFamily family);

// AF_VSOCK, for clients in virtual machines and on the host: any context id.
ListeningSocket listen_vsock(uint32_t port);

// The sockets that a service manager passed (LISTEN_PID, LISTEN_FDS: descriptors from 3 on), or
// none. Removes the variables from the environment. A LISTEN_PID of another process is reported by
// a warning, and its sockets are left alone. Call it before anything else opens descriptors.
std::vector<ListeningSocket> inherited_sockets();

// What a bound socket's address says, for the URI of a client.
struct BoundAddress {
  enum class Kind { kUnix, kTcp, kVsock, kOther } kind = Kind::kOther;
  std::string path;   // kUnix
  std::string host;   // kTcp: a numeric address; "" when it is the wildcard
  bool ipv6 = false;  // kTcp: `host` is an IPv6 address
  uint32_t port = 0;  // kTcp, kVsock
};
BoundAddress bound_address(int fd);

}  // namespace weft::net
