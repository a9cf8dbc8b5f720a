// SPDX-License-Identifier: BSD-3-Clause
// The rules of the ip filter: which clients a word of its lists means.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "disk/peer.h"

namespace weft::filters {

struct Rule {
  enum class Kind : uint8_t {
    kAny,
    kIpv4,
    kIpv6,
    kUnix,
    kVsock,
    kPid,
    kUid,
    kGid,
    kVsockCid,
    kVsockPort,
    kSecurity,
  };
  Kind kind;
  std::array<uint8_t, 16> address{};  // kIpv4 (the first four), kIpv6: in network byte order
  unsigned prefix = 0;                // leading bits of it that count; 0: the whole family
  uint64_t number = 0;                // kPid ... kVsockPort
  std::string label{};                // kSecurity
};

// The rules of "RULE,RULE,...", in order. `key`: the list's, for messages. Throws ConfigError.
std::vector<Rule> parse_rules(std::string_view key, std::string_view list);

// An IPv4 client of an IPv6 socket (::ffff:A.B.C.D) is an IPv4 client.
[[nodiscard]] bool matches(const Rule& rule, const disk::Peer& peer);

}  // namespace weft::filters
