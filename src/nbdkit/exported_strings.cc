// SPDX-License-Identifier: BSD-3-Clause
// Strings that live as long as a connection or for ever, and paths.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "base/log.h"
#include "base/result.h"
#include "nbdkit/call.h"
#include "nbdkit/exported.h"

namespace {

using weft::errno_text;
using weft::log::Level;
using weft::nbdkit::CallScope;
using weft::nbdkit::Host;
using weft::nbdkit::say;

template <typename T = std::nullptr_t>
T refuse(int code, std::string_view text) {
  say(Level::kError, text);
  errno = code;
  return nullptr;
}

const char* intern(std::string_view text) {
  const CallScope* scope = CallScope::current();
  try {
    return scope && scope->connection() ? scope->connection()->strings.add(text)
                                        : Host::instance().strings.add(text);
  } catch (const std::exception&) {
    return refuse(ENOMEM, "out of memory for a string");
  }
}

}  // namespace

const char* nbdkit_strdup_intern(const char* str) {
  if (!str) return refuse(EINVAL, "nbdkit_strdup_intern: no string was given");
  return intern(str);
}

const char* nbdkit_strndup_intern(const char* str, size_t n) {
  if (!str) return refuse(EINVAL, "nbdkit_strndup_intern: no string was given");
  return intern(std::string_view(str, ::strnlen(str, n)));
}

const char* nbdkit_vprintf_intern(const char* msg, va_list args) {
  char* text = nullptr;
  if (::vasprintf(&text, msg, args) < 0) {
    const int code = errno;
    return refuse(code, fmt::format("nbdkit_vprintf_intern: {}", errno_text(code)));
  }
  const std::unique_ptr<char, decltype(&std::free)> owned(text, &std::free);
  return intern(text);
}

const char* nbdkit_printf_intern(const char* msg, ...) {
  va_list args;
  va_start(args, msg);
  const char* result = nbdkit_vprintf_intern(msg, args);
  va_end(args);
  return result;
}

char* nbdkit_absolute_path(const char* path) {
  if (!path || !*path) return refuse(EINVAL, "an empty path cannot be made absolute");
  if (*path == '/') return ::strdup(path);
  const std::unique_ptr<char, decltype(&std::free)> folder(::get_current_dir_name(), &std::free);
  if (!folder) {
    const int code = errno;
    return refuse(code,
                  fmt::format("{}: cannot find the current directory: {}", path, errno_text(code)));
  }
  return ::strdup(fmt::format("{}/{}", folder.get(), path).c_str());
}

char* nbdkit_realpath(const char* path) {
  if (!path || !*path) return refuse(EINVAL, "an empty path leads nowhere");
  char* result = ::realpath(path, nullptr);
  if (!result) {
    const int code = errno;
    return refuse(code, fmt::format("{}: cannot follow the path: {}", path, errno_text(code)));
  }
  return result;
}

int nbdkit_stdio_safe(void) {
  return Host::instance().stdio_safe ? 1 : 0;
}
