// SPDX-License-Identifier: BSD-3-Clause
#include "cli/uri.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace weft::cli {
namespace {

using net::BoundAddress;
using ::testing::ElementsAre;

BoundAddress unix_socket(const std::string& path) {
  return {BoundAddress::Kind::kUnix, path, "", false, 0};
}
BoundAddress tcp(const std::string& host, bool ipv6, uint32_t port) {
  return {BoundAddress::Kind::kTcp, "", host, ipv6, port};
}

TEST(Uri, PercentEncoding) {
  EXPECT_EQ(percent_encode("azAZ09-._~/"), "azAZ09-._~/");
  EXPECT_EQ(percent_encode("a b?%&#'\"+:\n\xc3\xa9"), "a%20b%3F%25%26%23%27%22%2B%3A%0A%C3%A9");
}

TEST(Uri, OfEveryKindOfSocket) {
  EXPECT_EQ(uri_of(unix_socket("/tmp/s"), ""), "nbd+unix://?socket=/tmp/s");
  EXPECT_EQ(uri_of(unix_socket("/tmp/a b&c"), "disk 1"),
            "nbd+unix:///disk%201?socket=/tmp/a%20b%26c");
  EXPECT_EQ(uri_of(tcp("", false, 10809), ""), "nbd://localhost:10809");
  EXPECT_EQ(uri_of(tcp("", true, 1), "x"), "nbd://localhost:1/x");
  EXPECT_EQ(uri_of(tcp("127.0.0.1", false, 1), ""), "nbd://localhost:1");
  EXPECT_EQ(uri_of(tcp("192.0.2.1", false, 1), ""), "nbd://192.0.2.1:1");
  EXPECT_EQ(uri_of(tcp("2001:db8::1", true, 1), "x/y"), "nbd://[2001:db8::1]:1/x/y");
  EXPECT_EQ(uri_of({BoundAddress::Kind::kVsock, "", "", false, 7}, "x"), "nbd+vsock://1:7/x");
  EXPECT_EQ(uri_of(unix_socket(""), "x"), "");
}

TEST(Uri, EndpointsOfRealSockets) {
  const std::string path = "/tmp/weft-uri-test." + std::to_string(::getpid());
  auto sockets = net::listen_tcp("", "0", net::AddressFamily::kAny);
  sockets.push_back(net::listen_unix(path));
  ::unlink(path.c_str());
  const Endpoints endpoints = find_endpoints(sockets, "e");
  EXPECT_EQ(endpoints.unix_path, path);
  // The Unix socket first, and one URI for both families of TCP.
  EXPECT_THAT(endpoints.uris, ElementsAre("nbd+unix:///e?socket=" + path,
                                          "nbd://localhost:" + endpoints.port + "/e"));
}

std::string shell(const std::string& script) {
  FILE* pipe = ::popen(script.c_str(), "r");
  std::string text;
  for (int c = 0; (c = std::fgetc(pipe)) != EOF;) text += static_cast<char>(c);
  ::pclose(pipe);
  return text;
}

TEST(Run, TheShellSeesExactlyTheBytes) {
  for (const std::string& text : {std::string("a'b"), std::string("$x `y` \"z\" \\ \n *"),
                                  std::string("''"), std::string()}) {
    EXPECT_EQ(shell("printf '%s|' " + shell_quote(text)), text + "|");
  }
}

TEST(Run, Variables) {
  Endpoints endpoints;
  endpoints.uris = {"nbd+unix://?socket=/s", "nbd://localhost:1"};
  endpoints.unix_path = "/s";
  endpoints.port = "1";
  const std::string show = "echo \"$uri|$nbd|$exportname|$port|$unixsocket|${tls-unset}\"";
  EXPECT_EQ(shell(run_script(endpoints, "it's", show)),
            "nbd+unix://?socket=/s|nbd+unix://?socket=/s|it's|1|/s|unset\n");
  // Shell variables, not environment.
  EXPECT_EQ(shell(run_script(endpoints, "", "sh -c 'echo $unixsocket'")), "\n");
}

}  // namespace
}  // namespace weft::cli
