// SPDX-License-Identifier: BSD-3-Clause
// Transmission: the requests of one connection, from the bytes received to the replies queued.
//
// Bytes are received into a chunk that the connection has only while there are any, and every whole
// request in it is started at once, in the order of arrival. What completes without waiting (the
// data is at hand) is answered on the spot: its reply leaves with the others at the end of the
// turn. Only what must wait becomes a coroutine.
//
// The life of a request: decoded and checked; charged with the memory that it needs; its payload
// received (this is when a change *arrives*); a change waits for earlier overlapping ones of all
// connections (disk::ChangeOrder); started; finished; answered. When the client is gone, what has
// not started is dropped; what has started is waited for.
//
// Reading stops (back-pressure) while memory is lacking, replies pile up, or kInFlightMax requests
// are in progress. A client that is found gone after such a pause has the rest of its bytes
// dropped: they have not arrived while it lived, and may be older than what others have written.
// For the same reason changes are started a batch at a time, once it is known that their client was
// there after they had their place in the order; if it was not, only a DISC makes them start.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "disk/change_order.h"
#include "disk/disk.h"
#include "engine/buffer_pool.h"
#include "engine/loop.h"
#include "engine/scope.h"
#include "nbd/transmission.h"
#include "net/stream.h"
#include "server/allowance.h"
#include "server/reply_queue.h"

namespace weft::server {

class Transmission;

// Memory for receiving, shared by the connection and the requests whose payload lies in it.
struct Chunk {
  static constexpr size_t kSize = 256 << 10;
  engine::Buffer buffer;
  uint32_t references = 0;
  Charge charge;  // once it is full, and only requests hold it
};

// A request that is not answered on the spot. Recycled by its loop's pool.
struct Request final : disk::Change {
  nbd::Request header;
  ByteSpan payload;       // of a WRITE; in `buffer` or `chunk`
  engine::Buffer buffer;  // a payload received, or the destination of a READ
  Chunk* chunk = nullptr;
  Charge charge;
  Transmission* owner = nullptr;
  Request* previous = nullptr;  // of those in progress on this connection
  Request* next = nullptr;
  bool in_order = false;  // entered in the disk's order
  bool started = false;
  bool answered = false;  // its reply is queued already (ESHUTDOWN at the end of a drain)

  void may_start() override;
};

// What the connections of one loop share, all on its thread.
struct LoopResources {
  explicit LoopResources(engine::Loop& the_loop) : loop(the_loop) {}
  ~LoopResources();
  LoopResources(const LoopResources&) = delete;
  LoopResources& operator=(const LoopResources&) = delete;

  Request* get_request();
  void give_back(Request* request);
  Chunk* get_chunk();  // null: the system has no memory
  void unreference(Chunk* chunk);

  engine::Loop& loop;
  engine::BufferPool buffers;
  ReplyPool replies;

 private:
  Request* free_requests_ = nullptr;
  std::unique_ptr<Chunk> spare_chunk_;
};

class Transmission {
 public:
  static constexpr size_t kInFlightMax = 1024;
  static constexpr uint64_t kPieceMin = uint64_t{64} << 20;  // of a long trim or zero

  // All references outlive the object. `requests_max`: how many run at once, 0: all. `in_order`:
  // the next request is taken when the one before is answered.
  Transmission(LoopResources& resources, net::Stream& stream, disk::Disk& disk,
               const nbd::TransmissionRules& rules, engine::Budget& budget, uint32_t requests_max,
               bool in_order);
  ~Transmission();

  // Serves until the client ends it, or drain() or kill() does; nothing is in progress afterwards
  // and what could be sent is sent. `received`: what came after the handshake.
  engine::Task<void> run(ByteSpan received);

  // Reads no more; finishes and answers what was read.
  void drain();
  // Answers what is still in progress with ESHUTDOWN and sends what can be sent at once.
  void give_up();
  // Ends the connection; what has started is still waited for.
  void kill(std::string reason);

  // Called at long intervals: kills a client that holds memory of the process's budget, or has
  // ended and not taken its replies, and has made no progress since the time given.
  void check_progress(engine::Clock::time_point now);

  // Why the connection ended, for the log; empty: as the protocol has it.
  [[nodiscard]] const std::string& reason() const { return reason_; }

 private:
  friend struct Request;
  enum class Need : uint8_t { kInput, kMemory, kRoom, kEnd };

  // Receiving.
  Need parse();
  Need begin(const nbd::Request& header, uint64_t payload_length);
  bool take_payload();
  bool receive_apart(const nbd::Request& header, uint64_t payload_length, Charge charge);
  engine::Task<bool> receive();
  engine::Task<bool> retire_chunk();
  bool make_room();
  [[nodiscard]] bool chunk_full() const;
  bool stash();
  void release_chunk();
  engine::Task<void> wait_for_memory();
  std::optional<Charge> charge_for(uint64_t bytes);
  engine::Task<void> finish_all();
  void tell_gone();

  // Requests.
  bool answer_at_once(const nbd::Request& header);
  Request& make_request(const nbd::Request& header);
  void arrived(Request& request);
  void start_arrived();
  void start(Request& request);
  void run_request(Request& request);
  void change_may_start(Request& request);
  void finish(Request& request, Status status);
  void forget(Request& request);
  void drop_not_started();
  engine::Task<Status> zero_or_trim(const nbd::Request& header, Range range, bool fua);
  engine::Task<void> await_task(Request& request, engine::Task<Status> task);
  engine::Task<void> long_change(Request& request);
  engine::Task<void> sparse_read(Request& request);
  engine::Task<void> block_status(Request& request);

  // Replies.
  void reply_error(const nbd::Request& header, uint32_t error, const char* text);
  void reply_status(const nbd::Request& header, Status status);
  void reply_data(const nbd::Request& header, Reply* reply,
                  const std::vector<disk::Lease::Piece>& pieces);
  void reply_extents(const nbd::Request& header, const Extents& extents);
  std::byte* add_chunk(Reply& reply, const nbd::Request& header, uint16_t type,
                       size_t inline_length, uint64_t length, bool done);

  LoopResources& resources_;
  engine::Loop& loop_;
  net::Stream& stream_;
  disk::Disk& disk_;
  disk::ChangeOrder* order_;
  const nbd::TransmissionRules rules_;
  const size_t header_size_;
  const uint32_t requests_max_;
  const size_t in_flight_max_;
  Allowance allowance_;
  engine::Scope scope_;
  ReplyQueue replies_;

  // What was received and not used: [begin_, end_) of the chunk, or partial_.
  Chunk* chunk_ = nullptr;
  size_t begin_ = 0;
  size_t end_ = 0;
  std::array<std::byte, nbd::kExtendedRequestSize> partial_;
  size_t partial_size_ = 0;
  Request* receiving_ = nullptr;  // its payload is not complete
  size_t payload_length_ = 0;     // of receiving_
  size_t payload_have_ = 0;       // in receiving_'s own buffer
  uint64_t skip_left_ = 0;        // bytes of refused payloads still to come
  bool drained_ = false;          // the last receive took less than it could
  bool idle_ = false;             // waiting for the client to send

  Request* first_ = nullptr;  // in progress, in the order of arrival
  Request* last_ = nullptr;
  size_t in_flight_ = 0;
  uint32_t running_ = 0;
  std::deque<Request*> waiting_for_slot_;  // requests_max_ are running
  bool starting_ = false;                  // those of waiting_for_slot_
  // Changes that nothing stands before: of the batch being parsed; those that are left when the
  // client is found gone start if it turns out that it said DISC.
  std::vector<Request*> deferred_;

  engine::Budget::Taker* taker_ = nullptr;
  uint64_t wanted_memory_ = 0;
  std::optional<Charge> granted_;
  bool disconnected_ = false;  // NBD_CMD_DISC
  bool dead_ = false;          // the client is gone, or killed: nothing is started any more
  bool killed_ = false;        // nothing is sent any more either
  bool draining_ = false;
  bool ended_ = false;  // reads no more
  bool told_gone_ = false;
  std::string reason_;
  uint64_t bytes_received_ = 0;
  uint64_t progress_seen_ = 0;
  engine::Clock::time_point progress_time_;
};

}  // namespace weft::server
