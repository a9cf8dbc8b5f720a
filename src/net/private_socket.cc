// SPDX-License-Identifier: BSD-3-Clause
#include "net/private_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "base/result.h"

namespace weft::net {
namespace {

constexpr const char kTemplate[] = "/tmp/weftXXXXXX";
constexpr const char kSocketName[] = "/socket";

void remove_files(const std::string& path) {
  ::unlink(path.c_str());
  ::rmdir(path.substr(0, path.size() - std::strlen(kSocketName)).c_str());
}

ssize_t receive(int fd, void* into, size_t size) {
  ssize_t count;
  do {
    count = ::recv(fd, into, size, 0);
  } while (count < 0 && errno == EINTR);
  return count;
}

// What the guardian tells once: an errno and, when it is 0, the directory.
struct Made {
  int code = 0;
  char directory[sizeof kTemplate] = "";
};

[[noreturn]] void guard(int fd) {
  ::setsid();
  ::prctl(PR_SET_NAME, "weft-guardian");
  ::prctl(PR_SET_PDEATHSIG, 0);
  sigset_t all;
  ::sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, nullptr);  // SIGKILL and SIGSTOP remain
  // Whoever reads our output, or waits for a socket to close, must not wait for the guardian.
  if (fd > 0) ::close_range(0, static_cast<unsigned>(fd) - 1, 0);
  ::close_range(static_cast<unsigned>(fd) + 1, ~0u, 0);
  (void)!::chdir("/");
  ::umask(0077);

  Made made;
  std::memcpy(made.directory, kTemplate, sizeof kTemplate);
  if (::mkdtemp(made.directory) == nullptr) made.code = errno;
  (void)!::send(fd, &made, sizeof made, MSG_NOSIGNAL);
  if (made.code == 0) {
    char request;
    receive(fd, &request, 1);  // a request, or the end of the last holder
    remove_files(std::string(made.directory) + kSocketName);
  }
  ::_exit(0);
}

}  // namespace

PrivateSocketPath::PrivateSocketPath() : maker_pid_(::getpid()), responsible_pid_(maker_pid_) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) {
    throw ConfigError(fmt::format("cannot make a private socket: {}", errno_text(errno)));
  }
  Fd theirs(ends[1]);
  guardian_ = Fd(ends[0]);
  guardian_pid_ = ::fork();
  if (guardian_pid_ < 0) {
    throw ConfigError(fmt::format("cannot make a private socket: {}", errno_text(errno)));
  }
  if (guardian_pid_ == 0) {
    const int fd = theirs.release();
    guard(fd);
  }
  theirs.reset();
  Made made;
  if (receive(guardian_.get(), &made, sizeof made) != sizeof made) made.code = EIO;
  if (made.code != 0) {
    throw ConfigError(fmt::format("cannot make a directory in /tmp for a private socket: {}",
                                  errno_text(made.code)));
  }
  path_ = std::string(made.directory) + kSocketName;
}

PrivateSocketPath::~PrivateSocketPath() {
  remove();
}

void PrivateSocketPath::take_responsibility() {
  responsible_pid_ = ::getpid();
}

void PrivateSocketPath::remove() {
  if (!guardian_) return;
  if (::getpid() == responsible_pid_) {
    (void)!::send(guardian_.get(), "r", 1, MSG_NOSIGNAL);
    char none;
    receive(guardian_.get(), &none, 1);  // the end of the guardian
    remove_files(path_);                 // in case that somebody killed it
  }
  guardian_.reset();
  if (::getpid() == maker_pid_ && responsible_pid_ == maker_pid_) {
    while (::waitpid(guardian_pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
  }
}

}  // namespace weft::net
