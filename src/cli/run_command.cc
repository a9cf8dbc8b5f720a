// SPDX-License-Identifier: BSD-3-Clause
#include "cli/run_command.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <optional>

#include "base/log.h"
#include "base/result.h"
#include "cli/process.h"

namespace weft::cli {
namespace {

// The status of `child` if it has ended; does not wait.
std::optional<int> poll_child(pid_t child) {
  int status = 0;
  if (::waitpid(child, &status, WNOHANG) != child) return std::nullopt;
  return status;
}

int command_exit_status(int wait_status) {
  if (!WIFSIGNALED(wait_status)) return WEXITSTATUS(wait_status);
  const int number = WTERMSIG(wait_status);
  log::error("the command of --run was killed by signal {} ({})", number, ::strsignal(number));
  return 128 + number;
}

}  // namespace

int run_command(const std::string& script, pid_t server) {
  sigset_t signals;
  sigset_t before;
  ::sigemptyset(&signals);
  for (const int number : {SIGCHLD, SIGINT, SIGQUIT, SIGTERM, SIGHUP}) {
    ::sigaddset(&signals, number);
  }
  ::sigprocmask(SIG_BLOCK, &signals, &before);

  const pid_t command = ::fork();
  if (command == 0) {
    ::sigprocmask(SIG_SETMASK, &before, nullptr);
    ::execl("/bin/sh", "sh", "-c", script.c_str(), nullptr);
    ::_exit(127);
  }
  if (command < 0) {
    log::error("cannot start the command of --run: {}", errno_text(errno));
    ::kill(server, SIGTERM);
    wait_for_server(server);
    return 1;
  }

  std::optional<int> command_status;
  std::optional<int> server_result;
  while (true) {
    // Also before the first wait: signals of children that ended before are merged.
    if (!command_status) command_status = poll_child(command);
    if (!server_result) {
      if (const std::optional<int> status = poll_child(server)) {
        server_result = server_exit_status(*status);
        if (!command_status) log::error("the command of --run is running without its server");
      }
    }
    if (command_status) break;
    siginfo_t info{};
    const int number = ::sigwaitinfo(&signals, &info);
    if (number <= 0 || number == SIGCHLD) continue;
    // The terminal has sent it to the command already.
    const bool from_terminal = info.si_code == SI_KERNEL && (number == SIGINT || number == SIGQUIT);
    if (from_terminal) continue;
    ::kill(command, number);
    if (!server_result) ::kill(server, number);
  }

  const int result = command_exit_status(*command_status);
  if (!server_result) {
    ::kill(server, SIGTERM);
    server_result = wait_for_server(server);
  }
  return result != 0 ? result : *server_result;
}

}  // namespace weft::cli
