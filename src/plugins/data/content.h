// SPDX-License-Identifier: BSD-3-Clause
// What the data plugin's parameters say that a disk holds.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft::plugins {

// Pieces of a disk; a later one overwrites an earlier one. Between them there are zeroes.
struct Content {
  struct Piece {
    uint64_t offset;  // bytes
    std::string bytes;
  };
  std::vector<Piece> pieces;
  uint64_t size = 0;  // bytes: the end of the last piece, or where the text moved to
};

// RFC 4648 base64, with or without padding; white space is skipped. Throws ConfigError.
std::string decode_base64(std::string_view text);

// The data= language: bytes as numbers (0x55), "strings" with C's escapes, @OFFSET to go to an
// offset, @+N and @-N to move, @^N to go on to a multiple of N, and comments from # to the end of a
// line. Throws ConfigError, which says where.
Content parse_content(std::string_view text);

}  // namespace weft::plugins
