// SPDX-License-Identifier: BSD-3-Clause
#include "check/broken/store.h"

#include <errno.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace weft::check::broken {

Store::Store(const std::string& path) : file_(::open(path.c_str(), O_RDWR | O_CLOEXEC)), size_(0) {
  struct stat status = {};
  if (!file_ || ::fstat(file_.get(), &status) != 0) {
    throw ConfigError(fmt::format("--file: '{}' cannot be opened ({}): give a file that exists",
                                  path, errno_text(errno)));
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

Status Store::read(uint64_t offset, MutableByteSpan into) {
  if (!file_) {
    const std::shared_lock guard(memory_lock_);
    std::copy_n(memory_.begin() + static_cast<ptrdiff_t>(offset), into.size(), into.begin());
    return {};
  }
  while (!into.empty()) {
    const ssize_t got = ::pread(file_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(errno, "the file cannot be read");
    if (got == 0) return fail(EIO, "the file is shorter than it was");
    into = into.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
  return {};
}

Status Store::write(uint64_t offset, ByteSpan from) {
  if (!file_) {
    const std::unique_lock guard(memory_lock_);
    std::ranges::copy(from, memory_.begin() + static_cast<ptrdiff_t>(offset));
    return {};
  }
  while (!from.empty()) {
    const ssize_t put = ::pwrite(file_.get(), from.data(), from.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return fail(errno, "the file cannot be written");
    from = from.subspan(static_cast<size_t>(put));
    offset += static_cast<uint64_t>(put);
  }
  return {};
}

Status Store::fallocate(int mode, Range range) {
  for (;;) {
    if (::fallocate(file_.get(), mode | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.offset),
                    static_cast<off_t>(range.length)) == 0) {
      return {};
    }
    if (errno != EINTR) return fail(errno, "the file cannot be zeroed");
  }
}

Status Store::zero(Range range, bool fast) {
  if (file_) {
    const Status done = fallocate(FALLOC_FL_ZERO_RANGE, range);
    if (done || (done.error().code != EOPNOTSUPP && done.error().code != ENOSYS)) return done;
    if (fast) return fail(ENOTSUP, "zeroing would be as slow as writing");
  }
  static constexpr uint64_t kStep = 1 << 20;
  const std::vector<std::byte> zeroes(std::min(kStep, range.length));
  while (!range.empty()) {
    const uint64_t length = std::min<uint64_t>(range.length, zeroes.size());
    const Status done = write(range.offset, ByteSpan(zeroes).first(length));
    if (!done) return done;
    range = {range.offset + length, range.length - length};
  }
  return {};
}

Status Store::trim(Range range) {
  if (!file_) return zero(range, false);
  const Status done = fallocate(FALLOC_FL_PUNCH_HOLE, range);
  // A trim may do nothing.
  if (!done && (done.error().code == EOPNOTSUPP || done.error().code == ENOSYS)) return {};
  return done;
}

Status Store::sync(bool forgetful) {
  if (!file_) return {};
  const std::scoped_lock guard(sync_lock_);
  if (sync_error_ != 0 && !forgetful) return fail(sync_error_, "an earlier sync failed");
  if (::fdatasync(file_.get()) == 0) return {};
  sync_error_ = errno;
  return fail(sync_error_, "the file cannot be synced");
}

}  // namespace weft::check::broken
