// SPDX-License-Identifier: BSD-3-Clause
#include "server/server.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <optional>
#include <thread>
#include <utility>

#include "base/log.h"
#include "engine/blocking_pool.h"
#include "engine/scope.h"
#include "server/connection.h"
#include "server/worker.h"

namespace weft::server {
namespace {

constexpr auto kNoDescriptorsPause = std::chrono::milliseconds(100);
constexpr auto kSameSignal = std::chrono::milliseconds(300);
constexpr auto kGiveUpTime = std::chrono::milliseconds(100);  // for the last replies to leave

// A quarter of the memory that this process may use.
uint64_t default_memory() {
  uint64_t memory = static_cast<uint64_t>(::sysconf(_SC_PHYS_PAGES)) *
                    static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  std::ifstream limit("/sys/fs/cgroup/memory.max");
  uint64_t bytes;
  if (limit >> bytes) memory = std::min(memory, bytes);  // "max" is no number
  return std::max<uint64_t>(memory / 4, 64 << 20);
}

// How often, and why, a loop had to leave its thread.
void log_blocking_calls(const engine::BlockingPool& pool) {
  for (size_t i = 0; i < static_cast<size_t>(engine::BlockingReason::kCount); i++) {
    const auto reason = static_cast<engine::BlockingReason>(i);
    if (const uint64_t count = pool.count(reason)) {
      log::debug("blocking calls: {} {}", engine::blocking_reason_name(reason), count);
    }
  }
}

// An error of accept4(2) that is the end of a client that was about to be accepted.
bool is_about_one_client(int error) {
  switch (error) {
    case EINTR:
    case ECONNABORTED:
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
    case EPERM:  // a firewall's rule
      return true;
    default:
      return false;
  }
}

}  // namespace

struct Server::Impl {
  Impl(Config the_config, disk::Plugin& the_plugin, engine::EngineChoice the_engine,
       engine::BlockingPool& the_pool)
      : shared(the_config, the_plugin,
               the_config.max_memory ? the_config.max_memory : default_memory()),
        engine(std::move(the_engine)),
        pool(the_pool) {}

  [[nodiscard]] engine::Loop& main_loop() { return workers.front()->loop(); }
  [[nodiscard]] bool full() const {
    return shared.config.shared != 0 && connections >= shared.config.shared;
  }

  void make_workers();
  void connection_ended(size_t worker);
  void adopt(Fd in, Fd out);
  void begin_stop(const char* why);
  engine::Task<int> control();
  engine::Task<void> accept_from(net::ListeningSocket socket);
  engine::Task<void> watch_requests(engine::Watch& watch);
  engine::Task<void> give_up_when_late();

  Shared shared;
  engine::EngineChoice engine;
  engine::BlockingPool& pool;
  std::vector<net::ListeningSocket> sockets;
  Fd stream_in, stream_out;
  int requests = -1;  // to stop: see StopRequests::fd()
  std::vector<std::unique_ptr<Worker>> workers;

  // On the main loop's thread.
  std::vector<size_t> counts;  // connections of each worker
  size_t connections = 0;
  bool stopping = false;
  bool only_stream = false;                 // -s
  std::unique_ptr<engine::Signal> changed;  // the number of connections, or `stopping`
  std::unique_ptr<engine::Timer> drain_timer;
  std::vector<engine::Watch*> watches;        // cancelled to stop
  std::vector<engine::Timer*> accept_pauses;  // the same
};

void Server::Impl::make_workers() {
  const size_t count = shared.config.threads ? shared.config.threads
                                             : std::max(1u, std::thread::hardware_concurrency());
  counts.assign(count, 0);
  for (size_t i = 0; i < count; i++) {
    workers.push_back(std::make_unique<Worker>(shared, engine.kind, pool, [this, i] {
      main_loop().call([this, i] { connection_ended(i); });
    }));
  }
  changed = std::make_unique<engine::Signal>(main_loop());
  drain_timer = std::make_unique<engine::Timer>(main_loop());
}

void Server::Impl::connection_ended(size_t worker) {
  counts[worker]--;
  connections--;
  if (only_stream) begin_stop("the client has left");
  changed->notify_all();
}

void Server::Impl::adopt(Fd in, Fd out) {
  const auto least =
      static_cast<size_t>(std::min_element(counts.begin(), counts.end()) - counts.begin());
  counts[least]++;
  connections++;
  workers[least]->adopt(std::move(in), std::move(out));
}

void Server::Impl::begin_stop(const char* why) {
  if (stopping) return;
  stopping = true;
  log::debug("stopping: {}", why);
  shared.plugin.stopping();
  for (engine::Watch* watch : watches) watch->cancel();
  for (engine::Timer* pause : accept_pauses) pause->cancel();
  for (const std::unique_ptr<Worker>& worker : workers) worker->drain();
  changed->notify_all();
}

engine::Task<void> Server::Impl::accept_from(net::ListeningSocket socket) {
  ::fcntl(socket.fd.get(), F_SETFL, ::fcntl(socket.fd.get(), F_GETFL) | O_NONBLOCK);
  engine::Watch watch(main_loop(), socket.fd.get());
  engine::Timer pause(main_loop());
  watches.push_back(&watch);
  accept_pauses.push_back(&pause);
  while (!stopping) {
    if (full()) {  // the next client waits in the socket's backlog
      co_await changed->wait();
      continue;
    }
    Fd fd(::accept4(socket.fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      adopt(std::move(fd), Fd());
      co_await main_loop().yield();  // many who come at once do not hold up those who are here
    } else if (errno == EAGAIN) {
      co_await watch.readable();
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
      log::error(
          "{}: cannot accept a client: {}; raise the limit (ulimit -n), or bound the "
          "clients with --shared=N",
          socket.description, errno_text(errno));
      co_await pause.sleep(kNoDescriptorsPause);
    } else if (!is_about_one_client(errno)) {
      log::error("{}: accepting clients failed: {}", socket.description, errno_text(errno));
      break;
    }
  }
  std::erase(watches, &watch);
  std::erase(accept_pauses, &pause);
}

engine::Task<void> Server::Impl::watch_requests(engine::Watch& watch) {
  std::optional<engine::Clock::time_point> signalled;
  for (;;) {
    unsigned char number = 0;
    if (::read(requests, &number, 1) != 1) {
      if (!co_await watch.readable()) co_return;
    } else if (number == 0) {
      begin_stop("asked to");
    } else if (signalled && engine::Clock::now() - *signalled < kSameSignal) {
      // timeout(1) and others signal the process, and then its group.
    } else if (std::exchange(signalled, engine::Clock::now())) {
      log::error("stopped at once by a second signal; requests in progress are lost");
      shared.plugin.abandon();
      ::_exit(1);
    } else {
      begin_stop(::strsignal(number));
    }
  }
}

engine::Task<void> Server::Impl::give_up_when_late() {
  if (!co_await drain_timer->sleep(shared.config.drain_timeout)) co_return;
  for (const std::unique_ptr<Worker>& worker : workers) worker->give_up();
  log::error(
      "{} connections still had requests in progress after {} ms (--drain-timeout); "
      "they were answered with ESHUTDOWN",
      connections, shared.config.drain_timeout.count());
  if (!co_await drain_timer->sleep(kGiveUpTime)) co_return;
  // A client that does not take its replies must not keep the disks from being synced: only what
  // is still in a disk can, and that would be in the way of a sync as well.
  for (const std::unique_ptr<Worker>& worker : workers) worker->end_all();
  shared.plugin.abandon();
  if (!co_await drain_timer->sleep(shared.config.end_timeout)) co_return;
  ::_exit(1);
}

engine::Task<int> Server::Impl::control() {
  engine::Scope scope(main_loop());
  engine::Watch request_watch(main_loop(), requests);
  scope.spawn(watch_requests(request_watch));
  scope.spawn(workers.front()->serve());
  for (net::ListeningSocket& socket : sockets) scope.spawn(accept_from(std::move(socket)));
  if (stream_in) {
    adopt(std::move(stream_in), std::move(stream_out));
    only_stream = true;
  }
  while (!stopping) co_await changed->wait();
  scope.spawn(give_up_when_late());
  while (connections > 0) co_await changed->wait();
  drain_timer->cancel();

  // Nothing is in progress: what was acknowledged becomes durable now.
  shared.plugin.resume();
  const Status finished = co_await shared.plugin.finish(main_loop());
  request_watch.cancel();
  for (const std::unique_ptr<Worker>& worker : workers) worker->stop();
  co_await scope.join();
  if (finished) co_return 0;
  log::error(
      "the disks could not be synced at the end: {}; what was acknowledged and not flushed "
      "may be lost",
      finished.error().text ? finished.error().text : errno_text(finished.error().code));
  co_return 1;
}

Server::Server(Config config, disk::Plugin& plugin, engine::EngineChoice engine,
               engine::BlockingPool& pool)
    : impl_(std::make_unique<Impl>(std::move(config), plugin, std::move(engine), pool)) {
  impl_->make_workers();
}

Server::~Server() = default;

void Server::listen(std::vector<ListeningSocket> sockets) {
  for (ListeningSocket& socket : sockets) impl_->sockets.push_back(std::move(socket));
}

void Server::serve_stream(Fd in, Fd out) {
  impl_->stream_in = std::move(in);
  impl_->stream_out = std::move(out);
}

int Server::run(const StopRequests& requests) {
  ::signal(SIGPIPE, SIG_IGN);  // EPIPE says it
  ::signal(SIGXFSZ, SIG_IGN);  // EFBIG says it
  impl_->requests = requests.fd();

  const engine::EngineChoice& engine = impl_->engine;
  if (engine.is_fallback) {
    log::info("engine: epoll ({})", engine.reason);  // slower, so said without being asked
  } else {
    log::debug("engine: {} ({})", engine.kind == engine::EngineKind::kUring ? "io_uring" : "epoll",
               engine.reason);
  }
  std::vector<std::unique_ptr<Worker>>& workers = impl_->workers;
  for (size_t i = 1; i < workers.size(); i++) workers[i]->start();
  const int status = impl_->main_loop().run_until_done(impl_->control());
  for (size_t i = 1; i < workers.size(); i++) workers[i]->join();
  log_blocking_calls(impl_->pool);
  return status;
}

void Server::stop() {
  impl_->main_loop().call([this] { impl_->begin_stop("asked to"); });
}

}  // namespace weft::server
