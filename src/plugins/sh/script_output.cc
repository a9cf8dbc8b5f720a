// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_output.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/parse.h"

namespace weft::plugins {
namespace {

constexpr std::string_view kBlanks = " \t\n\v\f\r";

constexpr std::pair<std::string_view, int> kErrnoWords[] = {
    {"EPERM", EPERM},           {"EIO", EIO},
    {"ENOMEM", ENOMEM},         {"EINVAL", EINVAL},
    {"ENOSPC", ENOSPC},         {"ENOTSUP", EOPNOTSUPP},
    {"EROFS", EROFS},           {"EDQUOT", EDQUOT},
    {"EOPNOTSUPP", EOPNOTSUPP}, {"EFBIG", EFBIG},
    {"EOVERFLOW", EOVERFLOW},   {"ESHUTDOWN", ESHUTDOWN},
};

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}

bool same_word(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, {}, lower, lower);
}

std::string_view next_word(std::string_view& text) {
  text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  const std::string_view word = text.substr(0, text.find_first_of(kBlanks));
  text.remove_prefix(word.size());
  return word;
}

std::string_view next_line(std::string_view& text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return line;
}

// A number, of which the two flags are taken; or words with commas, of which others are ignored.
uint32_t read_extent_type(std::string_view text) {
  uint32_t flags = 0;
  if (!text.empty() && text.front() >= '0' && text.front() <= '9') {
    for (const char c : text) {
      if (c < '0' || c > '9') break;
      flags = flags * 10 + static_cast<uint32_t>(c - '0');
    }
    return flags & (kExtentHole | kExtentZero);
  }
  while (!text.empty()) {
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(std::min(word.size() + 1, text.size()));
    if (same_word(word, "hole")) flags |= kExtentHole;
    if (same_word(word, "zero")) flags |= kExtentZero;
  }
  return flags;
}

}  // namespace

ScriptComplaint read_complaint(std::string_view err) {
  ScriptComplaint complaint{EIO, {}};
  std::string_view rest = err;
  const std::string_view word = rest.substr(0, rest.find_first_of(kBlanks));
  for (const auto& [name, code] : kErrnoWords) {
    if (!same_word(word, name)) continue;
    complaint.code = code;
    rest.remove_prefix(word.size());
    break;
  }
  rest.remove_prefix(std::min(rest.find_first_not_of(kBlanks), rest.size()));
  complaint.text = next_line(rest);
  return complaint;
}

std::string_view without_newline(std::string_view text) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

std::optional<uint64_t> read_size(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of(kBlanks), text.size()));
  try {
    return parse_size("", text);
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

std::optional<disk::BlockSize> read_block_size(std::string_view text, std::string& why) {
  uint64_t sizes[3];
  for (uint64_t& size : sizes) {
    const auto read = read_size(next_word(text));
    if (!read) {
      why = "it must print three sizes: the minimum, the preferred and the maximum block size";
      return std::nullopt;
    }
    size = *read;
  }
  const auto [minimum, preferred, maximum] = sizes;
  if (minimum == 0 && preferred == 0 && maximum == 0) return disk::BlockSize{};
  if (!std::has_single_bit(minimum) || minimum > 64 << 10) {
    why = "the minimum block size must be a power of two, at most 64K";
  } else if (!std::has_single_bit(preferred) || preferred < std::max<uint64_t>(minimum, 512) ||
             preferred > 32 << 20) {
    why = "the preferred block size must be a power of two from 512 (and the minimum) to 32M";
  } else if (maximum != UINT32_MAX && (maximum < preferred || maximum % minimum != 0)) {
    why = "the maximum block size must be a multiple of the minimum, at least the preferred one";
  } else {
    return disk::BlockSize{
        static_cast<uint32_t>(minimum), static_cast<uint32_t>(preferred),
        static_cast<uint32_t>(std::min<uint64_t>(maximum, disk::BlockSize{}.maximum))};
  }
  return std::nullopt;
}

std::optional<disk::Support> read_support(std::string_view text) {
  const std::string_view word = next_word(text);
  if (same_word(word, "none")) return disk::Support::kNone;
  if (same_word(word, "emulate")) return disk::Support::kEmulate;
  if (same_word(word, "native")) return disk::Support::kNative;
  return std::nullopt;
}

std::optional<disk::ThreadModel> read_thread_model(std::string_view text) {
  const std::string_view word = next_word(text);
  if (same_word(word, "serialize_connections")) return disk::ThreadModel::kSerializeConnections;
  if (same_word(word, "serialize_all_requests")) return disk::ThreadModel::kSerializeAllRequests;
  if (same_word(word, "serialize_requests")) return disk::ThreadModel::kSerializeRequests;
  if (same_word(word, "parallel")) return disk::ThreadModel::kParallel;
  return std::nullopt;
}

std::vector<disk::ExportEntry> read_exports(std::string_view text) {
  std::string_view rest = text;
  const std::string_view mode = next_line(rest);
  const bool interleaved = mode == "INTERLEAVED";
  const bool halves = mode == "NAMES+DESCRIPTIONS";
  if (!interleaved && !halves && mode != "NAMES") rest = text;
  std::vector<std::string> lines;
  while (!rest.empty()) lines.emplace_back(next_line(rest));
  std::vector<disk::ExportEntry> exports;
  if (interleaved) {
    for (size_t i = 0; i < lines.size(); i += 2) {
      exports.push_back({lines[i], i + 1 < lines.size() ? lines[i + 1] : ""});
    }
  } else {
    const size_t names = halves ? (lines.size() + 1) / 2 : lines.size();
    for (size_t i = 0; i < names; i++) {
      exports.push_back({lines[i], halves && names + i < lines.size() ? lines[names + i] : ""});
    }
  }
  return exports;
}

Status read_extents(std::string_view text, Extents& into) {
  const Range window = into.window();
  std::optional<uint64_t> expected;  // where the next extent must begin
  while (!text.empty()) {
    std::string_view line = next_line(text);
    const std::string_view first = next_word(line);
    if (first.empty()) continue;
    const auto offset = read_size(first);
    const auto length = read_size(next_word(line));
    if (!offset || !length || *offset + *length < *offset) {
      return fail(EIO, "the script printed an extent that is no 'offset length type'");
    }
    const uint32_t flags = read_extent_type(next_word(line));
    if (expected ? *offset != *expected : *offset > window.offset) {
      return fail(EINVAL, "the script's extents have gaps or are not in ascending order");
    }
    const uint64_t end = *offset + *length;
    expected = end;
    // The list begins where the window does.
    if (end <= into.end() || into.full()) continue;
    into.append(end - std::max(*offset, window.offset), flags);
  }
  if (into.list().empty()) return fail(EINVAL, "the script described no extent");
  return {};
}

}  // namespace weft::plugins
