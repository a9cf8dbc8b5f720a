// SPDX-License-Identifier: BSD-3-Clause
#include "disk/waist.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "base/log.h"

namespace weft::disk {
namespace {

constexpr uint64_t kZeroPieceSize = 1 << 20;     // bytes of one emulated write of zeroes
constexpr uint64_t kCachePieceSize = 256 << 10;  // bytes of one emulated read
constexpr size_t kAlignment = 4096;              // of our own buffers, for layers with O_DIRECT

// Never written; costs no memory until it is read.
alignas(kAlignment) std::byte zeroes[kZeroPieceSize];

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};

class Waist final : public Disk {
 public:
  Waist(std::unique_ptr<Disk> next, std::string name)
      : next_(std::move(next)), name_(std::move(name)) {
    capabilities_ = next_->capabilities();
    Capabilities& c = capabilities_;
    assert(c.size <= uint64_t{1} << 63);
    assert(std::has_single_bit(c.block_size.minimum));
    assert(std::has_single_bit(c.block_size.preferred));
    if (!c.writable) c.fua = c.trim = c.zero = c.fast_zero = Support::kNone;
    if (c.fua == Support::kEmulate && c.flush == Support::kNone) c.fua = Support::kNone;
    if (c.zero == Support::kNone) c.fast_zero = Support::kNone;
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    if (traced_) trace("read", {offset, into.size()});
    if (Status bad = check({offset, into.size()}); !bad) return bad;
    return next_->read(offset, into);
  }

  bool lend(Range range, Lease& lease) override {
    if (!check(range)) return false;
    if (!next_->lend(range, lease)) return false;
    if (traced_) trace("lend", range);
#ifndef NDEBUG
    uint64_t sum = 0;
    for (const Lease::Piece& piece : lease.pieces) sum += piece.length;
    assert(sum == range.length);
#endif
    return true;
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    if (traced_) trace("write", {offset, from.size()}, fua);
    if (Status bad = check_change({offset, from.size()}, fua); !bad) return bad;
    if (emulate_fua(fua)) return then_flush(next_->write(offset, from, false));
    return next_->write(offset, from, fua);
  }

  Task<Status> zero(Range range, ZeroFlags flags) override {
    if (traced_) trace("zero", range, flags.fua, flags.may_trim, flags.fast);
    if (Status bad = check_change(range, flags.fua); !bad) return bad;
    if (flags.fast && capabilities_.fast_zero != Support::kNative) {
      return fail(ENOTSUP, "zeroing is not faster than writing here");
    }
    switch (capabilities_.zero) {
      case Support::kNone:
        return misuse(EOPNOTSUPP, "zero on a disk without it");
      case Support::kEmulate:
        return zero_by_writing(range, flags.fua);
      case Support::kNative:
        break;
    }
    if (emulate_fua(flags.fua)) {
      flags.fua = false;
      return then_flush(next_->zero(range, flags));
    }
    return next_->zero(range, flags);
  }

  Task<Status> trim(Range range, bool fua) override {
    if (traced_) trace("trim", range, fua);
    if (Status bad = check_change(range, fua); !bad) return bad;
    if (capabilities_.trim == Support::kNone)
      return misuse(EOPNOTSUPP, "trim on a disk without it");
    if (emulate_fua(fua)) return then_flush(next_->trim(range, false));
    return next_->trim(range, fua);
  }

  Task<Status> cache(Range range) override {
    if (traced_) trace("cache", range);
    if (Status bad = check(range); !bad) return bad;
    switch (capabilities_.cache) {
      case Support::kNone:
        return misuse(EOPNOTSUPP, "cache on a disk without it");
      case Support::kEmulate:
        return cache_by_reading(range);
      case Support::kNative:
        break;
    }
    return next_->cache(range);
  }

  Task<Status> flush() override {
    if (traced_) log::debug("{}: flush", name_);
    if (capabilities_.flush == Support::kNone) {
      return misuse(EOPNOTSUPP, "flush on a disk without it");
    }
    return next_->flush();
  }

  Task<Status> extents(Extents& into, bool one) override {
    if (traced_) trace("extents", into.window());
    if (Status bad = check(into.window(), false); !bad) return bad;
    if (capabilities_.extents == Support::kNone) {
      into.append(into.window().length, kExtentData);
      return Status{};
    }
    Task<Status> task = next_->extents(into, one);
    if (!task.ready()) return check_extents(std::move(task), into);
    return described(task.take(), into);
  }

  [[nodiscard]] bool may_have_holes() const override {
    return capabilities_.extents != Support::kNone && next_->may_have_holes();
  }
  ChangeOrder* order() override { return next_->order(); }
  [[nodiscard]] std::string identity() const override { return next_->identity(); }
  [[nodiscard]] std::string description() const override { return next_->description(); }
  void client_gone() override { next_->client_gone(); }
  Task<Status> close() override {
    if (traced_) log::debug("{}: close", name_);
    return next_->close();
  }

 private:
  // A defect of a layer above: stops a debug build, and is an error in any other.
  [[nodiscard]] std::unexpected<Error> misuse(int code, const char* text) const {
    log::error("{}: called wrongly: {}", name_, text);
    assert(!"a layer was called wrongly");
    return fail(code, text);
  }

  // `aligned`: the range must keep to the minimum block size; the disk's end counts as aligned.
  Status check(Range range, bool aligned = true) const {
    if (range.empty()) return misuse(EINVAL, "an empty range");
    if (!range.within(capabilities_.size)) return misuse(EINVAL, "a range beyond the disk's end");
    const uint64_t mask = capabilities_.block_size.minimum - 1;
    if (aligned &&
        ((range.offset & mask) || ((range.end() & mask) && range.end() != capabilities_.size))) {
      return misuse(EINVAL, "a range that is not aligned to the block size");
    }
    return {};
  }

  Status check_change(Range range, bool fua) const {
    if (!capabilities_.writable) return misuse(EROFS, "a change of a read-only disk");
    if (fua && capabilities_.fua == Support::kNone)
      return misuse(EINVAL, "FUA on a disk without it");
    return check(range);
  }

  [[nodiscard]] bool emulate_fua(bool fua) const {
    return fua && capabilities_.fua == Support::kEmulate;
  }

  Task<Status> then_flush(Task<Status> change) {
    const Status changed = co_await change;
    if (!changed) co_return changed;
    co_return co_await next_->flush();
  }

  Task<Status> zero_by_writing(Range range, bool fua) {
    const bool native_fua = fua && capabilities_.fua == Support::kNative;
    for (uint64_t offset = range.offset; offset < range.end();) {
      const uint64_t length = std::min(range.end() - offset, kZeroPieceSize);
      const Status written = co_await next_->write(offset, ByteSpan(zeroes, length), native_fua);
      if (!written) co_return written;
      offset += length;
    }
    if (emulate_fua(fua)) co_return co_await next_->flush();
    co_return Status{};
  }

  Task<Status> cache_by_reading(Range range) {
    const uint64_t piece = std::min(kCachePieceSize, range.length);
    const std::unique_ptr<std::byte, Free> scratch(static_cast<std::byte*>(
        std::aligned_alloc(kAlignment, (piece + kAlignment - 1) & ~(kAlignment - 1))));
    if (!scratch) co_return fail(ENOMEM);
    for (uint64_t offset = range.offset; offset < range.end();) {
      const uint64_t length = std::min(range.end() - offset, piece);
      const Status done = co_await next_->read(offset, MutableByteSpan(scratch.get(), length));
      if (!done) co_return done;
      offset += length;
    }
    co_return Status{};
  }

  Status described(Status status, const Extents& extents) const {
    if (status && extents.list().empty()) {
      log::error("{}: described no extent at {}", name_, extents.window().offset);
      assert(!"a layer described no extent");
      return fail(EIO, "the disk gave no extents");
    }
    return status;
  }
  Task<Status> check_extents(Task<Status> task, Extents& extents) {
    const Status status = co_await task;
    co_return described(status, extents);
  }

  void trace(const char* call, Range range, bool fua = false, bool may_trim = false,
             bool fast = false) const {
    log::debug("{}: {} offset={} length={}{}{}{}", name_, call, range.offset, range.length,
               fua ? " fua" : "", may_trim ? " may_trim" : "", fast ? " fast" : "");
  }

  const std::unique_ptr<Disk> next_;
  const std::string name_;
  const bool traced_ = log::verbose();
};

}  // namespace

std::unique_ptr<Disk> make_waist(std::unique_ptr<Disk> next, std::string name) {
  return std::make_unique<Waist>(std::move(next), std::move(name));
}

}  // namespace weft::disk
