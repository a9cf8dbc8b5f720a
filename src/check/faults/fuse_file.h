// SPDX-License-Identifier: BSD-3-Clause
// FuseFile: a FUSE file system of one file, "disk", whose calls on data somebody else answers,
// when they like.
//
// One thread takes the kernel's requests and never waits for anything else. What concerns names and
// attributes it answers itself; reads, writes, zeroes, trims and syncs go to the owner as
// FileCalls, which are kept until they are answered.
//
// The kernel's own order. Every open of the path makes an inode of its own, because Linux lets
// calls on one FUSE inode overlap only in part: reads and writes do (writes from Linux 6.2 on), but
// an fsync waits for the writes in flight, and while it runs writes wait. Calls on descriptors that
// were opened apart overlap freely.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "base/range.h"
#include "check/faults/fault_disk.h"

struct fuse_req;
struct fuse_session;

namespace weft::check {

struct FileCall {
  fuse_req* request = nullptr;
  DiskCall kind = DiskCall::kRead;
  Range range;                  // within the file; of a sync all of it
  uint64_t handle = 0;          // of the open file: 1, 2, ... in the order of opening
  bool durable = false;         // of a write: O_DSYNC, O_SYNC or RWF_DSYNC
  std::vector<std::byte> data;  // of a write
};

class FuseFile {
 public:
  // Called from the file system's thread.
  class Owner {
   public:
    virtual ~Owner() = default;
    // Must not wait; answer_*() comes now or later, from any thread.
    virtual void take(FileCall call) = 0;
    // SEEK_DATA, SEEK_HOLE: see VolatileStore. The file's size: there is none.
    virtual uint64_t next_data(uint64_t offset) = 0;
    virtual uint64_t next_hole(uint64_t offset) = 0;
  };

  // Mounts it in a new directory under $TMPDIR. Throws ConfigError. The owner outlives it.
  FuseFile(Owner& owner, uint64_t size);
  // Unmounts. Every call must have been answered by then, and those that come until it is over must
  // be answered at once.
  ~FuseFile();
  FuseFile(const FuseFile&) = delete;
  FuseFile& operator=(const FuseFile&) = delete;

  // Exactly one of these for each call; any thread.
  static void answer_error(const FileCall& call, int error);  // errno; 0: done, nothing to tell
  static void answer_read(const FileCall& call, ByteSpan data);
  static void answer_written(const FileCall& call);

  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] bool parallel_writes() const { return parallel_writes_; }
  // The handle that the next open will be given.
  [[nodiscard]] uint64_t next_handle() const { return next_handle_; }

 private:
  struct Calls;  // what libfuse calls

  void mount();
  void serve();

  Owner& owner_;
  const uint64_t size_;
  std::string directory_;
  std::string path_;
  fuse_session* session_ = nullptr;
  std::atomic<bool> parallel_writes_ = false;
  std::atomic<uint64_t> next_handle_ = 1;
  uint64_t next_inode_ = 2;
  Fd stop_;  // an eventfd
  std::thread thread_;
};

}  // namespace weft::check
