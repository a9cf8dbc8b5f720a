// SPDX-License-Identifier: BSD-3-Clause
// session_fuzz.cc with a bug planted in its model: a target that must fail within seconds. It
// shows that the harness sees a disagreement that takes two options in the right order.
#define WEFT_FUZZ_CANARY
#include "nbd/session_fuzz.cc"
