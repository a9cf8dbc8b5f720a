// SPDX-License-Identifier: BSD-3-Clause
#include <array>

#include "filters/filters.h"

namespace weft::disk {

std::span<const FilterInfo> filters() {
  static const std::array table = {
      filters::multi_conn_filter,
      filters::nofilter_filter,
  };
  return table;
}

}  // namespace weft::disk
