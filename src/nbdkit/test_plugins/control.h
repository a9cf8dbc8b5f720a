/* SPDX-License-Identifier: BSD-3-Clause */
/* What a test tells a test plugin to do, and what the plugin tells of what was done to it. */
#pragma once

#include <stdint.h>

enum test_method {
  kLoad,
  kConfig,
  kConfigComplete,
  kThreadModel,
  kGetReady,
  kAfterFork,
  kPreconnect,
  kListExports,
  kDefaultExport,
  kOpen,
  kGetSize,
  kCanAnything,
  kPread,
  kPwrite,
  kFlush,
  kTrim,
  kZero,
  kExtents,
  kCache,
  kClose,
  kCleanup,
  kUnload,
  kMethods
};

enum { kTestDiskMax = 8 << 20 };
enum { kEventsMax = 256 };
enum { kAsDefault = -100 };

struct test_control {
  /* Of every method: what it does before its work. */
  int sleep_us[kMethods];
  int spin_us[kMethods];    /* of a processor's time */
  int spin_at[kMethods];    /* only the call of this number (from 1 on); 0: every one */
  int hang[kMethods];       /* until it is 0 again */
  int fail[kMethods];       /* an errno for nbdkit_set_error(); 0: it does not fail */
  int fail_errno[kMethods]; /* the same for errno alone */

  /* Answers; kAsDefault: a plausible one. */
  int64_t size;
  int thread_model;
  int can_write, can_flush, can_trim, can_zero, can_fast_zero, can_fua, can_multi_conn, can_cache,
      can_extents;
  uint32_t block_size[3];
  int null_handle; /* open() returns NULL */
  int no_extents;  /* extents() adds none */
  int extents_gap; /* extents() leaves one */
  int fua_fails;   /* changes with the flag FUA fail with EIO */

  /* What happened. Atomic. */
  int calls[kMethods];
  int in_progress;         /* all methods */
  int in_progress_max;     /* the most there were at once */
  int thread_of[kMethods]; /* gettid() of the last call */
  int last_flags[kMethods];
  int events;
  int event[kEventsMax]; /* methods, in the order in which they were called */
  char last_key[64];
  char last_value[64];
};
