// SPDX-License-Identifier: BSD-3-Clause
// SharedDisk: a disk that lives on a loop of its own and is called from any. For a filter that
// opens one disk below for all connections of an export.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "disk/disk.h"

namespace weft::disk {

// Thread-safe but for close(). `here` is always the caller's loop, on which the task is awaited;
// the disk's loop runs until close() has ended. What a caller of Disk must keep to holds here, too.
class SharedDisk {
 public:
  // Called once, on the thread of `home`; opens the disk there.
  using Open = std::function<Task<Result<std::unique_ptr<Disk>>>(Loop& home)>;
  static Task<Result<std::unique_ptr<SharedDisk>>> open(Loop& here, Loop& home, Open open);

  SharedDisk(const SharedDisk&) = delete;
  SharedDisk& operator=(const SharedDisk&) = delete;
  ~SharedDisk();  // it is closed

  [[nodiscard]] Loop& home() const { return home_; }
  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }
  [[nodiscard]] const std::string& identity() const { return identity_; }
  [[nodiscard]] const std::string& description() const { return description_; }

  Task<Status> read(Loop& here, uint64_t offset, MutableByteSpan into);
  Task<Status> write(Loop& here, uint64_t offset, ByteSpan from, bool fua);
  Task<Status> zero(Loop& here, Range range, ZeroFlags flags);
  Task<Status> trim(Loop& here, Range range, bool fua);
  Task<Status> flush(Loop& here);
  Task<Status> extents(Loop& here, Extents& into, bool one);

  // The last call. Nothing is in progress.
  Task<Status> close(Loop& here);

 private:
  SharedDisk(Loop& home, std::unique_ptr<Disk> disk);
  static Task<Result<std::unique_ptr<SharedDisk>>> open_at_home(Loop& home, const Open& open);
  Task<Status> close_at_home();

  Loop& home_;
  std::unique_ptr<Disk> disk_;  // used on home_ alone
  const Capabilities capabilities_;
  const std::string identity_;
  const std::string description_;
};

}  // namespace weft::disk
