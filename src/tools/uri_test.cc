// SPDX-License-Identifier: BSD-3-Clause
#include "tools/uri.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace weft::tools {
namespace {

using testing::HasSubstr;

std::string error_of(std::string_view text) {
  try {
    (void)parse_target(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Uri, TcpTargets) {
  EXPECT_EQ(parse_target("nbd://localhost/"), (Target{"", "localhost", "10809", ""}));
  EXPECT_EQ(parse_target("nbd://localhost"), (Target{"", "localhost", "10809", ""}));
  EXPECT_EQ(parse_target("nbd://10.0.0.1:99/disk"), (Target{"", "10.0.0.1", "99", "disk"}));
  EXPECT_EQ(parse_target("nbd://[::1]:99/a/b"), (Target{"", "::1", "99", "a/b"}));
  EXPECT_EQ(parse_target("nbd://[fe80::1]/"), (Target{"", "fe80::1", "10809", ""}));
  EXPECT_EQ(parse_target("nbd://h//disk"), (Target{"", "h", "10809", "/disk"}));
}

TEST(Uri, UnixTargets) {
  EXPECT_EQ(parse_target("nbd+unix:///?socket=/run/s"), (Target{"/run/s", "", "", ""}));
  EXPECT_EQ(parse_target("nbd+unix://?socket=s"), (Target{"s", "", "", ""}));
  EXPECT_EQ(parse_target("nbd+unix:///a%20b%3f?socket=/run/%25s"),
            (Target{"/run/%s", "", "", "a b?"}));
  EXPECT_EQ(parse_target("/run/%s"), (Target{"/run/%s", "", "", ""}));
  EXPECT_EQ(parse_target("./s"), (Target{"./s", "", "", ""}));
}

TEST(Uri, WrittenAndReadAgainIsTheSame) {
  for (const Target& target : {Target{"/tmp/a b&c#?", "", "", "x%/y z"}, Target{"", "::1", "1", ""},
                               Target{"", "host", "65535", "\xc3\xa4?#"}}) {
    EXPECT_EQ(parse_target(target.uri()), target) << target.uri();
  }
}

TEST(Uri, TlsIsRefusedByName) {
  EXPECT_THAT(error_of("nbds://host/"), HasSubstr("TLS (nbds:) is not supported"));
  EXPECT_THAT(error_of("nbds+unix:///?socket=s"), HasSubstr("TLS (nbds:) is not supported"));
}

TEST(Uri, WhatIsWrongIsRefused) {
  for (const char* text : {"",
                           "socket",
                           "http://host/",
                           "nbd+vsock://1/",
                           "nbd://",
                           "nbd:///x",
                           "nbd://h:0/",
                           "nbd://h:65536/",
                           "nbd://h:x/",
                           "nbd://h:1x/",
                           "nbd://::1/",
                           "nbd://[::1/",
                           "nbd://[::1]x/",
                           "nbd://h/?socket=s",
                           "nbd://h/%4",
                           "nbd://h/%zz",
                           "nbd://h/a%00b",
                           "nbd://h/a#b",
                           "nbd://user@h/",
                           "nbd+unix:///x",
                           "nbd+unix:///?socket=",
                           "nbd+unix:///?sock=s",
                           "nbd+unix:///?socket=s&a=b",
                           "nbd+unix://h/?socket=s"}) {
    EXPECT_THAT(error_of(text), HasSubstr(std::string("'") + text + "'"));
  }
  EXPECT_THAT(error_of("/" + std::string(107, 'x')), HasSubstr("107 bytes"));
  EXPECT_EQ(error_of("/" + std::string(106, 'x')), "");
  EXPECT_THAT(error_of("nbd://h/" + std::string(4097, 'x')), HasSubstr("4096"));
}

}  // namespace
}  // namespace weft::tools
