// SPDX-License-Identifier: BSD-3-Clause
#include "cli/uri.h"

#include <fmt/format.h>

#include <algorithm>

namespace weft::cli {
namespace {

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
         c == '.' || c == '_' || c == '~' || c == '/';
}

}  // namespace

std::string percent_encode(std::string_view text) {
  std::string result;
  for (const char c : text) {
    if (is_plain(c)) {
      result += c;
    } else {
      result += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return result;
}

std::string uri_of(const net::BoundAddress& address, std::string_view export_name) {
  const std::string path =
      export_name.empty() ? "" : fmt::format("/{}", percent_encode(export_name));
  switch (address.kind) {
    case net::BoundAddress::Kind::kUnix:
      if (address.path.empty()) return "";
      return fmt::format("nbd+unix://{}?socket={}", path, percent_encode(address.path));
    case net::BoundAddress::Kind::kTcp: {
      std::string host = address.host;
      if (host.empty() || host == "127.0.0.1" || host == "::1") {
        host = "localhost";
      } else if (address.ipv6) {
        host = fmt::format("[{}]", host);
      }
      return fmt::format("nbd://{}:{}{}", host, address.port, path);
    }
    case net::BoundAddress::Kind::kVsock:
      // 1 is VMADDR_CID_LOCAL: a client on this machine.
      return fmt::format("nbd+vsock://1:{}{}", address.port, path);
    case net::BoundAddress::Kind::kOther:
      return "";
  }
  return "";
}

Endpoints find_endpoints(std::span<const net::ListeningSocket> sockets,
                         std::string_view export_name) {
  using Kind = net::BoundAddress::Kind;
  Endpoints endpoints;
  std::vector<std::string> others;
  for (const net::ListeningSocket& socket : sockets) {
    const net::BoundAddress address = net::bound_address(socket.fd.get());
    const std::string uri = uri_of(address, export_name);
    if (uri.empty()) continue;
    if (address.kind == Kind::kUnix) {
      if (endpoints.unix_path.empty()) endpoints.unix_path = address.path;
      endpoints.uris.push_back(uri);
      continue;
    }
    if (endpoints.port.empty()) endpoints.port = fmt::format("{}", address.port);
    // IPv4 and IPv6 on all addresses are one URI, localhost.
    if (std::ranges::find(others, uri) == others.end()) others.push_back(uri);
  }
  endpoints.uris.insert(endpoints.uris.end(), others.begin(), others.end());
  return endpoints;
}

std::string shell_quote(std::string_view text) {
  std::string result = "'";
  for (const char c : text) {
    if (c == '\'') {
      result += "'\\''";
    } else {
      result += c;
    }
  }
  return result + "'";
}

std::string run_script(const Endpoints& endpoints, std::string_view export_name,
                       std::string_view command) {
  const std::string uri = endpoints.uris.empty() ? "" : endpoints.uris.front();
  return fmt::format("uri={}\nnbd=\"$uri\"\nexportname={}\nport={}\nunixsocket={}\nunset tls\n{}",
                     shell_quote(uri), shell_quote(export_name), shell_quote(endpoints.port),
                     shell_quote(endpoints.unix_path), command);
}

}  // namespace weft::cli
