// SPDX-License-Identifier: BSD-3-Clause
#include "disk/aligner.h"

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "disk/change_order.h"

namespace weft::disk {
namespace {

constexpr size_t kAlignment = 4096;             // of our buffers in memory
constexpr uint64_t kBounceSizeMax = 256 << 10;  // a range up to this is moved in one piece

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Free>;

Buffer make_buffer(uint64_t size) {
  return Buffer(static_cast<std::byte*>(
      std::aligned_alloc(kAlignment, (size + kAlignment - 1) & ~(kAlignment - 1))));
}

class Aligner final : public Disk {
 public:
  explicit Aligner(std::unique_ptr<Disk> next)
      : next_(std::move(next)), block_(next_->capabilities().block_size.minimum) {
    capabilities_ = next_->capabilities();
    capabilities_.block_size.minimum = 1;
    capabilities_.block_size.preferred = std::max(capabilities_.block_size.preferred, block_);
    // Who cannot write makes no change, and needs no order of them.
    assert(!capabilities_.writable || !next_->order() || next_->order()->granularity() >= block_);
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const Range range{offset, into.size()};
    if (aligned(range)) return next_->read(offset, into);
    return read_split(range, into);
  }

  bool lend(Range range, Lease& lease) override {
    return aligned(range) && next_->lend(range, lease);
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    const Range range{offset, from.size()};
    if (aligned(range)) return next_->write(offset, from, fua);
    return write_split(range, from.data(), fua);
  }

  Task<Status> zero(Range range, ZeroFlags flags) override {
    if (aligned(range)) return next_->zero(range, flags);
    return zero_split(range, flags);
  }

  // Parts of blocks keep what they hold: a trim promises nothing.
  Task<Status> trim(Range range, bool fua) override {
    const Range inner = whole_blocks(range);
    if (inner.empty()) return Status{};
    return next_->trim(inner, fua);
  }

  Task<Status> cache(Range range) override { return next_->cache(around(range)); }
  Task<Status> flush() override { return next_->flush(); }
  Task<Status> extents(Extents& into, bool one) override {
    if (aligned(into.window())) return next_->extents(into, one);
    return extents_around(into, one);
  }
  [[nodiscard]] bool may_have_holes() const override { return next_->may_have_holes(); }
  ChangeOrder* order() override { return next_->order(); }
  [[nodiscard]] std::string identity() const override { return next_->identity(); }
  [[nodiscard]] std::string description() const override { return next_->description(); }
  void client_gone() override { next_->client_gone(); }
  Task<Status> close() override { return next_->close(); }

 private:
  [[nodiscard]] uint64_t size() const { return capabilities_.size; }
  [[nodiscard]] bool at_block(uint64_t offset) const { return (offset & (block_ - 1)) == 0; }
  [[nodiscard]] bool aligned(Range range) const {
    return at_block(range.offset) && (at_block(range.end()) || range.end() == size());
  }
  // The blocks that hold `range`; the last may be cut by the disk's end.
  [[nodiscard]] Range around(Range range) const {
    Range result = range.rounded_out(block_);
    result.length = std::min(result.length, size() - result.offset);
    return result;
  }
  // The blocks that lie in `range` as a whole: maybe none.
  [[nodiscard]] Range whole_blocks(Range range) const {
    const uint64_t first = (range.offset + block_ - 1) & ~uint64_t{block_ - 1};
    const uint64_t end = range.end() == size() ? size() : range.end() & ~uint64_t{block_ - 1};
    return first < end ? Range{first, end - first} : Range{first, 0};
  }

  // FUA of a change in several pieces is one flush after the last, where there is one.
  [[nodiscard]] bool flush_at_end(bool fua) const {
    return fua && capabilities_.flush != Support::kNone;
  }

  Task<Status> read_bounced(Range range, std::byte* into) {
    const Range outer = around(range);
    const Buffer buffer = make_buffer(outer.length);
    if (!buffer) co_return fail(ENOMEM);
    const Status done = co_await next_->read(outer.offset, {buffer.get(), outer.length});
    if (done) std::memcpy(into, buffer.get() + (range.offset - outer.offset), range.length);
    co_return done;
  }

  Task<Status> read_split(Range range, MutableByteSpan into) {
    if (around(range).length <= kBounceSizeMax) co_return co_await read_bounced(range, into.data());
    const Range middle = whole_blocks(range);
    const uint64_t head = middle.offset - range.offset;
    const uint64_t tail = range.end() - middle.end();
    Status done;
    if (head) done = co_await read_bounced({range.offset, head}, into.data());
    if (done) {
      done = co_await next_->read(middle.offset, into.subspan(head, middle.length));
    }
    if (done && tail) {
      done = co_await read_bounced({middle.end(), tail}, into.data() + head + middle.length);
    }
    co_return done;
  }

  // Reads the blocks at the ends of `range` that are not covered as a whole, puts `from` (null:
  // zeroes) in its place, and writes all blocks.
  Task<Status> write_bounced(Range range, const std::byte* from, bool fua) {
    const Range outer = around(range);
    const Buffer buffer = make_buffer(outer.length);
    if (!buffer) co_return fail(ENOMEM);
    const Range first = around({range.offset, 1});
    const Range last = around({range.end() - 1, 1});
    Status done;
    if (range.offset != outer.offset || (first == last && range.end() != outer.end())) {
      done = co_await next_->read(first.offset, {buffer.get(), first.length});
    }
    if (done && last != first && range.end() != outer.end()) {
      done = co_await next_->read(last.offset,
                                  {buffer.get() + (last.offset - outer.offset), last.length});
    }
    if (!done) co_return done;
    std::byte* const place = buffer.get() + (range.offset - outer.offset);
    if (from) {
      std::memcpy(place, from, range.length);
    } else {
      std::memset(place, 0, range.length);
    }
    co_return co_await next_->write(outer.offset, {buffer.get(), outer.length}, fua);
  }

  Task<Status> write_split(Range range, const std::byte* from, bool fua) {
    if (around(range).length <= kBounceSizeMax) co_return co_await write_bounced(range, from, fua);
    const Range middle = whole_blocks(range);
    const uint64_t head = middle.offset - range.offset;
    const uint64_t tail = range.end() - middle.end();
    const bool flushed = flush_at_end(fua);
    if (flushed) fua = false;
    Status done;
    if (head) done = co_await write_bounced({range.offset, head}, from, fua);
    if (done) done = co_await next_->write(middle.offset, {from + head, middle.length}, fua);
    if (done && tail) {
      done = co_await write_bounced({middle.end(), tail}, from + head + middle.length, fua);
    }
    if (done && flushed) done = co_await next_->flush();
    co_return done;
  }

  // The middle comes first: if it cannot be zeroed fast, nothing has been changed.
  Task<Status> zero_split(Range range, ZeroFlags flags) {
    const Range middle = whole_blocks(range);
    if (middle.empty()) {
      if (flags.fast) co_return fail(ENOTSUP, "a part of a block is zeroed by writing");
      // Less than two blocks, and no whole one.
      co_return co_await write_bounced(range, nullptr, flags.fua);
    }
    const uint64_t head = middle.offset - range.offset;
    const uint64_t tail = range.end() - middle.end();
    const bool flushed = flush_at_end(flags.fua);
    if (flushed) flags.fua = false;
    Status done = co_await next_->zero(middle, flags);
    if (done && head) done = co_await write_bounced({range.offset, head}, nullptr, flags.fua);
    if (done && tail) done = co_await write_bounced({middle.end(), tail}, nullptr, flags.fua);
    if (done && flushed) done = co_await next_->flush();
    co_return done;
  }

  Task<Status> extents_around(Extents& into, bool one) {
    const Range window = into.window();
    Extents outer(around(window));
    const Status done = co_await next_->extents(outer, one);
    if (!done) co_return done;
    uint64_t skip = window.offset - outer.window().offset;  // the block's head, before the window
    for (const Extent& extent : outer.list()) {
      const uint64_t cut = std::min(skip, extent.length);
      skip -= cut;
      if (extent.length > cut && !into.append(extent.length - cut, extent.flags)) break;
    }
    // A disk whose extents are finer than its blocks has described only what lies before.
    if (into.list().empty()) into.append(block_, kExtentData);
    co_return done;
  }

  const std::unique_ptr<Disk> next_;
  const uint32_t block_;
};

}  // namespace

std::unique_ptr<Disk> make_aligner(std::unique_ptr<Disk> next) {
  return std::make_unique<Aligner>(std::move(next));
}

}  // namespace weft::disk
