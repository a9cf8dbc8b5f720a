// SPDX-License-Identifier: BSD-3-Clause
// For tests and fuzz targets: bytes by hand, and option replies taken apart. Written without the
// encoders under test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace weft::nbd::testing {

using Bytes = std::vector<std::byte>;

// Bytes from hexadecimal digits; blanks are ignored, and text in single quotes stands for itself:
// "0000 0002 'hi'".
inline Bytes hex(std::string_view text) {
  Bytes bytes;
  const auto digit = [](char c) { return c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10; };
  for (size_t i = 0; i < text.size(); i++) {
    if (text[i] == ' ') continue;
    if (text[i] == '\'') {
      while (text[++i] != '\'') bytes.push_back(std::byte(text[i]));
      continue;
    }
    bytes.push_back(std::byte(digit(text[i]) * 16 + digit(text[i + 1])));
    i++;
  }
  return bytes;
}

// Appends fields one after the other: Builder().u32(5).text("hello").bytes.
struct Builder {
  Bytes bytes;

  Builder& number(uint64_t value, int size) {
    for (int i = size - 1; i >= 0; i--) bytes.push_back(std::byte(value >> (8 * i) & 0xff));
    return *this;
  }
  Builder& u16(uint64_t value) { return number(value, 2); }
  Builder& u32(uint64_t value) { return number(value, 4); }
  Builder& u64(uint64_t value) { return number(value, 8); }
  Builder& text(std::string_view value) {
    for (const char c : value) bytes.push_back(std::byte(c));
    return *this;
  }
  Builder& string(std::string_view value) { return u32(value.size()).text(value); }
  Builder& raw(ByteSpan value) {
    bytes.insert(bytes.end(), value.begin(), value.end());
    return *this;
  }
};

inline Bytes option(uint32_t number, ByteSpan data = {}) {
  return Builder().text("IHAVEOPT").u32(number).u32(data.size()).raw(data).bytes;
}

inline Bytes go_data(std::string_view name, const std::vector<uint16_t>& infos) {
  Builder data;
  data.string(name).u16(infos.size());
  for (const uint16_t info : infos) data.u16(info);
  return data.bytes;
}

inline Bytes meta_data(std::string_view name, const std::vector<std::string>& queries) {
  Builder data;
  data.string(name).u32(queries.size());
  for (const std::string& query : queries) data.string(query);
  return data.bytes;
}

inline Bytes joined(std::initializer_list<Bytes> parts) {
  Builder all;
  for (const Bytes& part : parts) all.raw(part);
  return all.bytes;
}

// One reply to an option.
struct Reply {
  uint32_t option = 0;
  uint32_t type = 0;
  Bytes data;
};

inline uint64_t number_at(ByteSpan bytes, size_t at, int size) {
  uint64_t value = 0;
  for (int i = 0; i < size; i++) value = value << 8 | std::to_integer<uint64_t>(bytes[at + i]);
  return value;
}

// Takes a stream of option replies apart. False: it is none, or ends in the middle of one.
inline bool split_replies(ByteSpan bytes, std::vector<Reply>& out) {
  out.clear();
  while (!bytes.empty()) {
    if (bytes.size() < 20 || number_at(bytes, 0, 8) != 0x0003e889045565a9) return false;
    const uint64_t length = number_at(bytes, 16, 4);
    if (length > bytes.size() - 20) return false;
    const ByteSpan data = bytes.subspan(20, length);
    out.push_back({static_cast<uint32_t>(number_at(bytes, 8, 4)),
                   static_cast<uint32_t>(number_at(bytes, 12, 4)),
                   Bytes(data.begin(), data.end())});
    bytes = bytes.subspan(20 + length);
  }
  return true;
}

}  // namespace weft::nbd::testing
