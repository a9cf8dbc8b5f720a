// SPDX-License-Identifier: BSD-3-Clause
// What the plugins' config() functions share.
#pragma once

#include <fmt/format.h>

#include <string_view>

#include "base/result.h"

namespace weft::plugins {

// `known`: the plugin's parameters, as a person reads them.
[[noreturn]] inline void refuse_parameter(std::string_view plugin, std::string_view key,
                                          std::string_view known) {
  throw ConfigError(
      fmt::format("{}: there is no parameter '{}': the plugin knows {}", plugin, key, known));
}

}  // namespace weft::plugins
