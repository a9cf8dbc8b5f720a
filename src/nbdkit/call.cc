// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/call.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"
#include "nbdkit/crash.h"

namespace weft::nbdkit {
namespace {

thread_local CallScope* the_current = nullptr;

}  // namespace

Connection::Connection(std::string_view plugin, uint64_t number, const disk::Peer* peer)
    : subject_(fmt::format("{}[{}]", plugin, number)), peer_(peer) {}

void Connection::disconnect(bool now) {
  if (disconnected_.exchange(true) && !now) return;
  if (now && peer_ && peer_->disconnect) peer_->disconnect();
  Host::instance().wake_sleepers(this);
}

void Connection::left() {
  left_ = true;
  Host::instance().wake_sleepers(this);
}

CallScope::CallScope(const char* plugin, const char* method, Connection* connection)
    : plugin_(plugin), method_(method), connection_(connection), outer_(the_current) {
  prepare_thread_for_crash();
  the_current = this;
}

CallScope::~CallScope() {
  the_current = outer_;
}

CallScope* CallScope::current() {
  return the_current;
}

void say(log::Level level, std::string_view text) {
  if (level == log::Level::kError) Host::instance().count_error();
  const CallScope* scope = CallScope::current();
  if (scope && scope->connection()) {
    log::write(level, text, scope->connection()->subject());
  } else if (log::form() == log::Form::kNbdkit) {
    log::write(level, text);
  } else {
    log::write(level, text, scope ? std::string_view(scope->plugin()) : Host::instance().plugin());
  }
}

Host& Host::instance() {
  static Host* host = new Host;  // never destroyed: threads of a plugin may outlive main()
  return *host;
}

void Host::set_plugin(std::string name) {
  plugin_ = std::move(name);
}

void Host::start_serving(std::function<void()> stop) {
  const std::lock_guard lock(mutex_);
  server_ = ::getpid();
  stop_ = std::move(stop);
  if (shutdown_asked_ && stop_) stop_();
}

bool Host::serving() const {
  return server_ == ::getpid();
}

void Host::shut_down() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  wake_all();
  if (std::exchange(shutdown_asked_, true)) return;
  log::info("{}: the plugin asks the server to end", plugin_);
  if (stop_) stop_();
}

void Host::wake() {
  const std::lock_guard lock(mutex_);
  ending_ = true;
  wake_all();
}

void Host::abandon() {
  abandoned_ = true;
  wake();
}

void Host::resume() {
  abandoned_ = false;
  const std::lock_guard lock(mutex_);
  ending_ = false;
}

// With the mutex held, so that none of them is gone.
void Host::wake_all() {
  for (Sleeper& sleeper : sleepers_) sleeper.wakeup.notify_one();
}

void Host::wake_sleepers(const Connection* connection) {
  const std::lock_guard lock(mutex_);
  for (Sleeper& sleeper : sleepers_) {
    if (sleeper.connection == connection) sleeper.wakeup.notify_one();
  }
}

bool Host::sleep(uint64_t nanoseconds, const Connection* connection) {
  constexpr uint64_t kLongest = uint64_t{1} << 62;  // 146 years; its sum with now is a time
  const std::chrono::nanoseconds time(std::min(nanoseconds, kLongest));
  const auto end = std::chrono::steady_clock::now() + time;
  std::unique_lock lock(mutex_);
  const auto self = sleepers_.emplace(sleepers_.end(), connection);
  const bool woken = self->wakeup.wait_until(
      lock, end, [&] { return ending_ || (connection && connection->at_end()); });
  sleepers_.erase(self);
  return !woken;
}

}  // namespace weft::nbdkit
