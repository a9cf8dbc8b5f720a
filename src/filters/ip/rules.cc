// SPDX-License-Identifier: BSD-3-Clause
#include "filters/ip/rules.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "base/parse.h"
#include "base/result.h"

namespace weft::filters {
namespace {

using Kind = Rule::Kind;

constexpr unsigned kIpv4Bits = 32;
constexpr unsigned kIpv6Bits = 128;
constexpr unsigned kMappedBits = kIpv6Bits - kIpv4Bits;  // of ::ffff:0:0/96
constexpr std::array<uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

struct Keyword {
  std::string_view word;
  Kind kind;
};
constexpr Keyword kFamilies[] = {{"", Kind::kAny},
                                 {"ipv4", Kind::kIpv4},
                                 {"ipv6", Kind::kIpv6},
                                 {"unix", Kind::kUnix},
                                 {"vsock", Kind::kVsock}};

struct Numbered {
  std::string_view word;
  Kind kind;
  uint64_t min, max;
};
constexpr uint64_t kIdMax = std::numeric_limits<uint32_t>::max() - 1;  // the last is "none"
constexpr uint64_t kVsockMax = std::numeric_limits<uint32_t>::max();
constexpr Numbered kNumbered[] = {
    {"pid:", Kind::kPid, 1, std::numeric_limits<int32_t>::max()},
    {"uid:", Kind::kUid, 0, kIdMax},
    {"gid:", Kind::kGid, 0, kIdMax},
    {"vsock-cid:", Kind::kVsockCid, 0, kVsockMax},
    {"vsock-port:", Kind::kVsockPort, 0, kVsockMax},
};

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
  return result;
}

bool is_mapped(const uint8_t* address) {
  return std::equal(kMapped.begin(), kMapped.end(), address);
}

std::optional<Rule> parse_keyword(std::string_view word) {
  if (!word.starts_with("all") && !word.starts_with("any")) return std::nullopt;
  for (const Keyword& family : kFamilies) {
    if (word.substr(3) == family.word) return Rule{.kind = family.kind};
  }
  return std::nullopt;
}

// "A.B.C.D", "A:B::C", either with "/NN".
std::optional<Rule> parse_address(std::string_view key, std::string_view word) {
  const size_t slash = word.find('/');
  const std::string address(word.substr(0, slash));
  Rule rule{.kind = Kind::kIpv4};
  if (::inet_pton(AF_INET, address.c_str(), rule.address.data()) == 1) {
    rule.prefix = kIpv4Bits;
  } else if (::inet_pton(AF_INET6, address.c_str(), rule.address.data()) == 1) {
    rule.kind = Kind::kIpv6;
    rule.prefix = kIpv6Bits;
  } else {
    return std::nullopt;
  }
  if (slash != std::string_view::npos) {
    rule.prefix = static_cast<unsigned>(
        parse_unsigned(fmt::format("{}={}", key, word), word.substr(slash + 1), rule.prefix));
  }
  if (rule.kind == Kind::kIpv6 && rule.prefix >= kMappedBits && is_mapped(rule.address.data())) {
    rule.kind = Kind::kIpv4;
    rule.prefix -= kMappedBits;
    std::copy_n(rule.address.begin() + kMapped.size(), 4, rule.address.begin());
  }
  return rule;
}

Rule parse_rule(std::string_view key, std::string_view word) {
  const std::string lowered = lower(word);
  if (const std::optional<Rule> rule = parse_keyword(lowered)) return *rule;
  for (const Numbered& numbered : kNumbered) {
    if (!lowered.starts_with(numbered.word)) continue;
    const std::string what = fmt::format("{}={}", key, word);
    const uint64_t number = parse_unsigned(what, word.substr(numbered.word.size()), numbered.max);
    if (number < numbered.min) {
      throw ConfigError(
          fmt::format("{}: no process has this number: the first is {}", what, numbered.min));
    }
    return {.kind = numbered.kind, .number = number};
  }
  if (constexpr std::string_view kWord = "security:"; lowered.starts_with(kWord)) {
    if (word.size() == kWord.size()) {
      throw ConfigError(fmt::format("{}={}: give the label after the colon", key, word));
    }
    return {.kind = Kind::kSecurity, .label = std::string(word.substr(kWord.size()))};
  }
  if (lowered.starts_with("dn:") || lowered.starts_with("issuer-dn:")) {
    throw ConfigError(fmt::format(
        "{}={}: names in certificates need TLS, which this build of weft has not; use an address, "
        "uid:, gid: or security:",
        key, word));
  }
  if (const std::optional<Rule> rule = parse_address(key, word)) return *rule;
  throw ConfigError(fmt::format(
      "{}={}: neither an address nor a rule: give A.B.C.D, A:B::C, either with /NN, all, allipv4, "
      "allipv6, allunix, allvsock, pid:N, uid:N, gid:N, vsock-cid:N, vsock-port:N or "
      "security:LABEL",
      key, word));
}

bool in_network(const uint8_t* address, const Rule& rule) {
  const unsigned bytes = rule.prefix / 8;
  if (!std::equal(address, address + bytes, rule.address.begin())) return false;
  const unsigned bits = rule.prefix % 8;
  if (bits == 0) return true;
  const auto mask = static_cast<uint8_t>(0xff << (8 - bits));
  return (address[bytes] & mask) == (rule.address[bytes] & mask);
}

// The address of an IPv4 client, four bytes; null: it is none.
const uint8_t* ipv4_address(const sockaddr_storage& storage, std::array<uint8_t, 16>& room) {
  if (storage.ss_family == AF_INET) {
    std::memcpy(room.data(), &reinterpret_cast<const sockaddr_in&>(storage).sin_addr, 4);
    return room.data();
  }
  if (storage.ss_family != AF_INET6) return nullptr;
  std::memcpy(room.data(), &reinterpret_cast<const sockaddr_in6&>(storage).sin6_addr, 16);
  return is_mapped(room.data()) ? room.data() + kMapped.size() : nullptr;
}

}  // namespace

std::vector<Rule> parse_rules(std::string_view key, std::string_view list) {
  std::vector<Rule> rules;
  for (std::string_view rest = list; !rest.empty();) {
    const size_t comma = std::min(rest.find(','), rest.size());
    if (comma == 0) {
      throw ConfigError(
          fmt::format("{}={}: there is nothing between two commas: leave one out", key, list));
    }
    rules.push_back(parse_rule(key, rest.substr(0, comma)));
    rest.remove_prefix(std::min(comma + 1, rest.size()));
  }
  return rules;
}

bool matches(const Rule& rule, const disk::Peer& peer) {
  const sockaddr_storage& storage = peer.address;
  std::array<uint8_t, 16> room{};
  switch (rule.kind) {
    case Kind::kAny:
      return true;
    case Kind::kIpv4: {
      const uint8_t* const address = ipv4_address(storage, room);
      return address && in_network(address, rule);
    }
    case Kind::kIpv6:
      return storage.ss_family == AF_INET6 && !ipv4_address(storage, room) &&
             in_network(room.data(), rule);
    case Kind::kUnix:
      return storage.ss_family == AF_UNIX;
    case Kind::kVsock:
      return storage.ss_family == AF_VSOCK;
    case Kind::kPid:
      return peer.credentials && std::cmp_equal(peer.credentials->pid, rule.number);
    case Kind::kUid:
      return peer.credentials && peer.credentials->uid == rule.number;
    case Kind::kGid:
      return peer.credentials && peer.credentials->gid == rule.number;
    case Kind::kVsockCid:
      return storage.ss_family == AF_VSOCK &&
             reinterpret_cast<const sockaddr_vm&>(storage).svm_cid == rule.number;
    case Kind::kVsockPort:
      return storage.ss_family == AF_VSOCK &&
             reinterpret_cast<const sockaddr_vm&>(storage).svm_port == rule.number;
    case Kind::kSecurity:
      return peer.security_label == rule.label;
  }
  return false;
}

}  // namespace weft::filters
