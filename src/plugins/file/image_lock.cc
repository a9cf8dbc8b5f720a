// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/file/image_lock.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <span>
#include <vector>

namespace weft::plugins {
namespace {

constexpr int kUsedByte = 100;
constexpr int kUnsharedByte = 200;
constexpr int kRead = 0;
constexpr int kWrite = 1;
constexpr int kResize = 3;
constexpr int kPermissions = 5;

int set_lock(int fd, short type, off_t first, off_t count) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = first;
  lock.l_len = count;
  return fcntl(fd, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
}

// Whether another open file description has this byte locked. `process`: its number, if the kernel
// tells it.
bool is_locked(int fd, int byte, pid_t& process) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type == F_UNLCK) return false;
  process = lock.l_pid;
  return true;
}

std::string name_process(pid_t process) {
  std::string name;
  std::getline(std::ifstream(fmt::format("/proc/{}/comm", process)), name);
  return fmt::format("{} (process {})", name.empty() ? "a program" : name, process);
}

struct CloseDirectory {
  void operator()(DIR* directory) const { closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

// A line of /proc/PID/fdinfo/FD: "lock:	1: OFDLCK ADVISORY  READ -1 fe:00:1234 100 101".
bool line_locks(const std::string& line, const struct stat& image, int byte) {
  unsigned major_number = 0;
  unsigned minor_number = 0;
  unsigned long inode = 0;
  long first = 0;
  long last = 0;
  if (std::sscanf(line.c_str(), "lock: %*d: OFDLCK %*s %*s %*d %x:%x:%lu %ld %ld", &major_number,
                  &minor_number, &inode, &first, &last) != 5) {
    return false;
  }
  return major_number == major(image.st_dev) && minor_number == minor(image.st_dev) &&
         inode == image.st_ino && first <= byte && byte <= last;
}

// The kernel names no process for these locks, but each process shows those of its descriptors, to
// who may look.
pid_t find_holder(int fd, int byte) {
  struct stat image = {};
  if (fstat(fd, &image) != 0) return 0;
  const Directory processes(opendir("/proc"));
  if (!processes) return 0;
  while (const dirent* process = readdir(processes.get())) {
    const pid_t number = atoi(process->d_name);
    if (number <= 0) continue;
    const std::string path = fmt::format("/proc/{}/fdinfo", number);
    const Directory descriptors(opendir(path.c_str()));
    if (!descriptors) continue;
    while (const dirent* descriptor = readdir(descriptors.get())) {
      if (descriptor->d_name[0] == '.') continue;
      if (number == getpid() && atoi(descriptor->d_name) == fd) continue;  // our own locks
      std::ifstream info(path + "/" + descriptor->d_name);
      for (std::string line; std::getline(info, line);) {
        if (line_locks(line, image, byte)) return number;
      }
    }
  }
  return 0;
}

}  // namespace

LockOutcome lock_image(int fd, bool writer) {
  const std::vector<int> used = writer ? std::vector{kRead, kWrite} : std::vector{kRead};
  const std::vector<int> unshared = writer ? std::vector{kWrite, kResize} : std::vector<int>{};
  const auto unlock = [fd] {
    set_lock(fd, F_UNLCK, kUsedByte, kPermissions);
    set_lock(fd, F_UNLCK, kUnsharedByte, kPermissions);
  };
  const auto take = [fd](std::span<const int> permissions, int base) {
    for (int permission : permissions) {
      if (const int error = set_lock(fd, F_RDLCK, base + permission, 1)) return error;
    }
    return 0;
  };
  int error = take(used, kUsedByte);
  if (!error) error = take(unshared, kUnsharedByte);
  if (error) {
    unlock();
    if (error == EAGAIN || error == EACCES) return {.kind = LockOutcome::Kind::kRefused};
    return {.kind = LockOutcome::Kind::kUnsupported, .error = error};
  }
  LockOutcome outcome;
  const auto look = [fd, &outcome](std::span<const int> permissions, int base) {
    for (int permission : permissions) {
      if (!is_locked(fd, base + permission, outcome.process)) continue;
      outcome.kind = LockOutcome::Kind::kRefused;
      outcome.byte = base + permission;
      return true;
    }
    return false;
  };
  if (look(used, kUnsharedByte) || look(unshared, kUsedByte)) unlock();
  return outcome;
}

std::string name_lock_holder(int fd, const LockOutcome& refused) {
  const pid_t process = refused.process > 0 ? refused.process : find_holder(fd, refused.byte);
  return process > 0 ? name_process(process) : "another program";
}

}  // namespace weft::plugins
