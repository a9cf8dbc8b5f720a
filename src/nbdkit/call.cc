// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/call.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/log.h"

namespace weft::nbdkit {
namespace {

thread_local CallScope* the_current = nullptr;

}  // namespace

Connection::Connection(std::string_view plugin, uint64_t number, const disk::Peer* peer)
    : subject_(fmt::format("{}[{}]", plugin, number)), peer_(peer) {}

void Connection::disconnect(bool now) {
  if (disconnected_.exchange(true) && !now) return;
  if (now && peer_ && peer_->disconnect) peer_->disconnect();
  Host::instance().wake_sleepers();
}

void Connection::left() {
  left_ = true;
  Host::instance().wake_sleepers();
}

CallScope::CallScope(const char* plugin, const char* method, Connection* connection)
    : plugin_(plugin), method_(method), connection_(connection), outer_(the_current) {
  the_current = this;
}

CallScope::~CallScope() {
  the_current = outer_;
}

CallScope* CallScope::current() {
  return the_current;
}

void say(log::Level level, std::string_view text) {
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

void Host::set_stop(std::function<void()> stop) {
  const std::lock_guard lock(mutex_);
  stop_ = std::move(stop);
  if (asked_to_end_ && stop_) stop_();
}

void Host::shut_down() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(asked_to_end_, true)) return;
  log::info("{}: the plugin asks the server to end", plugin_);
  if (stop_) stop_();
}

void Host::wake() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wakeup_.notify_all();
}

void Host::resume() {
  const std::lock_guard lock(mutex_);
  ending_ = false;
}

bool Host::sleep(uint64_t nanoseconds, const Connection* connection) {
  constexpr uint64_t kLongest = uint64_t{1} << 62;  // 146 years; its sum with now is a time
  std::unique_lock lock(mutex_);
  return !wakeup_.wait_for(lock, std::chrono::nanoseconds(std::min(nanoseconds, kLongest)),
                           [&] { return ending_ || (connection && connection->at_end()); });
}

void Host::wake_sleepers() {
  {
    const std::lock_guard lock(mutex_);
  }
  wakeup_.notify_all();
}

}  // namespace weft::nbdkit
