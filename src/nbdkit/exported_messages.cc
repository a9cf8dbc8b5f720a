// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <cctype>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "base/log.h"
#include "nbdkit/call.h"
#include "nbdkit/exported.h"

namespace {

using weft::log::Level;
using weft::nbdkit::CallScope;
using weft::nbdkit::Connection;
using weft::nbdkit::Host;
using weft::nbdkit::say;

// As vprintf(3) has it, %m included: errno must still be the caller's. Keeps it.
void say_formatted(Level level, const char* format, va_list arguments) {
  const int saved = errno;
  char* text = nullptr;
  const int length = ::vasprintf(&text, format, arguments);
  errno = saved;
  if (length < 0) {
    say(level, format);  // better than nothing
    return;
  }
  std::string_view line(text, static_cast<size_t>(length));
  while (line.ends_with('\n')) line.remove_suffix(1);
  say(level, line);
  std::free(text);
  errno = saved;
}

Connection* current_connection() {
  const CallScope* scope = CallScope::current();
  return scope ? scope->connection() : nullptr;
}

}  // namespace

void nbdkit_verror(const char* msg, va_list args) {
  say_formatted(Level::kError, msg, args);
}

void nbdkit_error(const char* msg, ...) {
  va_list args;
  va_start(args, msg);
  say_formatted(Level::kError, msg, args);
  va_end(args);
}

void nbdkit_vdebug(const char* msg, va_list args) {
  if (weft::log::verbose()) say_formatted(Level::kDebug, msg, args);
}

void nbdkit_debug(const char* msg, ...) {
  if (!weft::log::verbose()) return;
  va_list args;
  va_start(args, msg);
  say_formatted(Level::kDebug, msg, args);
  va_end(args);
}

// "PREFIX00000010: 31 32 33 34 35 36 37 38  39 3a 3b 3c 3d 3e 3f 40  |123456789:;<=>?@|". Rows
// begin at multiples of 16; what the first and the last lack is blank.
void nbdkit_debug_hexdump(const void* buf, size_t len, const char* prefix, uint64_t start) {
  if (!weft::log::verbose()) return;
  constexpr uint64_t kRow = 16;
  const auto* bytes = static_cast<const unsigned char*>(buf);
  size_t done = 0;
  while (done < len) {
    const uint64_t row = (start + done) / kRow * kRow;
    std::string hex;
    std::string ascii;
    for (uint64_t column = 0; column < kRow; ++column) {
      if (column == kRow / 2) hex += ' ';
      if (row + column < start + done || done == len) {
        hex += "   ";
        ascii += ' ';
        continue;
      }
      const unsigned char byte = bytes[done++];
      hex += fmt::format("{:02x} ", byte);
      ascii += byte >= 0x20 && byte < 0x7f ? static_cast<char>(byte) : '.';
    }
    say(Level::kDebug, fmt::format("{}{:08x}: {} |{}|", prefix ? prefix : "", row, hex, ascii));
  }
}

void nbdkit_set_error(int err) {
  if (CallScope* scope = CallScope::current()) scope->set_error(err);
}

void nbdkit_shutdown(void) {
  Host::instance().shut_down();
}

void nbdkit_disconnect(int force) {
  if (Connection* connection = current_connection()) {
    connection->disconnect(force != 0);
  } else {
    say(Level::kError, "nbdkit_disconnect: this thread works for no connection");
  }
}

int nbdkit_nanosleep(unsigned sec, unsigned nsec) {
  constexpr uint64_t kSecond = 1'000'000'000;
  const uint64_t nanoseconds = sec * kSecond + nsec;
  if (nanoseconds / kSecond > INT_MAX) {
    say(Level::kError, fmt::format("nbdkit_nanosleep: {} seconds are too long: the longest time "
                                   "is {} seconds",
                                   sec, INT_MAX));
    errno = EINVAL;
    return -1;
  }
  if (Host::instance().sleep(nanoseconds, current_connection())) return 0;
  say(Level::kError, "nbdkit_nanosleep: woken, because the server or the connection ends");
  errno = ESHUTDOWN;
  return -1;
}
