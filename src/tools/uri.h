// SPDX-License-Identifier: BSD-3-Clause
// Where an NBD server is and which export is meant, as people write it (doc/uri.md of
// NetworkBlockDevice/nbd):
//   nbd://HOST[:PORT]/[EXPORT]           TCP; an IPv6 address in [brackets]; port 10809 unless
//   given nbd+unix:///[EXPORT]?socket=PATH     Unix socket PATH                                 the
//   same, the default export; begins with / or .
// %XX is decoded in the export's name and the socket's path. nbds: (TLS) and vsock are refused.
#pragma once

#include <string>
#include <string_view>

namespace weft::tools {

struct Target {
  std::string socket;       // path of the Unix socket; "": TCP
  std::string host;         // name or numeric address, without brackets
  std::string port;         // decimal
  std::string export_name;  // "": the default export

  // The same target as a URI, for messages.
  [[nodiscard]] std::string uri() const;
  friend bool operator==(const Target&, const Target&) = default;
};

// Throws ConfigError with one line that names what is wrong and what to write instead.
[[nodiscard]] Target parse_target(std::string_view text);

}  // namespace weft::tools
