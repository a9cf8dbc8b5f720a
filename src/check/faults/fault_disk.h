// SPDX-License-Identifier: BSD-3-Clause
// FaultDisk: a file with a volatile cache that can lose its power, fail and stall.
//
// A FUSE file system of one file, served by a thread of this process. What is written is volatile
// until a sync (fsync, fdatasync, the sync of an O_DSYNC or RWF_DSYNC write) that began after the
// write had ended has ended. The file is opened with direct I/O and parallel writes where the
// kernel can (6.2): the server's system calls arrive here without a page cache between.
//
// What it cannot do, because of the kernel:
// - On one descriptor an fsync waits for the writes in flight, and writes wait while it runs.
//   Descriptors that were opened apart are independent (see FuseFile).
// - syncfs(2), sync(2) and sync_file_range(2) are not seen; a server that relies on them is told OK
//   by the kernel and makes nothing durable. A shared mmap of the file is refused.
// - A write of more than 1 MiB arrives in pieces.
// - When this process is killed with SIGKILL, a dead mount stays: fusermount3 -u DIRECTORY.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/range.h"

namespace weft::check {

// Which calls a fault concerns. A zero is a fallocate that zeroes a range; a trim is one that
// punches a hole (servers punch holes for requests to zero, too).
enum class DiskCall : uint8_t { kRead, kWrite, kZero, kTrim, kSync };

struct FaultDiskOptions {
  uint64_t size = 16 << 20;  // bytes, a multiple of the sector
  uint32_t sector = 512;     // bytes: what is written whole or not at all
  // Every sync and write takes so long (0: as fast as it goes), which widens races. A sync covers
  // only what was written before it began. A write takes effect at its end.
  std::chrono::microseconds sync_time{500};
  std::chrono::microseconds write_time{0};
};

class FaultDisk {
 public:
  // Mounts it in a new directory under $TMPDIR. Throws ConfigError: FUSE is missing (/dev/fuse, or
  // fusermount3 for ordinary users), with the mend.
  explicit FaultDisk(const FaultDiskOptions& options);
  ~FaultDisk();  // unmounts, whoever still has it open; what waits is answered with EIO
  FaultDisk(const FaultDisk&) = delete;
  FaultDisk& operator=(const FaultDisk&) = delete;

  // "" when a FaultDisk can be made here (it tries); otherwise why not.
  [[nodiscard]] static std::string unavailable();

  [[nodiscard]] const std::string& path() const;
  // Whether writes of one open file run in parallel here (see above).
  [[nodiscard]] bool parallel_writes() const;

  // Any thread may call what follows.
  //
  // A cut of the power, in this order (cut_power() in server_process.h does all of it):
  //   freeze()     from now on nothing is answered and nothing reaches the disk: the power is gone;
  //   SIGKILL      to whoever uses it. They cannot end while a call of theirs is held;
  //   fail_held()  what is held is answered with EIO, and what still comes. Nobody acts on it: a
  //                thread with SIGKILL pending does not return from the kernel;
  //   wait         until they have ended;
  //   restore()    the power is back.
  void freeze();
  // Writes that were held may have reached the disk's cache: they are volatile afterwards.
  void fail_held();
  // The volatile sectors are lost: all, or each keeps a random one of its versions since the last
  // sync (seeded). Then the disk works again, without faults. Descriptors from before are dead:
  // what the kernel still does for them fails with EIO and changes nothing. Does fail_held() first.
  // Returns how many sectors lost a version.
  enum class Cut : uint8_t { kLoseAll, kLoseSome };
  uint64_t restore(Cut cut, uint64_t seed);
  // The same without a loss of power (the server alone was killed): nothing is lost; calls that are
  // not held by freeze() end as ever.
  void restore_nothing_lost();

  // A new disk, all zeroes and stable. For when nobody uses it: descriptors from before are dead.
  void wipe();

  // The next `count` calls of this kind that touch `range` fail with `error` (an errno) and change
  // nothing. A sync touches all; the sync of a durable write touches its range, and is a call of
  // its own after the write. A failed sync also dooms what was volatile when it began, as Linux
  // does: it is still read, no later sync makes it durable, the next cut loses it; unless it is
  // written again; and every other file that is open then is told by its own next sync, once.
  // Looked at when a call begins (after a stall).
  void fail(DiskCall call, Range range, int error, uint32_t count = 1);
  // Calls of this kind that touch `range` wait until release(); the first `count` of them. A sync
  // that waits covers what was written before it came.
  void stall(DiskCall call, Range range, uint32_t count);
  void release();
  void clear_faults();  // and release()

  struct Counters {
    // Calls that came; a durable write is also a sync.
    uint64_t reads = 0, writes = 0, zeroes = 0, trims = 0, syncs = 0;
    uint64_t failed = 0;   // by fail()
    uint64_t stalled = 0;  // that wait now
    uint64_t volatile_sectors = 0;
  };
  [[nodiscard]] Counters counters() const;
  // Waits until so many calls wait in a stall. False: not in time.
  [[nodiscard]] bool wait_stalled(uint64_t count, std::chrono::milliseconds limit) const;

  // Times may be changed while it works; for calls that begin afterwards.
  void set_times(std::chrono::microseconds write_time, std::chrono::microseconds sync_time);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft::check
