// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/file/image.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "base/log.h"
#include "plugins/file/image_lock.h"

namespace weft::plugins {
namespace {

constexpr uint32_t kDirectBlockDefault = 4096;  // bytes: every device's O_DIRECT takes that
constexpr uint32_t kBlockSizeMax = 64 << 10;    // of the protocol

std::unexpected<ImageError> error_of(int code, std::string text) {
  return std::unexpected(ImageError{code, std::move(text)});
}

bool is_no_write_permission(int error) {
  return error == EACCES || error == EPERM || error == EROFS || error == ETXTBSY;
}

uint64_t size_of(int fd, const struct stat& status) {
  if (S_ISREG(status.st_mode)) return static_cast<uint64_t>(status.st_size);
  uint64_t size = 0;
  return ioctl(fd, BLKGETSIZE64, &size) == 0 ? size : 0;
}

// The alignment of direct reads and writes, as the kernel tells it (statx since 6.1).
void find_alignment(Image& image, int fd) {
  struct statx status = {};
  image.block_size = image.memory_alignment = kDirectBlockDefault;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) && status.stx_dio_offset_align) {
    image.block_size = status.stx_dio_offset_align;
    image.memory_alignment = std::max(1u, status.stx_dio_mem_align);
  } else if (int sector = 0; image.block_device && ioctl(fd, BLKSSZGET, &sector) == 0) {
    image.block_size = image.memory_alignment = static_cast<uint32_t>(sector);
  }
  if (!std::has_single_bit(image.block_size) || image.block_size > kBlockSizeMax) {
    image.block_size = kDirectBlockDefault;
  }
}

}  // namespace

// Opens the image as wanted, or for reading only where it cannot be written.
std::expected<Image::Files, ImageError> Images::open_files(const ImagePlace& place, bool& read_only,
                                                           struct stat& status) const {
  Image::Files files;
  if (place.fd >= 0) {
    const int mode = fcntl(place.fd, F_GETFL);
    if (mode < 0 || (mode & O_ACCMODE) == O_WRONLY || (mode & O_PATH)) {
      return error_of(EBADF, fmt::format("{}: the descriptor is not open for reading: open it "
                                         "before weft starts, as in fd=3 3<>disk.img",
                                         place.shown));
    }
    if ((mode & O_ACCMODE) == O_RDONLY) read_only = true;
    files.buffered = Fd(fcntl(place.fd, F_DUPFD_CLOEXEC, 3));
  } else {
    // O_NONBLOCK: a FIFO of this name must not hold up anybody.
    constexpr int kFlags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
    if (!read_only) {
      files.buffered = Fd(openat(place.directory, place.name.c_str(), O_RDWR | kFlags));
    }
    if (!files && !read_only && is_no_write_permission(errno)) {
      const int error = errno;
      files.buffered = Fd(openat(place.directory, place.name.c_str(), O_RDONLY | kFlags));
      if (files) {
        log::warning("{}: cannot be written ({}): it is served read-only", place.shown,
                     errno_text(error));
        read_only = true;
      }
    } else if (read_only) {
      files.buffered = Fd(openat(place.directory, place.name.c_str(), O_RDONLY | kFlags));
    }
  }
  const int error = errno;
  const bool is_directory =
      files ? fstat(files.buffered.get(), &status) == 0 && S_ISDIR(status.st_mode)
            : error == EISDIR;
  if (is_directory) {
    return error_of(EISDIR, fmt::format("{}: is a directory: give an image file or a block device, "
                                        "or dir= to serve all that are in it",
                                        place.shown));
  }
  if (!files) {
    return error_of(error, fmt::format("{}: cannot be opened: {}", place.shown, errno_text(error)));
  }
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    return error_of(
        EINVAL, fmt::format("{}: is no file: give an image file or a block device", place.shown));
  }
  if (place.fd < 0) {
    // To the ring, O_NONBLOCK would mean that reads must not wait.
    const int fd = files.buffered.get();
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  }
  if (options_.advice) posix_fadvise(files.buffered.get(), 0, 0, options_.advice);
  if (options_.direct) {
    // A description of its own: the flag belongs to that, and parts of blocks go through the cache.
    const std::string path = fmt::format("/proc/self/fd/{}", files.buffered.get());
    files.direct = Fd(open(path.c_str(), (read_only ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC));
    if (!files.direct) {
      const int refused = errno;
      return error_of(refused,
                      fmt::format("{}: cache=none needs O_DIRECT, which is refused here ({}): "
                                  "use cache=default",
                                  place.shown, errno_text(refused)));
    }
  }
  return files;
}

// Finds out what the file is. The first time only.
void Images::examine(Image& image, int fd, const struct stat& status) const {
  image.block_device = S_ISBLK(status.st_mode);
  if (options_.direct) find_alignment(image, fd);
  if (image.block_device) {
    int sector = 0;
    image.space.block_device = true;
    const int sector_size = ioctl(fd, BLKSSZGET, &sector) == 0 ? sector : 512;
    image.space.unit = static_cast<uint32_t>(std::max<long>(sector_size, sysconf(_SC_PAGESIZE)));
    unsigned short rotational = 0;
    image.rotational = ioctl(fd, BLKROTATIONAL, &rotational) == 0 && rotational;
  } else {
    image.knows_extents = lseek(fd, 0, SEEK_HOLE) >= 0 || errno == ENXIO;
    image.may_be_sparse = status.st_blocks * 512 < status.st_size;
  }
  image.order =
      std::make_unique<disk::ChangeOrder>(options_.direct ? image.block_size : uint64_t{1});
}

std::expected<Images::Opened, ImageError> Images::acquire(const ImagePlace& place, bool read_only,
                                                          engine::BlockingPool* pool) {
  struct stat status = {};
  auto files = open_files(place, read_only, status);
  if (!files) return std::unexpected(files.error());
  const bool block_device = S_ISBLK(status.st_mode);
  const Key key{block_device, block_device ? status.st_rdev : status.st_dev,
                block_device ? 0 : status.st_ino};
  std::unique_lock guard(mutex_);
  std::shared_ptr<Image> image;
  if (const auto found = images_.find(key); found != images_.end()) {
    image = found->second;
  } else {
    image = std::make_shared<Image>();
    image->name = place.shown;
    image->identity = fmt::format("{}:{}:{}", key.block_device ? 'b' : 'f', key.device, key.inode);
    examine(*image, (files->direct ? files->direct : files->buffered).get(), status);
  }
  const bool present = read_only ? image->reader || image->writer : bool(image->writer);
  if (!present) {
    const int fd = files->buffered.get();
    const LockOutcome lock = options_.lock ? lock_image(fd, !read_only) : LockOutcome{};
    if (lock.kind == LockOutcome::Kind::kRefused) {
      guard.unlock();  // to find the holder takes its time
      return error_of(
          EBUSY,
          fmt::format("{}: the image is in use by {}: {}, or switch locks off "
                      "with lock=off",
                      place.shown, name_lock_holder(fd, lock),
                      read_only ? "end that" : "end that, serve the image read-only with -r"));
    }
    if (lock.kind == LockOutcome::Kind::kUnsupported) {
      log::warning("{}: cannot be locked ({}): make sure that nobody else writes to it",
                   place.shown, errno_text(lock.error));
    }
    (read_only ? image->reader : image->writer) = std::move(*files);
    if (!read_only) image->sync_fd = fd;
  }
  if (image->disks == 0) {
    image->size = size_of((image->writer ? image->writer : image->reader).buffered.get(), status);
  }
  if (pool && !image->lane) attach(*image, *pool);
  image->disks++;
  images_.try_emplace(key, image);
  const Image::Files& opened = image->writer ? image->writer : image->reader;
  return Opened{image, &opened, !read_only, image->size};
}

Images::Opened Images::acquire_again(const std::shared_ptr<Image>& image, bool read_only) {
  std::lock_guard guard(mutex_);
  const Image::Files& files = image->writer ? image->writer : image->reader;
  struct stat status = {};
  if (image->disks++ == 0 && fstat(files.buffered.get(), &status) == 0) {
    image->size = size_of(files.buffered.get(), status);
  }
  return {image, &files, !read_only && image->writer, image->size};
}

void Images::attach(Image& image, engine::BlockingPool& pool) {
  image.lane = std::make_unique<engine::Lane>(pool);
  image.sync = std::make_unique<disk::SyncGroup>(
      image.name, [&image] { return disk::sync_data(image.sync_fd); }, *image.lane, true);
}

void Images::keep(Image& image) {
  std::lock_guard guard(mutex_);
  image.kept = true;
  image.disks--;
}

bool Images::leave(Image& image) {
  std::lock_guard guard(mutex_);
  return --image.disks == 0;
}

std::shared_ptr<Image> Images::forget(const std::shared_ptr<Image>& image) {
  std::lock_guard guard(mutex_);
  if (image->disks > 0 || image->kept || !image->sync->status()) return nullptr;
  if (image->writer && !image->sync->clean()) return nullptr;  // finish() will see to it
  for (auto entry = images_.begin(); entry != images_.end(); ++entry) {
    if (entry->second != image) continue;
    std::shared_ptr<Image> forgotten = std::move(entry->second);
    images_.erase(entry);
    return forgotten;
  }
  return nullptr;
}

std::vector<std::shared_ptr<Image>> Images::all() const {
  std::lock_guard guard(mutex_);
  std::vector<std::shared_ptr<Image>> result;
  for (const auto& [key, image] : images_) result.push_back(image);
  return result;
}

}  // namespace weft::plugins
