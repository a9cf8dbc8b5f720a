// SPDX-License-Identifier: BSD-3-Clause
#include "engine/epoll_loop.h"

#include <sys/uio.h>

namespace weft::engine {
namespace {

// A file operation on the pool; it deletes itself when it is back.
struct PooledFileOperation final : BlockingJob {
  FileOperation& operation;
  explicit PooledFileOperation(FileOperation& the_operation) : operation(the_operation) {}

  void execute() override { operation.result = run_file_operation(operation); }
  void run() override {
    operation.loop.schedule(operation.wakeup);
    delete this;
  }

  static int run_file_operation(const FileOperation& o) {
    iovec vector{o.buffer, o.length};
    const auto offset = static_cast<off_t>(o.offset);
    ssize_t n;
    do {
      n = o.kind == FileOperation::Kind::kRead ? ::preadv2(o.fd, &vector, 1, offset, o.rw_flags)
                                               : ::pwritev2(o.fd, &vector, 1, offset, o.rw_flags);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : static_cast<int>(n);
  }
};

}  // namespace

void EpollLoop::start(FileOperation& operation) {
  auto* job = new PooledFileOperation(operation);
  const bool is_read = operation.kind == FileOperation::Kind::kRead;
  pool_.general_lane().submit(*job,
                              is_read ? BlockingReason::kColdRead : BlockingReason::kDirectWrite,
                              BlockingKind::kParallel);
}

std::unique_ptr<Loop> make_epoll_loop(BlockingPool& pool) {
  return std::make_unique<EpollLoop>(pool);
}

}  // namespace weft::engine
