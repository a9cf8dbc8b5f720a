// SPDX-License-Identifier: BSD-3-Clause
#include "tools/verify.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "base/result.h"

namespace weft::tools {
namespace {

using testing::HasSubstr;
constexpr uint64_t kSeed = 7;
constexpr BlockState kThird = {BlockContent::kTagged, 3};

std::vector<std::byte> tagged(uint64_t offset, uint32_t generation, size_t size = 4096) {
  std::vector<std::byte> block(size);
  fill_block(block, kSeed, offset, generation);
  return block;
}

TEST(Verify, AFilledBlockIsRight) {
  EXPECT_EQ(check_block(tagged(8192, 3), kSeed, 8192, kThird), "");
  EXPECT_EQ(check_block(tagged(0, 3, 16), kSeed, 0, kThird), "");
  EXPECT_EQ(check_block(std::vector<std::byte>(4096), kSeed, 0, {BlockContent::kZeroes, 3}), "");
  EXPECT_EQ(check_block(tagged(0, 1), kSeed, 0, {BlockContent::kAnything, 3}), "");
}

TEST(Verify, EveryFlippedBitIsFound) {
  for (const BlockContent content : {BlockContent::kTagged, BlockContent::kZeroes}) {
    std::vector<std::byte> block(512);
    if (content == BlockContent::kTagged) block = tagged(512, 3, 512);
    for (size_t at = 0; at < block.size(); at++) {
      for (unsigned bit = 0; bit < 8; bit++) {
        block[at] ^= std::byte{1} << bit;
        EXPECT_THAT(check_block(block, kSeed, 512, {content, 3}),
                    HasSubstr("offset " + std::to_string(512 + at) + " "));
        block[at] ^= std::byte{1} << bit;
      }
    }
  }
}

TEST(Verify, WhatIsFoundInsteadIsNamed) {
  EXPECT_THAT(check_block(tagged(8192, 2), kSeed, 8192, kThird),
              testing::EndsWith("expected generation 3, found generation 2 (older)"));
  EXPECT_THAT(check_block(tagged(4096, 5), kSeed, 8192, kThird),
              testing::EndsWith("found the block of offset 4096, generation 5"));
  EXPECT_THAT(check_block(std::vector<std::byte>(4096), kSeed, 8192, kThird),
              testing::EndsWith("found zeroes"));
  EXPECT_THAT(check_block(tagged(8192, 2), kSeed, 8192, {BlockContent::kZeroes, 3}),
              testing::EndsWith("expected zeroes, found generation 2 (older)"));
  EXPECT_THAT(check_block(std::vector<std::byte>(4096, std::byte{0xab}), kSeed, 8192, kThird),
              testing::EndsWith("found bytes abababababababababababababababab"));
}

TEST(Verify, ATornBlockIsNamed) {
  std::vector<std::byte> block = tagged(8192, 2);
  const std::vector<std::byte> newer = tagged(8192, 3);
  std::copy(newer.begin() + 2048, newer.end(), block.begin() + 2048);
  EXPECT_THAT(check_block(block, kSeed, 8192, kThird),
              testing::EndsWith("found generation 2 (older), not all of it"));
}

TEST(Verify, OtherSeedOffsetOrGenerationMakesOtherBytes) {
  std::vector<std::byte> other(4096);
  fill_block(other, kSeed + 1, 0, 1);
  const std::vector<std::byte> block = tagged(0, 1);
  EXPECT_NE(block, other);
  EXPECT_NE(block, tagged(0, 2));
  EXPECT_NE(block, tagged(4096, 1));
  EXPECT_EQ(block, tagged(0, 1));
}

TEST(BlockTable, AChangeExcludesEverythingElseOnItsBlock) {
  BlockTable table(10);
  BlockState state;
  uint32_t generation = 0;
  ASSERT_TRUE(table.begin_change(3, generation));
  EXPECT_EQ(generation, 1u);
  EXPECT_FALSE(table.begin_change(3, generation));
  EXPECT_FALSE(table.begin_read(3, state));
  EXPECT_TRUE(table.begin_read(4, state));
  EXPECT_EQ(state.content, BlockContent::kAnything);
  table.end_change(3, BlockContent::kTagged);
  ASSERT_TRUE(table.begin_read(3, state));
  ASSERT_TRUE(table.begin_read(3, state));
  EXPECT_EQ(state.content, BlockContent::kTagged);
  EXPECT_EQ(state.generation, 1u);
  EXPECT_FALSE(table.begin_change(3, generation));
  table.end_read(3);
  EXPECT_FALSE(table.begin_change(3, generation));
  table.end_read(3);
  ASSERT_TRUE(table.begin_change(3, generation));
  EXPECT_EQ(generation, 2u);
  table.end_change(3, BlockContent::kZeroes);
  ASSERT_TRUE(table.begin_read(3, state));
  EXPECT_EQ(state.content, BlockContent::kZeroes);
}

TEST(BlockTable, ThreadsNeverChangeOneBlockAtOnce) {
  BlockTable table(1);
  constexpr int kThreads = 4;
  constexpr uint32_t kChanges = 2000;
  uint32_t plain = 0;  // protected by the table alone
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; i++) {
      threads.emplace_back([&] {
        for (uint32_t done = 0; done < kChanges;) {
          uint32_t generation = 0;
          if (!table.begin_change(0, generation)) {
            std::this_thread::yield();
            continue;
          }
          plain++;
          table.end_change(0, BlockContent::kTagged);
          done++;
        }
      });
    }
  }
  BlockState state;
  ASSERT_TRUE(table.begin_read(0, state));
  EXPECT_EQ(plain, kThreads * kChanges);
  EXPECT_EQ(state.generation, kThreads * kChanges);
}

TEST(BlockTable, TooManyBlocksAreRefused) {
  EXPECT_THROW(BlockTable(uint64_t{1} << 40), ConfigError);
}

}  // namespace
}  // namespace weft::tools
