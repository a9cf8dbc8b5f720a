// SPDX-License-Identifier: BSD-3-Clause
// The aligner: the one place where requests that are not aligned to a disk's blocks are split.
//
// It holds a disk with a minimum block size and takes any range: whole blocks in the middle are
// passed through, the blocks at both ends are read, changed and written back. The disk below must
// take ranges that start at a block and end at one, *or at the disk's end*, where a size that is no
// multiple of the block leaves a shorter one.
//
// The aligner locks nothing. While it changes a part of a block nobody else may change the rest of
// it, over all connections: its caller enters every change in order(), whose granularity the disk
// below has set to its block (change_order.h), before calling. Reads need not be entered.
#pragma once

#include <memory>

#include "disk/disk.h"

namespace weft::disk {

// `next` is wrapped in a waist by its owner if it has anything to emulate. What is made advertises
// a minimum block size of 1.
std::unique_ptr<Disk> make_aligner(std::unique_ptr<Disk> next);

}  // namespace weft::disk
