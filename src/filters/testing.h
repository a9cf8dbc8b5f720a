// SPDX-License-Identifier: BSD-3-Clause
// What the tests of filters share.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "disk/filter.h"

namespace weft::filters {

using Parameters = std::vector<std::pair<std::string, std::string>>;

inline const disk::FilterInfo& find_filter(std::string_view name) {
  for (const disk::FilterInfo& info : disk::filters()) {
    if (info.name == name) return info;
  }
  throw std::logic_error("no such filter");
}

// One filter over `plugin`, which is configured and not completed; all is completed here.
inline std::unique_ptr<disk::Plugin> make_filtered(std::string_view name,
                                                   const Parameters& parameters,
                                                   std::unique_ptr<disk::Plugin> plugin) {
  const disk::Layer layer{&find_filter(name), parameters};
  std::unique_ptr<disk::Plugin> stack = disk::make_stack({&layer, 1}, std::move(plugin), "plugin");
  stack->config_complete();
  return stack;
}

}  // namespace weft::filters
