// SPDX-License-Identifier: BSD-3-Clause
#include <array>

#include "filters/filters.h"

namespace weft::disk {

std::span<const FilterInfo> filters() {
  static const std::array table = {
      filters::nofilter_filter,
  };
  return table;
}

}  // namespace weft::disk
