// SPDX-License-Identifier: BSD-3-Clause
// What scripts print, and what it means. Functions of text alone.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/extents.h"
#include "disk/disk.h"

namespace weft::plugins {

// What a failed script said on its standard error output.
struct ScriptComplaint {
  int code;          // the errno that its first word names, in either case; else EIO
  std::string text;  // the rest of the first line; may be empty
};
ScriptComplaint read_complaint(std::string_view err);

// The text without one newline at its end.
std::string_view without_newline(std::string_view text);

// A number of bytes as nbdkit's parse_size takes it, blanks before it allowed.
std::optional<uint64_t> read_size(std::string_view text);

// "minimum preferred maximum". Nullopt: it is something else, or the protocol does not allow it;
// `why` says what is wrong. Three zeroes are the same as no block sizes.
std::optional<disk::BlockSize> read_block_size(std::string_view text, std::string& why);

// none, emulate or native, in either case.
std::optional<disk::Support> read_support(std::string_view text);

std::optional<disk::ThreadModel> read_thread_model(std::string_view text);

// "NAMES", "INTERLEAVED" or "NAMES+DESCRIPTIONS" and what follows; else a name a line.
std::vector<disk::ExportEntry> read_exports(std::string_view text);

// Lines of "offset length type". What lies before the window is skipped. The errno to fail with:
// EINVAL for extents with gaps or none at all, EIO for what cannot be read.
Status read_extents(std::string_view text, Extents& into);

}  // namespace weft::plugins
