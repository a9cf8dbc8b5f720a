// SPDX-License-Identifier: BSD-3-Clause
// PrivateSocketPath: a directory of our own in /tmp for one Unix socket, which never outlives the
// server, however that ends.
//
// The directory is made and removed by a *guardian*, a small child process. It is tied to the
// processes of the server by a socket pair: the guardian holds one end, the process that asked and
// every process it forks hold the other. When remove() asks, or when the last holder is gone (also
// by SIGKILL or a crash: the kernel closes its descriptors), the guardian removes socket and
// directory and ends. The guardian makes the directory itself, so there is no moment at which a
// directory exists that nobody would remove. It keeps the rights the server had at start, for a
// server that changes its user. It has a session of its own, ignores the signals that stop a
// server, and holds no other descriptor.
//
// Not handled: a SIGKILL of the guardian *and* of every holder.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"

namespace weft::net {

class PrivateSocketPath {
 public:
  // Makes /tmp/weftXXXXXX. Forks: call it while the process has one thread. Throws ConfigError.
  PrivateSocketPath();
  PrivateSocketPath(const PrivateSocketPath&) = delete;
  PrivateSocketPath& operator=(const PrivateSocketPath&) = delete;
  // Calls remove() in the process that is responsible, and only closes its end in the others.
  ~PrivateSocketPath();

  // Where the socket is to be bound: /tmp/weftXXXXXX/socket.
  [[nodiscard]] const std::string& path() const { return path_; }
  // The process that has to outlive all the others of the server calls this after a fork.
  void take_responsibility();
  // Removes socket and directory, and returns when they are gone. A second call does nothing.
  void remove();

 private:
  Fd guardian_;
  pid_t guardian_pid_ = 0;
  pid_t maker_pid_ = 0;  // whose child the guardian is
  pid_t responsible_pid_ = 0;
  std::string path_;
};

}  // namespace weft::net
