/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk in memory that does what its control says, to its own hurt as well. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include "control.h"

#ifndef TEST_NAME
#define TEST_NAME "test-ram"
#endif
#ifndef THREAD_MODEL
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#endif

#define EXPORTED __attribute__((visibility("default")))

static struct test_control control;
static unsigned char disk[kTestDiskMax];
/* -D test-ram.flag=N */
EXPORTED int TEST_DEBUG_FLAG = 0;
static int flag_at_load;

EXPORTED struct test_control* test_control_of_plugin(void) {
  return &control;
}
EXPORTED int test_flag_at_load(void) {
  return flag_at_load;
}

static int64_t now_us(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* -1: the method fails. */
static int enter(enum test_method method) {
  const int call = __atomic_add_fetch(&control.calls[method], 1, __ATOMIC_SEQ_CST);
  const int inside = __atomic_add_fetch(&control.in_progress, 1, __ATOMIC_SEQ_CST);
  int most = __atomic_load_n(&control.in_progress_max, __ATOMIC_SEQ_CST);
  while (most < inside &&
         !__atomic_compare_exchange_n(&control.in_progress_max, &most, inside, 0, __ATOMIC_SEQ_CST,
                                      __ATOMIC_SEQ_CST)) {
  }
  const int event = __atomic_fetch_add(&control.events, 1, __ATOMIC_SEQ_CST);
  if (event < kEventsMax) __atomic_store_n(&control.event[event], method, __ATOMIC_SEQ_CST);
  __atomic_store_n(&control.thread_of[method], (int)syscall(SYS_gettid), __ATOMIC_SEQ_CST);
  if (control.sleep_us[method]) usleep(control.sleep_us[method]);
  if (control.spin_us[method] && (!control.spin_at[method] || control.spin_at[method] == call)) {
    const int64_t end = now_us(CLOCK_THREAD_CPUTIME_ID) + control.spin_us[method];
    while (now_us(CLOCK_THREAD_CPUTIME_ID) < end) {
    }
  }
  for (int i = 0; i < 60000 && __atomic_load_n(&control.hang[method], __ATOMIC_SEQ_CST); i++) {
    usleep(1000);
  }
  __atomic_sub_fetch(&control.in_progress, 1, __ATOMIC_SEQ_CST);
  if (control.fail[method]) {
    if (control.fail[method] != EOPNOTSUPP) nbdkit_error("%d fails as it was told to", method);
    nbdkit_set_error(control.fail[method]);
    return -1;
  }
  if (control.fail_errno[method]) {
    errno = control.fail_errno[method];
    return -1;
  }
  return 0;
}

static int answer(int wanted, int usual) {
  enter(kCanAnything);
  return wanted == kAsDefault ? usual : wanted;
}

static int may_change(enum test_method method, uint32_t flags) {
  if (enter(method) == -1) return -1;
  __atomic_store_n(&control.last_flags[method], (int)flags, __ATOMIC_SEQ_CST);
  if (control.fua_fails && (flags & NBDKIT_FLAG_FUA)) {
    nbdkit_set_error(EIO);
    return -1;
  }
  return 0;
}

static void test_load(void) {
  enter(kLoad);
  flag_at_load = TEST_DEBUG_FLAG;
}
static void test_unload(void) {
  enter(kUnload);
}
static void test_dump(void) {
  printf("test_dumped=yes\n");
}
static int test_config(const char* key, const char* value) {
  strncpy(control.last_key, key, sizeof control.last_key - 1);
  strncpy(control.last_value, value, sizeof control.last_value - 1);
  return enter(kConfig);
}
static int test_config_complete(void) {
  return enter(kConfigComplete);
}
static int test_thread_model(void) {
  enter(kThreadModel);
  return control.thread_model == kAsDefault ? THREAD_MODEL : control.thread_model;
}
static int test_get_ready(void) {
  return enter(kGetReady);
}
static int test_after_fork(void) {
  return enter(kAfterFork);
}
static void test_cleanup(void) {
  enter(kCleanup);
}
static int test_preconnect(int readonly) {
  (void)readonly;
  return enter(kPreconnect);
}
static int test_list(int readonly, int is_tls, struct nbdkit_exports* exports) {
  (void)readonly;
  (void)is_tls;
  if (enter(kListExports) == -1) return -1;
  if (nbdkit_use_default_export(exports) == -1) return -1;
  return nbdkit_add_export(exports, "other", "described");
}
static const char* test_default(int readonly, int is_tls) {
  (void)readonly;
  (void)is_tls;
  if (enter(kDefaultExport) == -1) return NULL;
  return nbdkit_strdup_intern("usual");
}
static const char* test_description(void* handle) {
  (void)handle;
  return "a disk in memory";
}

static void* test_open(int readonly) {
  (void)readonly;
  if (enter(kOpen) == -1 || control.null_handle) return NULL;
  return NBDKIT_HANDLE_NOT_NEEDED;
}
static void test_close(void* handle) {
  (void)handle;
  enter(kClose);
}
static int64_t test_get_size(void* handle) {
  (void)handle;
  return enter(kGetSize) == -1 ? -1 : control.size;
}
static int test_block_size(void* handle, uint32_t* minimum, uint32_t* preferred,
                           uint32_t* maximum) {
  (void)handle;
  *minimum = control.block_size[0];
  *preferred = control.block_size[1];
  *maximum = control.block_size[2];
  return 0;
}

#define CAN(name, usual)                      \
  static int test_##name(void* handle) {      \
    (void)handle;                             \
    return answer(control.name, usual);       \
  }
CAN(can_write, 1)
CAN(can_flush, 1)
CAN(can_trim, 1)
CAN(can_zero, 1)
CAN(can_fast_zero, 1)
CAN(can_fua, NBDKIT_FUA_NATIVE)
CAN(can_multi_conn, 1)
CAN(can_cache, NBDKIT_CACHE_NATIVE)
CAN(can_extents, 1)

static int test_pread(void* handle, void* buffer, uint32_t count, uint64_t offset,
                      uint32_t flags) {
  (void)handle;
  (void)flags;
  if (enter(kPread) == -1) return -1;
  memcpy(buffer, disk + offset, count);
  return 0;
}
static int test_pwrite(void* handle, const void* buffer, uint32_t count, uint64_t offset,
                       uint32_t flags) {
  (void)handle;
  if (may_change(kPwrite, flags) == -1) return -1;
  memcpy(disk + offset, buffer, count);
  return 0;
}
static int test_flush(void* handle, uint32_t flags) {
  (void)handle;
  (void)flags;
  return enter(kFlush);
}
static int test_trim(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle;
  if (may_change(kTrim, flags) == -1) return -1;
  memset(disk + offset, 0, count);
  return 0;
}
static int test_zero(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle;
  if (may_change(kZero, flags) == -1) return -1;
  memset(disk + offset, 0, count);
  return 0;
}
static int test_extents(void* handle, uint32_t count, uint64_t offset, uint32_t flags,
                        struct nbdkit_extents* extents) {
  (void)handle;
  if (enter(kExtents) == -1) return -1;
  __atomic_store_n(&control.last_flags[kExtents], (int)flags, __ATOMIC_SEQ_CST);
  if (control.no_extents) return 0;
  if (control.extents_gap) {
    (void)nbdkit_add_extent(extents, offset + count / 2, 1, 0);
    return 0;
  }
  return nbdkit_add_extent(extents, offset, count, 0);
}
static int test_cache(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle;
  (void)count;
  (void)offset;
  (void)flags;
  return enter(kCache);
}

static struct nbdkit_plugin plugin = {
    .name = TEST_NAME,
    .longname = "test plugin",
    .version = "1.2.3",
    .load = test_load,
    .unload = test_unload,
    .dump_plugin = test_dump,
    .config = test_config,
    .config_complete = test_config_complete,
    .config_help = "anything=ANY",
    .magic_config_key = "magic",
    .thread_model = test_thread_model,
    .get_ready = test_get_ready,
    .after_fork = test_after_fork,
    .cleanup = test_cleanup,
    .preconnect = test_preconnect,
    .list_exports = test_list,
    .default_export = test_default,
    .export_description = test_description,
    .open = test_open,
    .close = test_close,
    .get_size = test_get_size,
    .block_size = test_block_size,
    .can_write = test_can_write,
    .can_flush = test_can_flush,
    .can_trim = test_can_trim,
    .can_zero = test_can_zero,
    .can_fast_zero = test_can_fast_zero,
    .can_fua = test_can_fua,
    .can_multi_conn = test_can_multi_conn,
    .can_cache = test_can_cache,
    .can_extents = test_can_extents,
    .pread = test_pread,
    .pwrite = test_pwrite,
    .flush = test_flush,
    .trim = test_trim,
    .zero = test_zero,
    .extents = test_extents,
    .cache = test_cache,
#ifdef ERRNO_IS_PRESERVED
    .errno_is_preserved = 1,
#endif
};

NBDKIT_REGISTER_PLUGIN(plugin)
