// SPDX-License-Identifier: BSD-3-Clause
#include "tools/uri.h"

#include <fmt/format.h>
#include <sys/un.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "base/result.h"
#include "nbd/constants.h"

namespace weft::tools {
namespace {

constexpr std::string_view kMend =
    "write nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the path of a Unix socket";

[[noreturn]] void refuse(std::string_view text, std::string_view why, std::string_view mend) {
  throw ConfigError(fmt::format("'{}': {}; {}", text, why, mend));
}

std::optional<unsigned> hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return {};
}

std::string decode(std::string_view uri, std::string_view part) {
  std::string result;
  for (size_t at = 0; at < part.size(); at++) {
    if (part[at] != '%') {
      result += part[at];
      continue;
    }
    const auto high = at + 2 < part.size() ? hex_digit(part[at + 1]) : std::nullopt;
    const auto low = at + 2 < part.size() ? hex_digit(part[at + 2]) : std::nullopt;
    if (!high || !low) refuse(uri, "a % without two hexadecimal digits", "write %25 for %");
    result += static_cast<char>(*high << 4 | *low);
    at += 2;
  }
  if (result.contains('\0')) refuse(uri, "it contains a NUL character", kMend);
  return result;
}

std::string encode(std::string_view text, bool keep_slash) {
  std::string result;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '.' || c == '_' || c == '~' || (c == '/' && keep_slash);
    if (plain) {
      result += c;
    } else {
      result += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return result;
}

std::string checked_socket(std::string_view text, std::string path) {
  if (path.empty()) refuse(text, "the socket's path is empty", kMend);
  if (path.size() >= sizeof(sockaddr_un::sun_path)) {
    refuse(text, "the socket's path is longer than the 107 bytes the kernel allows",
           "use a shorter path");
  }
  return path;
}

void parse_authority(std::string_view uri, std::string_view authority, Target& target) {
  if (authority.contains('@')) refuse(uri, "a user name has no meaning without TLS", kMend);
  std::string_view port;
  if (authority.starts_with('[')) {
    const size_t close = authority.find(']');
    if (close == authority.npos) refuse(uri, "a [ without its ]", kMend);
    target.host = authority.substr(1, close - 1);
    port = authority.substr(close + 1);
    if (!port.empty() && !port.starts_with(':')) refuse(uri, "text after the ]", kMend);
  } else {
    const size_t colon = authority.find(':');
    target.host = decode(uri, authority.substr(0, colon));
    port = colon == authority.npos ? "" : authority.substr(colon);
    if (port.substr(std::min<size_t>(port.size(), 1)).contains(':')) {
      refuse(uri, "an IPv6 address stands in brackets", "write nbd://[::1]:10809/");
    }
  }
  if (target.host.empty()) refuse(uri, "no host", kMend);
  if (!port.empty()) port.remove_prefix(1);
  target.port = port.empty() ? std::to_string(nbd::kPort) : std::string(port);
  uint32_t number = 0;
  const char* const end = target.port.data() + target.port.size();
  const auto parsed = std::from_chars(target.port.data(), end, number);
  if (parsed.ec != std::errc{} || parsed.ptr != end || number == 0 || number > 65535) {
    refuse(uri, "the port is no number from 1 to 65535", kMend);
  }
}

}  // namespace

std::string Target::uri() const {
  if (!socket.empty()) {
    return fmt::format("nbd+unix:///{}?socket={}", encode(export_name, true), encode(socket, true));
  }
  const bool ipv6 = host.contains(':');
  return fmt::format("nbd://{}{}{}:{}/{}", ipv6 ? "[" : "", host, ipv6 ? "]" : "", port,
                     encode(export_name, true));
}

Target parse_target(std::string_view text) {
  Target target;
  if (text.starts_with('/') || text.starts_with('.')) {
    target.socket = checked_socket(text, std::string(text));
    return target;
  }
  const size_t colon = text.find("://");
  // nbd+unix:/EXPORT?socket=PATH is understood by other clients, but nobody writes it.
  if (colon == text.npos) refuse(text, "neither a URI nor a path with a / in front", kMend);
  const std::string_view scheme = text.substr(0, colon);
  std::string_view rest = text.substr(colon + 3);
  if (scheme.starts_with("nbds")) {
    refuse(text, "TLS (nbds:) is not supported", "use nbd: and a server that does not require TLS");
  }
  if (scheme != "nbd" && scheme != "nbd+unix") {
    refuse(text, fmt::format("the scheme '{}' is unknown", scheme), kMend);
  }
  if (rest.contains('#')) refuse(text, "a # has no meaning here", "write %23 for #");
  std::string_view query;
  if (const size_t mark = rest.find('?'); mark != rest.npos) {
    query = rest.substr(mark + 1);
    rest = rest.substr(0, mark);
  }
  const size_t slash = rest.find('/');
  const std::string_view authority = rest.substr(0, slash);
  if (slash != rest.npos) target.export_name = decode(text, rest.substr(slash + 1));
  if (target.export_name.size() > nbd::kStringLengthMax) {
    refuse(text, "the export's name is longer than 4096 bytes", "use a shorter name");
  }
  if (scheme == "nbd") {
    if (!query.empty()) refuse(text, "parameters after ? have no meaning with nbd:", kMend);
    parse_authority(text, authority, target);
    return target;
  }
  if (!authority.empty()) refuse(text, "three slashes are missing after nbd+unix:", kMend);
  if (!query.starts_with("socket=") || query.contains('&')) {
    refuse(text, "after ? stands socket=PATH and nothing else", kMend);
  }
  target.socket = checked_socket(text, decode(text, query.substr(7)));
  return target;
}

}  // namespace weft::tools
