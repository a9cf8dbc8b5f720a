// SPDX-License-Identifier: BSD-3-Clause
// Tally: what the stats filter counts, and the text that it writes at the end.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "base/range.h"

namespace weft::filters {

enum class Operation : uint8_t { kRead, kWrite, kTrim, kZero, kExtents, kCache, kFlush };
inline constexpr size_t kOperations = 7;

// One kind of operation. Not thread-safe: each connection has its own, and adds it up at its end.
class OperationTally {
 public:
  void add(Range range, std::chrono::nanoseconds time) {
    count_++;
    bytes_ += range.length;
    time_ += time;
    if (range.length != 0) add_size(range);
  }
  void add(const OperationTally& other);

  [[nodiscard]] uint64_t count() const { return count_; }
  [[nodiscard]] uint64_t bytes() const { return bytes_; }
  [[nodiscard]] std::chrono::nanoseconds time() const { return time_; }
  // The distribution of sizes and offsets: the rows that cover `threshold` percent.
  [[nodiscard]] std::string histogram(unsigned threshold) const;

 private:
  // The requests of 2^n to 2^(n+1) - 1 bytes.
  struct Size {
    uint64_t count = 0;
    uint64_t bytes = 0;
    // By the number of zero bits at the end of the offset; [64]: offset 0.
    std::array<uint64_t, 65> alignments{};
  };
  void add_size(Range range);
  Size& size_of(size_t bits);
  static void append_alignments(std::string& text, const Size& size, unsigned threshold);

  uint64_t count_ = 0;
  uint64_t bytes_ = 0;
  std::chrono::nanoseconds time_{0};
  std::array<std::unique_ptr<Size>, 64> sizes_;  // null: no such request
};

class Tally {
 public:
  OperationTally& operator[](Operation operation) {
    return operations_[static_cast<size_t>(operation)];
  }
  void add(const Tally& other) {
    for (size_t i = 0; i < kOperations; i++) operations_[i].add(other.operations_[i]);
  }
  // `elapsed`: since the server started. `threshold`: percent; 0: no histograms.
  [[nodiscard]] std::string report(std::chrono::nanoseconds elapsed, unsigned threshold) const;

 private:
  std::array<OperationTally, kOperations> operations_;
};

}  // namespace weft::filters
