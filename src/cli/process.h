// SPDX-License-Identifier: BSD-3-Clause
// The process around a server: who it runs as, its standard streams, what it leaves on disk.
// Start-up only: one thread, ConfigError.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"

namespace weft::cli {

// stdin, stdout and stderr must be open, or files opened later would take their place.
void require_standard_streams();

// From now on stdin and stdout are /dev/null; with `stderr_too` stderr as well.
void leave_standard_streams(bool stderr_too);

// --exit-with-parent: the kernel sends SIGTERM when `parent` ends, or at once if it has. A change
// of user or group undoes it: call it after that (again).
void stop_with_parent(pid_t parent);

// The user and group of -u and -g. Without a group, the user's own, for a root that has one to
// give.
struct Identity {
  std::optional<uid_t> user;
  std::optional<gid_t> group;
};
Identity find_identity(const std::optional<std::string>& user,
                       const std::optional<std::string>& group);
void change_identity(const Identity& identity);

// --swap. Not inherited by children: called after the last fork.
void lock_memory();

void write_pidfile(const std::string& path);

// Sockets that start-up made, unlinked unless it came to its end.
class NewSockets {
 public:
  NewSockets() = default;
  NewSockets(const NewSockets&) = delete;
  NewSockets& operator=(const NewSockets&) = delete;
  ~NewSockets();
  void add(std::string path) { paths_.push_back(std::move(path)); }
  void keep() { paths_.clear(); }

 private:
  std::vector<std::string> paths_;
};

// A child that serves. `ready` is one end of a pipe: the child's end says that clients can connect
// (tell_ready()); the parent's hears that, or the end of a child that never came so far.
struct Forked {
  pid_t child = 0;  // 0 in the child
  Fd ready;
};
Forked fork_server();
void tell_ready(Fd ready);
[[nodiscard]] bool wait_until_ready(const Fd& ready);

// Waits for `child`. Its exit status, or 128 + N after a line in the log when signal N killed it.
int wait_for_server(pid_t child);
// The same from what waitpid() said.
int server_exit_status(int wait_status);

}  // namespace weft::cli
