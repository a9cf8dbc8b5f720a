// SPDX-License-Identifier: BSD-3-Clause
#include <array>

#include "filters/filters.h"

namespace weft::disk {

std::span<const FilterInfo> filters() {
  static const std::array table = {
      filters::blocksize_filter,  filters::cache_filter,     filters::cacheextents_filter,
      filters::cow_filter,        filters::delay_filter,     filters::error_filter,
      filters::extentlist_filter, filters::fua_filter,       filters::ip_filter,
      filters::limit_filter,      filters::log_filter,       filters::multi_conn_filter,
      filters::nocache_filter,    filters::noextents_filter, filters::nofilter_filter,
      filters::noparallel_filter, filters::nozero_filter,    filters::readahead_filter,
      filters::stats_filter,
  };
  return table;
}

}  // namespace weft::disk
