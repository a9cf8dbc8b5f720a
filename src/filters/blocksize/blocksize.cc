// SPDX-License-Identifier: BSD-3-Clause
// The blocksize filter: what reaches the layer below is aligned, and no longer than it may be.
//
// Two disks in a row: the splitter, which cuts what is too long, and above it the aligner
// (disk/aligner.h), which makes whole blocks of parts. The aligner needs an order of changes whose
// granularity is the block; where the one below is finer, the disk has one here.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "base/parse.h"
#include "disk/aligner.h"
#include "disk/change_order.h"
#include "disk/per_export.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

constexpr uint64_t kBlockMax = 64 << 10;
constexpr uint64_t kDataMax = 64 << 20;  // of one call, unless the operator or the layer says less
constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

struct Limits {
  uint32_t block;                  // bytes, a power of two
  uint64_t data_max;               // bytes of a read or write: a multiple of block
  uint64_t length_max = kNoLimit;  // bytes of all other calls: a multiple of block, or no limit
  uint64_t size;                   // of the disk
};

// Takes ranges that are aligned to the block.
class Splitter final : public disk::FilterDisk {
 public:
  Splitter(std::unique_ptr<disk::Disk> next, const Limits& limits,
           std::shared_ptr<disk::ChangeOrder> order)
      : FilterDisk(std::move(next), disk::Reads::kForwarded),
        limits_(limits),
        order_(std::move(order)) {
    capabilities_.size = limits.size;
    disk::BlockSize& sizes = capabilities_.block_size;
    sizes.minimum = limits.block;
    sizes.preferred = std::max(sizes.preferred, limits.block);
    sizes.maximum = std::max(sizes.maximum, disk::BlockSize{}.maximum);
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    if (into.size() <= limits_.data_max) return next().read(offset, into);
    return read_split(offset, into);
  }
  bool lend(Range range, disk::Lease& lease) override {
    return range.length <= limits_.data_max && FilterDisk::lend(range, lease);
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    if (from.size() <= limits_.data_max) return next().write(offset, from, fua);
    return write_split(offset, from, fua);
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    if (range.length <= limits_.length_max) return next().zero(range, flags);
    return zero_split(range, flags);
  }
  Task<Status> trim(Range range, bool fua) override {
    if (range.length <= limits_.length_max) return next().trim(range, fua);
    return trim_split(range, fua);
  }
  Task<Status> cache(Range range) override {
    if (range.length <= limits_.length_max) return next().cache(range);
    return cache_split(range);
  }
  Task<Status> extents(Extents& into, bool one) override {
    if (into.window().length <= limits_.length_max) return next().extents(into, one);
    return extents_split(into, one);
  }

  disk::ChangeOrder* order() override { return order_ ? order_.get() : next().order(); }

 private:
  // FUA of several pieces: one flush at the end, where there is one.
  [[nodiscard]] bool flush_at_end(bool fua) const {
    return fua && capabilities_.flush != Support::kNone;
  }
  static Range first(Range range, uint64_t max) {
    return {range.offset, std::min(range.length, max)};
  }
  static Range after(Range range, Range piece) {
    return {piece.end(), range.length - piece.length};
  }

  Task<Status> read_split(uint64_t offset, MutableByteSpan into) {
    while (!into.empty()) {
      const size_t length = std::min<size_t>(into.size(), limits_.data_max);
      const Status done = co_await next().read(offset, into.first(length));
      if (!done) co_return done;
      into = into.subspan(length);
      offset += length;
    }
    co_return Status{};
  }

  Task<Status> write_split(uint64_t offset, ByteSpan from, bool fua) {
    const bool flushed = flush_at_end(fua);
    while (!from.empty()) {
      const size_t length = std::min<size_t>(from.size(), limits_.data_max);
      const Status done = co_await next().write(offset, from.first(length), fua && !flushed);
      if (!done) co_return done;
      from = from.subspan(length);
      offset += length;
    }
    if (flushed) co_return co_await next().flush();
    co_return Status{};
  }

  Task<Status> zero_split(Range range, disk::ZeroFlags flags) {
    const bool flushed = flush_at_end(flags.fua);
    if (flushed) flags.fua = false;
    const uint64_t begin = range.offset;
    while (!range.empty()) {
      const Range piece = first(range, limits_.length_max);
      Status done = co_await next().zero(piece, flags);
      // Once something has been changed, a refusal comes too late.
      if (!done && done.error().code == ENOTSUP && flags.fast && piece.offset > begin) {
        flags.fast = false;
        done = co_await next().zero(piece, flags);
      }
      if (!done) co_return done;
      range = after(range, piece);
    }
    if (flushed) co_return co_await next().flush();
    co_return Status{};
  }

  Task<Status> trim_split(Range range, bool fua) {
    const bool flushed = flush_at_end(fua);
    while (!range.empty()) {
      const Range piece = first(range, limits_.length_max);
      const Status done = co_await next().trim(piece, fua && !flushed);
      if (!done) co_return done;
      range = after(range, piece);
    }
    if (flushed) co_return co_await next().flush();
    co_return Status{};
  }

  Task<Status> cache_split(Range range) {
    while (!range.empty()) {
      const Range piece = first(range, limits_.length_max);
      const Status done = co_await next().cache(piece);
      if (!done) co_return done;
      range = after(range, piece);
    }
    co_return Status{};
  }

  // One piece is enough: who wants more asks again.
  Task<Status> extents_split(Extents& into, bool one) {
    Extents piece(first(into.window(), limits_.length_max));
    const Status done = co_await next().extents(piece, one);
    if (!done) co_return done;
    for (const Extent& extent : piece.list()) {
      if (!into.append(extent.length, extent.flags)) break;
    }
    co_return Status{};
  }

  const Limits limits_;
  const std::shared_ptr<disk::ChangeOrder> order_;
};

class Blocksize final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "minblock") {
      block_ = parse("minblock", value);
      if (!std::has_single_bit(block_) || block_ > kBlockMax) {
        throw ConfigError(
            fmt::format("minblock: {} is not a power of two up to 64k: give one, as in 4k", value));
      }
    } else if (key == "maxdata") {
      data_max_ = parse("maxdata", value);
    } else if (key == "maxlen") {
      length_max_ = parse("maxlen", value);
    } else {
      return false;
    }
    return true;
  }

  void complete() override {
    check_multiple("maxdata", data_max_);
    check_multiple("maxlen", length_max_);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    const std::string name = request.name;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    const disk::Capabilities& can = (*next)->capabilities();
    const Limits limits = limits_for(can);
    std::shared_ptr<disk::ChangeOrder> order;
    const disk::ChangeOrder* const below = (*next)->order();
    if (can.writable && (!below || below->granularity() < limits.block)) {
      order = orders_.get(fmt::format("{} {}", limits.block, disk::storage_key(**next)),
                          [&] { return std::make_shared<disk::ChangeOrder>(limits.block); });
    }
    std::unique_ptr<disk::Disk> split =
        std::make_unique<Splitter>(std::move(*next), limits, std::move(order));
    if (limits.block == 1) co_return split;
    co_return disk::make_aligner(std::move(split));
  }

 private:
  static uint64_t parse(const char* key, std::string_view value) {
    const uint64_t size = parse_size(key, value);
    if (size == 0) {
      throw ConfigError(fmt::format("{}: 0 is no size: give a larger one or leave it out", key));
    }
    return size;
  }

  void check_multiple(const char* key, uint64_t size) const {
    if (size % block_ != 0) {
      throw ConfigError(fmt::format("{}: {} is not a multiple of minblock, {}: give one that is",
                                    key, size, block_));
    }
  }

  // The operator's wishes and what the disk below says of itself.
  [[nodiscard]] Limits limits_for(const disk::Capabilities& can) const {
    const uint32_t below = can.block_size.minimum;
    const auto block = static_cast<uint32_t>(std::max<uint64_t>(block_, below));
    const auto whole_blocks = [block](uint64_t size) {
      return std::max<uint64_t>(size - size % block, block);
    };
    return {.block = block,
            .data_max = whole_blocks(
                std::min<uint64_t>(data_max_ ? data_max_ : kDataMax, can.block_size.maximum)),
            .length_max = length_max_ ? whole_blocks(length_max_) : kNoLimit,
            // A part of a block at the end can be reached only where the layer below takes it.
            .size = block > below ? can.size - can.size % block : can.size};
  }

  uint64_t block_ = 1;
  uint64_t data_max_ = 0;    // 0: as the layer below says
  uint64_t length_max_ = 0;  // 0: any
  disk::PerExport<disk::ChangeOrder> orders_;
};

}  // namespace

constinit const disk::FilterInfo blocksize_filter = {
    .name = "blocksize",
    .longname = "weft blocksize filter",
    .description = "Aligns requests and splits long ones",
    .config_help =
        "minblock=SIZE  smallest block and alignment (default: as the layer below says)\n"
        "maxdata=SIZE  longest read or write (default: as the layer below says, at most 64m)\n"
        "maxlen=SIZE  longest of all other requests (default: no limit)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Blocksize>(); },
};

}  // namespace weft::filters
