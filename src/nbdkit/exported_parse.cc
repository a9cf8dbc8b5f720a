// SPDX-License-Identifier: BSD-3-Clause
// Values of parameters as text. The grammar is base/parse.h's; where nbdkit's functions take more
// (a '+' before an unsigned number, probabilities above 1), it is added here.
#include <fmt/format.h>

#include <cerrno>
#include <charconv>
#include <climits>
#include <cmath>
#include <limits>
#include <string>
#include <string_view>

#include "base/log.h"
#include "base/parse.h"
#include "base/result.h"
#include "nbdkit/call.h"
#include "nbdkit/exported.h"

namespace {

using weft::ConfigError;
using weft::log::Level;
using weft::nbdkit::say;

// Null, which is a plugin's mistake, is as good as nothing.
std::string_view text_of(const char* string) {
  return string ? std::string_view(string) : std::string_view();
}

// Calls `parse`; a ConfigError becomes a message and -1. Keeps errno.
template <typename F>
int guarded(F parse) {
  try {
    parse();
    return 0;
  } catch (const ConfigError& error) {
    say(Level::kError, error.what());
    return -1;
  }
}

// Leaves `*result`, which may be null, alone unless the text is good.
template <typename T>
int parse_signed(const char* what, const char* str, T* result) {
  return guarded([&] {
    const int64_t value = weft::parse_int(
        text_of(what), text_of(str), std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
    if (result) *result = static_cast<T>(value);
  });
}

template <typename T>
int parse_unsigned(const char* what, const char* str, T* result) {
  return guarded([&] {
    std::string_view text = text_of(str);
    const size_t sign = text.find_first_not_of(" \t\n\v\f\r");
    if (sign != text.npos && text[sign] == '+' && sign + 1 < text.size() && text[sign + 1] >= '0' &&
        text[sign + 1] <= '9') {
      text.remove_prefix(sign + 1);
    }
    const uint64_t value = weft::parse_unsigned(text_of(what), text, std::numeric_limits<T>::max());
    if (result) *result = static_cast<T>(value);
  });
}

[[noreturn]] void refuse_probability(std::string_view what, std::string_view text) {
  throw ConfigError(fmt::format(
      "{}: '{}' is not a probability: give a number, a percentage, or odds, as in 0.1, 10% or 1:10",
      what, text));
}

// Takes a number off the beginning of `rest`. No sign, no infinity.
double take_number(std::string_view what, std::string_view text, std::string_view& rest) {
  double number = 0;
  const bool begins = !rest.empty() && (rest[0] == '.' || (rest[0] >= '0' && rest[0] <= '9'));
  if (!begins) refuse_probability(what, text);
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), number);
  if (error != std::errc{}) refuse_probability(what, text);
  rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  return number;
}

double parse_probability(std::string_view what, std::string_view text) {
  std::string_view rest = text;
  double result = take_number(what, text, rest);
  if (rest == "%") {
    rest.remove_prefix(1);
    result /= 100;
  } else if (rest.starts_with(':') || rest.starts_with('/')) {
    rest.remove_prefix(1);
    result /= take_number(what, text, rest);
  }
  if (!rest.empty() || !std::isfinite(result)) refuse_probability(what, text);
  return result;
}

}  // namespace

int64_t nbdkit_parse_size(const char* str) {
  int64_t result = -1;
  guarded([&] { result = static_cast<int64_t>(weft::parse_size("size", text_of(str))); });
  return result;
}

int nbdkit_parse_bool(const char* str) {
  int result = -1;
  guarded([&] { result = weft::parse_bool("boolean", text_of(str)) ? 1 : 0; });
  return result;
}

int nbdkit_parse_int(const char* what, const char* str, int* r) {
  return parse_signed(what, str, r);
}
int nbdkit_parse_int8_t(const char* what, const char* str, int8_t* r) {
  return parse_signed(what, str, r);
}
int nbdkit_parse_int16_t(const char* what, const char* str, int16_t* r) {
  return parse_signed(what, str, r);
}
int nbdkit_parse_int32_t(const char* what, const char* str, int32_t* r) {
  return parse_signed(what, str, r);
}
int nbdkit_parse_int64_t(const char* what, const char* str, int64_t* r) {
  return parse_signed(what, str, r);
}

int nbdkit_parse_unsigned(const char* what, const char* str, unsigned* r) {
  return parse_unsigned(what, str, r);
}
int nbdkit_parse_uint8_t(const char* what, const char* str, uint8_t* r) {
  return parse_unsigned(what, str, r);
}
int nbdkit_parse_uint16_t(const char* what, const char* str, uint16_t* r) {
  return parse_unsigned(what, str, r);
}
int nbdkit_parse_uint32_t(const char* what, const char* str, uint32_t* r) {
  return parse_unsigned(what, str, r);
}
int nbdkit_parse_uint64_t(const char* what, const char* str, uint64_t* r) {
  return parse_unsigned(what, str, r);
}

int nbdkit_parse_probability(const char* what, const char* str, double* r) {
  return guarded([&] {
    const double value = parse_probability(text_of(what), text_of(str));
    if (r) *r = value;
  });
}

int nbdkit_parse_delay(const char* what, const char* str, unsigned* sec, unsigned* nsec) {
  return guarded([&] {
    constexpr int64_t kSecond = 1'000'000'000;
    const int64_t value = weft::parse_delay(text_of(what), text_of(str)).count();
    if (value / kSecond > INT_MAX) {
      throw ConfigError(fmt::format("{}: '{}' is too long: the longest time is {} seconds",
                                    text_of(what), text_of(str), INT_MAX));
    }
    if (sec) *sec = static_cast<unsigned>(value / kSecond);
    if (nsec) *nsec = static_cast<unsigned>(value % kSecond);
  });
}
