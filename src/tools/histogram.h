// SPDX-License-Identifier: BSD-3-Clause
// Histogram: how often each duration occurred, in a fixed 20 KiB. Buckets are as wide as 1/64 of
// the power of two they lie in, so a percentile is at most 1.6 % too high and never too low;
// count, sum, minimum and maximum are exact.
//
// A value below 64 ns has a bucket of its own; all from 2^46 ns (19 hours) on share the last.
// Not synchronised: one for each thread, merged at the end.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace weft::tools {

class Histogram {
 public:
  void add(uint64_t nanoseconds) {
    buckets_[bucket_of(nanoseconds)]++;
    count_++;
    sum_ += nanoseconds;
    min_ = std::min(min_, nanoseconds);
    max_ = std::max(max_, nanoseconds);
  }
  void merge(const Histogram& other);

  [[nodiscard]] uint64_t count() const { return count_; }
  // Nanoseconds; 0 when nothing was added.
  [[nodiscard]] uint64_t min() const { return count_ == 0 ? 0 : min_; }
  [[nodiscard]] uint64_t max() const { return max_; }
  [[nodiscard]] double mean() const;
  // The value that `part` (0 to 1) of all values do not exceed: the upper end of its bucket, but
  // never more than max().
  [[nodiscard]] uint64_t percentile(double part) const;

 private:
  static constexpr unsigned kSubBits = 6;
  static constexpr unsigned kBitsMax = 46;
  static constexpr size_t kBucketCount = (kBitsMax - kSubBits + 1) << kSubBits;

  static size_t bucket_of(uint64_t value) {
    if (value < (1u << kSubBits)) return value;
    const unsigned shift = std::bit_width(value) - kSubBits - 1;
    // The leading bit of value >> shift is bit kSubBits, which carries into the power's number.
    return std::min<size_t>((size_t{shift} << kSubBits) + (value >> shift), kBucketCount - 1);
  }
  static uint64_t bucket_end(size_t bucket);  // the highest value in it

  std::array<uint64_t, kBucketCount> buckets_{};
  uint64_t count_ = 0;
  uint64_t sum_ = 0;
  uint64_t min_ = std::numeric_limits<uint64_t>::max();
  uint64_t max_ = 0;
};

}  // namespace weft::tools
