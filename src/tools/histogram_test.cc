// SPDX-License-Identifier: BSD-3-Clause
#include "tools/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace weft::tools {
namespace {

TEST(Histogram, AnEmptyOneIsZero) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0u);
  EXPECT_EQ(histogram.min(), 0u);
  EXPECT_EQ(histogram.max(), 0u);
  EXPECT_EQ(histogram.mean(), 0);
  EXPECT_EQ(histogram.percentile(0.5), 0u);
}

TEST(Histogram, SmallValuesAreExact) {
  Histogram histogram;
  for (uint64_t value = 0; value < 128; value++) histogram.add(value);
  EXPECT_EQ(histogram.count(), 128u);
  EXPECT_EQ(histogram.min(), 0u);
  EXPECT_EQ(histogram.max(), 127u);
  EXPECT_DOUBLE_EQ(histogram.mean(), 63.5);
  for (uint64_t value = 0; value < 128; value++) {
    EXPECT_EQ(histogram.percentile(static_cast<double>(value + 1) / 128), value);
  }
}

TEST(Histogram, EveryPowerOfTwoAndItsNeighboursKeepThePromisedWidth) {
  for (unsigned bit = 1; bit < 46; bit++) {
    for (const int64_t delta : {-1, 0, 1}) {
      const uint64_t value = (uint64_t{1} << bit) + static_cast<uint64_t>(delta);
      Histogram histogram;
      histogram.add(value);
      histogram.add(UINT64_MAX);  // so that max() does not hide the bucket's end
      EXPECT_GE(histogram.percentile(0.5), value);
      EXPECT_LE(static_cast<double>(histogram.percentile(0.5)), static_cast<double>(value) * 1.016);
    }
  }
}

TEST(Histogram, HugeValuesShareTheLastBucket) {
  Histogram histogram;
  histogram.add(uint64_t{1} << 46);
  histogram.add(UINT64_MAX);
  EXPECT_EQ(histogram.percentile(0.5), UINT64_MAX);
  EXPECT_EQ(histogram.max(), UINT64_MAX);
}

TEST(Histogram, PercentilesAgreeWithASortedVectorAlsoWhenMerged) {
  std::mt19937_64 random(42);
  std::lognormal_distribution<double> durations(10, 2);
  Histogram parts[3];
  std::vector<uint64_t> all;
  for (int i = 0; i < 100'000; i++) {
    const auto value = static_cast<uint64_t>(durations(random));
    parts[i % 3].add(value);
    all.push_back(value);
  }
  Histogram merged;
  for (const Histogram& part : parts) merged.merge(part);
  std::ranges::sort(all);
  EXPECT_EQ(merged.count(), all.size());
  EXPECT_EQ(merged.min(), all.front());
  EXPECT_EQ(merged.max(), all.back());
  for (const double part : {0.01, 0.5, 0.9, 0.99, 0.999, 0.9999, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(part * static_cast<double>(all.size()))) - 1;
    const auto exact = static_cast<double>(all[rank]);
    EXPECT_GE(static_cast<double>(merged.percentile(part)), exact) << part;
    EXPECT_LE(static_cast<double>(merged.percentile(part)), exact * 1.016 + 1) << part;
  }
}

}  // namespace
}  // namespace weft::tools
