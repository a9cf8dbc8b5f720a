// SPDX-License-Identifier: BSD-3-Clause
// The text is that of nbdkit's stats filter, for the programs that read it.
#include "filters/stats/tally.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

namespace weft::filters {
namespace {

using std::chrono::nanoseconds;

constexpr std::array<const char*, kOperations> kNames = {"read",    "write", "trim", "zero",
                                                         "extents", "cache", "flush"};
constexpr size_t kAtOffsetZero = 64;

// Whether the operation's bytes are those of data that was read or changed.
bool moves_data(Operation operation) {
  return operation != Operation::kExtents && operation != Operation::kCache &&
         operation != Operation::kFlush;
}

std::string size_text(uint64_t bytes) {
  const auto number = static_cast<double>(bytes);
  if (bytes < uint64_t{1} << 10) return fmt::format("{} bytes", bytes);
  if (bytes < uint64_t{1} << 20) return fmt::format("{:.2f} KiB", number / (1 << 10));
  if (bytes < uint64_t{1} << 30) return fmt::format("{:.2f} MiB", number / (1 << 20));
  return fmt::format("{:.2f} GiB", number / (1 << 30));
}

std::string rate_text(uint64_t bytes, nanoseconds time) {
  if (time.count() <= 0) return "(n/a)/s";
  const double rate = static_cast<double>(bytes) * 1e9 / static_cast<double>(time.count());
  return size_text(static_cast<uint64_t>(std::min(rate, 1e18))) + "/s";
}

double seconds(nanoseconds time) {
  return static_cast<double>(time.count()) / 1e9;
}

double percent(uint64_t part, uint64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

}  // namespace

void OperationTally::add(const OperationTally& other) {
  count_ += other.count_;
  bytes_ += other.bytes_;
  time_ += other.time_;
  for (size_t bits = 0; bits < sizes_.size(); bits++) {
    const Size* const theirs = other.sizes_[bits].get();
    if (!theirs) continue;
    Size& ours = size_of(bits);
    ours.count += theirs->count;
    ours.bytes += theirs->bytes;
    for (size_t i = 0; i < ours.alignments.size(); i++) ours.alignments[i] += theirs->alignments[i];
  }
}

OperationTally::Size& OperationTally::size_of(size_t bits) {
  if (!sizes_[bits]) sizes_[bits] = std::make_unique<Size>();
  return *sizes_[bits];
}

void OperationTally::add_size(Range range) {
  Size& size = size_of(static_cast<size_t>(std::bit_width(range.length)) - 1);
  size.count++;
  size.bytes += range.length;
  size.alignments[static_cast<size_t>(std::countr_zero(range.offset))]++;
}

std::string OperationTally::histogram(unsigned threshold) const {
  std::vector<size_t> order;  // of sizes_, the most frequent first, then the largest
  for (size_t bits = 0; bits < sizes_.size(); bits++) {
    if (sizes_[bits]) order.push_back(bits);
  }
  std::ranges::sort(order, std::greater{},
                    [this](size_t bits) { return std::pair(sizes_[bits]->count, bits); });
  std::string text = "  Request size and alignment breakdown:\n";
  uint64_t shown_count = 0;
  uint64_t shown_bytes = 0;
  for (const size_t bits : order) {
    if (shown_count * 100 >= threshold * count_) break;
    const Size& size = *sizes_[bits];
    text += fmt::format("    {:2} bits: {:4.1f}% ({} reqs, {} total)\n", bits,
                        percent(size.count, count_), size.count, size_text(size.bytes));
    append_alignments(text, size, threshold);
    shown_count += size.count;
    shown_bytes += size.bytes;
  }
  if (shown_count < count_) {
    text += fmt::format("    other sizes: {:4.1f}% ({} reqs, {} total)\n",
                        percent(count_ - shown_count, count_), count_ - shown_count,
                        size_text(bytes_ - shown_bytes));
  }
  return text;
}

// A line says how many have *at least* that alignment; there is one where some have no more. Offset
// 0 has every alignment, and no line of its own.
void OperationTally::append_alignments(std::string& text, const Size& size, unsigned threshold) {
  uint64_t left = size.count;
  const uint64_t too_few = size.count * (100 - threshold) / 100;
  for (size_t bits = 0; bits < kAtOffsetZero; bits++) {
    if (size.alignments[bits] == 0) continue;
    if (left < too_few) {
      text += fmt::format("         {:2}+ bit-aligned: {:4.1f}% ({})\n", bits,
                          percent(left, size.count), left);
      break;
    }
    text += fmt::format("         {:2} bit aligned: {:5.1f}% ({})\n", bits,
                        percent(left, size.count), left);
    left -= size.alignments[bits];
  }
}

std::string Tally::report(nanoseconds elapsed, unsigned threshold) const {
  uint64_t count = 0;
  uint64_t bytes = 0;
  for (size_t i = 0; i < kOperations; i++) {
    count += operations_[i].count();
    if (moves_data(static_cast<Operation>(i))) bytes += operations_[i].bytes();
  }
  std::string text = fmt::format("total: {} ops, {:.6f} s, {}, {}\n", count, seconds(elapsed),
                                 size_text(bytes), rate_text(bytes, elapsed));
  for (size_t i = 0; i < kOperations; i++) {
    const OperationTally& tally = operations_[i];
    if (tally.count() == 0) continue;
    text += fmt::format("{}: {} ops, {:.6f} s, {}, {} op, {} total\n", kNames[i], tally.count(),
                        seconds(tally.time()), size_text(tally.bytes()),
                        rate_text(tally.bytes(), tally.time()), rate_text(tally.bytes(), elapsed));
    if (threshold != 0 && static_cast<Operation>(i) != Operation::kFlush) {
      text += tally.histogram(threshold) + "\n";
    }
  }
  return text;
}

}  // namespace weft::filters
