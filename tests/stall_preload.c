// SPDX-License-Identifier: BSD-3-Clause
// Holds up chosen writes, for tests: a library for LD_PRELOAD. A write to a file whose data begins
// with "SLOW" waits while the file named by WEFT_STALL_FILE exists, and first makes one of that
// name and ".seen". What goes through io_uring is not seen.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static void stall(const void* data, size_t length) {
  const char* gate = getenv("WEFT_STALL_FILE");
  if (!gate || length < 4 || memcmp(data, "SLOW", 4) != 0) return;
  char seen[4096];
  snprintf(seen, sizeof seen, "%s.seen", gate);
  const int made = open(seen, O_CREAT | O_WRONLY, 0600);
  if (made >= 0) close(made);
  for (int i = 0; i < 3000 && access(gate, F_OK) == 0; i++) usleep(10000);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite(int fd, const void* data, size_t length, off_t offset) {
  stall(data, length);
  return NEXT(pwrite)(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void* data, size_t length, off_t offset) {
  stall(data, length);
  return NEXT(pwrite64)(fd, data, length, offset);
}

ssize_t pwritev(int fd, const struct iovec* iov, int count, off_t offset) {
  if (count > 0) stall(iov->iov_base, iov->iov_len);
  return NEXT(pwritev)(fd, iov, count, offset);
}

ssize_t pwritev64(int fd, const struct iovec* iov, int count, off_t offset) {
  if (count > 0) stall(iov->iov_base, iov->iov_len);
  return NEXT(pwritev64)(fd, iov, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec* iov, int count, off_t offset, int flags) {
  if (count > 0) stall(iov->iov_base, iov->iov_len);
  return NEXT(pwritev2)(fd, iov, count, offset, flags);
}

ssize_t pwritev64v2(int fd, const struct iovec* iov, int count, off_t offset, int flags) {
  if (count > 0) stall(iov->iov_base, iov->iov_len);
  return NEXT(pwritev64v2)(fd, iov, count, offset, flags);
}
