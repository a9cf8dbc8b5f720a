// SPDX-License-Identifier: BSD-3-Clause
// Plugins that are scripts: a file whose first line names nbdkit and a language, as
// "#!/usr/sbin/nbdkit python". The plugin folder has such (S3, example4), and people have their
// own. The kernel would start the nbdkit that the line names; here the line is read, and its words
// take the plugin's place on the command line, so that this program serves them.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::cli {

// What follows "nbdkit" (or "weft") in a first line that starts it, as the kernel and env(1) pass
// it on: everything in one word, or split where the line is "#!/usr/bin/env -S nbdkit ...".
// Nothing where the line starts something else.
std::optional<std::vector<std::string>> parse_script_line(std::string_view line);

// Throws ConfigError unless `name` may be a plugin's short name: it would become a part of a path.
void check_short_name(const std::string& name);

// The command line that `words` stands for if its plugin, words[index], is a script; nothing if it
// is not one. Throws ConfigError for a script that names no plugin. `folder`: of plugin files.
//
// An executable of that folder that is not a script of ours takes this program's place at once,
// as nbdkit does it: then the function does not return. What it starts as "nbdkit" is this
// program, as far as an installation has it under that name.
std::optional<std::vector<std::string>> expand_script(std::span<const std::string> words,
                                                      size_t index, const std::string& folder);

}  // namespace weft::cli
