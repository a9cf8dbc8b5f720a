// SPDX-License-Identifier: BSD-3-Clause
// The file plugin: image files and block devices, one or a directory of them.
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <optional>

#include "base/log.h"
#include "base/parse.h"
#include "disk/disk.h"
#include "plugins/file/file_disk.h"
#include "plugins/file/image.h"
#include "plugins/parameters.h"
#include "plugins/plugins.h"

namespace weft::plugins {
namespace {

using disk::Task;
using engine::BlockingKind;
using engine::BlockingReason;
using engine::Loop;

struct FreeText {
  void operator()(char* text) const { std::free(text); }
};
struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};

// The path as it will be known after the server has changed to "/".
std::string absolute(const std::string& key, const std::string& path) {
  const std::unique_ptr<char, FreeText> real(realpath(path.c_str(), nullptr));
  if (!real) {
    throw ConfigError(
        fmt::format("{}: '{}' cannot be found: {}: give the path of an image file, a "
                    "block device{}",
                    key, path, errno_text(errno), key == "dir" ? " or, here, a directory" : ""));
  }
  return real.get();
}

// Names of a directory's images: nothing that leads out of it, nothing hidden.
bool is_image_name(std::string_view name) {
  return !name.empty() && name.front() != '.' && name.find('/') == name.npos &&
         name.find('\0') == name.npos;
}

// Shared by all connections; what is shared is in Images.
class FilePlugin final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key == "file" || key == "dir" || key == "fd") {
      if (!place_key_.empty()) {
        throw ConfigError(
            fmt::format("{}: comes after {}=: give one of file, dir and fd", key, place_key_));
      }
      place_key_ = key;
      if (key == "fd") {
        fd_ = static_cast<int>(parse_unsigned("fd", value, 1 << 20));
      } else {
        path_ = absolute(place_key_, std::string(value));
      }
    } else if (key == "cache") {
      if (value != "default" && value != "none") {
        throw ConfigError(fmt::format("cache: '{}' is unknown: give default or none", value));
      }
      options_.direct = value == "none";
    } else if (key == "fadvise") {
      if (value == "normal") {
        options_.advice = POSIX_FADV_NORMAL;
      } else if (value == "random") {
        options_.advice = POSIX_FADV_RANDOM;
      } else if (value == "sequential") {
        options_.advice = POSIX_FADV_SEQUENTIAL;
      } else {
        throw ConfigError(
            fmt::format("fadvise: '{}' is unknown: give normal, random or sequential", value));
      }
    } else if (key == "lock") {
      options_.lock = parse_bool("lock", value);
    } else {
      refuse_parameter("file", key, "file, dir, fd, cache, fadvise and lock");
    }
  }

  void serve_read_only() override { read_only_ = true; }

  void config_complete() override {
    images_ = std::make_unique<Images>(options_);
    if (place_key_.empty()) {
      throw ConfigError("file: there is nothing to serve: give file=IMAGE, dir=DIRECTORY or fd=N");
    }
    if (place_key_ == "dir") {
      directory_ = Fd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
      if (!directory_) {
        throw ConfigError(fmt::format("dir: '{}' cannot be opened: {}: give a directory of images",
                                      path_, errno_text(errno)));
      }
      return;
    }
    const ImagePlace place{AT_FDCWD, path_, fd_,
                           place_key_ == "fd" ? fmt::format("file descriptor {}", fd_) : path_};
    auto opened = images_->acquire(place, read_only_, nullptr);
    if (!opened) throw ConfigError("file: " + opened.error().text);
    image_ = opened->image;
    images_->keep(*image_);
  }

  void start(const disk::Surroundings& surroundings) override {
    if (image_) images_->attach(*image_, surroundings.pool);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    return open_image(std::move(request.name), request.read_only, request.loop);
  }

  Task<Result<std::vector<disk::ExportEntry>>> list_exports(Loop& loop, bool read_only) override {
    if (!directory_) return Plugin::list_exports(loop, read_only);
    return list_directory(loop);
  }

  Task<Status> finish(Loop& loop) override {
    Status result;
    for (const std::shared_ptr<Image>& image : images_->all()) {
      if (!image->sync || image->sync_fd < 0) continue;
      const Status synced = co_await image->sync->flush(loop);
      if (!synced) result = synced;
    }
    co_return result;
  }

  [[nodiscard]] std::vector<disk::Explanation> explain() const override {
    std::vector<disk::Explanation> result = {
        {"visibility",
         "all connections share one open file, whatever name leads to it, and weft keeps nothing "
         "of "
         "its own: a write is visible everywhere before it is acknowledged"},
        {"durability",
         "flush is one fdatasync for all that wait, started after the last of them arrived; FUA is "
         "a write with RWF_DSYNC; a failed sync is remembered until weft ends"},
        {"cache", options_.direct ? "cache=none: reads and writes go past the page cache"
                                  : "cache=default: through the kernel's page cache, so that a "
                                    "kill of weft loses no acknowledged write"},
        {"lock", options_.lock ? "a second writer, weft or qemu, is refused (image locks of qemu)"
                               : "lock=off: nothing keeps another program from writing"}};
    return result;
  }

 private:
  using OpenResult = Result<std::unique_ptr<disk::Disk>>;

  Task<OpenResult> open_image(std::string name, bool read_only, Loop& loop) {
    Images::Opened opened;
    if (image_) {
      opened = images_->acquire_again(image_, read_only);
    } else {
      if (!is_image_name(name)) co_return fail(ENOENT, "there is no such image");
      const ImagePlace place{directory_.get(), name, -1, path_ + "/" + name};
      auto acquired = co_await loop.pool().general_lane().run(
          loop, BlockingReason::kOpen, BlockingKind::kParallel, [this, &place, read_only, &loop] {
            return images_->acquire(place, read_only, &loop.pool());
          });
      if (!acquired) {
        const ImageError& error = acquired.error();
        if (error.code != ENOENT) log::error("{}", error.text);
        co_return fail(error.code, error.code == EBUSY ? "the image is in use by another program"
                                                       : "the image cannot be opened");
      }
      opened = std::move(*acquired);
    }
    Image& image = *opened.image;
    if (opened.writable && !image.synced_at_open.exchange(true)) {
      // Somebody may have left changes there. A failure is logged, and every flush tells it.
      (void)co_await image.sync->flush(loop);
    }
    co_return make_file_disk(*images_, std::move(opened), loop);
  }

  Task<Result<std::vector<disk::ExportEntry>>> list_directory(Loop& loop) {
    co_return co_await loop.pool().general_lane().run(
        loop, BlockingReason::kMetadata, BlockingKind::kParallel, [this] { return list_images(); });
  }

  Result<std::vector<disk::ExportEntry>> list_images() const {
    Fd copy(openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    const std::unique_ptr<DIR, CloseDirectory> directory(copy ? fdopendir(copy.get()) : nullptr);
    if (!directory) return fail(errno, "the directory of images cannot be read");
    (void)copy.release();
    std::vector<disk::ExportEntry> result;
    while (const dirent* entry = readdir(directory.get())) {
      struct stat status = {};
      if (!is_image_name(entry->d_name) ||
          fstatat(directory_.get(), entry->d_name, &status, 0) != 0 ||
          (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))) {
        continue;
      }
      result.push_back({entry->d_name, ""});
    }
    std::ranges::sort(result, {}, &disk::ExportEntry::name);
    return result;
  }

  ImageOptions options_;
  std::string place_key_;  // "file", "dir" or "fd"
  std::string path_;
  int fd_ = -1;
  bool read_only_ = false;
  Fd directory_;
  std::unique_ptr<Images> images_;
  std::shared_ptr<Image> image_;  // not with dir=
};

}  // namespace

constinit const disk::PluginInfo file_plugin = {
    .name = "file",
    .longname = "weft file plugin",
    .description = "An image file, a block device, or a directory of them",
    .config_help =
        "file=PATH  an image file or a block device, or\n"
        "dir=PATH  a directory of them: the export's name picks one, or\n"
        "fd=N  one that is already open\n"
        "cache=default|none  none goes past the page cache (O_DIRECT)\n"
        "fadvise=normal|random|sequential  how it will be read\n"
        "lock=on|off  refuse a second writer (default on)",
    .magic_config_key = "file",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<FilePlugin>(); },
};

}  // namespace weft::plugins
