// SPDX-License-Identifier: BSD-3-Clause
// Peer: who is at the other end of a connection.
#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

namespace weft::disk {

struct Peer {
  std::string name;            // for log lines: "127.0.0.1:40122", "unix pid 4711 uid 0"
  sockaddr_storage address{};  // ss_family AF_UNSPEC: no socket (-s on pipes)
  socklen_t address_length = 0;
  std::optional<ucred> credentials;  // of the process at the other end of a Unix socket
  std::string security_label;        // of that process (SELinux, AppArmor); empty: it has none

  // Ends the connection at once: what is in progress is finished, but not answered. From any thread
  // as long as a disk of the connection is open; does not block. Empty: there is nothing to end.
  std::function<void()> disconnect;
};

}  // namespace weft::disk
