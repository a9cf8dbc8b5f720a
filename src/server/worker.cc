// SPDX-License-Identifier: BSD-3-Clause
#include "server/worker.h"

#include <pthread.h>

#include <future>

namespace weft::server {
namespace {

constexpr auto kProgressInterval = std::chrono::seconds(5);

}  // namespace

Worker::Worker(Shared& shared, engine::EngineKind engine, engine::BlockingPool& pool,
               std::function<void()> ended)
    : shared_(shared),
      loop_(engine::Loop::create(engine, pool)),
      resources_(*loop_),
      connections_(*loop_),
      changed_(*loop_),
      progress_timer_(*loop_),
      ended_(std::move(ended)) {}

Worker::~Worker() = default;

void Worker::start() {
  // Only a loop that runs has all that it needs from the system: clients come after that.
  std::promise<void> runs;
  loop_->call([&runs] { runs.set_value(); });
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "weft-loop");
    loop_->run_until_done(serve());
  });
  runs.get_future().wait();
}

void Worker::adopt(Fd in, Fd out) {
  loop_->call([this, in = in.release(), out = out.release()] {
    connections_.spawn(serve_connection(Fd(in), Fd(out)));
  });
}

void Worker::drain() {
  loop_->call([this] {
    draining_ = true;
    for (Connection* c = first_; c; c = c->next) c->drain();
  });
}

void Worker::give_up() {
  loop_->call([this] {
    for (Connection* c = first_; c; c = c->next) c->give_up();
  });
}

void Worker::end_all() {
  loop_->call([this] {
    for (Connection* c = first_; c; c = c->next) c->end();
  });
}

void Worker::stop() {
  loop_->call([this] {
    stopping_ = true;
    progress_timer_.cancel();
    changed_.notify_all();
  });
}

void Worker::check_progress(engine::Clock::time_point now) {
  loop_->call([this, now] { check_connections(now); });
}

void Worker::check_connections(engine::Clock::time_point now) {
  for (Connection* c = first_; c; c = c->next) c->check_progress(now);
}

engine::Task<void> Worker::serve() {
  engine::Scope helpers(*loop_);
  helpers.spawn(watch_progress());
  while (!stopping_ || connections_.count() > 0) co_await changed_.wait();
  co_await helpers.join();
}

engine::Task<void> Worker::serve_connection(Fd in, Fd out) {
  {
    Connection connection(shared_, resources_, std::move(in), std::move(out));
    connection.next = first_;
    if (first_) first_->previous = &connection;
    first_ = &connection;
    if (draining_) connection.drain();
    co_await connection.run();
    (connection.previous ? connection.previous->next : first_) = connection.next;
    if (connection.next) connection.next->previous = connection.previous;
  }
  ended_();
  changed_.notify_all();
}

engine::Task<void> Worker::watch_progress() {
  while (co_await progress_timer_.sleep(kProgressInterval)) {
    check_connections(engine::Clock::now());
    if (!first_) resources_.buffers.trim();
  }
}

}  // namespace weft::server
