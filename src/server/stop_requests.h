// SPDX-License-Identifier: BSD-3-Clause
// StopRequests: who wants the server to end. The operator says so with a signal, SIGTERM, SIGINT,
// SIGQUIT or SIGHUP; a plugin through ask().
//
// Signals are handled, not blocked: threads that a plugin made before may take one as well, and the
// processes that a plugin starts have them as usual.
#pragma once

#include <functional>
#include <memory>

#include "base/fd.h"

namespace weft::server {

class StopRequests {
 public:
  // From now on signals are noted. One at a time in a process; throws ConfigError without
  // descriptors. Later forks go on with the usual signals.
  StopRequests();
  ~StopRequests();  // the signals are handled as before
  StopRequests(const StopRequests&) = delete;
  StopRequests& operator=(const StopRequests&) = delete;

  // Asks the server to end as the first signal does; any number of times. Thread-safe; may be kept
  // longer than this object.
  [[nodiscard]] std::function<void()> asker() const;

  // Readable when there are requests: a byte each, the number of the signal, or 0 from ask().
  [[nodiscard]] int fd() const;

 private:
  struct Pipe {
    Fd read;
    Fd write;
  };
  std::shared_ptr<Pipe> pipe_;
  struct Before;
  std::unique_ptr<Before> before_;
};

}  // namespace weft::server
