// SPDX-License-Identifier: BSD-3-Clause
#include "cli/process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <pwd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>

#include "base/log.h"
#include "base/parse.h"
#include "base/result.h"

namespace weft::cli {
namespace {

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

}  // namespace

void require_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0) {
      throw ConfigError(
          fmt::format("{} is closed: stdin, stdout and stderr must be open at start; "
                      "use /dev/null for what is not needed",
                      fd == 0   ? "stdin"
                      : fd == 1 ? "stdout"
                                : "stderr"));
    }
  }
}

void leave_standard_streams(bool stderr_too) {
  std::fflush(stdout);
  const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null) throw ConfigError(fmt::format("cannot open /dev/null: {}", errno_text(errno)));
  for (int fd = 0; fd <= (stderr_too ? 2 : 1); ++fd) ::dup2(null.get(), fd);
}

void stop_with_parent(pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::raise(SIGTERM);
}

Identity find_identity(const std::optional<std::string>& user,
                       const std::optional<std::string>& group) {
  Identity identity;
  if (group) {
    if (const ::group* entry = ::getgrnam(group->c_str())) {
      identity.group = entry->gr_gid;
    } else if (is_number(*group)) {
      identity.group = static_cast<gid_t>(parse_unsigned("--group", *group, UINT32_MAX - 1));
    } else {
      throw ConfigError(fmt::format("--group={}: there is no such group", *group));
    }
  }
  if (user) {
    const passwd* entry = ::getpwnam(user->c_str());
    if (entry == nullptr && is_number(*user)) {
      identity.user = static_cast<uid_t>(parse_unsigned("--user", *user, UINT32_MAX - 1));
      entry = ::getpwuid(*identity.user);
    } else if (entry == nullptr) {
      throw ConfigError(fmt::format("--user={}: there is no such user", *user));
    }
    if (entry != nullptr) {
      identity.user = entry->pw_uid;
      // Otherwise the server would keep root's groups.
      if (!identity.group && ::geteuid() == 0) identity.group = entry->pw_gid;
    }
  }
  return identity;
}

void change_identity(const Identity& identity) {
  const bool root = ::geteuid() == 0;
  if (identity.group && (root || *identity.group != ::getegid())) {
    if (::setgroups(1, &*identity.group) != 0 || ::setgid(*identity.group) != 0) {
      throw ConfigError(
          fmt::format("cannot change to group {}: {}", *identity.group, errno_text(errno)));
    }
  }
  if (identity.user && ::setuid(*identity.user) != 0) {
    throw ConfigError(
        fmt::format("cannot change to user {}: {}", *identity.user, errno_text(errno)));
  }
}

void lock_memory() {
  // What comes after a change of user counts against that user's limit.
  const rlimit unlimited{RLIM_INFINITY, RLIM_INFINITY};
  ::setrlimit(RLIMIT_MEMLOCK, &unlimited);
  if (::mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
    throw ConfigError(fmt::format(
        "--swap: cannot lock the memory: {}; run as root or raise the limit (ulimit -l)",
        errno_text(errno)));
  }
}

void write_pidfile(const std::string& path) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY, 0644));
  const std::string text = fmt::format("{}\n", ::getpid());
  if (!file || ::write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    throw ConfigError(fmt::format("cannot write the pidfile {}: {}", path, errno_text(errno)));
  }
}

NewSockets::~NewSockets() {
  for (const std::string& path : paths_) ::unlink(path.c_str());
}

Forked fork_server() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    throw ConfigError(fmt::format("cannot make a pipe: {}", errno_text(errno)));
  }
  Fd hear(ends[0]);
  Fd tell(ends[1]);
  std::fflush(stdout);  // what a plugin has printed is printed once
  const pid_t child = ::fork();
  if (child < 0) throw ConfigError(fmt::format("cannot fork: {}", errno_text(errno)));
  return {child, child == 0 ? std::move(tell) : std::move(hear)};
}

void tell_ready(Fd ready) {
  if (ready) (void)!::write(ready.get(), "r", 1);
}

bool wait_until_ready(const Fd& ready) {
  char byte;
  ssize_t count;
  do {
    count = ::read(ready.get(), &byte, 1);
  } while (count < 0 && errno == EINTR);
  return count == 1;
}

int wait_for_server(pid_t child) {
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return 1;
  }
  return server_exit_status(status);
}

int server_exit_status(int wait_status) {
  if (!WIFSIGNALED(wait_status)) return WEXITSTATUS(wait_status);
  const int number = WTERMSIG(wait_status);
  log::error("the server was killed by signal {} ({})", number, ::strsignal(number));
  return 128 + number;
}

}  // namespace weft::cli
