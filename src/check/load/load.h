// SPDX-License-Identifier: BSD-3-Clause
// Load: random operations on few cells over several connections, written down as a History.
//
// One thread drives all connections. Each has `depth` requests in flight; what a connection asks
// for depends on the seed, its number and which cells hold zeroes now, not on time.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "check/load/client.h"
#include "check/load/generator.h"
#include "check/load/layout.h"
#include "check/model/history.h"

namespace weft::check {

struct LoadOptions {
  uint32_t connections = 4;
  uint32_t depth = 4;  // requests in flight on each connection
  uint64_t seed = 1;
  uint64_t operations = 20'000;                // of a run()
  std::chrono::milliseconds limit{2'000};      // of a run(): no more is sent after it
  std::chrono::milliseconds patience{10'000};  // a request unanswered for so long is a hang
  // Shares, by Kind; what the server does not offer is left out.
  std::array<uint32_t, kKinds> weights = {30, 36, 6, 2, 3, 19, 4};
  uint32_t fua_percent = 20;  // of changes
  // Every so many operations a connection is cut with its requests in flight, and another dialled
  // in its place; what had no reply is sent again there. 0: never.
  uint32_t cut_every = 0;
};

// Dials one more connection to the same export; throws ConfigError when it cannot.
using Dialler = std::function<tools::Dialled()>;

enum class Stop : uint8_t {
  kDone,         // all operations, or the time limit
  kInterrupted,  // `interrupted` became true
  kLost,         // a connection ended that nobody had cut
  kHang,         // a request was not answered in time
  kViolation,    // the server broke the protocol
};

class Load {
 public:
  // Dials the connections. A second connection that is refused is no error: connections() tells how
  // many there are. `interrupted` may be null.
  Load(LoadOptions options, Layout layout, Dialler dial, const std::atomic<bool>* interrupted);
  ~Load();
  Load(const Load&) = delete;
  Load& operator=(const Load&) = delete;

  // Writes every cell on the first connection, and flushes: every cell has a known content. All
  // connections are idle afterwards (and after each of the functions below that ends with kDone).
  Stop prepare();
  // The random load.
  Stop run();
  // The same, but gives up whenever `cut` is true (asked after each reply), leaving requests in
  // flight.
  Stop run_until(const std::function<bool()>& cut);
  // Flushes that overlap changes, over and over, at most `count` times: some writes and a flush
  // together; when all have their replies, a flush on another connection with nothing new to flush;
  // when that is done, reads of what was written. For servers too slow to meet such cases by
  // chance.
  Stop run_overlaps(uint32_t count);
  // Every connection reads every cell; with `flush_first` the first connection flushes before.
  Stop read_all(bool flush_first);
  // One operation alone on a connection: waits for its reply, at most as long as the load's
  // patience. Returns its index in the history; see there for its reply. For scenarios.
  uint32_t perform(uint32_t connection, const Wish& wish);
  // The same without waiting; wait_for() waits for it, at most for `limit` (true: it has a reply,
  // or its connection is lost).
  uint32_t start(uint32_t connection, const Wish& wish);
  bool wait_for(uint32_t operation, std::chrono::milliseconds limit);

  // Cuts a connection with what is in flight, and dials another in its place, with the same index
  // here and a number of its own in the history. False: it cannot be dialled; why is in failure().
  bool redial(uint32_t connection, bool reset = false);
  // Says NBD_CMD_DISC with what is in flight, waits for the end of the connection (at most
  // `limit`), and dials another in its place. The operations that had no reply by then are put into
  // `unanswered`; in the history they stay without one. False: see failure().
  bool part(uint32_t connection, std::chrono::milliseconds limit,
            std::vector<uint32_t>& unanswered);
  // Waits until every connection has ended (the server was killed), taking replies that still come.
  void drain_lost(std::chrono::milliseconds limit);
  // The server was started again: notes the moment, dials all connections anew. False: see
  // failure().
  bool reconnect_all();

  [[nodiscard]] uint32_t connections() const;
  // Why there are not as many as were asked for, one line; "": there are.
  [[nodiscard]] const std::string& refusal() const;
  [[nodiscard]] bool lost(uint32_t connection) const;
  // The negotiation of a connection; all of one export should be equal.
  [[nodiscard]] const nbd::ClientResult& negotiated(uint32_t connection) const;
  // What went wrong, one line, after any Stop but kDone.
  [[nodiscard]] const std::string& failure() const;
  // Server texts and errors seen, for reports: "write: ENOSPC (no space left)" -> how often.
  [[nodiscard]] const std::map<std::string, uint64_t>& errors() const;
  // Operations that cut connections have left without a reply, and when that was.
  struct Abandoned {
    uint32_t operation = 0;
    uint64_t cut_ns = 0;
  };
  [[nodiscard]] const std::vector<Abandoned>& abandoned() const;
  [[nodiscard]] const History& history() const;
  [[nodiscard]] const Layout& layout() const;
  [[nodiscard]] uint64_t finished() const;  // operations with a reply

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft::check
