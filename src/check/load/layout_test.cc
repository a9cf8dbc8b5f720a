// SPDX-License-Identifier: BSD-3-Clause
#include "check/load/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weft::check {
namespace {

using testing::ElementsAre;

constexpr uint64_t kSalt = 4711;

struct Known final : Candidates {
  explicit Known(std::vector<Tag> all = {}) : tags(std::move(all)) {}
  std::vector<Tag> tags;
  int asked = 0;
  std::vector<Tag> candidates(uint32_t) override {
    asked++;
    return tags;
  }
};

std::vector<std::byte> content(Tag tag, Range range) {
  std::vector<std::byte> bytes(range.length);
  fill(tag, kSalt, range.offset, bytes);
  return bytes;
}

TEST(Layout, CellsFollowOneAnotherAndFillTheirBlocks) {
  for (const uint32_t granularity : {1u, 512u, 4096u}) {
    const Layout layout(8192, 3, 4096, granularity);
    EXPECT_EQ(layout.whole(), (Range{8192, 3 * 4096}));
    EXPECT_EQ(layout.blocks(), 3u);
    uint64_t at = 8192;
    for (uint32_t cell = 0; cell < layout.cells(); cell++) {
      const Range where = layout.range(cell);
      EXPECT_EQ(where.offset, at);
      EXPECT_EQ(where.offset % granularity, 0u);
      EXPECT_GE(where.length, 16u);
      at = where.end();
    }
    EXPECT_EQ(at, layout.whole().end());
  }
  EXPECT_GT(Layout(0, 1, 4096, 1).cells(), Layout(0, 1, 4096, 512).cells());
  EXPECT_EQ(Layout(0, 4, 4096, 4096).cells(), 4u);
  EXPECT_EQ(Layout(0, 4, 65536, 65536).cells(), 4u);
}

TEST(Content, TellsItsTagInEveryCell) {
  const Layout layout(0, 2, 4096, 1);
  Known known;
  for (uint32_t cell = 0; cell < layout.cells(); cell++) {
    for (const Tag tag : {kZeroTag, Tag{1}, Tag{77}, kTagMax}) {
      std::vector<Observation> seen;
      recognise(cell, kSalt, layout.range(cell).offset, content(tag, layout.range(cell)), known,
                seen);
      EXPECT_THAT(seen, ElementsAre(Observation{cell, tag, Part::kWhole}));
    }
  }
  EXPECT_EQ(known.asked, 0);
}

TEST(Content, OfAnotherPlaceIsGarbage) {
  Known known({5});
  std::vector<Observation> seen;
  recognise(3, kSalt, 4096, content(5, {8192, 512}), known, seen);
  EXPECT_THAT(seen, ElementsAre(Observation{3, kGarbageTag, Part::kWhole}));
  EXPECT_EQ(known.asked, 1);
}

TEST(Content, OfAnotherLoadIsGarbage) {
  Known known({5});
  std::vector<Observation> seen;
  recognise(3, kSalt + 1, 4096, content(5, {4096, 512}), known, seen);
  EXPECT_THAT(seen, ElementsAre(Observation{3, kGarbageTag, Part::kWhole}));
}

TEST(Content, TornBetweenWordsTellsBoth) {
  const Range range{1543, 505};  // ends in the middle of words
  for (size_t cut = 1; cut < range.length; cut++) {
    std::vector<std::byte> bytes = content(8, range);
    const std::vector<std::byte> rest = content(9, range);
    std::copy(rest.begin() + static_cast<ptrdiff_t>(cut), rest.end(),
              bytes.begin() + static_cast<ptrdiff_t>(cut));
    Known known({8, 9});
    std::vector<Observation> seen;
    recognise(0, kSalt, range.offset, bytes, known, seen);
    for (const Observation& one : seen) {
      EXPECT_TRUE(one.tag == 8 || one.tag == 9) << cut;
      if (one.part == Part::kHead) EXPECT_EQ(one.tag, 8u) << cut;
      if (one.part == Part::kTail) EXPECT_EQ(one.tag, 9u) << cut;
    }
    EXPECT_FALSE(seen.empty());
    // The same bytes when only one of the two could be seen.
    Known none;
    std::vector<Observation> judged;
    recognise(0, kSalt, range.offset, bytes, none, judged);
    if ((range.offset + cut) % 8 == 0) EXPECT_EQ(judged, seen) << cut;
  }
}

TEST(Content, OneWrongByteIsGarbage) {
  const Range range{24, 488};
  for (size_t at = 0; at < range.length; at += 3) {
    std::vector<std::byte> bytes = content(8, range);
    bytes[at] ^= std::byte{0x55};
    Known known({8});
    std::vector<Observation> seen;
    recognise(0, kSalt, range.offset, bytes, known, seen);
    EXPECT_THAT(seen, ElementsAre(Observation{0, kGarbageTag, Part::kWhole})) << at;
  }
}

}  // namespace
}  // namespace weft::check
