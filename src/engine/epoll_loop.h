// SPDX-License-Identifier: BSD-3-Clause
// The epoll engine: readiness from epoll, edge-triggered; files through the blocking pool.
#pragma once

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <vector>

#include "base/fd.h"
#include "engine/blocking_pool.h"
#include "engine/engines.h"

namespace weft::engine {

// A registered descriptor: the address in the kernel's event. Outlives its Watch by up to one wait,
// since events for it may already have been fetched.
struct EpollRegistration {
  Watch* watch;
  uint32_t events = 0;  // as registered; 0: not in the epoll set
};

class EpollLoop : public Loop {
 public:
  explicit EpollLoop(BlockingPool& pool) : Loop(pool) {
    epoll_ = Fd(::epoll_create1(EPOLL_CLOEXEC));
    doorbell_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!epoll_ || !doorbell_) {
      throw ConfigError("cannot make an event loop (epoll, eventfd): " + errno_text(errno));
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = nullptr;
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, doorbell_.get(), &event);
  }
  ~EpollLoop() override {
    end();
    bury();
  }

  [[nodiscard]] EngineKind kind() const override { return EngineKind::kEpoll; }

 protected:
  void wait(std::chrono::nanoseconds timeout) override {
    int timeout_ms = -1;
    if (timeout.count() >= 0) {
      timeout_ms = static_cast<int>(
          std::min<int64_t>((timeout.count() + 999'999) / 1'000'000, 24 * 3600 * 1000));
    }
    std::array<epoll_event, 256> events;
    const int count = ::epoll_wait(epoll_.get(), events.data(), events.size(), timeout_ms);
    for (int i = 0; i < count; i++) {
      auto* registration = static_cast<EpollRegistration*>(events[i].data.ptr);
      if (!registration) {
        uint64_t rings;
        [[maybe_unused]] ssize_t n = ::read(doorbell_.get(), &rings, sizeof rings);
      } else if (registration->watch) {
        // Output is registered only while somebody waits for it; input for ever.
        if (events[i].events & EPOLLOUT) registration->watch->out_.armed = false;
        registration->watch->report(events[i].events);
      }
    }
    bury();
  }

  void ring_doorbell() noexcept override {
    const uint64_t one = 1;
    [[maybe_unused]] ssize_t n = ::write(doorbell_.get(), &one, sizeof one);
  }

  void arm(Watch& watch, Watch::Side& side) override {
    auto* registration = static_cast<EpollRegistration*>(watch.engine_data_);
    if (!registration) {
      registration = new EpollRegistration{&watch};
      watch.engine_data_ = registration;
    }
    side.armed = true;
    uint32_t events = EPOLLET;
    if (watch.in_.armed) events |= EPOLLIN | EPOLLRDHUP;
    if (watch.out_.armed) events |= EPOLLOUT;
    epoll_event event{};
    event.events = events;
    event.data.ptr = registration;
    const int operation = registration->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    registration->events = events;
    if (::epoll_ctl(epoll_.get(), operation, watch.fd_, &event) != 0) {
      side.always = true;  // not pollable (a regular file): never blocks
      watch.wake(side);
    }
  }

  void disarm(Watch& watch) override {
    auto* registration = static_cast<EpollRegistration*>(watch.engine_data_);
    if (!registration) return;
    if (registration->events) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, watch.fd_, nullptr);
    registration->watch = nullptr;
    watch.engine_data_ = nullptr;
    dead_.push_back(registration);
  }

  void start(FileOperation& operation) override;

  // An eventfd that wakes wait().
  [[nodiscard]] int doorbell() const { return doorbell_.get(); }

 private:
  void bury() {
    for (EpollRegistration* registration : dead_) delete registration;
    dead_.clear();
  }

  Fd epoll_;
  Fd doorbell_;
  std::vector<EpollRegistration*> dead_;
};

}  // namespace weft::engine
