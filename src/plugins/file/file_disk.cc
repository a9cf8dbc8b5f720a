// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/file/file_disk.h"

#include <fcntl.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "disk/aligner.h"

namespace weft::plugins {
namespace {

using disk::Disk;
using disk::Support;
using disk::Task;
using disk::ZeroFlags;
using engine::BlockingKind;
using engine::BlockingReason;
using engine::Loop;

// A read from the page cache up to this is copied on the loop; a larger one would hold up others.
constexpr size_t kShortWriteMax = 64 << 10;  // bytes
constexpr size_t kInlineReadMax = 1 << 20;   // bytes
// Direct transfers from and to memory that is not aligned go through a buffer of this size.
constexpr size_t kBounceSize = 1 << 20;  // bytes

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Free>;

// A failed write with FUA: the data may not be there, or it may be there and not durable. A second
// try without FUA tells: if that fails as well the request has failed and nothing else.
bool is_about_space(int error) {
  return error == ENOSPC || error == EDQUOT || error == EFBIG;
}

// Through the page cache.
class FileDisk : public Disk {
 public:
  FileDisk(Images& images, Images::Opened opened, Loop& loop)
      : images_(images),
        image_(std::move(opened.image)),
        fd_(opened.files->buffered.get()),
        loop_(loop) {
    const bool writable = opened.writable;
    const Support if_writable = writable ? Support::kNative : Support::kNone;
    capabilities_ = {.size = opened.size,
                     .writable = writable,
                     .rotational = image_->rotational,
                     .multi_conn = true,
                     .flush = Support::kNative,
                     .fua = if_writable,
                     .trim = if_writable,
                     .zero = if_writable,
                     .fast_zero = if_writable,
                     .cache = Support::kNative,
                     .extents = image_->knows_extents ? Support::kNative : Support::kNone,
                     .block_size = {}};
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    size_t done = 0;
    if (into.size() <= kInlineReadMax && image_->nowait.load(std::memory_order_relaxed)) {
      const iovec vector = {into.data(), into.size()};
      const ssize_t count = preadv2(fd_, &vector, 1, static_cast<off_t>(offset), RWF_NOWAIT);
      if (count == static_cast<ssize_t>(into.size())) return Status{};
      if (count > 0) done = static_cast<size_t>(count);
      if (count < 0 && errno == EOPNOTSUPP) image_->nowait = false;
    }
    return read_cold(offset + done, into.subspan(done));
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return fua ? write_durably(offset, from) : write_cached(offset, from);
  }

  Task<Status> zero(Range range, ZeroFlags flags) override {
    Status done = co_await image_->lane->run(
        loop_, BlockingReason::kAllocate, BlockingKind::kParallel,
        [this, range, flags] { return disk::zero_range(fd_, image_->space, range, flags); });
    image_->sync->changed();
    if (flags.may_trim) image_->may_be_sparse = true;
    if (done && flags.fua) done = co_await image_->sync->flush(loop_);
    co_return done;
  }

  Task<Status> trim(Range range, bool fua) override {
    Status done = co_await image_->lane->run(
        loop_, BlockingReason::kAllocate, BlockingKind::kParallel,
        [this, range] { return disk::trim_range(fd_, image_->space, range); });
    image_->sync->changed();
    image_->may_be_sparse = true;
    if (done && fua) done = co_await image_->sync->flush(loop_);
    co_return done;
  }

  Task<Status> cache(Range range) override {
    co_await image_->lane->run(
        loop_, BlockingReason::kColdRead, BlockingKind::kParallel, [this, range] {
          return posix_fadvise(fd_, static_cast<off_t>(range.offset),
                               static_cast<off_t>(range.length), POSIX_FADV_WILLNEED);
        });
    co_return Status{};  // it was a hint
  }

  Task<Status> flush() override {
    if (!capabilities_.writable) return image_->sync->status();
    return image_->sync->flush(loop_);
  }

  Task<Status> extents(Extents& into, bool one) override {
    co_return co_await image_->lane->run(
        loop_, BlockingReason::kExtents, BlockingKind::kParallel,
        [this, &into, one] { return disk::find_extents(fd_, into, one); });
  }

  [[nodiscard]] bool may_have_holes() const override {
    return image_->knows_extents && image_->may_be_sparse.load(std::memory_order_relaxed);
  }
  disk::ChangeOrder* order() override { return image_->order.get(); }
  [[nodiscard]] std::string identity() const override { return image_->identity; }

  // The last disk makes all durable: if that fails, it is known while somebody may ask.
  Task<Status> close() override {
    Status synced;
    if (images_.leave(*image_)) {
      if (image_->sync_fd >= 0) synced = co_await image_->sync->flush(loop_);
      std::shared_ptr<Image> forgotten = images_.forget(image_);
      image_.reset();
      if (forgotten) {
        // Closing a file may block, and so may what its lane does when it ends.
        co_await loop_.pool().general_lane().run(loop_, BlockingReason::kOpen,
                                                 BlockingKind::kParallel, [&forgotten] {
                                                   forgotten.reset();
                                                   return 0;
                                                 });
      }
    }
    co_return synced;
  }

 protected:
  Task<Status> read_cold(uint64_t offset, MutableByteSpan into) {
    if (loop_.kind() != engine::EngineKind::kUring) {
      co_return co_await image_->lane->run(
          loop_, BlockingReason::kColdRead, BlockingKind::kParallel,
          [this, offset, into] { return disk::read_fully(fd_, into, offset); });
    }
    while (!into.empty()) {
      const int count = co_await loop_.read_file(fd_, into, offset);
      if (count == -EINTR || count == -EAGAIN) continue;
      if (count < 0) co_return fail(-count);
      if (count == 0) co_return fail(EIO, "the image file has become shorter than it was");
      into = into.subspan(static_cast<size_t>(count));
      offset += static_cast<uint64_t>(count);
    }
    co_return Status{};
  }

  // Small buffered writes are a copy to the page cache, as a rule.
  Task<Status> write_cached(uint64_t offset, ByteSpan from) {
    const Status done = co_await image_->lane->run(
        loop_, BlockingReason::kWrite,
        from.size() <= kShortWriteMax ? BlockingKind::kShort : BlockingKind::kParallel,
        [this, offset, from] { return disk::write_fully(fd_, from, offset); });
    image_->sync->changed();
    co_return done;
  }

  Task<Status> write_durably(uint64_t offset, ByteSpan from) {
    if (Status failed = image_->sync->status(); !failed) co_return failed;
    const Status done = co_await image_->lane->run(
        loop_, BlockingReason::kSync, BlockingKind::kParallel,
        [this, offset, from] { return disk::write_fully(fd_, from, offset, RWF_DSYNC); });
    if (done) co_return image_->sync->status();
    const Error error = done.error();
    if (is_about_space(error.code)) {
      const Status again = co_await write_cached(offset, from);
      if (!again) co_return again;
    }
    image_->sync->changed();
    image_->sync->mark_failed(error, "a write with FUA");
    co_return done;
  }

  Images& images_;
  std::shared_ptr<Image> image_;
  const int fd_;
  Loop& loop_;
};

// Past the page cache. Takes ranges of whole blocks, the last of which the end of the disk may cut
// short: what is left of it goes through the page cache, which the kernel keeps coherent with
// direct transfers, since those cannot end within a block.
class DirectDisk final : public FileDisk {
 public:
  DirectDisk(Images& images, Images::Opened opened, Loop& loop)
      : FileDisk(images, opened, loop), direct_(opened.files->direct.get()) {
    capabilities_.cache = Support::kNone;
    capabilities_.block_size.minimum = image_->block_size;
    capabilities_.block_size.preferred =
        std::max(capabilities_.block_size.preferred, image_->block_size);
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const size_t whole = into.size() & ~size_t{image_->block_size - 1};
    Status done;
    if (whole && is_aligned(into.data())) {
      done = co_await read_direct(offset, into.first(whole));
    } else if (whole) {
      done = co_await read_bounced(offset, into.first(whole));
    }
    if (done && whole < into.size()) done = co_await read_cold(offset + whole, into.subspan(whole));
    co_return done;
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    if (fua) {
      if (Status failed = image_->sync->status(); !failed) co_return failed;
    }
    const size_t whole = from.size() & ~size_t{image_->block_size - 1};
    Status done;
    if (whole && is_aligned(from.data())) {
      done = co_await write_direct(offset, from.first(whole), fua);
    } else if (whole) {
      done = co_await write_bounced(offset, from.first(whole), fua);
    }
    if (done && whole < from.size()) {
      done = co_await FileDisk::write(offset + whole, from.subspan(whole), fua);
    }
    image_->sync->changed();
    if (done && fua) co_return image_->sync->status();
    co_return done;
  }

 private:
  [[nodiscard]] bool is_aligned(const std::byte* memory) const {
    return reinterpret_cast<uintptr_t>(memory) % image_->memory_alignment == 0;
  }

  // One transfer, or what the kernel gave of it: the number of bytes, or -errno.
  Task<int> transfer(uint64_t offset, std::byte* memory, size_t length, bool is_write,
                     int rw_flags) {
    if (loop_.kind() == engine::EngineKind::kUring) {
      if (is_write) {
        co_return co_await loop_.write_file(direct_, {memory, length}, offset, rw_flags);
      }
      co_return co_await loop_.read_file(direct_, {memory, length}, offset, rw_flags);
    }
    co_return co_await image_->lane->run(
        loop_, is_write ? BlockingReason::kDirectWrite : BlockingReason::kColdRead,
        BlockingKind::kParallel, [this, offset, memory, length, is_write, rw_flags] {
          const iovec vector = {memory, length};
          const auto at = static_cast<off_t>(offset);
          const ssize_t count = is_write ? pwritev2(direct_, &vector, 1, at, rw_flags)
                                         : preadv2(direct_, &vector, 1, at, rw_flags);
          return count < 0 ? -errno : static_cast<int>(count);
        });
  }

  Task<Status> read_direct(uint64_t offset, MutableByteSpan into) {
    while (!into.empty()) {
      const int count = co_await transfer(offset, into.data(), into.size(), false, 0);
      if (count == -EINTR || count == -EAGAIN) continue;
      if (count < 0) co_return fail(-count);
      const size_t whole = static_cast<size_t>(count) & ~size_t{image_->block_size - 1};
      if (whole == 0) co_return fail(EIO, "the image file has become shorter than it was");
      into = into.subspan(whole);
      offset += whole;
    }
    co_return Status{};
  }

  Task<Status> write_direct(uint64_t offset, ByteSpan from, bool fua) {
    int rw_flags = fua ? RWF_DSYNC : 0;
    Error failed;  // to sync; then the data itself is tried again
    while (!from.empty()) {
      auto* memory = const_cast<std::byte*>(from.data());
      const int count = co_await transfer(offset, memory, from.size(), true, rw_flags);
      if (count == -EINTR || count == -EAGAIN) continue;
      if (count < 0) {
        const Error error{-count};
        if (!rw_flags) co_return std::unexpected(error);
        failed = error;
        if (!is_about_space(error.code)) break;
        rw_flags = 0;
        continue;
      }
      const size_t whole = static_cast<size_t>(count) & ~size_t{image_->block_size - 1};
      if (whole == 0) co_return fail(EIO, "the image file took a part of a block");
      from = from.subspan(whole);
      offset += whole;
    }
    if (failed.code == 0) co_return Status{};
    image_->sync->mark_failed(failed, "a write with FUA");
    co_return std::unexpected(failed);
  }

  [[nodiscard]] Buffer make_bounce(size_t length) const {
    constexpr size_t kAlignment = 4096;
    const size_t alignment = std::max<size_t>(kAlignment, image_->memory_alignment);
    return Buffer(static_cast<std::byte*>(std::aligned_alloc(
        alignment, (std::min(length, kBounceSize) + alignment - 1) & ~(alignment - 1))));
  }

  Task<Status> read_bounced(uint64_t offset, MutableByteSpan into) {
    const Buffer bounce = make_bounce(into.size());
    if (!bounce) co_return fail(ENOMEM);
    while (!into.empty()) {
      const size_t length = std::min(into.size(), kBounceSize);
      const Status done = co_await read_direct(offset, {bounce.get(), length});
      if (!done) co_return done;
      std::memcpy(into.data(), bounce.get(), length);
      into = into.subspan(length);
      offset += length;
    }
    co_return Status{};
  }

  Task<Status> write_bounced(uint64_t offset, ByteSpan from, bool fua) {
    const Buffer bounce = make_bounce(from.size());
    if (!bounce) co_return fail(ENOMEM);
    while (!from.empty()) {
      const size_t length = std::min(from.size(), kBounceSize);
      std::memcpy(bounce.get(), from.data(), length);
      const Status done = co_await write_direct(offset, {bounce.get(), length}, fua);
      if (!done) co_return done;
      from = from.subspan(length);
      offset += length;
    }
    co_return Status{};
  }

  const int direct_;
};

}  // namespace

std::unique_ptr<Disk> make_file_disk(Images& images, Images::Opened opened, Loop& loop) {
  if (!images.options().direct) {
    return std::make_unique<FileDisk>(images, std::move(opened), loop);
  }
  return disk::make_aligner(std::make_unique<DirectDisk>(images, std::move(opened), loop));
}

}  // namespace weft::plugins
