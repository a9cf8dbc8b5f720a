// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <array>

#include "base/bytes.h"
#include "base/extents.h"
#include "base/range.h"
#include "base/result.h"

namespace weft {
namespace {

TEST(Bytes, BigEndianRoundTrip) {
  std::array<std::byte, 14> memory{};
  std::byte* end = store_be<uint16_t>(memory.data(), 0x0102);
  end = store_be<uint32_t>(end, 0x03040506);
  end = store_be<uint64_t>(end, 0x0708090a0b0c0d0e);
  ASSERT_EQ(end, memory.data() + memory.size());
  for (size_t i = 0; i < memory.size(); i++) EXPECT_EQ(memory[i], std::byte(i + 1));
  EXPECT_EQ(load_be<uint16_t>(memory.data()), 0x0102);
  EXPECT_EQ(load_be<uint32_t>(memory.data() + 2), 0x03040506u);
  EXPECT_EQ(load_be<uint64_t>(memory.data() + 6), 0x0708090a0b0c0d0eu);
}

TEST(Range, OverlapAndBounds) {
  const Range a{10, 10};
  EXPECT_TRUE(a.overlaps({19, 1}));
  EXPECT_FALSE(a.overlaps({20, 1}));
  EXPECT_FALSE(a.overlaps({0, 10}));
  EXPECT_TRUE(a.within(20));
  EXPECT_FALSE(a.within(19));
  EXPECT_FALSE((Range{UINT64_MAX, 2}.within(100)));
  EXPECT_EQ((Range{513, 1}.rounded_out(512)), (Range{512, 512}));
  EXPECT_EQ((Range{511, 2}.rounded_out(512)), (Range{0, 1024}));
}

TEST(Extents, JoinsClipsAndStops) {
  Extents extents({100, 50});
  EXPECT_TRUE(extents.append(10, kExtentData));
  EXPECT_TRUE(extents.append(10, kExtentData));
  EXPECT_FALSE(extents.append(1000, kExtentHole | kExtentZero));
  EXPECT_FALSE(extents.append(1, kExtentData));
  EXPECT_EQ(extents.list(), (std::vector<Extent>{{20, 0}, {30, 3}}));
  EXPECT_EQ(extents.end(), 150u);

  Extents one({0, 100}, 1);
  EXPECT_TRUE(one.append(10, kExtentData));
  EXPECT_TRUE(one.append(10, kExtentData));
  EXPECT_FALSE(one.append(10, kExtentZero));
  EXPECT_FALSE(one.append(10, kExtentData));  // not at the place of the refused one
  EXPECT_EQ(one.list(), (std::vector<Extent>{{20, 0}}));
}

TEST(Result, CarriesErrnoAndText) {
  Result<int> r = fail(EIO, "the disk is gone");
  ASSERT_FALSE(r.has_value());
  EXPECT_EQ(r.error().code, EIO);
  EXPECT_STREQ(r.error().text, "the disk is gone");
  EXPECT_EQ(errno_text(ENOENT), "No such file or directory");
}

}  // namespace
}  // namespace weft
