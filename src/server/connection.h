// SPDX-License-Identifier: BSD-3-Clause
// Connection: one client, from its first byte to its last, on one loop.
//
// States: negotiating (within Config::handshake_timeout); transmission; finishing. It has no buffer
// and no thread while its client says nothing.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "net/stream.h"
#include "server/export.h"
#include "server/server.h"
#include "server/transmission.h"

namespace weft::server {

// What all connections of a server share. Immutable, or thread-safe.
struct Shared {
  Shared(const Config& the_config, disk::Plugin& the_plugin, uint64_t memory_bytes)
      : config(the_config), plugin(the_plugin), budget(memory_bytes) {}
  const Config config;
  disk::Plugin& plugin;
  engine::Budget budget;
};

class Connection {
 public:
  Connection(Shared& shared, LoopResources& resources, Fd in, Fd out);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  engine::Task<void> run();
  // Whoever is behind the disk sends the client away.
  void disconnect();

  // Transmission: see there. A negotiation is ended.
  void drain();
  void give_up();
  void end();
  void check_progress(engine::Clock::time_point now);

  // Intrusive list of the connections of a loop.
  Connection* previous = nullptr;
  Connection* next = nullptr;

 private:
  // The bytes that came after the end of the negotiation; nothing: the connection has ended.
  engine::Task<std::optional<std::vector<std::byte>>> negotiate();
  engine::Task<bool> negotiate_oldstyle();
  engine::Task<bool> answer(nbd::ServerHandshake& handshake);
  engine::Task<bool> answer_export(nbd::ServerHandshake& handshake, const nbd::WantExport& want);
  engine::Task<bool> send_all(ByteSpan bytes);
  engine::Task<void> close_when_late();
  engine::Task<void> close_export();
  template <typename T>
  engine::Task<T> excused(engine::Task<T> task);
  engine::Task<Result<OpenExport>> open(const std::string& name);

  Shared& shared_;
  LoopResources& resources_;
  engine::Loop& loop_;
  net::Stream stream_;
  engine::Timer handshake_timer_;
  // For who may disconnect the client from another thread; null once the connection is gone. Used
  // on the loop alone.
  const std::shared_ptr<Connection*> self_;
  const disk::Peer peer_;
  std::optional<OpenExport> export_;  // open since the client named it
  // An export that could not be opened for its contexts, for the option that follows.
  std::optional<std::pair<std::string, Error>> refused_;
  std::optional<nbd::Established> established_;
  std::unique_ptr<Transmission> transmission_;
  std::string reason_;  // why the negotiation ended, for the log
  bool draining_ = false;
  bool opening_ = false;               // the plugin is being waited for: the client is not late
  engine::Clock::time_point late_at_;  // when the negotiation must be finished
};

}  // namespace weft::server
