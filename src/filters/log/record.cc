// SPDX-License-Identifier: BSD-3-Clause
#include "filters/log/record.h"

#include <cerrno>
#include <cstring>
#include <ctime>
#include <iterator>

namespace weft::filters {
namespace {

bool is_plain(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
         c == '-' || c == '_' || c == '/' || c == ':' || c == ',' || c == '=';
}
bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
}

std::string error_name(int code) {
  if (code == EOPNOTSUPP) return "ENOTSUP";
  const char* const name = ::strerrorname_np(code);
  return name ? name : std::to_string(code);
}

}  // namespace

std::string quoted(std::string_view text) {
  bool plain = !text.empty();
  bool control = false;
  for (const char c : text) {
    plain = plain && is_plain(c);
    control = control || is_control(c);
  }
  if (plain) return std::string(text);
  // An entry is one line whatever a client calls its export.
  std::string result = control ? "$'" : "\"";
  for (const char c : text) {
    if (is_control(c)) {
      fmt::format_to(std::back_inserter(result), "\\x{:02x}", static_cast<unsigned char>(c));
      continue;
    }
    if (c == '\\' || (control ? c == '\'' : c == '"' || c == '$' || c == '`')) result += '\\';
    result += c;
  }
  result += control ? '\'' : '"';
  return result;
}

std::string outcome(const Status& status) {
  if (status) return "return=0";
  return fmt::format("return=-1 error={}", error_name(status.error().code));
}

std::string described(const Extents& extents) {
  std::string text = "extents=(";
  uint64_t offset = extents.window().offset;
  for (const Extent& extent : extents.list()) {
    const bool hole = extent.flags & kExtentHole;
    const bool zero = extent.flags & kExtentZero;
    fmt::format_to(std::back_inserter(text), "{}{:#x} {:#x} \"{}{}{}\"",
                   text.back() == '(' ? "" : " ", offset, extent.length, hole ? "hole" : "",
                   hole && zero ? "," : "", zero ? "zero" : "");
    offset += extent.length;
  }
  return text + ")";
}

std::string Record::line(std::chrono::system_clock::time_point when) const {
  using std::chrono::microseconds;
  const auto since = std::chrono::floor<microseconds>(when.time_since_epoch()).count();
  const time_t seconds = since / 1'000'000;
  tm date{};
  ::gmtime_r(&seconds, &date);
  std::string text = fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06} ", date.tm_year + 1900,
                                 date.tm_mon + 1, date.tm_mday, date.tm_hour, date.tm_min,
                                 date.tm_sec, since % 1'000'000);
  const auto out = std::back_inserter(text);
  if (connection != 0) fmt::format_to(out, "connection={} ", connection);
  fmt::format_to(out, "{}{}", type == RecordType::kLeave ? "..." : "", action);
  if (id != 0) fmt::format_to(out, " id={}", id);
  if (!parameters.empty()) fmt::format_to(out, " {}", parameters);
  text += type == RecordType::kEnter ? " ...\n" : "\n";
  return text;
}

std::string Record::assignments() const {
  constexpr const char* kTypes[] = {"ENTER", "LEAVE", "PRINT"};
  std::string text = fmt::format("act={}\ntype={}\n", action, kTypes[static_cast<size_t>(type)]);
  const auto out = std::back_inserter(text);
  if (connection != 0) fmt::format_to(out, "connection={}\n", connection);
  if (id != 0) fmt::format_to(out, "id={}\n", id);
  fmt::format_to(out, "{}\n", parameters);
  return text;
}

}  // namespace weft::filters
