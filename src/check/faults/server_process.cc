// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/server_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/result.h"

namespace weft::check {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr size_t kOutputMax = 64 << 10;  // bytes that output() returns
constexpr std::chrono::seconds kKillLimit{10};
constexpr std::chrono::milliseconds kTick{2};  // between looks at something that will change soon
constexpr std::chrono::milliseconds kLookAgain{100};
constexpr const char* kMarkName = "NBDCHECK_SERVER";

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += with.size()) {
    text.replace(at, what.size(), with);
  }
  return text;
}

std::string quoted(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=:,+@%{}";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  return "'" + replaced(word, "'", "'\\''") + "'";
}

// A path for a socket must fit into 107 bytes: $TMPDIR only where it does.
std::string socket_directory() {
  const char* place = std::getenv("TMPDIR");
  std::string name = fmt::format("{}/nbdcheck-XXXXXX", place && *place ? place : "/tmp");
  if (name.size() > 80) name = "/tmp/nbdcheck-XXXXXX";
  if (!mkdtemp(name.data())) {
    throw ConfigError(
        fmt::format("{}: cannot be made: {}; set TMPDIR to a directory that can be "
                    "written",
                    name, errno_text(errno)));
  }
  return name;
}

std::string file_text(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool connects(const std::string& path) {
  sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = {}};
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const Fd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return fd && connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

// In the child, after fork: only what is safe there.
[[noreturn]] void become(char** arguments, char** environment, int input, int output, int report,
                         pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int number : {SIGPIPE, SIGINT, SIGTERM, SIGHUP, SIGQUIT}) signal(number, SIG_DFL);
  dup2(input, 0);
  dup2(output, 1);
  dup2(output, 2);
  execvpe(arguments[0], arguments, environment);
  const int error = errno;
  (void)!write(report, &error, sizeof error);
  _exit(127);
}

}  // namespace

struct ServerProcess::Member {
  pid_t pid;
  Fd handle;  // a pidfd: it is this process, also when the number is used again

  [[nodiscard]] bool ended() const {
    pollfd wait = {.fd = handle.get(), .events = POLLIN, .revents = 0};
    return !handle || poll(&wait, 1, 0) > 0;
  }
  void send(int number) const {
    if (handle) syscall(SYS_pidfd_send_signal, handle.get(), number, nullptr, 0);
  }
};

ServerProcess::ServerProcess(std::vector<std::string> command, std::string disk)
    : command_(std::move(command)), disk_(std::move(disk)) {
  if (command_.empty() || command_[0].empty())
    throw ConfigError("command: none; give one after --");
  bool found = false;
  for (const auto& word : command_) found |= word.find("{socket}") != std::string::npos;
  if (!found) {
    throw ConfigError(
        "command: no {socket} in it, so that nobody knows where the server will be; "
        "write {socket} where the path of its Unix socket belongs");
  }
  directory_ = socket_directory();
  socket_ = directory_ + "/socket";
  static std::atomic<uint64_t> made = 0;
  mark_ = fmt::format("{}={}.{}", kMarkName, getpid(), ++made);
}

ServerProcess::~ServerProcess() {
  if (group_ > 0) kill();
  unlink(socket_.c_str());
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

// Processes that carry our mark, or are the one we started, and have not ended.
std::vector<ServerProcess::Member> ServerProcess::members() const {
  std::vector<Member> result;
  const std::string mark = mark_ + '\0';
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc()) continue;
    const auto belongs = [&] {
      return pid == pid_ || file_text(entry.path() / "environ").find(mark) != std::string::npos;
    };
    if (!belongs()) continue;
    Member member{pid, Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)))};
    // Asked again: the number may have been given to another in between.
    if (belongs() && !member.ended()) result.push_back(std::move(member));
  }
  return result;
}

void ServerProcess::reap() {
  int status = 0;
  if (pid_ <= 0 || waitpid(pid_, &status, WNOHANG) != pid_) return;
  pid_ = -1;
  ending_ = WIFEXITED(status) ? fmt::format("exited with {}", WEXITSTATUS(status))
                              : fmt::format("killed by signal {}", WTERMSIG(status));
}

void ServerProcess::spawn() {
  std::vector<std::string> words;
  for (const auto& word : command_) {
    words.push_back(replaced(replaced(word, "{disk}", disk_), "{socket}", socket_));
  }
  std::vector<char*> arguments;
  for (auto& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  std::vector<char*> variables;
  for (char** at = environ; *at; ++at) {
    if (!std::string_view(*at).starts_with(std::string(kMarkName) + "=")) variables.push_back(*at);
  }
  variables.push_back(mark_.data());
  variables.push_back(nullptr);

  output_ = Fd(memfd_create("nbdcheck-server", MFD_CLOEXEC));
  const Fd input(open("/dev/null", O_RDONLY | O_CLOEXEC));
  int pipe_ends[2];
  if (!output_ || !input || pipe2(pipe_ends, O_CLOEXEC) != 0) {
    throw ConfigError(fmt::format("command: cannot be started: {}", errno_text(errno)));
  }
  const Fd from_child(pipe_ends[0]);
  Fd to_parent(pipe_ends[1]);
  // Writers append, whoever they are.
  fcntl(output_.get(), F_SETFL, O_APPEND);
  const pid_t self = getpid();
  pid_ = fork();
  if (pid_ == 0) {
    become(arguments.data(), variables.data(), input.get(), output_.get(), to_parent.get(), self);
  }
  if (pid_ < 0) throw ConfigError(fmt::format("command: fork: {}", errno_text(errno)));
  setpgid(pid_, pid_);  // here too: whoever is first
  group_ = pid_;
  to_parent.reset();
  int error = 0;
  if (read(from_child.get(), &error, sizeof error) == sizeof error) {
    kill();
    throw ConfigError(fmt::format("{}: cannot be run: {}; is it installed and in $PATH?",
                                  command_[0], errno_text(error)));
  }
}

// The kernel lists listening sockets with their paths: nobody needs to be connected for that. A
// server that has bound another name for the same file is found by connecting.
bool ServerProcess::listening() const {
  std::ifstream table("/proc/net/unix");
  std::string line;
  constexpr const char* kListening = " 00010000 ";  // __SO_ACCEPTCON
  while (std::getline(table, line)) {
    if (line.ends_with(" " + socket_) && line.find(kListening) != std::string::npos) return true;
  }
  return access(socket_.c_str(), F_OK) == 0 && connects(socket_);
}

void ServerProcess::start(std::chrono::milliseconds limit) {
  unlink(socket_.c_str());
  ending_.clear();
  const auto end = Clock::now() + limit;
  spawn();
  auto look_again = Clock::now();
  while (!listening()) {
    // Looking through all processes takes milliseconds: not each time.
    reap();
    if (pid_ <= 0 && Clock::now() >= look_again) {
      look_again = Clock::now() + kLookAgain;
      if (running()) continue;
      throw ConfigError(fmt::format("{}: the server {} before it listened on {}{}", command_[0],
                                    ending_.empty() ? "ended" : ending_, socket_, said()));
    }
    if (Clock::now() > end) {
      const std::string text = said();
      kill();
      throw ConfigError(fmt::format("{}: the server does not listen on {} after {} ms{}",
                                    command_[0], socket_, limit.count(), text));
    }
    std::this_thread::sleep_for(kTick);
  }
}

bool ServerProcess::kill(const std::function<void()>& signalled) {
  if (group_ <= 0) {
    if (signalled) signalled();
    return true;
  }
  // The group at once, so that none of it sees another one gone; then who is elsewhere, until there
  // is nobody who could have made more.
  const bool group_killed = pid_ > 0;  // else its number may be somebody else's by now
  if (group_killed) ::kill(-group_, SIGKILL);
  std::vector<Member> all;
  for (int round = 0; round < 10; ++round) {
    auto found = members();
    std::erase_if(found, [&](const Member& member) {
      return std::ranges::any_of(all, [&](const Member& old) { return old.pid == member.pid; });
    });
    bool elsewhere = false;
    for (Member& member : found) {
      elsewhere |= !group_killed || getpgid(member.pid) != group_;
      member.send(SIGKILL);
      all.push_back(std::move(member));
    }
    // The group was killed before we looked: nobody of it can have made more since.
    if (!elsewhere) break;
  }
  if (signalled) signalled();
  const auto limit = Clock::now() + kKillLimit;
  const auto gone = [&] {
    reap();
    return pid_ <= 0 && std::ranges::all_of(all, [](const Member& m) { return m.ended(); });
  };
  while (!gone()) {
    if (Clock::now() > limit) return false;
    std::this_thread::sleep_for(kTick);
  }
  group_ = -1;
  unlink(socket_.c_str());
  return true;
}

bool ServerProcess::stop(std::chrono::milliseconds limit) {
  for (const Member& member : members()) member.send(SIGTERM);
  const auto end = Clock::now() + limit;
  while (running()) {
    if (Clock::now() > end) {
      kill();
      return false;
    }
    std::this_thread::sleep_for(kTick);
  }
  group_ = -1;
  return true;
}

bool ServerProcess::running() {
  reap();
  return pid_ > 0 || (group_ > 0 && !members().empty());
}

std::string ServerProcess::output() const {
  if (!output_) return "";
  const off_t size = lseek(output_.get(), 0, SEEK_END);
  const off_t from = std::max<off_t>(0, size - static_cast<off_t>(kOutputMax));
  std::string text(static_cast<size_t>(size - from), '\0');
  const ssize_t got = pread(output_.get(), text.data(), text.size(), from);
  text.resize(got > 0 ? static_cast<size_t>(got) : 0);
  return text;
}

std::string ServerProcess::said() const {
  constexpr size_t kLastBytes = 600;
  std::string text = output();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (text.empty()) return "; it printed nothing";
  if (text.size() > kLastBytes) text.erase(0, text.size() - kLastBytes);
  return "; it printed: " + replaced(text, "\n", " / ");
}

std::string ServerProcess::command_line() const {
  std::string line;
  for (const auto& word : command_) line += (line.empty() ? "" : " ") + quoted(word);
  return line;
}

uint64_t cut_power(ServerProcess& server, FaultDisk& disk, FaultDisk::Cut cut, uint64_t seed) {
  disk.freeze();
  if (!server.kill([&] { disk.fail_held(); })) {
    throw ConfigError(fmt::format("{}: does not end after SIGKILL", server.command_line()));
  }
  return disk.restore(cut, seed);
}

}  // namespace weft::check
