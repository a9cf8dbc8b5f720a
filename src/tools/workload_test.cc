// SPDX-License-Identifier: BSD-3-Clause
#include "tools/workload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/result.h"

namespace weft::tools {
namespace {

std::string error_of(std::string_view text) {
  try {
    (void)parse_mix(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Mix, NamesAndShares) {
  const Mix mix = parse_mix("write=20,read=70,zero=5,trim=3,flush=1,cache");
  EXPECT_EQ(mix.weight(OpKind::kRead), 70u);
  EXPECT_EQ(mix.weight(OpKind::kWrite), 20u);
  EXPECT_EQ(mix.weight(OpKind::kCache), 1u);
  EXPECT_EQ(mix.total(), 100u);
  EXPECT_TRUE(mix.changes_data());
  EXPECT_EQ(mix.text(), "read=70,write=20,zero=5,trim=3,cache=1,flush=1");
  EXPECT_EQ(parse_mix(mix.text()).weights, mix.weights);
}

TEST(Mix, OnlyWriteZeroAndTrimChangeData) {
  EXPECT_FALSE(parse_mix("read=1,cache=1,flush=1,write=0").changes_data());
  EXPECT_TRUE(parse_mix("zero").changes_data());
  EXPECT_TRUE(parse_mix("trim").changes_data());
}

TEST(Mix, WhatIsWrongIsRefused) {
  EXPECT_THAT(error_of("reed=1"), testing::HasSubstr("'reed' is no operation"));
  EXPECT_THAT(error_of(""), testing::HasSubstr("'' is no operation"));
  EXPECT_THAT(error_of("read=1,"), testing::HasSubstr("'' is no operation"));
  EXPECT_THAT(error_of("read=1,read=2"), testing::HasSubstr("twice"));
  EXPECT_THAT(error_of("read=0"), testing::HasSubstr("all shares are 0"));
  EXPECT_THAT(error_of("read=x"), testing::HasSubstr("--mix: read"));
  EXPECT_THAT(error_of("read=-1"), testing::HasSubstr("--mix: read"));
}

Workload workload_of(std::string_view mix) {
  Workload workload;
  workload.mix = parse_mix(mix);
  workload.block_first = 100;
  workload.block_count = 10;
  return workload;
}

TEST(Generator, TheSeedDecidesEverything) {
  Workload workload = workload_of("read=3,write=2,flush=1");
  workload.fua_percent = 50;
  Generator first(workload);
  Generator second(workload);
  workload.seed = 2;
  Generator other(workload);
  int differences = 0;
  for (int i = 0; i < 1000; i++) {
    const Operation a = first.next();
    const Operation b = second.next();
    const Operation c = other.next();
    ASSERT_EQ(a.kind, b.kind);
    ASSERT_EQ(a.block, b.block);
    ASSERT_EQ(a.fua, b.fua);
    if (a.kind != c.kind || a.block != c.block) differences++;
  }
  EXPECT_GT(differences, 500);
}

TEST(Generator, TheMixIsKeptAndBlocksAreSpread) {
  Workload workload = workload_of("read=70,write=20,zero=5,trim=3,cache=1,flush=1");
  workload.fua_percent = 25;
  Generator generator(workload);
  std::map<OpKind, int> kinds;
  std::map<uint64_t, int> blocks;
  int fua = 0;
  for (int i = 0; i < 100'000; i++) {
    const Operation operation = generator.next();
    kinds[operation.kind]++;
    if (operation.fua) {
      ASSERT_TRUE(changes(operation.kind));
      fua++;
    }
    if (operation.kind != OpKind::kFlush) blocks[operation.block]++;
  }
  EXPECT_NEAR(kinds[OpKind::kRead], 70'000, 1000);
  EXPECT_NEAR(kinds[OpKind::kWrite], 20'000, 1000);
  EXPECT_NEAR(kinds[OpKind::kZero], 5'000, 500);
  EXPECT_NEAR(kinds[OpKind::kTrim], 3'000, 500);
  EXPECT_NEAR(kinds[OpKind::kCache], 1'000, 200);
  EXPECT_NEAR(kinds[OpKind::kFlush], 1'000, 200);
  EXPECT_NEAR(fua, 7'000, 500);
  ASSERT_EQ(blocks.size(), 10u);
  EXPECT_EQ(blocks.begin()->first, 100u);
  for (const auto& [block, count] : blocks) EXPECT_NEAR(count, 9'900, 500) << block;
}

TEST(Generator, AscendingBlocksBeginAgainAtTheEnd) {
  Workload workload = workload_of("read");
  workload.random = false;
  workload.block_start = 8;
  Generator generator(workload);
  std::vector<uint64_t> blocks;
  for (int i = 0; i < 5; i++) blocks.push_back(generator.next().block);
  EXPECT_EQ(blocks, (std::vector<uint64_t>{108, 109, 100, 101, 102}));
}

TEST(Generator, AFlushFollowsEveryNthChange) {
  Workload workload = workload_of("read=1,write=1");
  workload.flush_every = 3;
  Generator generator(workload);
  int writes = 0;
  int flushes = 0;
  for (int i = 0; i < 10'000; i++) {
    const Operation operation = generator.next();
    if (operation.kind == OpKind::kWrite) writes++;
    if (operation.kind == OpKind::kFlush) {
      flushes++;
      EXPECT_EQ(writes, 3 * flushes);
    }
  }
  EXPECT_GT(flushes, 1000);
}

}  // namespace
}  // namespace weft::tools
