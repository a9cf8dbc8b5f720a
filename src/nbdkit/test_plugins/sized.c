/* SPDX-License-Identifier: BSD-3-Clause */
/* A disk in memory with the struct of an older, or a later, release: SIZE bytes of it. Behind them
 * is memory that cannot be read. */
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define NBDKIT_API_VERSION API
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#include <nbdkit-plugin.h>

static unsigned char disk[1 << 20];

static void* sized_open(int readonly) {
  (void)readonly;
  return NBDKIT_HANDLE_NOT_NEEDED;
}
static int64_t sized_get_size(void* handle) {
  (void)handle;
  return sizeof disk;
}

#if API == 1
static int sized_pread(void* handle, void* buffer, uint32_t count, uint64_t offset) {
  (void)handle;
  memcpy(buffer, disk + offset, count);
  return 0;
}
static int sized_pwrite(void* handle, const void* buffer, uint32_t count, uint64_t offset) {
  (void)handle;
  memcpy(disk + offset, buffer, count);
  return 0;
}
static int sized_flush(void* handle) {
  (void)handle;
  return 0;
}
static int sized_trim(void* handle, uint32_t count, uint64_t offset) {
  (void)handle;
  memset(disk + offset, 0, count);
  return 0;
}
#else
static int sized_pread(void* handle, void* buffer, uint32_t count, uint64_t offset,
                       uint32_t flags) {
  (void)handle;
  (void)flags;
  memcpy(buffer, disk + offset, count);
  return 0;
}
static int sized_pwrite(void* handle, const void* buffer, uint32_t count, uint64_t offset,
                        uint32_t flags) {
  (void)handle;
  (void)flags;
  memcpy(disk + offset, buffer, count);
  return 0;
}
static int sized_flush(void* handle, uint32_t flags) {
  (void)handle;
  (void)flags;
  return 0;
}
static int sized_trim(void* handle, uint32_t count, uint64_t offset, uint32_t flags) {
  (void)handle;
  (void)flags;
  memset(disk + offset, 0, count);
  return 0;
}
#endif

static int of_later_release(void* handle) {
  (void)handle;
  __builtin_trap();
}

__attribute__((visibility("default"))) struct nbdkit_plugin* plugin_init(void) {
  struct nbdkit_plugin plugin;
  memset(&plugin, 0, sizeof plugin);
  plugin._struct_size = SIZE;
  plugin._api_version = API;
  plugin._thread_model = THREAD_MODEL;
  plugin.name = "test-sized";
  plugin.open = sized_open;
  plugin.get_size = sized_get_size;
  plugin.pread = sized_pread;
  plugin.pwrite = sized_pwrite;
  plugin.flush = sized_flush;
  plugin.trim = sized_trim;

  unsigned char* const pages =
      mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED || mprotect(pages + 4096, 4096, PROT_NONE) != 0) return NULL;
  unsigned char* const at = pages + 4096 - SIZE;
  memcpy(at, &plugin, SIZE < sizeof plugin ? SIZE : sizeof plugin);
  int (*const later)(void*) = of_later_release;
  for (size_t i = sizeof plugin; i + sizeof later <= SIZE; i += sizeof later) {
    memcpy(at + i, &later, sizeof later);
  }
  return (struct nbdkit_plugin*)at;
}
