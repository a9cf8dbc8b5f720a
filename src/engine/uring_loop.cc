// SPDX-License-Identifier: BSD-3-Clause
// The io_uring engine. Readiness comes from one-shot polls on the ring, submitted together with the
// wait; file reads and writes are operations of the ring. Nothing newer than Linux 6.1 is needed;
// single-issuer and deferred task work are used where the kernel has them.
#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
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
#include "engine/engines.h"

namespace weft::engine {
namespace {

constexpr unsigned kQueueEntries = 1024;
constexpr unsigned kProbeEntries = 8;
constexpr auto kRingRetryTime = std::chrono::milliseconds(10);

// The low bits of an operation's user data say what the address is.
enum Tag : uint64_t { kTagFile = 0, kTagIn = 1, kTagOut = 2, kTagDoorbell = 3, kTagIgnore = 4 };
constexpr uint64_t kTagMask = 7;

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

struct Ring;

// A watch's polls on one ring. Outlives its Watch until the ring has given back every poll.
struct UringRegistration {
  Watch* watch = nullptr;                 // null: gone, or registered with a newer ring
  int in_flight = 0;                      // polls
  UringRegistration* previous = nullptr;  // of all of this ring
  UringRegistration* next = nullptr;
};

// A ring belongs to the thread that made it (single issuer). When another thread takes the loop
// over it makes a ring of its own, arms there what is waited for, and leaves the old one to
// the old thread, which alone can fetch the completions of the file operations that are on it.
struct Ring {
  io_uring ring{};
  int made;  // 0, or why there is no ring: -errno
  pid_t thread;
  bool doorbell_armed = false;
  size_t file_operations = 0;
  UringRegistration* first = nullptr;

  Ring() : made(make_ring(&ring, kQueueEntries)), thread(::gettid()) {}
  ~Ring() {
    if (made >= 0) io_uring_queue_exit(&ring);
    while (first) delete std::exchange(first, first->next);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  UringRegistration* add(Watch& watch) {
    auto* registration = new UringRegistration{&watch, 0, nullptr, first};
    if (first) first->previous = registration;
    return first = registration;
  }
  void remove(UringRegistration* registration) {
    (registration->previous ? registration->previous->next : first) = registration->next;
    if (registration->next) registration->next->previous = registration->previous;
    delete registration;
  }
};

class UringLoop final : public Loop {
 public:
  explicit UringLoop(BlockingPool& pool) : Loop(pool) {
    doorbell_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    spare_ = Fd(::dup(doorbell_.get()));
    if (!spare_) throw ConfigError("cannot make an eventfd: " + errno_text(errno));
  }

  ~UringLoop() override { end(); }

  [[nodiscard]] EngineKind kind() const override { return EngineKind::kUring; }

 protected:
  void wait(std::chrono::nanoseconds timeout) override {
    if (!the_ring().doorbell_armed) {
      io_uring_sqe* sqe = next_sqe();
      io_uring_prep_poll_add(sqe, doorbell_.get(), POLLIN);
      io_uring_sqe_set_data64(sqe, kTagDoorbell);
      ring_->doorbell_armed = true;
    }
    io_uring* ring = &ring_->ring;
    io_uring_cqe* first = nullptr;
    if (timeout.count() == 0) {
      // Nothing to wait for: submit, and let the kernel run what it has deferred.
      io_uring_submit_and_get_events(ring);
    } else if (timeout.count() < 0) {
      io_uring_submit_and_wait(ring, 1);
    } else {
      __kernel_timespec limit{timeout.count() / 1'000'000'000, timeout.count() % 1'000'000'000};
      io_uring_submit_and_wait_timeout(ring, &first, 1, &limit, nullptr);
    }
    unsigned head;
    unsigned count = 0;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(ring, head, cqe) {
      count++;
      complete(cqe->user_data, cqe->res);
    }
    io_uring_cq_advance(ring, count);
  }

  void ring_doorbell() noexcept override {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = ::write(doorbell_.get(), &one, sizeof one);
  }

  void arm(Watch& watch, Watch::Side& side) override {
    auto* registration = static_cast<UringRegistration*>(watch.engine_data_);
    if (!registration) watch.engine_data_ = registration = the_ring().add(watch);
    const bool input = &side == &watch.in_;
    io_uring_sqe* sqe = next_sqe();
    io_uring_prep_poll_add(sqe, watch.fd_, input ? POLLIN | POLLRDHUP : POLLOUT);
    io_uring_sqe_set_data64(sqe, tagged(registration, input ? kTagIn : kTagOut));
    side.armed = true;
    registration->in_flight++;
  }

  void disarm(Watch& watch) override {
    auto* registration = static_cast<UringRegistration*>(watch.engine_data_);
    if (!registration) return;
    watch.engine_data_ = nullptr;
    registration->watch = nullptr;
    if (registration->in_flight == 0) {
      ring_->remove(registration);
      return;
    }
    // The poll holds the open file: take it back, so that the peer sees the close at once. The
    // descriptor may be closed by the caller right after this, which the ring does not mind.
    for (Tag tag : {kTagIn, kTagOut}) {
      io_uring_sqe* sqe = next_sqe();
      io_uring_prep_poll_remove(sqe, tagged(registration, tag));
      io_uring_sqe_set_data64(sqe, kTagIgnore);
    }
  }

  void start(FileOperation& operation) override {
    io_uring_sqe* sqe = next_sqe();
    if (operation.kind == FileOperation::Kind::kRead) {
      io_uring_prep_read(sqe, operation.fd, operation.buffer, operation.length, operation.offset);
    } else {
      io_uring_prep_write(sqe, operation.fd, operation.buffer, operation.length, operation.offset);
    }
    sqe->rw_flags = operation.rw_flags;
    io_uring_sqe_set_data64(sqe, tagged(&operation, kTagFile));
    ring_->file_operations++;
  }

  void adopt_thread() override {
    if (the_ring().thread == ::gettid()) return;
    std::unique_ptr<Ring> fresh = make_ring_at_any_cost();
    std::unique_ptr<Ring> old = std::exchange(ring_, std::move(fresh));
    for (UringRegistration* r = old->first; r; r = r->next) {
      Watch* watch = std::exchange(r->watch, nullptr);
      if (!watch) continue;
      watch->engine_data_ = nullptr;
      for (Watch::Side* side : {&watch->in_, &watch->out_}) {
        side->armed = false;
        if (side->waiting) arm(*watch, *side);
      }
    }
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
    while (mine->file_operations > 0) {
      io_uring_submit_and_wait(&mine->ring, 1);
      unsigned head;
      unsigned count = 0;
      io_uring_cqe* cqe;
      io_uring_for_each_cqe(&mine->ring, head, cqe) {
        count++;
        if ((cqe->user_data & kTagMask) != kTagFile) continue;
        mine->file_operations--;
        auto* operation = reinterpret_cast<FileOperation*>(cqe->user_data);
        operation->result = cqe->res;
        call([this, operation] { schedule(operation->wakeup); });
      }
      io_uring_cq_advance(&mine->ring, count);
    }
  }

 private:
  static uint64_t tagged(const void* address, Tag tag) {
    return reinterpret_cast<uint64_t>(address) | tag;
  }

  Ring& the_ring() {
    if (!ring_) {
      ring_ = std::make_unique<Ring>();
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
      auto ring = std::make_unique<Ring>();
      if (ring->made >= 0) {
        if (!spare_) spare_ = Fd(::dup(doorbell_.get()));
        return ring;
      }
      if (!told) {
        log::warning("cannot make an io_uring: {}; trying again", errno_text(-ring->made));
      }
      spare_.reset();
      std::this_thread::sleep_for(kRingRetryTime);
    }
  }

  io_uring_sqe* next_sqe() {
    io_uring* ring = &the_ring().ring;
    io_uring_sqe* sqe;
    while (!(sqe = io_uring_get_sqe(ring))) io_uring_submit(ring);
    return sqe;
  }

  void complete(uint64_t user_data, int result) {
    void* address = reinterpret_cast<void*>(user_data & ~kTagMask);
    switch (user_data & kTagMask) {
      case kTagFile: {
        auto* operation = static_cast<FileOperation*>(address);
        operation->result = result;
        ring_->file_operations--;
        schedule(operation->wakeup);
        break;
      }
      case kTagIn:
      case kTagOut: {
        auto* registration = static_cast<UringRegistration*>(address);
        registration->in_flight--;
        Watch* watch = registration->watch;
        if (!watch) {
          if (registration->in_flight == 0) ring_->remove(registration);
          break;
        }
        Watch::Side& side = (user_data & kTagMask) == kTagIn ? watch->in_ : watch->out_;
        side.armed = false;
        watch->report(result < 0 ? POLLERR : static_cast<uint32_t>(result));
        break;
      }
      case kTagDoorbell: {
        ring_->doorbell_armed = false;
        uint64_t rings;
        [[maybe_unused]] ssize_t n = ::read(doorbell_.get(), &rings, sizeof rings);
        break;
      }
      default:
        break;
    }
  }

  std::unique_ptr<Ring> ring_;
  Fd doorbell_;
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
  if (!(ring.features & IORING_FEAT_EXT_ARG)) missing = "waiting with a time limit";
  if (!(ring.features & IORING_FEAT_NODROP)) missing = "completions that are never dropped";
  if (io_uring_probe* probe = io_uring_get_probe_ring(&ring)) {
    struct Needed {
      int opcode;
      const char* name;
    };
    constexpr Needed kNeeded[] = {{IORING_OP_READ, "IORING_OP_READ"},
                                  {IORING_OP_WRITE, "IORING_OP_WRITE"},
                                  {IORING_OP_POLL_ADD, "IORING_OP_POLL_ADD"},
                                  {IORING_OP_POLL_REMOVE, "IORING_OP_POLL_REMOVE"}};
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
