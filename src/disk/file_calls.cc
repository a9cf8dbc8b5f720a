// SPDX-License-Identifier: BSD-3-Clause
#include "disk/file_calls.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace weft::disk {
namespace {

constexpr uint64_t kZeroPieceSize = 1 << 20;  // bytes
constexpr int kSeeksMax = 4096;               // in one call of find_extents()

// Never written; costs no memory until it is read.
alignas(4096) std::byte zeroes[kZeroPieceSize];

// The kernel or the file system does not have the call, and never will for this file.
bool is_unsupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == ENODEV || error == ENOTTY;
}

// It may be had for another range, or not by us: another way may do.
bool is_refused(int error) {
  return is_unsupported(error) || error == EINVAL || error == EPERM || error == EBUSY;
}

int allocate_call(int fd, int mode, Range range) {
  for (;;) {
    if (fallocate(fd, mode, static_cast<off_t>(range.offset), static_cast<off_t>(range.length)) ==
        0) {
      return 0;
    }
    if (errno != EINTR) return errno;
  }
}

// Tries one way. kDone: it is over, with `status`; kNext: nothing was changed, try another.
enum class Outcome { kDone, kNext };
Outcome attempt(int fd, std::atomic<bool>& supported, int mode, Range range, Status& status) {
  if (!supported.load(std::memory_order_relaxed)) return Outcome::kNext;
  const int error = allocate_call(fd, mode, range);
  if (error == 0) {
    status = Status{};
    return Outcome::kDone;
  }
  if (is_unsupported(error)) supported.store(false, std::memory_order_relaxed);
  if (is_refused(error)) return Outcome::kNext;
  status = fail(error);
  return Outcome::kDone;
}

Status write_zeroes(int fd, Range range) {
  for (uint64_t offset = range.offset; offset < range.end();) {
    const uint64_t length = std::min(range.end() - offset, kZeroPieceSize);
    if (Status written = write_fully(fd, ByteSpan(zeroes, length), offset); !written) {
      return written;
    }
    offset += length;
  }
  return {};
}

Status zero_in_file(int fd, SpaceCalls& calls, Range range, ZeroFlags flags) {
  Status status;
  constexpr int kPunch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  if (flags.may_trim && attempt(fd, calls.punch, kPunch, range, status) == Outcome::kDone) {
    return status;
  }
  constexpr int kZero = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
  if (attempt(fd, calls.zero_range, kZero, range, status) == Outcome::kDone) return status;
  // A hole, filled again: what file systems without ZERO_RANGE (tmpfs) can do.
  if (!flags.may_trim && calls.allocate.load(std::memory_order_relaxed) &&
      attempt(fd, calls.punch, kPunch, range, status) == Outcome::kDone) {
    if (!status) return status;
    if (attempt(fd, calls.allocate, FALLOC_FL_KEEP_SIZE, range, status) == Outcome::kDone) {
      return status;
    }
  } else if (flags.fast) {
    return fail(ENOTSUP, "this file system zeroes by writing");
  }
  return write_zeroes(fd, range);
}

// The units that lie in `range` as a whole: maybe none.
Range whole_units(const SpaceCalls& calls, Range range) {
  const uint64_t mask = calls.unit - 1;
  const uint64_t first = (range.offset + mask) & ~mask;
  const uint64_t end = range.end() & ~mask;
  return first < end ? Range{first, end - first} : Range{first, 0};
}

// fallocate(2) of a block device drops what the page cache holds of the range before it finds out
// whether the device can do it: a call that fails loses writes that are not on the device yet, and
// parts of pages that are. So these are written first, and calls keep to whole pages, wherever a
// failure must leave the data alone.
Status write_back(int fd, Range range) {
  constexpr unsigned kFlags =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  while (sync_file_range(fd, static_cast<off_t>(range.offset), static_cast<off_t>(range.length),
                         kFlags) != 0) {
    if (errno != EINTR) return fail(errno);
  }
  return {};
}

Status zero_in_device(int fd, SpaceCalls& calls, Range range, ZeroFlags flags) {
  const Range middle = whole_units(calls, range);
  if (middle.empty()) {
    if (flags.fast) return fail(ENOTSUP, "a part of a page is zeroed by writing");
    return write_zeroes(fd, range);
  }
  if (flags.fast) {
    // ZERO_RANGE writes, in the kernel, where the device knows no better.
    if (!flags.may_trim) return fail(ENOTSUP, "this device may zero by writing");
    if (Status written = write_back(fd, middle); !written) return written;
  }
  // The middle comes first: if it cannot be zeroed fast, nothing has been changed.
  Status status;
  bool done = flags.may_trim && attempt(fd, calls.punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                        middle, status) == Outcome::kDone;
  if (!done && flags.fast) return fail(ENOTSUP, "this device zeroes by writing");
  if (!done) {
    done = attempt(fd, calls.zero_range, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, middle,
                   status) == Outcome::kDone;
  }
  if (!done) status = write_zeroes(fd, middle);
  if (status && range.offset < middle.offset) {
    status = write_zeroes(fd, {range.offset, middle.offset - range.offset});
  }
  if (status && middle.end() < range.end()) {
    status = write_zeroes(fd, {middle.end(), range.end() - middle.end()});
  }
  return status;
}

}  // namespace

Status read_fully(int fd, MutableByteSpan into, uint64_t offset) {
  while (!into.empty()) {
    const ssize_t count = pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      return fail(errno);
    }
    if (count == 0) return fail(EIO, "the image file has become shorter than it was");
    into = into.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

Status write_fully(int fd, ByteSpan from, uint64_t offset, int rw_flags) {
  while (!from.empty()) {
    const iovec vector = {const_cast<std::byte*>(from.data()), from.size()};
    const ssize_t count = pwritev2(fd, &vector, 1, static_cast<off_t>(offset), rw_flags);
    if (count < 0) {
      if (errno == EINTR) continue;
      return fail(errno);
    }
    if (count == 0) return fail(EIO, "the image file took no bytes");
    from = from.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

Status sync_data(int fd) {
  while (fdatasync(fd) != 0) {
    if (errno != EINTR) return fail(errno, "the storage could not make the data durable");
  }
  return {};
}

Status zero_range(int fd, SpaceCalls& calls, Range range, ZeroFlags flags) {
  return calls.block_device ? zero_in_device(fd, calls, range, flags)
                            : zero_in_file(fd, calls, range, flags);
}

Status trim_range(int fd, SpaceCalls& calls, Range range) {
  if (calls.block_device) {
    // What is cut off at the ends may keep what it holds.
    range = whole_units(calls, range);
    if (range.empty()) return {};
    if (Status written = write_back(fd, range); !written) return written;
  }
  Status status;
  if (attempt(fd, calls.punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, range, status) ==
      Outcome::kDone) {
    return status;
  }
  if (calls.block_device && calls.discard.load(std::memory_order_relaxed)) {
    const uint64_t bytes[2] = {range.offset, range.length};
    if (ioctl(fd, BLKDISCARD, bytes) == 0) return {};
    if (!is_refused(errno)) return fail(errno);
    if (is_unsupported(errno)) calls.discard.store(false, std::memory_order_relaxed);
  }
  return {};
}

Status find_extents(int fd, Extents& into, bool one) {
  const uint64_t end = into.window().end();
  uint64_t offset = into.window().offset;
  for (int seeks = 0; offset < end && seeks < kSeeksMax; seeks++) {
    off_t data = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) {
        // No data from here on. Where the file has been made shorter, reading must tell.
        struct stat file = {};
        const bool whole = fstat(fd, &file) == 0 && static_cast<uint64_t>(file.st_size) >= end;
        into.append(end - offset, whole ? kExtentHole | kExtentZero : kExtentData);
        return {};
      }
      if (!is_refused(errno)) return fail(errno);
      into.append(end - offset, kExtentData);
      return {};
    }
    if (static_cast<uint64_t>(data) > offset) {
      const uint64_t until = std::min(end, static_cast<uint64_t>(data));
      if (!into.append(until - offset, kExtentHole | kExtentZero) || one) return {};
      offset = until;
      continue;
    }
    const off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0 && errno != ENXIO) return fail(errno);
    // A hole at the same place: it was punched between the two calls.
    const uint64_t until = hole <= data ? offset + 1 : std::min(end, static_cast<uint64_t>(hole));
    if (!into.append(until - offset, kExtentData) || one) return {};
    offset = until;
  }
  return {};
}

}  // namespace weft::disk
