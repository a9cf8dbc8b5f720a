// SPDX-License-Identifier: BSD-3-Clause
#include "disk/scratch_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include "disk/file_calls.h"

namespace weft::disk {
namespace {

using engine::BlockingKind;
using engine::BlockingReason;

constexpr size_t kInlineReadMax = 64 << 10;  // bytes tried at once, if they are in the page cache
constexpr size_t kShortWriteMax = 64 << 10;  // bytes that are copied without a thread's help

Fd make_file(const std::string& folder) {
  Fd fd(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_EXCL | O_CLOEXEC, 0600));
  if (fd || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) return fd;
  std::string path = folder + "/weft-XXXXXX";
  fd = Fd(::mkostemp(path.data(), O_CLOEXEC));
  if (fd) ::unlink(path.c_str());
  return fd;
}

// What lies beyond the end was never written.
Status read_sparse(int fd, MutableByteSpan into, uint64_t offset) {
  while (!into.empty()) {
    const ssize_t count = ::pread(fd, into.data(), into.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return fail(errno, "the temporary file cannot be read");
    if (count == 0) {
      std::memset(into.data(), 0, into.size());
      break;
    }
    into = into.subspan(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return {};
}

}  // namespace

ScratchFile::ScratchFile(engine::BlockingPool& pool, const char* what) : lane_(pool) {
  const char* const given = std::getenv("TMPDIR");
  const std::string folder = given && *given ? given : "/var/tmp";
  fd_ = make_file(folder);
  if (!fd_) {
    throw ConfigError(
        fmt::format("{}: no temporary file can be made in {}: {}; name another folder in the "
                    "environment variable TMPDIR",
                    what, folder, errno_text(errno)));
  }
}

engine::Task<Status> ScratchFile::read(engine::Loop& loop, uint64_t offset, MutableByteSpan into) {
  if (into.size() <= kInlineReadMax) {
    const iovec vector = {into.data(), into.size()};
    const ssize_t count = ::preadv2(fd_.get(), &vector, 1, static_cast<off_t>(offset), RWF_NOWAIT);
    if (count == static_cast<ssize_t>(into.size())) return Status{};
  }
  return read_cold(loop, offset, into);
}

engine::Task<Status> ScratchFile::read_cold(engine::Loop& loop, uint64_t offset,
                                            MutableByteSpan into) {
  co_return co_await lane_.run(
      loop, BlockingReason::kColdRead, BlockingKind::kParallel,
      [this, offset, into] { return read_sparse(fd_.get(), into, offset); });
}

engine::Task<Status> ScratchFile::write(engine::Loop& loop, uint64_t offset, ByteSpan from) {
  co_return co_await lane_.run(
      loop, BlockingReason::kWrite,
      from.size() <= kShortWriteMax ? BlockingKind::kShort : BlockingKind::kParallel,
      [this, offset, from] { return write_fully(fd_.get(), from, offset); });
}

engine::Task<Status> ScratchFile::release(engine::Loop& loop, Range range) {
  co_return co_await lane_.run(
      loop, BlockingReason::kAllocate, BlockingKind::kParallel, [this, range]() -> Status {
        // A hole beyond the end of the file is one already.
        SpaceCalls calls;
        struct stat status = {};
        if (::fstat(fd_.get(), &status) != 0) return fail(errno);
        const auto size = static_cast<uint64_t>(status.st_size);
        if (range.offset >= size) return {};
        return zero_range(fd_.get(), calls,
                          {range.offset, std::min(range.end(), size) - range.offset},
                          {.fua = false, .may_trim = true, .fast = false});
      });
}

uint64_t ScratchFile::used_bytes() const {
  struct stat status = {};
  return ::fstat(fd_.get(), &status) == 0 ? static_cast<uint64_t>(status.st_blocks) * 512 : 0;
}

uint64_t ScratchFile::block_size() const {
  struct statvfs status = {};
  return ::fstatvfs(fd_.get(), &status) == 0 ? status.f_bsize : 4096;
}

}  // namespace weft::disk
