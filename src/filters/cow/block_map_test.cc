// SPDX-License-Identifier: BSD-3-Clause
// BlockMap against a plain vector, and far beyond what a vector can hold.
#include "filters/cow/block_map.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>
#include <vector>

namespace weft::filters::cow {
namespace {

using enum BlockState;

constexpr BlockState kStates[] = {kBelow, kHere, kZero};

TEST(BlockMapTest, RandomChangesAreThoseOfAVector) {
  constexpr uint64_t kBlocks = 40000;  // ten chunks, the last one not whole
  const char* const given = std::getenv("WEFT_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  SCOPED_TRACE(testing::Message() << "WEFT_SEED=" << seed);
  std::mt19937_64 random(seed);
  BlockMap map;
  std::vector<BlockState> model(kBlocks, kBelow);
  for (int step = 0; step < 3000; step++) {
    uint64_t first = random() % kBlocks;
    uint64_t count = 1 + random() % (random() % 4 == 0 ? kBlocks : 300);
    if (random() % 3 == 0) first &= ~uint64_t{4095};
    if (random() % 4 == 0) count = (count + 4095) & ~uint64_t{4095};
    count = std::min(count, kBlocks - first);
    const BlockState state = kStates[random() % 3];
    map.set(first, count, state);
    std::fill_n(model.begin() + static_cast<ptrdiff_t>(first), count, state);

    const uint64_t asked = random() % kBlocks;
    const uint64_t most = 1 + random() % (kBlocks - asked);
    uint64_t length = 1;
    while (length < most && model[asked + length] == model[asked]) length++;
    const BlockMap::Run run = map.run(asked, most);
    ASSERT_EQ(run.state, model[asked]) << "step " << step;
    ASSERT_EQ(run.count, length) << "step " << step;
    for (const BlockState any : kStates) {
      const auto from = model.begin() + static_cast<ptrdiff_t>(asked);
      ASSERT_EQ(map.any(asked, most, any), std::find(from, from + static_cast<ptrdiff_t>(most),
                                                     any) != from + static_cast<ptrdiff_t>(most))
          << "step " << step;
    }
  }
}

TEST(BlockMapTest, TheLargestDiskIsZeroedAtOnce) {
  constexpr uint64_t kBlocks = uint64_t{1} << 51;  // of 4 KiB
  BlockMap map;
  EXPECT_EQ(map.run(0, kBlocks).count, kBlocks);
  map.set(0, kBlocks, kZero);
  EXPECT_EQ(map.run(5, kBlocks - 5).count, kBlocks - 5);
  map.set(kBlocks / 2, 1, kHere);
  EXPECT_EQ(map.run(0, kBlocks).count, kBlocks / 2);
  EXPECT_EQ(map.run(kBlocks / 2, kBlocks / 2).state, kHere);
  EXPECT_EQ(map.run(kBlocks / 2 + 1, kBlocks / 2 - 1).count, kBlocks / 2 - 1);
  EXPECT_TRUE(map.zeroed());
}

}  // namespace
}  // namespace weft::filters::cow
