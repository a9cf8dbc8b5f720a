// SPDX-License-Identifier: BSD-3-Clause
// Image: a file or block device that is served, one per inode whatever names and connections lead
// to it. It holds what all of them share: the open file, the order of changes, the sync group with
// its mark of a failed sync, the lane of blocking calls, the lock.
//
// Images keeps them. An image is opened once; when its last disk closes it is synced, and forgotten
// if that went well. One whose sync failed is kept, with its mark, as long as the process lives.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <expected>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/fd.h"
#include "disk/change_order.h"
#include "disk/file_calls.h"
#include "disk/sync_group.h"
#include "engine/blocking_pool.h"

namespace weft::plugins {

// What the plugin's parameters say of every image.
struct ImageOptions {
  bool direct = false;  // cache=none: past the page cache
  bool lock = true;     // take qemu's locks
  int advice = 0;       // POSIX_FADV_*
};

// Constant after it was opened, but for what says otherwise.
struct Image {
  std::string name;      // of the file, for messages
  std::string identity;  // of the inode (Disk::identity)
  bool block_device = false;
  bool rotational = false;
  bool knows_extents = false;
  uint32_t block_size = 1;        // of direct reads and writes, bytes: a power of two
  uint32_t memory_alignment = 1;  // of their buffers
  // Guarded by the lock of Images; fixed while a disk is open, but for the size of none.
  uint64_t size = 0;  // bytes
  size_t disks = 0;
  bool kept = false;  // until the plugin ends

  // The file opened for reading only, or for both; a later writer finds the second beside the
  // first. Guarded like the size; disks copy the descriptors when they open.
  struct Files {
    Fd buffered;
    Fd direct;  // with O_DIRECT, of the same file
    explicit operator bool() const { return static_cast<bool>(buffered); }
  };
  Files reader;
  Files writer;

  // Thread-safe.
  std::unique_ptr<disk::ChangeOrder> order;
  disk::SpaceCalls space;
  std::atomic<bool> nowait{true};  // preadv2(2) with RWF_NOWAIT is not known to be refused
  std::atomic<bool> may_be_sparse{false};
  std::atomic<bool> synced_at_open{false};
  std::atomic<int> sync_fd{-1};  // the writer's, once there is one
  // From attach() on.
  std::unique_ptr<engine::Lane> lane;
  std::unique_ptr<disk::SyncGroup> sync;
};

// Where an image is found: `name` in `directory` (AT_FDCWD: a path), or a descriptor of ours.
struct ImagePlace {
  int directory = -1;
  std::string name;
  int fd = -1;        // >= 0: used instead of opening
  std::string shown;  // for messages
};

// Opening failed. `text` is one line for the log or for the person who starts weft.
struct ImageError {
  int code;
  std::string text;
};

// Thread-safe.
class Images {
 public:
  explicit Images(ImageOptions options) : options_(options) {}

  // What a disk of an image is made of.
  struct Opened {
    std::shared_ptr<Image> image;
    const Image::Files* files = nullptr;  // the image's
    bool writable = false;
    uint64_t size = 0;  // bytes
  };
  // Opens the image or finds it open, and counts a disk more. Blocks. `pool`: null before the
  // program has forked; then attach() is called later.
  std::expected<Opened, ImageError> acquire(const ImagePlace& place, bool read_only,
                                            engine::BlockingPool* pool);
  void attach(Image& image, engine::BlockingPool& pool);
  // The same for an image that is kept: whatever its path leads to by now. Does not block.
  Opened acquire_again(const std::shared_ptr<Image>& image, bool read_only);

  // Keeps the image while the plugin lives, instead of for the disk that acquire() counted.
  void keep(Image& image);
  // A disk has closed. True: it was the last; the image should be synced, then forget() called.
  bool leave(Image& image);
  // Forgets the image if it is still without disks and has nothing to lose. What is returned is to
  // be destroyed where it may block (it closes a file); null if the image stays.
  std::shared_ptr<Image> forget(const std::shared_ptr<Image>& image);

  [[nodiscard]] std::vector<std::shared_ptr<Image>> all() const;
  [[nodiscard]] const ImageOptions& options() const { return options_; }

 private:
  struct Key {  // of an inode; block devices are known by their own number
    bool block_device;
    dev_t device;
    ino_t inode;
    auto operator<=>(const Key&) const = default;
  };
  std::expected<Image::Files, ImageError> open_files(const ImagePlace& place, bool& read_only,
                                                     struct stat& status) const;
  void examine(Image& image, int fd, const struct stat& status) const;

  const ImageOptions options_;
  mutable std::mutex mutex_;
  std::map<Key, std::shared_ptr<Image>> images_;
};

}  // namespace weft::plugins
