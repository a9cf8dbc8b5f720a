// SPDX-License-Identifier: BSD-3-Clause
// What a hosted plugin's calls of nbdkit_* functions are about. Those functions have no parameter
// that says so: the thread does. Before the server calls into the plugin it opens a CallScope on
// the thread that makes the call; threads that the plugin itself started have none.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <mutex>
#include <string>
#include <string_view>

#include "base/log.h"
#include "disk/peer.h"
#include "nbdkit/interned.h"

namespace weft::nbdkit {

// A client's connection, as nbdkit_* functions see it. Outlives every call made for it.
class Connection {
 public:
  // `plugin`: its name. `number`: from 1 on, counts the connections of the process. `peer` may be
  // null: a connection of weft's own.
  Connection(std::string_view plugin, uint64_t number, const disk::Peer* peer);

  // How messages name it: "curl[3]".
  [[nodiscard]] const std::string& subject() const { return subject_; }
  [[nodiscard]] const disk::Peer* peer() const { return peer_; }
  // The export's name that the client chose; set before open() is called.
  std::string export_name;
  bool tls = false;
  // Strings that live as long as the connection.
  InternedStrings strings;

  // The client has left. From any thread; ends nbdkit_nanosleep()s.
  void left();
  // The plugin has asked for the end of this connection (nbdkit_disconnect()): `now`, or by
  // answering every later request with ESHUTDOWN, which is left to whoever makes the calls. From
  // any thread. Ends its nbdkit_nanosleep()s as well.
  void disconnect(bool now);
  [[nodiscard]] bool disconnected() const { return disconnected_.load(); }
  [[nodiscard]] bool at_end() const { return disconnected() || left_.load(); }

 private:
  std::string subject_;
  const disk::Peer* peer_;
  std::atomic<bool> disconnected_{false};
  std::atomic<bool> left_{false};
};

// While it lives, this thread is inside of the plugin. They may be nested: the innermost counts.
class CallScope {
 public:
  // `plugin`: the plugin's name, `method`: the callback's ("pread"): static strings, or as long
  // lived as the scope. `connection`: null for a call that concerns none.
  CallScope(const char* plugin, const char* method, Connection* connection);
  ~CallScope();
  CallScope(const CallScope&) = delete;
  CallScope& operator=(const CallScope&) = delete;

  // The errno that the plugin set by nbdkit_set_error() since the scope began; 0: none.
  [[nodiscard]] int error() const { return error_; }

  // The calling thread's innermost scope. Null: the thread is not inside of a plugin.
  static CallScope* current();

  [[nodiscard]] const char* plugin() const { return plugin_; }
  [[nodiscard]] const char* method() const { return method_; }
  [[nodiscard]] Connection* connection() const { return connection_; }
  void set_error(int error) { error_ = error; }

 private:
  const char* plugin_;
  const char* method_;
  Connection* connection_;
  CallScope* outer_;
  int error_ = 0;
};

// A message of the plugin, named as the thread's scope says: by the connection ("curl[3]") or,
// outside of one, by the plugin (nothing in nbdkit's form of messages). Keeps errno.
void say(log::Level level, std::string_view text);

// The process around the plugin: what is true of all connections.
class Host {
 public:
  static Host& instance();

  // The plugin's name, for messages of threads without a scope. Set when it is loaded.
  void set_plugin(std::string name);
  [[nodiscard]] const std::string& plugin() const { return plugin_; }

  // False once configuration is over, or when stdin and stdout are the client's (-s).
  std::atomic<bool> stdio_safe{true};
  // The server serves, in this process, and is asked to end by `stop` (Surroundings::stop; may be
  // empty). If nbdkit_shutdown() was called before, it is asked now.
  void start_serving(std::function<void()> stop);
  [[nodiscard]] bool serving() const;

  // nbdkit_shutdown(): the server is asked to end, once it serves. From any thread, at any time.
  void shut_down();
  // The server ends: nobody sleeps any more. Until resume(), for what is called at the very end.
  void wake();
  // The same, and no call for a client is begun any more.
  void abandon();
  [[nodiscard]] bool abandoned() const { return abandoned_.load(std::memory_order_relaxed); }
  void resume();

  // Sleeps until the time is over, the server ends, or `connection` (may be null) is at its end.
  // True: the whole time. Thread-safe.
  bool sleep(uint64_t nanoseconds, const Connection* connection);
  // Those of `connection` look whether they may sleep on.
  void wake_sleepers(const Connection* connection);

  // How many errors the plugin has told the log (say()).
  [[nodiscard]] uint64_t errors_told() const { return errors_told_.load(); }
  void count_error() { errors_told_++; }

  // Strings that live for ever.
  InternedStrings strings;

 private:
  // One of perhaps thousands, each with its own condition: a connection's end wakes just its own.
  struct Sleeper {
    explicit Sleeper(const Connection* of) : connection(of) {}
    const Connection* connection;
    std::condition_variable wakeup;
  };

  void wake_all();

  std::string plugin_;
  std::mutex mutex_;
  std::atomic<pid_t> server_{0};
  std::atomic<bool> abandoned_{false};
  std::atomic<uint64_t> errors_told_{0};
  std::function<void()> stop_;   // guarded
  bool ending_ = false;          // guarded
  bool shutdown_asked_ = false;  // guarded
  std::list<Sleeper> sleepers_;  // guarded
};

}  // namespace weft::nbdkit
