/* SPDX-License-Identifier: BSD-3-Clause */
/* Things that are no plugins. KIND says how. */
#include <stdint.h>
#include <string.h>

#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#include <nbdkit-plugin.h>

#ifdef NO_INIT
__attribute__((visibility("default"))) int something_else;
#else
static void* broken_open(int readonly) {
  (void)readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}
static int64_t broken_get_size(void* handle) {
  (void)handle;
  return 0;
}
static int broken_pread(void* handle, void* buffer, uint32_t count, uint64_t offset,
                        uint32_t flags) {
  (void)handle;
  (void)buffer;
  (void)count;
  (void)offset;
  (void)flags;
  return 0;
}

__attribute__((visibility("default"))) struct nbdkit_plugin* plugin_init(void) {
  static struct nbdkit_plugin plugin;
  plugin._struct_size = sizeof plugin;
  plugin._api_version = 2;
  plugin._thread_model = THREAD_MODEL;
  plugin.name = "broken";
  plugin.open = broken_open;
  plugin.get_size = broken_get_size;
  plugin.pread = broken_pread;
  BREAK;
  return &plugin;
}
#endif
