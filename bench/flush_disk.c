// SPDX-License-Identifier: BSD-3-Clause
// A disk whose flush takes 10 ms, and which keeps nothing: for nbdkit's cc plugin.
#include <stdint.h>
#include <string.h>
#include <time.h>

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

static void* flush_disk_open(int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }

static int64_t flush_disk_get_size(void* handle) { return 1 << 20; }

static int flush_disk_pread(void* handle, void* data, uint32_t count, uint64_t offset,
                            uint32_t flags) {
  memset(data, 0, count);
  return 0;
}

static int flush_disk_pwrite(void* handle, const void* data, uint32_t count, uint64_t offset,
                             uint32_t flags) {
  return 0;
}

static int flush_disk_flush(void* handle, uint32_t flags) {
  const struct timespec time = {0, 10000000};
  nanosleep(&time, NULL);
  return 0;
}

static struct nbdkit_plugin plugin = {
    .name = "flushdisk",
    .open = flush_disk_open,
    .get_size = flush_disk_get_size,
    .pread = flush_disk_pread,
    .pwrite = flush_disk_pwrite,
    .flush = flush_disk_flush,
};

NBDKIT_REGISTER_PLUGIN(plugin)
