// SPDX-License-Identifier: BSD-3-Clause
#include "filters/ip/rules.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>

#include "filters/recorder.h"

namespace weft::filters {
namespace {

using testing::HasSubstr;

template <typename T>
disk::Peer with_address(const T& address) {
  disk::Peer peer;
  std::memcpy(&peer.address, &address, sizeof address);
  peer.address_length = sizeof address;
  return peer;
}
disk::Peer ip(const char* text) {
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  if (::inet_pton(AF_INET, text, &v4.sin_addr) == 1) return with_address(v4);
  sockaddr_in6 v6{};
  v6.sin6_family = AF_INET6;
  EXPECT_EQ(::inet_pton(AF_INET6, text, &v6.sin6_addr), 1) << text;
  return with_address(v6);
}
disk::Peer unix_peer(pid_t pid, uid_t uid, gid_t gid, const char* label = "") {
  disk::Peer peer;
  peer.address.ss_family = AF_UNIX;
  peer.address_length = sizeof(sa_family_t);
  peer.credentials = ucred{.pid = pid, .uid = uid, .gid = gid};
  peer.security_label = label;
  return peer;
}
disk::Peer vsock(unsigned cid, unsigned port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = cid;
  address.svm_port = port;
  return with_address(address);
}

bool any(const std::string& list, const disk::Peer& peer) {
  for (const Rule& rule : parse_rules("allow", list)) {
    if (matches(rule, peer)) return true;
  }
  return false;
}

TEST(IpRules, Families) {
  const disk::Peer nothing;  // a pipe
  const std::vector<std::pair<std::string, disk::Peer>> peers = {{"ipv4", ip("192.0.2.1")},
                                                                 {"ipv6", ip("2001:db8::1")},
                                                                 {"unix", unix_peer(1, 2, 3)},
                                                                 {"vsock", vsock(3, 1024)},
                                                                 {"pipe", nothing}};
  for (const auto& [name, peer] : peers) {
    for (const char* word : {"all", "any", "ALL", "Any"}) EXPECT_TRUE(any(word, peer)) << name;
    for (const char* family : {"ipv4", "ipv6", "unix", "vsock"}) {
      EXPECT_EQ(any(std::string("all") + family, peer), name == family) << name << family;
      EXPECT_EQ(any(std::string("ANY") + family, peer), name == family) << name << family;
    }
  }
}

TEST(IpRules, AddressesAndNetworks) {
  struct Row {
    const char* rule;
    const char* address;
    bool match;
  };
  for (const Row& row : std::initializer_list<Row>{
           {"127.0.0.1", "127.0.0.1", true},
           {"127.0.0.1", "127.0.0.2", false},
           {"127.0.0.1", "::1", false},
           {"10.0.0.0/8", "10.255.1.2", true},
           {"10.0.0.0/8", "11.0.0.0", false},
           {"10.1.2.3/8", "10.9.9.9", true},  // the bits behind the prefix do not count
           {"192.168.2.0/23", "192.168.3.255", true},
           {"192.168.2.0/23", "192.168.4.0", false},
           {"192.0.2.128/25", "192.0.2.127", false},
           {"192.0.2.128/25", "192.0.2.255", true},
           {"192.0.2.1/32", "192.0.2.1", true},
           {"192.0.2.1/32", "192.0.2.0", false},
           {"192.0.2.1/31", "192.0.2.0", true},
           {"0.0.0.0/0", "203.0.113.9", true},
           {"0.0.0.0/0", "::1", false},
           {"::1", "::1", true},
           {"::1", "::2", false},
           {"::1", "127.0.0.1", false},
           {"2001:DB8::/32", "2001:db8:ffff::1", true},
           {"2001:db8::/32", "2001:db9::1", false},
           {"fe80::/10", "febf::1", true},
           {"fe80::/10", "fec0::1", false},
           {"::/0", "2001:db8::1", true},
           {"::/0", "127.0.0.1", false},
           {"2001:db8::1/128", "2001:db8::1", true},
           {"2001:db8::1/127", "2001:db8::", true},
           // An IPv4 client of an IPv6 socket is an IPv4 client.
           {"127.0.0.1", "::ffff:127.0.0.1", true},
           {"127.0.0.0/8", "::ffff:127.9.9.9", true},
           {"allipv4", "::ffff:127.0.0.1", true},
           {"allipv6", "::ffff:127.0.0.1", false},
           {"::/0", "::ffff:127.0.0.1", false},
           {"::ffff:127.0.0.1", "127.0.0.1", true},
           {"::ffff:10.0.0.0/104", "10.1.2.3", true},
           {"::ffff:10.0.0.0/104", "11.1.2.3", false},
       }) {
    EXPECT_EQ(any(row.rule, ip(row.address)), row.match) << row.rule << " " << row.address;
  }
}

TEST(IpRules, Numbers) {
  const disk::Peer peer = unix_peer(4711, 1000, 100, "system_u:system_r:weft_t:s0");
  for (const char* yes : {"pid:4711", "uid:1000", "gid:100", "UID:1000", "uid:0x3e8",
                          "security:system_u:system_r:weft_t:s0", "uid:1,uid:1000"}) {
    EXPECT_TRUE(any(yes, peer)) << yes;
  }
  for (const char* no : {"pid:1", "uid:100", "gid:1000", "uid:0", "gid:0", "vsock-cid:1000",
                         "security:system_u", "security:SYSTEM_U:system_r:weft_t:s0", ""}) {
    EXPECT_FALSE(any(no, peer)) << no;
  }
  EXPECT_FALSE(any("uid:0,gid:0", ip("127.0.0.1")));
  EXPECT_TRUE(any("vsock-cid:3", vsock(3, 1024)));
  EXPECT_FALSE(any("vsock-cid:3", vsock(4, 3)));
  EXPECT_TRUE(any("vsock-port:4294967295", vsock(3, 4294967295u)));
  EXPECT_FALSE(any("vsock-port:3", vsock(3, 1024)));
}

TEST(IpRules, AListMayEndWithAComma) {
  EXPECT_TRUE(parse_rules("allow", "").empty());
  EXPECT_EQ(parse_rules("allow", "all,").size(), 1u);
  EXPECT_EQ(parse_rules("allow", "127.0.0.1,::1,uid:5").size(), 3u);
}

TEST(IpRules, WhatIsWrongIsNamed) {
  struct Row {
    const char* list;
    const char* message;
  };
  for (const Row& row : std::initializer_list<Row>{
           {",all", "between two commas"},
           {"all,,all", "between two commas"},
           {"bogus", "deny=bogus: neither an address"},
           {" all", "neither an address"},
           {"allbogus", "neither an address"},
           {"127.1", "neither an address"},
           {"1.2.3/8", "neither an address"},
           {"1.2.3.4/33", "deny=1.2.3.4/33: '33' is out of range"},
           {"::/129", "'129' is out of range"},
           {"1.2.3.4/", "is empty"},
           {"1.2.3.4/x", "is not a number"},
           {"1.2.3.4/-1", "has a sign"},
           {"fe80::1%lo", "neither an address"},
           {"[::1]", "neither an address"},
           {"uid:", "deny=uid:: '' is empty"},
           {"uid:-1", "has a sign"},
           {"uid:4294967295", "is out of range"},
           {"pid:0", "no process has this number"},
           {"pid:2147483648", "is out of range"},
           {"vsock-port:x", "is not a number"},
           {"security:", "give the label"},
           {"dn:CN=me", "TLS"},
           {"issuer-dn:CN=me", "TLS"},
       }) {
    try {
      (void)parse_rules("deny", row.list);
      ADD_FAILURE() << row.list;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr(row.message)) << row.list;
    }
  }
}

class IpTest : public testing::Test, public Recorded {
 protected:
  bool admits(const Parameters& parameters, const disk::Peer& peer) {
    make("ip", parameters);
    recording.calls.clear();
    const Status status = run(plugin->preconnect(*loop, peer, false));
    EXPECT_EQ(recording.calls.size(), status ? 1u : 0u);  // the next layer is asked as well
    if (!status) {
      EXPECT_EQ(status.error().code, EPERM);
    }
    return status.has_value();
  }
};

TEST_F(IpTest, AllowComesBeforeDenyAndWhatNeitherNamesIsAdmitted) {
  const disk::Peer local = ip("127.0.0.1");
  EXPECT_TRUE(admits({}, local));
  EXPECT_TRUE(admits({{"allow", ""}, {"deny", ""}}, local));
  EXPECT_TRUE(admits({{"allow", "10.0.0.1"}}, local));
  EXPECT_TRUE(admits({{"deny", "10.0.0.1"}}, local));
  EXPECT_FALSE(admits({{"deny", "all"}}, local));
  EXPECT_TRUE(admits({{"deny", "all"}, {"allow", "127.0.0.1,::1"}}, local));
  EXPECT_FALSE(admits({{"deny", "all"}, {"allow", "127.0.0.1,::1"}}, ip("127.0.0.2")));
  EXPECT_FALSE(admits({{"deny", "10.0.0.1"}, {"deny", "127.0.0.1"}}, local));
  EXPECT_FALSE(admits({{"allow", "uid:0"}, {"deny", "all"}}, disk::Peer()));
}

TEST_F(IpTest, TheNextLayerMayStillRefuse) {
  make("ip", {{"allow", "all"}});
  recording.outcome = [](const std::string&) { return Status(fail(EACCES)); };
  EXPECT_EQ(run(plugin->preconnect(*loop, ip("127.0.0.1"), false)).error().code, EACCES);
  recording.outcome = nullptr;
}

}  // namespace
}  // namespace weft::filters
