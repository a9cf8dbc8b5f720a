// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_round.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <optional>

namespace weft::tools {
namespace {

constexpr uint64_t kTickNs = 50'000'000;  // to see that the round is to stop

// Drives several clients on one thread until all their rounds are over.
void run_many(const std::vector<BenchClient*>& clients) {
  const Fd epoll(::epoll_create1(EPOLL_CLOEXEC));
  const auto watch = [&](int operation, size_t index, bool sends) {
    epoll_event event = {};
    event.events = EPOLLIN | (sends ? EPOLLOUT : 0u);
    event.data.u64 = index;
    ::epoll_ctl(epoll.get(), operation, clients[index]->fd(), &event);
  };
  std::vector<bool> sends(clients.size());
  std::vector<bool> done(clients.size());
  size_t left = clients.size();
  const auto issue = [&](size_t index) {
    BenchClient& client = *clients[index];
    client.issue_late();
    if (client.over()) {
      done[index] = true;
      left--;
      ::epoll_ctl(epoll.get(), EPOLL_CTL_DEL, client.fd(), nullptr);
    } else if (client.wants_to_send() != sends[index]) {
      sends[index] = client.wants_to_send();
      watch(EPOLL_CTL_MOD, index, sends[index]);
    }
  };
  for (size_t i = 0; i < clients.size(); i++) watch(EPOLL_CTL_ADD, i, false);
  for (size_t i = 0; i < clients.size(); i++) issue(i);
  std::array<epoll_event, 64> events;
  while (left != 0) {
    uint64_t wake = now_ns() + kTickNs;
    for (size_t i = 0; i < clients.size(); i++) {
      if (const auto due = done[i] ? std::nullopt : clients[i]->due_ns())
        wake = std::min(wake, *due);
    }
    const uint64_t now = now_ns();
    const uint64_t wait = wake > now ? wake - now : 0;
    const timespec timeout = {.tv_sec = 0, .tv_nsec = static_cast<long>(wait)};
    const int count = ::epoll_pwait2(epoll.get(), events.data(), events.size(), &timeout, nullptr);
    for (int i = 0; i < count; i++) {
      const size_t index = events[static_cast<size_t>(i)].data.u64;
      if (done[index]) continue;
      if (events[static_cast<size_t>(i)].events & ~EPOLLOUT) clients[index]->receive();
      issue(index);
    }
    if (now_ns() < wake) continue;
    for (size_t i = 0; i < clients.size(); i++) {
      if (!done[i]) issue(i);
    }
  }
}

}  // namespace

Round::Round(const std::vector<BenchClient*>& clients, uint32_t threads)
    : running_(std::min<size_t>(threads, clients.size())) {
  // Signals are for the leading thread.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const size_t count = running_;
  for (size_t i = 0; i < count; i++) {
    std::vector<BenchClient*> mine;
    for (size_t k = i; k < clients.size(); k += count) mine.push_back(clients[k]);
    threads_.emplace_back([this, mine = std::move(mine)] {
      if (mine.size() == 1) {
        mine[0]->run();
      } else {
        run_many(mine);
      }
      ended_ns_.store(now_ns());
      running_.fetch_sub(1);
    });
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Watchdog::look() {
  const uint64_t now = now_ns();
  for (size_t i = 0; i < clients_.size(); i++) {
    const uint64_t activity = clients_[i]->activity();
    if (activity != seen_[i].activity || !clients_[i]->waits_for_server() ||
        seen_[i].since_ns == 0) {
      seen_[i] = {activity, now};
    } else if (now - seen_[i].since_ns > timeout_ns_) {
      clients_[i]->abort();
    }
  }
}

Progress::Progress(const Clients& clients, uint32_t block_size, bool wanted)
    : shown_(wanted && ::isatty(STDERR_FILENO) == 1),
      block_size_(block_size),
      clients_(clients),
      start_ns_(now_ns()),
      last_ns_(start_ns_),
      last_operations_(total()) {}

Progress::~Progress() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
}

uint64_t Progress::total() const {
  uint64_t sum = 0;
  for (const auto& client : clients_) sum += client->operations();
  return sum;
}

void Progress::look(std::string_view what) {
  const uint64_t now = now_ns();
  if (!shown_ || now - last_ns_ < 500'000'000) return;
  const uint64_t operations = total();
  const double iops = static_cast<double>(operations - last_operations_) * 1e9 /
                      static_cast<double>(now - last_ns_);
  fmt::print(stderr, "\r\x1b[K{} {:.0f} s: {:.0f} operations/s, {:.1f} MB/s", what,
             static_cast<double>(now - start_ns_) / 1e9, iops, iops * block_size_ / 1e6);
  std::fflush(stderr);
  last_ns_ = now;
  last_operations_ = operations;
}

}  // namespace weft::tools
