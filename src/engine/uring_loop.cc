// SPDX-License-Identifier: BSD-3-Clause
// The io_uring engine: file reads and writes are operations of a ring, readiness comes from epoll,
// which is told of completions by an eventfd. A poll on the ring itself would cost no system call,
// but wakes its thread without the hint that the waker is about to sleep: with a processor to
// spare, the thread is sent there, and a client that waits for each reply pays four times as much
// for it. Nothing newer than Linux 6.1 is needed; single-issuer and deferred task work are used
// where they are.
#include <fcntl.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "engine/blocking_pool.h"
#include "engine/epoll_loop.h"

namespace weft::engine {
namespace {

constexpr unsigned kQueueEntries = 1024;
constexpr unsigned kProbeEntries = 8;
constexpr auto kRingRetryTime = std::chrono::milliseconds(10);

int make_ring(io_uring* ring, unsigned entries) {
  constexpr unsigned kFlagSets[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CLAMP |
          IORING_SETUP_SUBMIT_ALL,
      IORING_SETUP_COOP_TASKRUN | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL,
      IORING_SETUP_CLAMP,
  };
  int error = -EINVAL;
  for (unsigned flags : kFlagSets) {
    io_uring_params params{};
    params.flags = flags;
    error = io_uring_queue_init_params(entries, ring, &params);
    if (error != -EINVAL) break;
  }
  return error;
}

}  // namespace

// A ring belongs to the thread that made it (single issuer). When another thread takes the loop
// over it makes a ring of its own, and leaves the old one to the old thread, which alone can fetch
// the completions of the operations that are on it.
struct Ring {
  io_uring ring{};
  int made;  // 0, or why there is no ring: -errno
  pid_t thread;
  size_t operations = 0;  // in progress

  // `doorbell`: an eventfd that is told of completions, also of those that the kernel has deferred.
  explicit Ring(int doorbell) : made(make_ring(&ring, kQueueEntries)), thread(::gettid()) {
    if (made < 0) return;
    made = io_uring_register_eventfd(&ring, doorbell);
    if (made < 0) io_uring_queue_exit(&ring);
  }
  ~Ring() {
    if (made >= 0) io_uring_queue_exit(&ring);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Calls done(operation) for each that has completed, with its result in place.
  template <typename F>
  void reap(F done) {
    unsigned head;
    unsigned count = 0;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring, head, cqe) {
      count++;
      operations--;
      auto* operation = reinterpret_cast<FileOperation*>(cqe->user_data);
      operation->result = cqe->res;
      done(operation);
    }
    io_uring_cq_advance(&ring, count);
  }
};

class UringLoop final : public EpollLoop {
 public:
  explicit UringLoop(BlockingPool& pool) : EpollLoop(pool) {
    spare_ = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  }
  ~UringLoop() override { end(); }

  [[nodiscard]] EngineKind kind() const override { return EngineKind::kUring; }

 protected:
  void wait(std::chrono::nanoseconds timeout) override {
    if (ring_ && ring_->operations > 0) {
      // What is in the page cache completes while it is submitted.
      io_uring_submit_and_get_events(&ring_->ring);
      if (reap()) timeout = std::chrono::nanoseconds(0);
      EpollLoop::wait(timeout);
      if (ring_->operations > 0) {
        io_uring_get_events(&ring_->ring);
        reap();
      }
      return;
    }
    EpollLoop::wait(timeout);
  }

  void start(FileOperation& operation) override {
    io_uring* ring = &the_ring().ring;
    io_uring_sqe* sqe;
    while (!(sqe = io_uring_get_sqe(ring))) io_uring_submit(ring);
    if (operation.kind == FileOperation::Kind::kRead) {
      io_uring_prep_read(sqe, operation.fd, operation.buffer, operation.length, operation.offset);
    } else {
      io_uring_prep_write(sqe, operation.fd, operation.buffer, operation.length, operation.offset);
    }
    sqe->rw_flags = operation.rw_flags;
    io_uring_sqe_set_data(sqe, &operation);
    ring_->operations++;
  }

  void adopt_thread() override {
    if (the_ring().thread == ::gettid()) return;
    std::unique_ptr<Ring> fresh = make_ring_at_any_cost();
    std::unique_ptr<Ring> old = std::exchange(ring_, std::move(fresh));
    std::lock_guard lock(left_mutex_);
    left_.push_back(std::move(old));
    left_changed_.notify_all();
  }

  void leave_thread() override {
    std::unique_ptr<Ring> mine;
    {
      std::unique_lock lock(left_mutex_);
      const auto find = [this] {
        return std::find_if(left_.begin(), left_.end(),
                            [](const std::unique_ptr<Ring>& r) { return r->thread == ::gettid(); });
      };
      // The new thread may be only about to put it here.
      left_changed_.wait(lock, [&] { return find() != left_.end(); });
      const auto found = find();
      mine = std::move(*found);
      left_.erase(found);
    }
    while (mine->operations > 0) {
      io_uring_submit_and_wait(&mine->ring, 1);
      mine->reap([this](FileOperation* operation) {
        call([this, operation] { schedule(operation->wakeup); });
      });
    }
  }

 private:
  // True: something has completed.
  bool reap() {
    const size_t before = ring_->operations;
    ring_->reap([this](FileOperation* operation) { schedule(operation->wakeup); });
    return ring_->operations != before;
  }

  Ring& the_ring() {
    if (!ring_) {
      ring_ = std::make_unique<Ring>(doorbell());
      if (ring_->made < 0) {
        log::error("cannot make an io_uring: {}; use --engine=epoll", errno_text(-ring_->made));
        ::_exit(1);
      }
    }
    return *ring_;
  }

  // For a thread that takes over in the middle of everything. When descriptors have run out there
  // is a spare one; when the kernel has no memory, the clients of this loop wait until it has.
  std::unique_ptr<Ring> make_ring_at_any_cost() {
    for (bool told = false;; told = true) {
      auto ring = std::make_unique<Ring>(doorbell());
      if (ring->made >= 0) {
        if (!spare_) spare_ = Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
        return ring;
      }
      if (!told) {
        log::warning("cannot make an io_uring: {}; trying again", errno_text(-ring->made));
      }
      spare_.reset();
      std::this_thread::sleep_for(kRingRetryTime);
    }
  }

  std::unique_ptr<Ring> ring_;
  Fd spare_;  // a descriptor kept for a ring
  std::mutex left_mutex_;
  std::condition_variable left_changed_;
  std::vector<std::unique_ptr<Ring>> left_;  // rings of threads that have lost the loop
};

std::unique_ptr<Loop> make_uring_loop(BlockingPool& pool) {
  return std::make_unique<UringLoop>(pool);
}

std::string probe_uring() {
  io_uring ring{};
  const int error = make_ring(&ring, kProbeEntries);
  if (error < 0) {
    switch (-error) {
      case ENOSYS:
        return "io_uring_setup is not there (" + errno_text(ENOSYS) +
               "): the kernel, or a seccomp profile";
      case EPERM:
      case EACCES:
        return "io_uring_setup is refused (" + errno_text(-error) +
               "): a seccomp profile, or kernel.io_uring_disabled";
      case ENOMEM:
        return "no memory for a ring (ENOMEM): raise the limit on locked memory";
      default:
        return "io_uring_setup failed: " + errno_text(-error);
    }
  }
  std::string missing;
  if (!(ring.features & IORING_FEAT_NODROP)) missing = "completions that are never dropped";
  if (io_uring_probe* probe = io_uring_get_probe_ring(&ring)) {
    struct Needed {
      int opcode;
      const char* name;
    };
    constexpr Needed kNeeded[] = {{IORING_OP_READ, "IORING_OP_READ"},
                                  {IORING_OP_WRITE, "IORING_OP_WRITE"}};
    for (const Needed& needed : kNeeded) {
      if (!io_uring_opcode_supported(probe, needed.opcode)) missing = needed.name;
    }
    io_uring_free_probe(probe);
  } else {
    missing = "a probe of its operations";
  }
  if (missing.empty()) {
    // io_uring_enter may be refused although io_uring_setup was not.
    io_uring_prep_nop(io_uring_get_sqe(&ring));
    const int submitted = io_uring_submit_and_wait(&ring, 1);
    if (submitted < 0) missing = "io_uring_enter (" + errno_text(-submitted) + ")";
  }
  io_uring_queue_exit(&ring);
  return missing.empty() ? "" : "the kernel's io_uring lacks " + missing;
}

}  // namespace weft::engine
