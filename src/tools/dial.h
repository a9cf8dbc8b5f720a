// SPDX-License-Identifier: BSD-3-Clause
// Connecting to an NBD server and negotiating with it, blocking, for the tools.
#pragma once

#include <chrono>

#include "base/fd.h"
#include "nbd/client_handshake.h"
#include "tools/uri.h"

namespace weft::tools {

struct Dialled {
  Fd fd;                     // blocking; TCP without delay
  nbd::ClientResult result;  // nothing of the transmission phase has been received yet
};

// A connected socket: blocking, TCP without delay; no receive or send takes longer than `timeout`.
// Throws ConfigError as dial() does. Nothing has been sent or received.
[[nodiscard]] Fd connect_to(const Target& target, std::chrono::milliseconds timeout);

// Negotiates `config` (its export_name is replaced by the target's). Neither a step of it nor
// all of it may take longer than `timeout`. Throws ConfigError with one line: who does not answer,
// or what was refused and why.
[[nodiscard]] Dialled dial(const Target& target, nbd::ClientConfig config,
                           std::chrono::milliseconds timeout);

}  // namespace weft::tools
