// SPDX-License-Identifier: BSD-3-Clause
// SocketLabel: while it lives, sockets that this thread creates carry an SELinux label. It writes
// the kernel's own interface (/proc/thread-self/attr/sockcreate), so no library is needed.
#pragma once

#include <string>

namespace weft::net {

class SocketLabel {
 public:
  // An empty label: does nothing. Throws ConfigError when the kernel does not take the label.
  explicit SocketLabel(const std::string& label);
  SocketLabel(const SocketLabel&) = delete;
  SocketLabel& operator=(const SocketLabel&) = delete;
  ~SocketLabel();

 private:
  bool set_ = false;
};

}  // namespace weft::net
