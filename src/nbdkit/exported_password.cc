// SPDX-License-Identifier: BSD-3-Clause
// nbdkit_read_password(): a password that need not stand on the command line.
#include <fcntl.h>
#include <fmt/format.h>
#include <termios.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/log.h"
#include "base/parse.h"
#include "base/result.h"
#include "nbdkit/call.h"
#include "nbdkit/exported.h"

namespace {

using weft::errno_text;
using weft::Fd;
using weft::log::Level;
using weft::nbdkit::Host;
using weft::nbdkit::say;

constexpr size_t kPasswordMax = 65536;  // bytes: a longer line is no password

int refuse(int code, const std::string& text) {
  say(Level::kError, text);
  errno = code;
  return -1;
}

// The first line, without its end, of what can be read. `what` names it in messages. Byte by byte
// from a terminal or pipe would take away more than the line: there nobody else reads.
int read_line(int fd, const std::string& what, char** password) {
  std::string line;
  char buffer[512];
  while (line.find('\n') == line.npos) {
    const ssize_t got = ::read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const int code = errno;
      return refuse(code, fmt::format("{}: cannot read the password: {}", what, errno_text(code)));
    }
    if (got == 0) break;
    line.append(buffer, static_cast<size_t>(got));
    if (line.size() > kPasswordMax) {
      return refuse(EINVAL,
                    fmt::format("{}: the first line is longer than {} bytes", what, kPasswordMax));
    }
  }
  if (const size_t end = line.find('\n'); end != line.npos) line.resize(end);
  *password = ::strdup(line.c_str());
  return *password ? 0 : refuse(ENOMEM, fmt::format("{}: out of memory", what));
}

// While it lives, a terminal does not show what is typed.
class NoEcho {
 public:
  explicit NoEcho(int fd) : fd_(fd), active_(::tcgetattr(fd, &before_) == 0) {
    if (!active_) return;
    termios quiet = before_;
    quiet.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    quiet.c_lflag |= ICANON | ECHONL;
    active_ = ::tcsetattr(fd_, TCSAFLUSH, &quiet) == 0;
  }
  ~NoEcho() {
    if (active_) ::tcsetattr(fd_, TCSAFLUSH, &before_);
  }
  NoEcho(const NoEcho&) = delete;
  NoEcho& operator=(const NoEcho&) = delete;
  [[nodiscard]] bool active() const { return active_; }

 private:
  int fd_;
  termios before_{};
  bool active_;
};

int ask(char** password) {
  if (!Host::instance().stdio_safe || !::isatty(STDIN_FILENO)) {
    return refuse(ENOTTY,
                  "password: stdin is no terminal where it could be typed: give it by "
                  "+FILENAME or -FD");
  }
  const NoEcho quiet(STDIN_FILENO);
  if (!quiet.active()) {
    return refuse(EIO, "password: the terminal cannot be kept from showing what is typed");
  }
  constexpr std::string_view kPrompt = "password: ";
  (void)!::write(STDOUT_FILENO, kPrompt.data(), kPrompt.size());
  return read_line(STDIN_FILENO, "stdin", password);
}

}  // namespace

int nbdkit_read_password(const char* value, char** password) {
  *password = nullptr;
  if (!value) return refuse(EINVAL, "password: no value was given");
  const std::string_view text(value);
  if (text == "-") return ask(password);
  if (text.starts_with('-')) {
    int number = -1;
    if (nbdkit_parse_int("password file descriptor", value + 1, &number) == -1) return -1;
    if (number <= STDERR_FILENO) {
      return refuse(EINVAL, fmt::format("password: -{}: standard streams are not for passwords: "
                                        "give another file descriptor",
                                        number));
    }
    const Fd fd(number);
    return read_line(fd.get(), fmt::format("password: file descriptor {}", number), password);
  }
  if (text.starts_with('+')) {
    const Fd fd(::open(value + 1, O_RDONLY | O_CLOEXEC | O_NOCTTY));
    if (!fd) {
      const int code = errno;
      return refuse(code, fmt::format("{}: cannot open the file of the password: {}", value + 1,
                                      errno_text(code)));
    }
    return read_line(fd.get(), value + 1, password);
  }
  *password = ::strdup(value);
  return *password ? 0 : refuse(ENOMEM, "password: out of memory");
}
