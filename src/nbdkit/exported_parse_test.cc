// SPDX-License-Identifier: BSD-3-Clause
// What nbdkit's parsers make of each text was measured with a plugin under nbdkit 1.32.5.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "base/log.h"
#include "nbdkit/exported.h"

namespace weft::nbdkit {
namespace {

struct Number {
  const char* text;
  std::optional<__int128> value;  // none: it is no number
};

constexpr __int128 kTwo63 = __int128{1} << 63;
constexpr __int128 kTwo64 = __int128{1} << 64;

const Number kNumbers[] = {
    {"0", 0},
    {"1", 1},
    {" 1", 1},
    {"\t7", 7},
    {"\n5", 5},
    {"-1", -1},
    {" -1", -1},
    {"+1", 1},
    {" +1", 1},
    {"-0", 0},
    {"-0x1", -1},
    {"0x10", 16},
    {"0X1F", 31},
    {"+0x1f", 31},
    {"010", 8},
    {"00", 0},
    {"127", 127},
    {"128", 128},
    {"-128", -128},
    {"-129", -129},
    {"255", 255},
    {"0xff", 255},
    {"0377", 255},
    {"256", 256},
    {"32767", 32767},
    {"32768", 32768},
    {"-32768", -32768},
    {"-32769", -32769},
    {"65535", 65535},
    {"65536", 65536},
    {"2147483647", 2147483647},
    {"2147483648", 2147483648},
    {"-2147483648", -2147483648LL},
    {"-2147483649", -2147483649LL},
    {"4294967295", 4294967295},
    {"4294967296", 4294967296},
    {"9223372036854775807", kTwo63 - 1},
    {"9223372036854775808", kTwo63},
    {"-9223372036854775808", -kTwo63},
    {"-9223372036854775809", -kTwo63 - 1},
    {"18446744073709551615", kTwo64 - 1},
    {"18446744073709551616", kTwo64},
    {"99999999999999999999999", kTwo64 * 1000},
    {"", std::nullopt},
    {" ", std::nullopt},
    {"+", std::nullopt},
    {"-", std::nullopt},
    {"+-1", std::nullopt},
    {"-+1", std::nullopt},
    {"++1", std::nullopt},
    {"- 1", std::nullopt},
    {"+ 1", std::nullopt},
    {"1 ", std::nullopt},
    {"1\n", std::nullopt},
    {"08", std::nullopt},
    {"0x", std::nullopt},
    {"0xg", std::nullopt},
    {"0x-1", std::nullopt},
    {"0x+1", std::nullopt},
    {"+0x-1", std::nullopt},
    {"x", std::nullopt},
    {"1.5", std::nullopt},
    {"1,000", std::nullopt},
    {"1k", std::nullopt},
    {"1e3", std::nullopt},
    {"0b11", std::nullopt},
    {"abc", std::nullopt},
};

class Parse : public testing::Test {
 protected:
  Parse() {
    log::Options options;
    options.target = log::Target::kNull;
    log::configure(options);
  }
  ~Parse() override { log::configure({}); }
};

template <typename T>
void check_numbers(int (*parse)(const char*, const char*, T*), const char* name) {
  for (const Number& number : kNumbers) {
    SCOPED_TRACE(std::string(name) + " of '" + number.text + "'");
    bool good = number.value && *number.value >= std::numeric_limits<T>::min() &&
                *number.value <= std::numeric_limits<T>::max();
    // Without a sign even "-0" is refused.
    if (!std::numeric_limits<T>::is_signed &&
        std::string_view(number.text).find('-') != std::string_view::npos) {
      good = false;
    }
    T result = 77;
    EXPECT_EQ(parse("key", number.text, &result), good ? 0 : -1);
    EXPECT_EQ(result, good ? static_cast<T>(*number.value) : T{77});
    EXPECT_EQ(parse("key", number.text, nullptr), good ? 0 : -1);  // just to check it
  }
  T result = 77;
  EXPECT_EQ(parse("key", nullptr, &result), -1);
  EXPECT_EQ(parse(nullptr, "1", &result), 0);
}

TEST_F(Parse, Numbers) {
  check_numbers(nbdkit_parse_int, "int");
  check_numbers(nbdkit_parse_int8_t, "int8_t");
  check_numbers(nbdkit_parse_int16_t, "int16_t");
  check_numbers(nbdkit_parse_int32_t, "int32_t");
  check_numbers(nbdkit_parse_int64_t, "int64_t");
  check_numbers(nbdkit_parse_unsigned, "unsigned");
  check_numbers(nbdkit_parse_uint8_t, "uint8_t");
  check_numbers(nbdkit_parse_uint16_t, "uint16_t");
  check_numbers(nbdkit_parse_uint32_t, "uint32_t");
  check_numbers(nbdkit_parse_uint64_t, "uint64_t");
}

TEST_F(Parse, Sizes) {
  struct {
    const char* text;
    int64_t bytes;  // -1: refused
  } const kSizes[] = {
      {"0", 0},
      {"-0", 0},
      {"+0", 0},
      {"1", 1},
      {"01", 1},
      {"010", 10},
      {"+1", 1},
      {" 1", 1},
      {"\t1k", 1024},
      {"+1k", 1024},
      {"1b", 1},
      {"1B", 1},
      {"1s", 512},
      {"1S", 512},
      {"1k", 1024},
      {"1K", 1024},
      {"1m", 1 << 20},
      {"1M", 1 << 20},
      {"1g", 1 << 30},
      {"1t", int64_t{1} << 40},
      {"1p", int64_t{1} << 50},
      {"1e", int64_t{1} << 60},
      {"7E", int64_t{7} << 60},
      {"8191P", int64_t{8191} << 50},
      {"0s", 0},
      {"0e", 0},
      {"9223372036854775807", INT64_MAX},
      {"18014398509481983s", INT64_MAX - 511},
      {"9007199254740991k", INT64_MAX - 1023},
      {"", -1},
      {" ", -1},
      {"1 ", -1},
      {"1k\n", -1},
      {"8e", -1},
      {"8192P", -1},
      {"7.5e", -1},
      {"1.5M", -1},
      {"1MiB", -1},
      {"1MB", -1},
      {"0x10", -1},
      {"-1", -1},
      {"-1s", -1},
      {"9223372036854775808", -1},
      {"-9223372036854775808", -1},
      {"18014398509481984s", -1},
      {"9007199254740992k", -1},
      {"18446744073709551616", -1},
      {"99999999999999999999999", -1},
      {"s", -1},
      {"k", -1},
      {"1ss", -1},
      {"1kk", -1},
      {"1 k", -1},
      {"1y", -1},
      {"1z", -1},
      {"nan", -1},
  };
  for (const auto& size : kSizes) EXPECT_EQ(nbdkit_parse_size(size.text), size.bytes) << size.text;
  EXPECT_EQ(nbdkit_parse_size(nullptr), -1);
}

TEST_F(Parse, Booleans) {
  for (const char* text :
       {"1", "true", "TRUE", "True", "tRue", "t", "T", "yes", "YES", "y", "Y", "on", "ON", "On"}) {
    EXPECT_EQ(nbdkit_parse_bool(text), 1) << text;
  }
  for (const char* text : {"0", "false", "FALSE", "f", "F", "no", "NO", "n", "N", "off", "OFF"}) {
    EXPECT_EQ(nbdkit_parse_bool(text), 0) << text;
  }
  for (const char* text : {"", "2", "00", "01", " 1", "1 ", "enable", "tr", "onn", "o"}) {
    EXPECT_EQ(nbdkit_parse_bool(text), -1) << text;
  }
  EXPECT_EQ(nbdkit_parse_bool(nullptr), -1);
}

TEST_F(Parse, Probabilities) {
  struct {
    const char* text;
    double value;
  } const kGood[] = {
      {"0", 0},     {"1", 1},    {"0.1", 0.1},    {".5", 0.5},   {"1e-1", 0.1},
      {"10%", 0.1}, {"200%", 2}, {"0.5%", 0.005}, {"1:10", 0.1}, {"1/10", 0.1},
      {"3:2", 1.5}, {"0/1", 0},  {"1.5", 1.5},    {"1:0.5", 2},
  };
  for (const auto& good : kGood) {
    double result = -7;
    EXPECT_EQ(nbdkit_parse_probability("key", good.text, &result), 0) << good.text;
    EXPECT_DOUBLE_EQ(result, good.value) << good.text;
  }
  for (const char* text : {"", "x", "-1", "-0.1", "inf", "nan", "1:0", "0/0", "1:", ":1", "1::2",
                           "1%%", "10 %", "1:10%", "1:-10", "1:inf", "0.1x", "1e999"}) {
    double result = -7;
    EXPECT_EQ(nbdkit_parse_probability("key", text, &result), -1) << text;
    EXPECT_EQ(result, -7) << text;
  }
  EXPECT_EQ(nbdkit_parse_probability("key", "1:2", nullptr), 0);
}

TEST_F(Parse, RefusalsNameTheThing) {
  log::configure({});
  testing::internal::CaptureStderr();
  int number = 0;
  unsigned sec = 0;
  unsigned nsec = 0;
  double probability = 0;
  EXPECT_EQ(nbdkit_parse_int("threads", "1x", &number), -1);
  EXPECT_EQ(nbdkit_parse_unsigned("port", "-1", &sec), -1);
  EXPECT_EQ(nbdkit_parse_size("1.5M"), -1);
  EXPECT_EQ(nbdkit_parse_bool("maybe"), -1);
  EXPECT_EQ(nbdkit_parse_probability("evil", "-1", &probability), -1);
  EXPECT_EQ(nbdkit_parse_delay("wait", "1 h", &sec, &nsec), -1);
  const std::string text = testing::internal::GetCapturedStderr();
  for (const char* part :
       {"threads: '1x'", "port: '-1'", "'1.5M'", "'maybe'", "evil: '-1'", "wait: '1 h'"}) {
    EXPECT_NE(text.find(part), text.npos) << part << " in\n" << text;
  }
}

TEST_F(Parse, Delays) {
  struct {
    const char* text;
    unsigned sec;
    unsigned nsec;
  } const kGood[] = {
      {"0", 0, 0},
      {"1", 1, 0},
      {"1s", 1, 0},
      {"1.2", 1, 200000000},
      {"1.2s", 1, 200000000},
      {"100ms", 0, 100000000},
      {"1500ms", 1, 500000000},
      {"1.2ms", 0, 1200000},
      {"1.2us", 0, 1200},
      {"1.2\u00b5s", 0, 1200},
      {"120\u03bcs", 0, 120000},
      {"1ns", 0, 1},
      {"2000000000ns", 2, 0},
      {"2147483647", 2147483647, 0},
  };
  for (const auto& good : kGood) {
    unsigned sec = 77;
    unsigned nsec = 77;
    EXPECT_EQ(nbdkit_parse_delay("key", good.text, &sec, &nsec), 0) << good.text;
    EXPECT_EQ(sec, good.sec) << good.text;
    EXPECT_EQ(nsec, good.nsec) << good.text;
  }
  for (const char* text :
       {"", "x", "-1", "1 s", "1m", "1h", "ms", "2147483648", "1e99", "nan", "inf"}) {
    unsigned sec = 77;
    unsigned nsec = 77;
    EXPECT_EQ(nbdkit_parse_delay("key", text, &sec, &nsec), -1) << text;
    EXPECT_EQ(sec, 77u) << text;
    EXPECT_EQ(nsec, 77u) << text;
  }
}

}  // namespace
}  // namespace weft::nbdkit
