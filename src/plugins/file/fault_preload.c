// SPDX-License-Identifier: BSD-3-Clause
// Makes storage fail, for tests: a library for LD_PRELOAD that gives chosen calls an error.
//
//   WEFT_FAULT_FILE=/tmp/faults LD_PRELOAD=libweft_fault_preload.so weft file disk.img
//
// The file is read at every call, so that a running server can be made to fail and to recover. Each
// line names a call, an errno, and how often ("*": always), counted from when the line appears in
// the file with its number:
//
//   fdatasync 5 1        the next fdatasync fails with EIO, later ones do not
//   pwritev2 28 *        every write fails with ENOSPC
//   pwritev2-dsync 5 1   one write with FUA (RWF_DSYNC) fails
//   fallocate 95 *       zero and trim are not supported
//   preadv2 5 *, pread 5 *   reads fail
//
// Calls: fdatasync fsync pwritev2 pwritev2-dsync pread preadv2 fallocate. What goes through
// io_uring is not seen. A count is used up once per process for a call and an errno; write the line
// with another count to start again.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

struct fault {
  char call[32];
  int error;
  long count;  // as written, -1: always
  long used;
};

static struct fault faults[32];
static int fault_count;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static struct fault* find_fault(const char* call, int error, long count) {
  for (int i = 0; i < fault_count; i++) {
    if (!strcmp(faults[i].call, call) && faults[i].error == error) {
      if (faults[i].count != count) {
        faults[i].count = count;
        faults[i].used = 0;
      }
      return &faults[i];
    }
  }
  if (fault_count == (int)(sizeof faults / sizeof faults[0])) return NULL;
  struct fault* made = &faults[fault_count++];
  snprintf(made->call, sizeof made->call, "%s", call);
  made->error = error;
  made->count = count;
  made->used = 0;
  return made;
}

// The errno that this call is to give, or 0.
static int fault_of(const char* call) {
  const char* path = getenv("WEFT_FAULT_FILE");
  if (!path) return 0;
  FILE* file = fopen(path, "re");
  if (!file) return 0;
  int result = 0;
  char name[32];
  char count[16];
  int error;
  pthread_mutex_lock(&mutex);
  while (!result && fscanf(file, "%31s %d %15s", name, &error, count) == 3) {
    if (strcmp(name, call) != 0) continue;
    struct fault* fault = find_fault(name, error, count[0] == '*' ? -1 : atol(count));
    if (fault && (fault->count < 0 || fault->used < fault->count)) {
      fault->used++;
      result = error;
    }
  }
  pthread_mutex_unlock(&mutex);
  fclose(file);
  return result;
}

static int fails(const char* call) {
  const int error = fault_of(call);
  if (error) errno = error;
  return error != 0;
}

// The function that the library stands before.
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fdatasync(int fd) {
  return fails("fdatasync") ? -1 : REAL(fdatasync)(fd);
}

int fsync(int fd) {
  return fails("fsync") ? -1 : REAL(fsync)(fd);
}

#undef pread
#undef pread64
ssize_t pread64(int fd, void* buffer, size_t size, off64_t offset) {
  return fails("pread") ? -1 : REAL(pread64)(fd, buffer, size, offset);
}

ssize_t pread(int fd, void* buffer, size_t size, off_t offset) {
  return fails("pread") ? -1 : REAL(pread)(fd, buffer, size, offset);
}

static int write_fails(int flags) {
  return fails("pwritev2") || ((flags & RWF_DSYNC) && fails("pwritev2-dsync"));
}

ssize_t pwritev2(int fd, const struct iovec* vectors, int count, off_t offset, int flags) {
  return write_fails(flags) ? -1 : REAL(pwritev2)(fd, vectors, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec* vectors, int count, off64_t offset, int flags) {
  return write_fails(flags) ? -1 : REAL(pwritev64v2)(fd, vectors, count, offset, flags);
}

ssize_t preadv2(int fd, const struct iovec* vectors, int count, off_t offset, int flags) {
  return fails("preadv2") ? -1 : REAL(preadv2)(fd, vectors, count, offset, flags);
}

ssize_t preadv64v2(int fd, const struct iovec* vectors, int count, off64_t offset, int flags) {
  return fails("preadv2") ? -1 : REAL(preadv64v2)(fd, vectors, count, offset, flags);
}

int fallocate(int fd, int mode, off_t offset, off_t length) {
  return fails("fallocate") ? -1 : REAL(fallocate)(fd, mode, offset, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  return fails("fallocate") ? -1 : REAL(fallocate64)(fd, mode, offset, length);
}
