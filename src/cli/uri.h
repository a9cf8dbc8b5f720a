// SPDX-License-Identifier: BSD-3-Clause
// What a client needs to find the server: NBD URIs, and the shell variables of --run.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "net/listen.h"

namespace weft::cli {

// Every byte but A-Z a-z 0-9 - . _ ~ / becomes %XX.
std::string percent_encode(std::string_view text);

// The URI of the export `export_name` ("": the default one) at `address`; "" when an address has
// none (a Unix socket without a name).
std::string uri_of(const net::BoundAddress& address, std::string_view export_name);

// Where a server can be reached.
struct Endpoints {
  std::vector<std::string> uris;  // one for each socket that needs one of its own; Unix first
  std::string unix_path;          // of the first Unix socket, or ""
  std::string port;               // of the first TCP or vsock socket, or ""
};
Endpoints find_endpoints(std::span<const net::ListeningSocket> sockets,
                         std::string_view export_name);

// One word of a shell command that stands for exactly `text`.
std::string shell_quote(std::string_view text);

// The script for /bin/sh that sets the variables of --run and then is `command`.
std::string run_script(const Endpoints& endpoints, std::string_view export_name,
                       std::string_view command);

}  // namespace weft::cli
