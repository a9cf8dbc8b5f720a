// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/call_pace.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>

namespace weft::nbdkit {
namespace {

using engine::BlockingKind;
using std::chrono::microseconds;

bool by_loop(const CallPace& pace) {
  return pace.next() == BlockingKind::kShort;
}

// How many of the calls the loop makes, one in `every` of which takes long.
uint64_t made_by_loop(uint64_t calls, uint64_t every) {
  CallPace pace;
  uint64_t count = 0;
  for (uint64_t i = 1; i <= calls; i++) {
    count += by_loop(pace) ? 1 : 0;
    pace.made(pace.next(), i % every == 0 ? microseconds(5000) : microseconds(2));
  }
  return count;
}

TEST(CallPace, NothingIsTrustedThatWasNotSeen) {
  CallPace pace;
  for (uint32_t i = 0; i < CallPace::kRow; i++) {
    EXPECT_FALSE(by_loop(pace));
    pace.made(BlockingKind::kParallel, microseconds(3));
  }
  EXPECT_TRUE(by_loop(pace));
}

TEST(CallPace, LongCallsStayInThePool) {
  CallPace pace;
  for (int i = 0; i < 10'000; i++) {
    EXPECT_FALSE(by_loop(pace));
    pace.made(BlockingKind::kParallel, microseconds(200));
  }
}

TEST(CallPace, TwoLongCallsEndTheTrustAndARowRestoresIt) {
  CallPace pace;
  for (uint32_t i = 0; i < CallPace::kRow; i++) pace.made(BlockingKind::kParallel, microseconds(1));
  pace.made(BlockingKind::kShort, microseconds(5000));
  EXPECT_TRUE(by_loop(pace));
  for (uint32_t i = 2; i < CallPace::kLongApart; i++) {
    pace.made(BlockingKind::kShort, microseconds(1));
  }
  pace.made(BlockingKind::kShort, microseconds(5000));
  EXPECT_FALSE(by_loop(pace));
  uint32_t needed = 0;
  for (; !by_loop(pace) && needed < 1000; needed++) {
    pace.made(BlockingKind::kParallel, microseconds(1));
  }
  EXPECT_GE(needed, 2 * CallPace::kRow);
  EXPECT_LT(needed, 1000u);
}

TEST(CallPace, LongCallsThatAreFarApartEndNothing) {
  CallPace pace;
  for (uint32_t i = 0; i < CallPace::kRow; i++) pace.made(BlockingKind::kParallel, microseconds(1));
  for (int round = 0; round < 10; round++) {
    pace.made(BlockingKind::kShort, microseconds(5000));
    for (uint32_t i = 0; i < CallPace::kLongApart; i++) {
      pace.made(BlockingKind::kShort, microseconds(1));
    }
  }
  EXPECT_TRUE(by_loop(pace));
}

TEST(CallPace, CallsThatGrowLongEndTheTrust) {
  CallPace pace;
  for (uint32_t i = 0; i < CallPace::kRow; i++) pace.made(BlockingKind::kParallel, microseconds(1));
  for (int i = 0; i < 100 && by_loop(pace); i++) pace.made(BlockingKind::kShort, microseconds(100));
  EXPECT_FALSE(by_loop(pace));
}

TEST(CallPace, AnswersOfTheOtherKindDoNotCount) {
  CallPace pace;
  for (int i = 0; i < 100; i++) pace.made(BlockingKind::kShort, microseconds(1));
  EXPECT_FALSE(by_loop(pace));
  for (uint32_t i = 0; i < CallPace::kRow; i++) pace.made(BlockingKind::kParallel, microseconds(1));
  // Calls that were on their way to the pool when the trust came.
  pace.made(BlockingKind::kParallel, microseconds(5000));
  EXPECT_TRUE(by_loop(pace));
}

TEST(CallPace, RareLongCallsAreBorneAndFrequentOnesAreNot) {
  constexpr uint64_t kCalls = 1'000'000;
  EXPECT_GT(made_by_loop(kCalls, 10'000), kCalls * 9 / 10);
  EXPECT_LT(made_by_loop(kCalls, 100), kCalls / 20);
  EXPECT_LT(made_by_loop(kCalls, 10), kCalls / 100);
}

}  // namespace
}  // namespace weft::nbdkit
