// SPDX-License-Identifier: BSD-3-Clause
// The filters that weft has. A new one is named here and in the table of registry.cc, in
// alphabetical order.
#pragma once

#include "disk/filter.h"

namespace weft::filters {

extern const disk::FilterInfo blocksize_filter;     // blocksize/blocksize.cc
extern const disk::FilterInfo cache_filter;         // cache/cache.cc
extern const disk::FilterInfo cacheextents_filter;  // cacheextents/cacheextents.cc
extern const disk::FilterInfo cow_filter;           // cow/cow.cc
extern const disk::FilterInfo delay_filter;         // delay/delay.cc
extern const disk::FilterInfo error_filter;         // error/error.cc
extern const disk::FilterInfo extentlist_filter;    // extentlist/extentlist.cc
extern const disk::FilterInfo fua_filter;           // fua/fua.cc
extern const disk::FilterInfo ip_filter;            // ip/ip.cc
extern const disk::FilterInfo limit_filter;         // limit/limit.cc
extern const disk::FilterInfo log_filter;           // log/log.cc
extern const disk::FilterInfo multi_conn_filter;    // multi-conn/multi_conn.cc
extern const disk::FilterInfo nocache_filter;       // nocache/nocache.cc
extern const disk::FilterInfo noextents_filter;     // noextents/noextents.cc
extern const disk::FilterInfo nofilter_filter;      // nofilter/nofilter.cc
extern const disk::FilterInfo noparallel_filter;    // noparallel/noparallel.cc
extern const disk::FilterInfo nozero_filter;        // nozero/nozero.cc
extern const disk::FilterInfo readahead_filter;     // readahead/readahead.cc
extern const disk::FilterInfo stats_filter;         // stats/stats.cc

}  // namespace weft::filters
