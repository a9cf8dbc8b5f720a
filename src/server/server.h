// SPDX-License-Identifier: BSD-3-Clause
// Server: serves the exports of a plugin to clients, from listening sockets or one ready stream.
//
// run() makes one loop per thread, hands each accepted connection to the loop with the fewest, and
// returns when the server was told to stop and the last connection is gone. The first request to
// stop (a signal, a plugin's wish, stop()) stops accepting and reading; what was read is finished
// and answered within Config::drain_timeout, then the rest gets ESHUTDOWN; the disks are synced. A
// second signal ends the process at once (not one within 0.3 s of the first).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "disk/disk.h"
#include "engine/loop.h"
#include "net/listen.h"
#include "server/stop_requests.h"

namespace weft::server {

struct Config {
  bool read_only = false;
  bool oldstyle = false;           // -o
  bool structured_replies = true;  // --no-sr clears it
  bool meta_contexts = true;       // --no-mc clears it
  uint16_t handshake_flags = 3;    // --mask-handshake: NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES
  bool keepalive = false;          // SO_KEEPALIVE on accepted sockets
  uint32_t shared = 0;             // connections at once; 0: no limit; 1: multi-conn is off
  uint32_t requests_max = 0;       // of one connection in progress at once; 0: no limit of its own
  uint32_t threads = 0;            // loops; 0: one per core
  uint64_t max_memory = 0;         // bytes for requests in progress; 0: a quarter of the RAM
  std::chrono::milliseconds handshake_timeout{10'000};  // 0: none
  std::chrono::milliseconds drain_timeout{10'000};
  // Then, for what runs to come back and the connections to end; or the process does.
  std::chrono::milliseconds end_timeout{1000};
};

using ListeningSocket = net::ListeningSocket;

class Server {
 public:
  // `plugin` is configured; it and the pool outlive the server.
  Server(Config config, disk::Plugin& plugin, engine::EngineChoice engine,
         engine::BlockingPool& pool);
  ~Server();

  void listen(std::vector<ListeningSocket> sockets);
  // -s: one connection on ready descriptors; run() returns when it ends. The two may be the same.
  void serve_stream(Fd in, Fd out);

  // Returns the exit status: 0, or 1 when the disks could not be synced at the end. `requests`
  // outlives the call.
  int run(const StopRequests& requests);
  // From any thread, at any time.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The text of `weft --explain`: what is promised for the export named `export_name`, and which part
// decided it. Throws ConfigError when the export cannot be opened.
std::string explain(const Config& config, disk::Plugin& plugin, const std::string& plugin_name,
                    const std::string& export_name, const engine::EngineChoice& engine,
                    engine::BlockingPool& pool);

}  // namespace weft::server
