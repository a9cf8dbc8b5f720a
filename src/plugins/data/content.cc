// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/data/content.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/parse.h"
#include "base/result.h"

namespace weft::plugins {
namespace {

constexpr uint64_t kSizeMax = std::numeric_limits<int64_t>::max();
constexpr std::string_view kBlanks = " \t\r\n\v\f";
constexpr std::string_view kKnown = "bytes (0x55), \"strings\" and @OFFSET are known";

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

class ContentParser {
 public:
  explicit ContentParser(std::string_view text) : text_(text) {}

  Content parse() {
    for (skip_blanks(); at_ < text_.size(); skip_blanks()) {
      const char c = text_[at_];
      if (c == '"') {
        put(parse_string());
      } else if (c == '@') {
        move(word().substr(1));
      } else if (c >= '0' && c <= '9') {
        const std::string_view number = word();
        if (number.find_first_not_of("0123456789abcdefABCDEFxX") != number.npos) {
          refuse(number, "is not understood");
        }
        put(std::string(1, static_cast<char>(parse_unsigned("data", number, 255))));
      } else {
        refuse(word(), "is not understood");
      }
    }
    return std::move(content_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what, std::string_view reason) const {
    throw ConfigError(fmt::format("data: '{}' at character {} {}: {}", what, at_ - what.size() + 1,
                                  reason, kKnown));
  }

  void skip_blanks() {
    for (;;) {
      at_ = std::min(text_.find_first_not_of(kBlanks, at_), text_.size());
      if (at_ == text_.size() || text_[at_] != '#') return;
      at_ = std::min(text_.find('\n', at_), text_.size());
    }
  }

  std::string_view word() {
    const size_t end = std::min(text_.find_first_of(" \t\r\n\v\f\"#", at_), text_.size());
    const std::string_view result = text_.substr(at_, end - at_);
    at_ = end;
    return result;
  }

  std::string parse_string() {
    std::string result;
    const size_t begin = at_++;
    while (at_ < text_.size() && text_[at_] != '"') {
      char c = text_[at_++];
      if (c == '\\' && at_ < text_.size()) c = parse_escape(text_[at_++]);
      result += c;
    }
    if (at_ >= text_.size()) refuse(text_.substr(begin), "has no closing quote");
    at_++;
    return result;
  }

  char parse_escape(char c) {
    switch (c) {
      case 'a':
        return '\a';
      case 'b':
        return '\b';
      case 'f':
        return '\f';
      case 'n':
        return '\n';
      case 'r':
        return '\r';
      case 't':
        return '\t';
      case 'v':
        return '\v';
      case '"':
      case '\\':
        return c;
      case 'x': {
        const int high = at_ + 1 < text_.size() ? hex_digit(text_[at_]) : -1;
        const int low = high >= 0 ? hex_digit(text_[at_ + 1]) : -1;
        if (low < 0) refuse("\\x", "needs two hexadecimal digits");
        at_ += 2;
        return static_cast<char>(high * 16 + low);
      }
      default:
        if (c >= '0' && c <= '7') {
          int value = c - '0';
          for (int i = 0; i < 2 && at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '7';
               i++) {
            value = value * 8 + (text_[at_++] - '0');
          }
          if (value > 255) refuse("\\", "and its octal digits are more than a byte");
          return static_cast<char>(value);
        }
        refuse(std::string{'\\', c}, "is no escape");
    }
  }

  void move(std::string_view where) {
    const char how = where.empty() ? '\0' : where.front();
    if (how == '+' || how == '-' || how == '^') where.remove_prefix(1);
    if (where.empty()) refuse("@", "needs an offset");
    const bool c_number = where.find_first_not_of("0123456789") == where.npos ||
                          where.starts_with("0x") || where.starts_with("0X");
    const uint64_t n =
        c_number ? parse_unsigned("data: @", where, kSizeMax) : parse_size("data: @", where);
    uint64_t to = n;
    if (how == '+') to = offset_ + n;
    if (how == '-') {
      if (n > offset_) refuse(where, "moves before the disk's start");
      to = offset_ - n;
    }
    if (how == '^') {
      if (n == 0) refuse(where, "is no alignment");
      const uint64_t rest = offset_ % n;
      to = rest == 0 ? offset_ : offset_ + (n - rest);
    }
    if (to > kSizeMax) refuse(where, "moves beyond the largest size");
    offset_ = to;
    content_.size = std::max(content_.size, offset_);
  }

  void put(std::string bytes) {
    if (bytes.size() > kSizeMax - offset_) refuse("", "goes beyond the largest size");
    const uint64_t offset = offset_;
    offset_ += bytes.size();
    content_.size = std::max(content_.size, offset_);
    auto& pieces = content_.pieces;
    if (!pieces.empty() && pieces.back().offset + pieces.back().bytes.size() == offset) {
      pieces.back().bytes += bytes;
    } else {
      pieces.push_back({offset, std::move(bytes)});
    }
  }

  const std::string_view text_;
  size_t at_ = 0;
  uint64_t offset_ = 0;
  Content content_;
};

}  // namespace

std::string decode_base64(std::string_view text) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string result;
  uint32_t bits = 0;
  size_t digits = 0;
  size_t padding = 0;
  for (size_t i = 0; i < text.size(); i++) {
    const char c = text[i];
    if (kBlanks.find(c) != kBlanks.npos) continue;
    if (c == '=') {
      padding++;
      continue;
    }
    const size_t digit = kDigits.find(c);
    if (digit == kDigits.npos || padding) {
      throw ConfigError(fmt::format(
          "base64: character {} is not base64: encode the bytes with base64(1)", i + 1));
    }
    bits = bits << 6 | static_cast<uint32_t>(digit);
    digits++;
    if (digits % 4 != 1) result += static_cast<char>(bits >> (6 - 2 * ((digits - 1) % 4)));
  }
  if (digits % 4 == 1 || (padding && (digits + padding) % 4)) {
    throw ConfigError("base64: the text is cut off: encode the bytes with base64(1)");
  }
  return result;
}

Content parse_content(std::string_view text) {
  return ContentParser(text).parse();
}

}  // namespace weft::plugins
