// SPDX-License-Identifier: BSD-3-Clause
#include "tools/histogram.h"

#include <cmath>

namespace weft::tools {

void Histogram::merge(const Histogram& other) {
  for (size_t i = 0; i < kBucketCount; i++) buckets_[i] += other.buckets_[i];
  count_ += other.count_;
  sum_ += other.sum_;
  min_ = std::min(min_, other.min_);
  max_ = std::max(max_, other.max_);
}

double Histogram::mean() const {
  return count_ == 0 ? 0 : static_cast<double>(sum_) / static_cast<double>(count_);
}

uint64_t Histogram::bucket_end(size_t bucket) {
  if (bucket == kBucketCount - 1) return std::numeric_limits<uint64_t>::max();
  if (bucket < (1u << kSubBits)) return bucket;
  const size_t shift = (bucket >> kSubBits) - 1;
  const uint64_t scaled = bucket - (shift << kSubBits);
  return ((scaled + 1) << shift) - 1;
}

uint64_t Histogram::percentile(double part) const {
  if (count_ == 0) return 0;
  const auto wanted = static_cast<uint64_t>(std::ceil(part * static_cast<double>(count_)));
  const uint64_t rank = std::clamp<uint64_t>(wanted, 1, count_);
  uint64_t seen = 0;
  for (size_t i = 0; i < kBucketCount; i++) {
    seen += buckets_[i];
    if (seen >= rank) return std::min(bucket_end(i), max_);
  }
  return max_;
}

}  // namespace weft::tools
