// SPDX-License-Identifier: BSD-3-Clause
// Locks that keep two programs from writing to one image: those of qemu, so that weft and qemu's
// tools see each other.
//
// They are shared byte-range locks of the open file description (fcntl(2), F_OFD_SETLK), on bytes
// that mean something instead of holding data: byte 100 + p says "I use permission p", byte 200 + p
// "nobody else may use permission p". One locks its own bytes, then looks whether somebody else
// holds the bytes that contradict them. The permissions: 0 read consistent data, 1 write, 3 resize.
//
// A writer uses 0 and 1 and shares neither writing nor resizing; a reader uses 0 and shares all.
// The locks belong to the description: they survive fork(2) and end when its last descriptor is
// closed; other descriptions of the same process count as somebody else.
#pragma once

#include <string>

#include "base/result.h"

namespace weft::plugins {

struct LockOutcome {
  enum class Kind { kLocked, kUnsupported, kRefused } kind = Kind::kLocked;
  int error = 0;    // for kUnsupported: why the file system has no locks
  int byte = -1;    // for kRefused: the byte that somebody else has locked
  int process = 0;  // and who that is, if the kernel says it
};

// Locks the image that `fd` has open; nothing is locked unless the outcome is kLocked. `writer`:
// `fd` will be written to. Does not wait.
LockOutcome lock_image(int fd, bool writer);

// Who is in the way ("qemu-nbd (process 123)", "another program"). Looks at every process there is.
std::string name_lock_holder(int fd, const LockOutcome& refused);

}  // namespace weft::plugins
