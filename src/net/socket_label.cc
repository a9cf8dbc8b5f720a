// SPDX-License-Identifier: BSD-3-Clause
#include "net/socket_label.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

#include "base/fd.h"
#include "base/result.h"

namespace weft::net {
namespace {

constexpr const char* kAttribute = "/proc/thread-self/attr/sockcreate";

// Returns 0 or an errno.
int write_attribute(const char* text, size_t size) {
  const Fd file(::open(kAttribute, O_WRONLY | O_CLOEXEC));
  if (!file) return errno;
  return ::write(file.get(), text, size) < 0 ? errno : 0;
}

}  // namespace

SocketLabel::SocketLabel(const std::string& label) {
  if (label.empty()) return;
  // SELinux shows its file system here; with another security module the attribute means nothing.
  if (::access("/sys/fs/selinux/enforce", F_OK) != 0) {
    throw ConfigError(fmt::format(
        "--selinux-label={}: SELinux is not enabled on this system; leave the option out", label));
  }
  if (const int code = write_attribute(label.c_str(), label.size() + 1); code != 0) {
    throw ConfigError(fmt::format("--selinux-label={}: the kernel refused this label: {}", label,
                                  errno_text(code)));
  }
  set_ = true;
}

SocketLabel::~SocketLabel() {
  if (set_) write_attribute("", 0);
}

}  // namespace weft::net
