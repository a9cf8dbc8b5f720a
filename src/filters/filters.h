// SPDX-License-Identifier: BSD-3-Clause
// The filters that weft has. A new one is named here and in the table of registry.cc, in
// alphabetical order.
#pragma once

#include "disk/filter.h"

namespace weft::filters {

extern const disk::FilterInfo multi_conn_filter;  // multi-conn/multi_conn.cc
extern const disk::FilterInfo nofilter_filter;    // nofilter/nofilter.cc

}  // namespace weft::filters
