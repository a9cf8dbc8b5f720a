// SPDX-License-Identifier: BSD-3-Clause
// BenchClient: one connection of nbdbench in its transmission phase. It keeps `depth` requests in
// flight, measures them, and counts what goes wrong.
//
// The path of a request allocates nothing and batches system calls: one receive takes all replies
// that have arrived, and the requests that they make room for leave with one send. A send that does
// not fit into the socket is finished while replies are received, so a server that stops reading
// until its replies are taken is no deadlock. The data of reads is dropped where it was received,
// unless it is to be checked.
//
// A client belongs to one thread at a time, but for what is marked. It runs in rounds: begin(),
// then run() (alone on its thread) or issue() and receive() as its socket is ready, until over().
#pragma once

#include <sys/uio.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/fd.h"
#include "nbd/transmission.h"
#include "tools/clock.h"
#include "tools/dial.h"
#include "tools/histogram.h"
#include "tools/verify.h"
#include "tools/workload.h"

namespace weft::tools {

// What a round is in. Set by the thread that leads the round, read by all.
enum class Phase : uint8_t { kWarmup, kMeasure, kStop };

// The errors that are counted apart; the last stands for all others.
inline constexpr std::array<uint32_t, 9> kCountedErrors = {
    nbd::kEperm,     nbd::kEio,     nbd::kEnomem,    nbd::kEinval, nbd::kEnospc,
    nbd::kEoverflow, nbd::kEnotsup, nbd::kEshutdown, nbd::kOk};

struct KindStats {
  Histogram latency;  // of operations that succeeded
  std::array<uint64_t, kCountedErrors.size()> errors{};

  [[nodiscard]] uint64_t error_count() const;
  void merge(const KindStats& other);
};

struct VerifyStats {
  uint64_t checked = 0;    // reads
  uint64_t unchecked = 0;  // reads of blocks whose content is not known
  uint64_t mismatches = 0;
  std::vector<std::string> examples;  // the first few, one line each
  void merge(const VerifyStats& other);
};

struct ClientStats {
  std::array<KindStats, kOpKindCount> kinds;
  VerifyStats verify;
  void merge(const ClientStats& other);
};

class BenchClient {
 public:
  // `table` checks reads when not null, and outlives the client; `verify_seed` is the same for all
  // clients that share it.
  BenchClient(Dialled dialled, BlockTable* table, uint64_t verify_seed);
  // Says NBD_CMD_DISC when the connection is still sound.
  ~BenchClient();
  BenchClient(const BenchClient&) = delete;
  BenchClient& operator=(const BenchClient&) = delete;

  // Starts a round, with fresh statistics. `phase` outlives it. While it is kMeasure operations
  // are counted: those that begin in it when the workload limits their number, otherwise those
  // that end in it. After kStop, or the last operation, the round waits for what is in flight.
  void begin(const Workload& workload, const std::atomic<Phase>& phase);

  // Works until the round is over, blocking.
  void run();

  // Sends as many requests as there is room and reason for; never blocks.
  void issue();
  // The same when time has passed since receive().
  void issue_late() {
    now_ns_ = now_ns();
    issue();
  }
  // Receives what is there; never blocks.
  void receive() { (void)receive_once(false); }
  [[nodiscard]] bool over() const { return failed() || (stopping_ && in_flight_ == 0); }
  // A request is not sent completely: issue() is to be called when the socket takes more.
  [[nodiscard]] bool wants_to_send() const { return unsent_ != 0; }
  // issue_late() is to be called at this time, even when no reply arrives.
  [[nodiscard]] std::optional<uint64_t> due_ns() const;
  [[nodiscard]] int fd() const { return fd_.get(); }

  // The connection is lost or not to be trusted: why, in one line.
  [[nodiscard]] bool failed() const { return !failure_.empty(); }
  [[nodiscard]] const std::string& failure() const { return failure_; }
  [[nodiscard]] const nbd::ClientResult& negotiated() const { return negotiated_; }
  [[nodiscard]] const ClientStats& stats() const { return *stats_; }

  // From any thread:
  // Operations ended since the client was made.
  [[nodiscard]] uint64_t operations() const { return operations_.load(std::memory_order_relaxed); }
  // Changes whenever bytes come or go.
  [[nodiscard]] uint64_t activity() const { return activity_.load(std::memory_order_relaxed); }
  [[nodiscard]] bool waits_for_server() const { return waiting_.load(std::memory_order_relaxed); }
  // Gives the server up: a blocked run() ends with `failure`.
  void abort();

 private:
  struct Slot {
    uint64_t start_ns = 0;
    uint64_t block = 0;
    uint32_t sequence = 0;  // the upper half of the cookie
    uint32_t data_got = 0;  // bytes of a read
    uint32_t error = 0;     // ErrorValue
    OpKind kind = OpKind::kRead;
    bool busy = false;
    bool counted = false;
    BlockState expected;
  };

  [[nodiscard]] bool may_issue(uint64_t now) const;
  [[nodiscard]] bool choose(Operation& operation, Slot& slot);
  void add_request(uint32_t index, const Operation& operation);
  void append(const std::byte* data, size_t size);
  void send_pending();
  [[nodiscard]] bool receive_once(bool wait);
  void wait_for_socket();
  [[nodiscard]] bool parse();
  [[nodiscard]] bool parse_simple(const std::byte* at);
  // How many bytes of the chunk were used: 0: more are needed.
  [[nodiscard]] bool parse_chunk(const std::byte* at, size_t available, size_t& used);
  [[nodiscard]] bool begin_data(Slot& slot, uint64_t offset, uint64_t length, bool done);
  [[nodiscard]] bool take_data(const std::byte* at, size_t size);
  [[nodiscard]] bool hole(Slot& slot, uint64_t offset, uint64_t length);
  [[nodiscard]] bool chunk_done(Slot& slot);
  Slot* find(uint64_t cookie);
  void complete(Slot& slot);
  void check(const Slot& slot, ByteSpan data);
  std::byte* slot_data(const Slot& slot);
  bool fail(std::string why);  // always false

  Fd fd_;
  const nbd::ClientResult negotiated_;
  BlockTable* const table_;
  const uint64_t verify_seed_;

  // The round.
  Workload workload_;
  std::optional<Generator> generator_;
  std::optional<Operation> postponed_;  // its block could not be had
  const std::atomic<Phase>* phase_ = nullptr;
  std::unique_ptr<ClientStats> stats_;
  Phase phase_now_ = Phase::kWarmup;  // as last looked at
  bool stopping_ = false;
  uint64_t issued_ = 0;  // that count for workload_.operations
  double next_due_ns_ = 0;
  uint64_t now_ns_ = 0;  // of the last look at the clock

  // Requests.
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  uint32_t in_flight_ = 0;
  std::vector<std::byte> headers_;
  size_t headers_size_ = 0;
  std::vector<iovec> pieces_;  // of the send that is not finished
  size_t piece_at_ = 0;
  size_t unsent_ = 0;  // bytes
  std::vector<std::byte> payload_;
  std::vector<std::byte> checked_data_;  // block_size for each slot, when reads are checked

  // Replies.
  std::vector<std::byte> buffer_;
  size_t have_ = 0;
  Slot* data_slot_ = nullptr;
  std::byte* data_to_ = nullptr;  // when reads are checked
  uint64_t data_left_ = 0;
  bool data_ends_reply_ = false;

  std::string failure_;
  uint64_t ended_ = 0;
  std::atomic<uint64_t> operations_ = 0;
  std::atomic<uint64_t> activity_ = 0;
  std::atomic<bool> waiting_ = false;
  std::atomic<bool> aborted_ = false;
};

}  // namespace weft::tools
