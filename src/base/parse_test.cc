// SPDX-License-Identifier: BSD-3-Clause
#include "base/parse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace weft {
namespace {

using std::chrono::nanoseconds;
using testing::HasSubstr;

template <typename F>
std::string message_of(F f) {
  try {
    f();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(ParseSize, Accepts) {
  EXPECT_EQ(parse_size("size", "0"), 0u);
  EXPECT_EQ(parse_size("size", "010"), 10u);
  EXPECT_EQ(parse_size("size", "3b"), 3u);
  EXPECT_EQ(parse_size("size", "3B"), 3u);
  EXPECT_EQ(parse_size("size", "3s"), 1536u);
  EXPECT_EQ(parse_size("size", "2k"), 2048u);
  EXPECT_EQ(parse_size("size", "2K"), 2048u);
  EXPECT_EQ(parse_size("size", "1M"), 1u << 20);
  EXPECT_EQ(parse_size("size", "1g"), 1u << 30);
  EXPECT_EQ(parse_size("size", "1T"), uint64_t{1} << 40);
  EXPECT_EQ(parse_size("size", "1p"), uint64_t{1} << 50);
  EXPECT_EQ(parse_size("size", "7E"), uint64_t{7} << 60);
  EXPECT_EQ(parse_size("size", "9223372036854775807"), (uint64_t{1} << 63) - 1);
}

TEST(ParseSize, Refuses) {
  for (const char* value :
       {"", "-1", "+", " ", "+-1", "1 ", "0x10", "1.5M", "1MiB", "1MB", "M", "x", "8E", "16E",
        "1kk", "9223372036854775808", "18446744073709551616", "99999999999999999999999"}) {
    EXPECT_THROW((void)parse_size("size", value), ConfigError) << value;
  }
  EXPECT_THAT(message_of([] { (void)parse_size("size", "1MiB"); }),
              testing::AllOf(HasSubstr("size: '1MiB' is not a size: give"), HasSubstr("1024"),
                             testing::Not(HasSubstr("\n"))));
  EXPECT_THAT(message_of([] { (void)parse_size("size", "8E"); }),
              HasSubstr("is too large: the largest size is 9223372036854775807"));
}

TEST(ParseBool, Words) {
  for (const char* value : {"1", "true", "T", "Yes", "y", "ON"}) {
    EXPECT_TRUE(parse_bool("x", value)) << value;
  }
  for (const char* value : {"0", "false", "F", "No", "n", "OFF"}) {
    EXPECT_FALSE(parse_bool("x", value)) << value;
  }
  for (const char* value : {"", "2", "tru", "yess", " on", "on "}) {
    EXPECT_THROW((void)parse_bool("x", value), ConfigError) << value;
  }
}

TEST(ParseUnsigned, BasesAndLimits) {
  EXPECT_EQ(parse_unsigned("x", "0"), 0u);
  EXPECT_EQ(parse_unsigned("x", " 16"), 16u);
  EXPECT_EQ(parse_unsigned("x", "0x1F"), 31u);
  EXPECT_EQ(parse_unsigned("x", "017"), 15u);
  EXPECT_EQ(parse_unsigned("x", "18446744073709551615"), ~uint64_t{0});
  EXPECT_EQ(parse_unsigned("x", "65535", 65535), 65535u);
  for (const char* value :
       {"", " ", "-1", "+1", "1x", "0x", "08", "x", "1 ", "65536", "18446744073709551616"}) {
    EXPECT_THROW((void)parse_unsigned("x", value, 65535), ConfigError) << value;
  }
  EXPECT_THAT(message_of([] { (void)parse_unsigned("port", "70000", 65535); }),
              HasSubstr("port: '70000' is out of range: give a whole number from 0 to 65535"));
}

TEST(ParseInt, SignsAndLimits) {
  EXPECT_EQ(parse_int("x", "-1"), -1);
  EXPECT_EQ(parse_int("x", "+7"), 7);
  EXPECT_EQ(parse_int("x", "-0x10"), -16);
  EXPECT_EQ(parse_int("x", "-9223372036854775808"), std::numeric_limits<int64_t>::min());
  for (const char* value : {"", "-", "--1", "- 1", "9223372036854775808", "-9223372036854775809"}) {
    EXPECT_THROW((void)parse_int("x", value), ConfigError) << value;
  }
  EXPECT_THROW((void)parse_int("x", "11", 0, 10), ConfigError);
  EXPECT_THROW((void)parse_int("x", "-1", 0, 10), ConfigError);
}

TEST(ParseDelay, Units) {
  EXPECT_EQ(parse_delay("d", "2"), nanoseconds(2'000'000'000));
  EXPECT_EQ(parse_delay("d", "0.5"), nanoseconds(500'000'000));
  EXPECT_EQ(parse_delay("d", "1s"), nanoseconds(1'000'000'000));
  EXPECT_EQ(parse_delay("d", "100ms"), nanoseconds(100'000'000));
  EXPECT_EQ(parse_delay("d", "1.2us"), nanoseconds(1200));
  EXPECT_EQ(parse_delay("d", "1.2\u00b5s"), nanoseconds(1200));
  EXPECT_EQ(parse_delay("d", "7ns"), nanoseconds(7));
  EXPECT_EQ(parse_delay("d", "0"), nanoseconds(0));
  for (const char* value :
       {"", "-1", "x", "1m", "1 s", "1e3", "nan", "inf", "0x1", "999999999999"}) {
    EXPECT_THROW((void)parse_delay("d", value), ConfigError) << value;
  }
}

TEST(ParseProbability, Forms) {
  EXPECT_EQ(parse_probability("p", "0"), 0);
  EXPECT_EQ(parse_probability("p", "0%"), 0);
  EXPECT_EQ(parse_probability("p", "1"), 1);
  EXPECT_EQ(parse_probability("p", "100%"), 1);
  EXPECT_EQ(parse_probability("p", "0.1"), 0.1);
  EXPECT_EQ(parse_probability("p", ".5"), 0.5);
  EXPECT_EQ(parse_probability("p", "1e-3"), 0.001);
  EXPECT_EQ(parse_probability("p", "10%"), 0.1);
  EXPECT_EQ(parse_probability("p", "2.5%"), 0.025);
  EXPECT_EQ(parse_probability("p", "1:10"), 0.1);
  EXPECT_EQ(parse_probability("p", "3:4"), 0.75);
  EXPECT_EQ(parse_probability("p", "1:1e3"), 0.001);
  EXPECT_EQ(parse_probability("p", "0:5"), 0);
}

TEST(ParseProbability, Refuses) {
  for (const char* value : {"",    "x",  "-1",  "-0",    "+0.1",  "1.5",  "101%",  "2:1",  "1:0",
                            "0:0", "1:", ":1",  "1:2:3", "1:2%",  "10%%", "%",     "1/10", "1 %",
                            " 1",  "1 ", "nan", "inf",   "1:inf", "0x1",  "1e999", "1:-2"}) {
    EXPECT_THROW((void)parse_probability("p", value), ConfigError) << value;
  }
  EXPECT_THAT(message_of([] { (void)parse_probability("error-rate", "101%"); }),
              testing::AllOf(HasSubstr("error-rate: '101%' is more than 1: give"),
                             HasSubstr("1:10"), testing::Not(HasSubstr("\n"))));
}

}  // namespace
}  // namespace weft
