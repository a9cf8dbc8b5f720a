// SPDX-License-Identifier: BSD-3-Clause
#include "base/parse.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <string>

#include "base/result.h"

namespace weft {
namespace {

constexpr std::string_view kProbabilityMend =
    "give a number from 0 to 1, a percentage, or odds, as in 0.1, 10% or 1:10";

constexpr uint64_t kSizeMax = (uint64_t{1} << 63) - 1;

constexpr std::string_view kSizeMend =
    "give a whole number, then at most one of the letters k, m, g, t, p, e (powers of 1024) or s "
    "(512 bytes), as in 10g";
constexpr std::string_view kDelayMend =
    "give a number of seconds, or a number with s, ms, us or ns after it, as in 100ms";

[[noreturn]] void refuse(std::string_view what, std::string_view value, std::string_view reason,
                         std::string_view mend) {
  throw ConfigError(fmt::format("{}: '{}' {}: {}", what, value, reason, mend));
}

bool is_blank(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
  return result;
}

std::string_view without_leading_blanks(std::string_view text) {
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  return text;
}

enum class Outcome { kOk, kNoNumber, kTrailing, kTooBig };

// An unsigned number in base 0 of strtoul(3), without its sign.
Outcome parse_magnitude(std::string_view text, uint64_t& result) {
  int base = 10;
  if (text.size() > 2 && text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) {
    base = 16;
    text.remove_prefix(2);
  } else if (text.size() > 1 && text[0] == '0') {
    base = 8;
  }
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result, base);
  if (error == std::errc::invalid_argument) return Outcome::kNoNumber;
  if (end != text.data() + text.size()) return Outcome::kTrailing;
  return error == std::errc{} ? Outcome::kOk : Outcome::kTooBig;
}

[[noreturn]] void refuse_number(std::string_view what, std::string_view value, Outcome outcome,
                                std::string_view mend) {
  const std::string_view reason = outcome == Outcome::kNoNumber   ? "is not a number"
                                  : outcome == Outcome::kTrailing ? "has something after the number"
                                                                  : "is out of range";
  refuse(what, value, reason, mend);
}

}  // namespace

uint64_t parse_size(std::string_view what, std::string_view value) {
  if (value.empty()) refuse(what, value, "is empty", kSizeMend);
  // Blanks and a sign may come first, as strtol(3) has them; zero may even be negative.
  const size_t first = std::min(value.find_first_not_of(" \t\n\v\f\r"), value.size());
  const bool negative = value.substr(first).starts_with('-');
  const char* const last = value.data() + value.size();
  const char* const digits =
      value.data() + first + (negative || value.substr(first).starts_with('+') ? 1 : 0);
  if (digits == last || !is_digit(*digits)) refuse(what, value, "is not a size", kSizeMend);
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits, last, number, 10);
  if (negative && number != 0) refuse(what, value, "is negative", kSizeMend);
  uint64_t unit = 1;
  if (end != last) {
    switch (*end | 0x20) {
      case 'b':
        break;
      case 's':
        unit = 512;
        break;
      case 'k':
        unit = uint64_t{1} << 10;
        break;
      case 'm':
        unit = uint64_t{1} << 20;
        break;
      case 'g':
        unit = uint64_t{1} << 30;
        break;
      case 't':
        unit = uint64_t{1} << 40;
        break;
      case 'p':
        unit = uint64_t{1} << 50;
        break;
      case 'e':
        unit = uint64_t{1} << 60;
        break;
      default:
        refuse(what, value, "is not a size", kSizeMend);
    }
    if (end + 1 != last) refuse(what, value, "is not a size", kSizeMend);
  }
  uint64_t bytes = 0;
  if (error != std::errc{} || __builtin_mul_overflow(number, unit, &bytes) || bytes > kSizeMax) {
    refuse(what, value, "is too large", "the largest size is 9223372036854775807 bytes");
  }
  return bytes;
}

bool parse_bool(std::string_view what, std::string_view value) {
  static constexpr std::array<std::string_view, 6> kTrue = {"1", "true", "t", "yes", "y", "on"};
  static constexpr std::array<std::string_view, 6> kFalse = {"0", "false", "f", "no", "n", "off"};
  const std::string word = lower(value);
  if (std::ranges::find(kTrue, word) != kTrue.end()) return true;
  if (std::ranges::find(kFalse, word) != kFalse.end()) return false;
  refuse(what, value, "is neither true nor false", "give on or off");
}

uint64_t parse_unsigned(std::string_view what, std::string_view value, uint64_t max) {
  const std::string mend = fmt::format("give a whole number from 0 to {}", max);
  const std::string_view text = without_leading_blanks(value);
  if (text.empty()) refuse(what, value, "is empty", mend);
  if (text.front() == '-' || text.front() == '+') refuse(what, value, "has a sign", mend);
  uint64_t number = 0;
  Outcome outcome = parse_magnitude(text, number);
  if (outcome == Outcome::kOk && number > max) outcome = Outcome::kTooBig;
  if (outcome != Outcome::kOk) refuse_number(what, value, outcome, mend);
  return number;
}

int64_t parse_int(std::string_view what, std::string_view value, int64_t min, int64_t max) {
  const std::string mend = fmt::format("give a whole number from {} to {}", min, max);
  std::string_view text = without_leading_blanks(value);
  if (text.empty()) refuse(what, value, "is empty", mend);
  const bool negative = text.front() == '-';
  if (negative || text.front() == '+') text.remove_prefix(1);
  if (text.empty() || !is_digit(text.front())) refuse(what, value, "is not a number", mend);
  uint64_t magnitude = 0;
  Outcome outcome = parse_magnitude(text, magnitude);
  const uint64_t limit = kSizeMax + (negative ? 1 : 0);
  if (outcome == Outcome::kOk && magnitude > limit) outcome = Outcome::kTooBig;
  const int64_t number = static_cast<int64_t>(negative ? uint64_t{0} - magnitude : magnitude);
  if (outcome == Outcome::kOk && (number < min || number > max)) outcome = Outcome::kTooBig;
  if (outcome != Outcome::kOk) refuse_number(what, value, outcome, mend);
  return number;
}

std::chrono::nanoseconds parse_delay(std::string_view what, std::string_view value) {
  if (value.empty()) refuse(what, value, "is empty", kDelayMend);
  if (value.front() == '-') refuse(what, value, "is negative", kDelayMend);
  if (!is_digit(value.front()) && value.front() != '.') {
    refuse(what, value, "is not a time", kDelayMend);
  }
  double number = 0;
  const char* const last = value.data() + value.size();
  const auto [end, error] = std::from_chars(value.data(), last, number, std::chars_format::fixed);
  if (error == std::errc::invalid_argument) refuse(what, value, "is not a time", kDelayMend);
  const std::string_view unit(end, last);
  double scale = 0;
  if (unit.empty() || unit == "s") {
    scale = 1e9;
  } else if (unit == "ms") {
    scale = 1e6;
  } else if (unit == "us" || unit == "\u00b5s" || unit == "\u03bcs") {
    scale = 1e3;
  } else if (unit == "ns") {
    scale = 1;
  } else {
    refuse(what, value, "has an unknown unit", kDelayMend);
  }
  constexpr double kDelayMax = 100.0 * 365 * 86400 * 1e9;
  if (error != std::errc{} || number * scale > kDelayMax) {
    refuse(what, value, "is too long", "the longest time is a hundred years");
  }
  return std::chrono::nanoseconds(static_cast<int64_t>(number * scale + 0.5));
}

double parse_probability(std::string_view what, std::string_view value) {
  if (value.empty()) refuse(what, value, "is empty", kProbabilityMend);
  // Without a sign, and without what else from_chars() takes for a number: inf, nan.
  const auto number = [&](std::string_view& text) {
    double result = 0;
    if (text.empty() || (!is_digit(text.front()) && text.front() != '.')) {
      refuse(what, value, "is not a probability", kProbabilityMend);
    }
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), result);
    if (error != std::errc{}) refuse(what, value, "is not a probability", kProbabilityMend);
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    return result;
  };
  std::string_view rest = value;
  double result = number(rest);
  if (rest.starts_with(':')) {
    rest.remove_prefix(1);
    const double whole = number(rest);
    if (whole == 0) refuse(what, value, "has odds in 0", kProbabilityMend);
    result /= whole;
  } else if (rest == "%") {
    rest.remove_prefix(1);
    result /= 100;
  }
  if (!rest.empty()) refuse(what, value, "is not a probability", kProbabilityMend);
  if (result > 1) refuse(what, value, "is more than 1", kProbabilityMend);
  return result;
}

}  // namespace weft
