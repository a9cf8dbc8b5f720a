// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/data/content.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"

namespace weft::plugins {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// The disk that the text describes.
std::string disk_of(std::string_view text) {
  const Content content = parse_content(text);
  std::string disk(content.size, '\0');
  for (const Content::Piece& piece : content.pieces) {
    disk.replace(piece.offset, piece.bytes.size(), piece.bytes);
  }
  return disk;
}

std::string refusal(std::string_view text) {
  try {
    (void)parse_content(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(accepted)";
}

TEST(Content, BytesStringsAndOffsets) {
  using namespace std::string_literals;
  EXPECT_EQ(disk_of(""), "");
  EXPECT_EQ(disk_of("1 0x2 010 255"), "\x01\x02\x08\xff"s);
  EXPECT_EQ(disk_of("\"text\" 0"), "text\0"s);
  EXPECT_EQ(disk_of("\"\\n\\t\\\"\\\\\\x41\\101\\0\""), "\n\t\"\\AA\0"s);
  EXPECT_EQ(disk_of("@3 1"), "\0\0\0\x01"s);
  EXPECT_EQ(disk_of("@0x3 1 @0 2"), "\x02\0\0\x01"s);
  EXPECT_EQ(disk_of("1 @+2 1 @-1 2"), "\x01\0\0\x02"s);
  EXPECT_EQ(disk_of("1 @^4 2 @^4"), "\x01\0\0\0\x02\0\0\0"s);
  EXPECT_EQ(disk_of("# nothing\n1 # one\n2"), "\x01\x02"s);
  EXPECT_EQ(parse_content("@1m 1").size, (1u << 20) + 1);
  EXPECT_EQ(disk_of("\"a\"\"b\"99"), "abc");
}

TEST(Content, RefusesWithThePlace) {
  EXPECT_THAT(refusal("1 256"), AllOf(HasSubstr("'256'"), HasSubstr("0 to 255")));
  EXPECT_THAT(refusal("1 (2)*3"), AllOf(HasSubstr("'(2)*3' at character 3"), HasSubstr("@OFFSET"),
                                        Not(HasSubstr("\n"))));
  EXPECT_THAT(refusal("0x55*8"), HasSubstr("'0x55*8' at character 1 is not understood"));
  EXPECT_THAT(refusal("\"abc"), HasSubstr("no closing quote"));
  EXPECT_THAT(refusal("\"\\q\""), HasSubstr("is no escape"));
  EXPECT_THAT(refusal("\"\\x1\""), HasSubstr("two hexadecimal digits"));
  EXPECT_THAT(refusal("\"\\777\""), HasSubstr("more than a byte"));
  EXPECT_THAT(refusal("@-1"), HasSubstr("before the disk's start"));
  EXPECT_THAT(refusal("@"), HasSubstr("needs an offset"));
  EXPECT_THAT(refusal("@^0"), HasSubstr("no alignment"));
  EXPECT_THAT(refusal("@9223372036854775807 1"), HasSubstr("largest size"));
  EXPECT_THAT(refusal("@9223372036854775807 @+1"), HasSubstr("largest size"));
}

TEST(Base64, TheVectorsOfTheStandard) {
  EXPECT_EQ(decode_base64(""), "");
  EXPECT_EQ(decode_base64("Zg=="), "f");
  EXPECT_EQ(decode_base64("Zm8="), "fo");
  EXPECT_EQ(decode_base64("Zm9v"), "foo");
  EXPECT_EQ(decode_base64("Zm9vYg=="), "foob");
  EXPECT_EQ(decode_base64("Zm9vYmE="), "fooba");
  EXPECT_EQ(decode_base64("Zm9vYmFy"), "foobar");
  EXPECT_EQ(decode_base64("Zm9v\nYmE"), "fooba");
  EXPECT_EQ(decode_base64("/+8="), "\xff\xef");
}

TEST(Base64, RefusesWhatIsNone) {
  for (const char* text : {"Z", "Zm9vY", "Zm!v", "Zg=a", "Zg=", "Zg==="}) {
    EXPECT_THROW((void)decode_base64(text), ConfigError) << text;
  }
}

}  // namespace
}  // namespace weft::plugins
