// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/fuse_file.h"

#define FUSE_USE_VERSION 312
#include <fcntl.h>
#include <fmt/format.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/falloc.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "base/result.h"

namespace weft::check {

namespace {

constexpr const char* kName = "disk";
constexpr double kForever = 86400;  // seconds that attributes stay valid: they never change

// The answer to an open as the kernel wants it (struct fuse_open_out): libfuse before 3.15 has no
// word for the last flag.
struct OpenOut {
  uint64_t handle;
  uint32_t flags;
  uint32_t padding;
};
constexpr uint32_t kDirectIo = 1 << 0;              // FOPEN_DIRECT_IO
constexpr uint32_t kNoFlush = 1 << 5;               // FOPEN_NOFLUSH
constexpr uint32_t kParallelDirectWrites = 1 << 6;  // FOPEN_PARALLEL_DIRECT_WRITES
constexpr uint32_t kParallelMinor = 38;             // of the FUSE protocol 7, Linux 6.2

// libfuse tells why a mount failed only in its log.
std::mutex log_mutex;
std::string log_text;

void keep_log(fuse_log_level /*level*/, const char* format, va_list arguments) {
  char line[512];
  const int length = vsnprintf(line, sizeof line, format, arguments);
  if (length <= 0) return;
  const std::lock_guard lock(log_mutex);
  log_text.assign(line, std::min<size_t>(static_cast<size_t>(length), sizeof line - 1));
  while (!log_text.empty() && log_text.back() == '\n') log_text.pop_back();
}

std::string last_log() {
  const std::lock_guard lock(log_mutex);
  return log_text;
}

std::string temporary_directory() {
  const char* place = std::getenv("TMPDIR");
  std::string name = fmt::format("{}/nbdcheck-disk-XXXXXX", place && *place ? place : "/tmp");
  if (!mkdtemp(name.data())) {
    throw ConfigError(
        fmt::format("{}: cannot be made: {}; set TMPDIR to a directory that can be "
                    "written",
                    name, errno_text(errno)));
  }
  return name;
}

}  // namespace

// The functions of the low-level API; `userdata` is the FuseFile.
struct FuseFile::Calls {
  static FuseFile& self(fuse_req_t request) {
    return *static_cast<FuseFile*>(fuse_req_userdata(request));
  }

  static struct stat attributes(const FuseFile& file, fuse_ino_t inode) {
    struct stat result = {};
    const bool root = inode == FUSE_ROOT_ID;
    result.st_ino = root ? FUSE_ROOT_ID : 2;
    result.st_mode = root ? S_IFDIR | 0755 : S_IFREG | 0666;
    result.st_nlink = root ? 2 : 1;
    result.st_uid = geteuid();
    result.st_gid = getegid();
    result.st_size = root ? 0 : static_cast<off_t>(file.size_);
    result.st_blksize = 4096;
    result.st_blocks = result.st_size / 512;
    return result;
  }

  static void init(void* userdata, fuse_conn_info* connection) {
    auto& file = *static_cast<FuseFile*>(userdata);
    file.parallel_writes_ =
        connection->proto_major > 7 || connection->proto_minor >= kParallelMinor;
    // Requests are copied: their memory is ours for as long as they wait.
    connection->want &=
        ~static_cast<unsigned>(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE |
                               FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_WRITEBACK_CACHE);
  }

  static void lookup(fuse_req_t request, fuse_ino_t parent, const char* name) {
    FuseFile& file = self(request);
    if (parent != FUSE_ROOT_ID || std::strcmp(name, kName) != 0) {
      fuse_reply_err(request, ENOENT);
      return;
    }
    fuse_entry_param entry = {};
    entry.ino = file.next_inode_++;  // see the header: one for each open
    entry.attr = attributes(file, entry.ino);
    entry.attr_timeout = kForever;
    entry.entry_timeout = 0;
    fuse_reply_entry(request, &entry);
  }

  static void getattr(fuse_req_t request, fuse_ino_t inode, fuse_file_info* /*info*/) {
    const struct stat attr = attributes(self(request), inode);
    fuse_reply_attr(request, &attr, kForever);
  }

  // The size is fixed; owners, modes and times are nobody's business, so that setting them
  // succeeds.
  static void setattr(fuse_req_t request, fuse_ino_t inode, struct stat* attr, int to_set,
                      fuse_file_info* info) {
    if ((to_set & FUSE_SET_ATTR_SIZE) &&
        attr->st_size != attributes(self(request), inode).st_size) {
      fuse_reply_err(request, EPERM);
      return;
    }
    getattr(request, inode, info);
  }

  static void readdir(fuse_req_t request, fuse_ino_t /*inode*/, size_t size, off_t offset,
                      fuse_file_info* /*info*/) {
    std::vector<char> text(size);
    size_t used = 0;
    constexpr const char* kNames[] = {".", "..", kName};
    for (off_t i = offset; i < 3; ++i) {
      const struct stat attr = attributes(self(request), i < 2 ? FUSE_ROOT_ID : 2);
      const size_t need =
          fuse_add_direntry(request, text.data() + used, size - used, kNames[i], &attr, i + 1);
      if (need > size - used) break;
      used += need;
    }
    fuse_reply_buf(request, text.data(), used);
  }

  static void open(fuse_req_t request, fuse_ino_t inode, fuse_file_info* /*info*/) {
    FuseFile& file = self(request);
    if (inode == FUSE_ROOT_ID) {
      fuse_reply_err(request, EISDIR);
      return;
    }
    OpenOut out = {.handle = file.next_handle_++, .flags = kDirectIo | kNoFlush, .padding = 0};
    if (file.parallel_writes_) out.flags |= kParallelDirectWrites;
    fuse_reply_buf(request, reinterpret_cast<const char*>(&out), sizeof out);
  }

  // A close says nothing about data, and a killed process must be able to end.
  static void flush(fuse_req_t request, fuse_ino_t /*inode*/, fuse_file_info* /*info*/) {
    fuse_reply_err(request, 0);
  }
  static void release(fuse_req_t request, fuse_ino_t /*inode*/, fuse_file_info* /*info*/) {
    fuse_reply_err(request, 0);
  }

  static void read(fuse_req_t request, fuse_ino_t /*inode*/, size_t size, off_t offset,
                   fuse_file_info* info) {
    FuseFile& file = self(request);
    const uint64_t begin = std::min(static_cast<uint64_t>(offset), file.size_);
    const uint64_t length = std::min<uint64_t>(size, file.size_ - begin);
    file.owner_.take(
        {.request = request, .range = {begin, length}, .handle = info->fh, .data = {}});
  }

  static void write(fuse_req_t request, fuse_ino_t /*inode*/, const char* bytes, size_t size,
                    off_t offset, fuse_file_info* info) {
    FuseFile& file = self(request);
    const Range range{static_cast<uint64_t>(offset), size};
    if (!range.within(file.size_)) {
      fuse_reply_err(request, ENOSPC);
      return;
    }
    const auto* from = reinterpret_cast<const std::byte*>(bytes);
    file.owner_.take({.request = request,
                      .kind = DiskCall::kWrite,
                      .range = range,
                      .handle = info->fh,
                      .durable = (info->flags & O_DSYNC) != 0,  // O_SYNC contains it
                      .data = {from, from + size}});
  }

  static void fsync(fuse_req_t request, fuse_ino_t /*inode*/, int /*datasync*/,
                    fuse_file_info* info) {
    FuseFile& file = self(request);
    file.owner_.take({.request = request,
                      .kind = DiskCall::kSync,
                      .range = {0, file.size_},
                      .handle = info->fh,
                      .data = {}});
  }

  static void fallocate(fuse_req_t request, fuse_ino_t /*inode*/, int mode, off_t offset,
                        off_t length, fuse_file_info* info) {
    FuseFile& file = self(request);
    Range range{static_cast<uint64_t>(offset), static_cast<uint64_t>(length)};
    const int what = mode & ~FALLOC_FL_KEEP_SIZE;
    if ((what & ~(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) != 0) {
      fuse_reply_err(request, EOPNOTSUPP);
      return;
    }
    if (!range.within(file.size_)) {
      if (!(mode & FALLOC_FL_KEEP_SIZE)) {
        fuse_reply_err(request, ENOSPC);
        return;
      }
      range.offset = std::min(range.offset, file.size_);
      range.length = std::min(range.length, file.size_ - range.offset);
    }
    if (what == 0 || range.empty()) {  // all is allocated, always
      fuse_reply_err(request, 0);
      return;
    }
    file.owner_.take({.request = request,
                      .kind = what == FALLOC_FL_PUNCH_HOLE ? DiskCall::kTrim : DiskCall::kZero,
                      .range = range,
                      .handle = info->fh,
                      .data = {}});
  }

  static void lseek(fuse_req_t request, fuse_ino_t /*inode*/, off_t offset, int whence,
                    fuse_file_info* /*info*/) {
    FuseFile& file = self(request);
    const auto from = static_cast<uint64_t>(offset);
    if (offset < 0 || from >= file.size_) {
      fuse_reply_err(request, ENXIO);
      return;
    }
    const uint64_t found =
        whence == SEEK_HOLE ? file.owner_.next_hole(from) : file.owner_.next_data(from);
    if (whence == SEEK_DATA && found == file.size_) {
      fuse_reply_err(request, ENXIO);
      return;
    }
    fuse_reply_lseek(request, static_cast<off_t>(found));
  }

  static fuse_lowlevel_ops table() {
    fuse_lowlevel_ops ops = {};
    ops.init = init;
    ops.lookup = lookup;
    ops.getattr = getattr;
    ops.setattr = setattr;
    ops.readdir = readdir;
    ops.open = open;
    ops.flush = flush;
    ops.release = release;
    ops.read = read;
    ops.write = write;
    ops.fsync = fsync;
    ops.fallocate = fallocate;
    ops.lseek = lseek;
    return ops;
  }
};

FuseFile::FuseFile(Owner& owner, uint64_t size)
    : owner_(owner), size_(size), directory_(temporary_directory()) {
  path_ = fmt::format("{}/{}", directory_, kName);
  try {
    mount();
  } catch (...) {
    rmdir(directory_.c_str());
    throw;
  }
  thread_ = std::thread([this] { serve(); });
  // The kernel's first request, which tells what it can, has been answered once this is.
  struct stat unused;
  (void)stat(path_.c_str(), &unused);
}

void FuseFile::mount() {
  const Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) {
    throw ConfigError(
        fmt::format("/dev/fuse: {}; the disk that is harmed needs FUSE: load the "
                    "module (modprobe fuse), or give the container the device",
                    errno_text(errno)));
  }
  fuse_set_log_func(keep_log);
  // Others may use it when we are root: servers like to give up their privileges.
  std::string options = "-ofsname=nbdcheck,subtype=nbdcheck";
  if (geteuid() == 0) options += ",allow_other";
  char program[] = "nbdcheck";
  char* arguments[] = {program, options.data(), nullptr};
  fuse_args args = FUSE_ARGS_INIT(2, arguments);
  static const fuse_lowlevel_ops ops = Calls::table();
  session_ = fuse_session_new(&args, &ops, sizeof ops, this);
  fuse_opt_free_args(&args);
  if (!session_) throw ConfigError(fmt::format("FUSE: no session: {}", last_log()));
  if (fuse_session_mount(session_, directory_.c_str()) != 0) {
    fuse_session_destroy(session_);
    throw ConfigError(
        fmt::format("{}: FUSE cannot be mounted ({}); run as root with CAP_SYS_ADMIN, or install "
                    "fusermount3 (package fuse3)",
                    directory_, last_log()));
  }
  const int fd = fuse_session_fd(session_);
  stop_ = Fd(eventfd(0, EFD_CLOEXEC));
  if (!stop_ || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0) {
    const int error = errno;
    fuse_session_unmount(session_);
    fuse_session_destroy(session_);
    throw ConfigError(fmt::format("FUSE: {}", errno_text(error)));
  }
}

void FuseFile::serve() {
  fuse_buf buffer = {};
  pollfd waits[2] = {{.fd = fuse_session_fd(session_), .events = POLLIN, .revents = 0},
                     {.fd = stop_.get(), .events = POLLIN, .revents = 0}};
  while (!fuse_session_exited(session_)) {
    if (poll(waits, 2, -1) < 0 && errno != EINTR) break;
    if (waits[1].revents) break;
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got == -EINTR || got == -EAGAIN) continue;
    if (got <= 0) break;  // unmounted by somebody else
    fuse_session_process_buf(session_, &buffer);
  }
  std::free(buffer.mem);
}

FuseFile::~FuseFile() {
  eventfd_write(stop_.get(), 1);
  thread_.join();
  fuse_session_unmount(session_);  // MNT_DETACH: also while somebody has it open
  fuse_session_destroy(session_);  // the kernel ends what is left with ENOTCONN
  rmdir(directory_.c_str());
}

void FuseFile::answer_error(const FileCall& call, int error) {
  fuse_reply_err(call.request, error);
}

void FuseFile::answer_read(const FileCall& call, ByteSpan data) {
  fuse_reply_buf(call.request, reinterpret_cast<const char*>(data.data()), data.size());
}

void FuseFile::answer_written(const FileCall& call) {
  fuse_reply_write(call.request, call.range.length);
}

}  // namespace weft::check
