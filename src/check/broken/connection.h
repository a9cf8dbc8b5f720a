// SPDX-License-Identifier: BSD-3-Clause
// Connection: one client. A thread negotiates and receives; workers do the requests, in parallel
// and out of order, and send the replies.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "check/broken/disk.h"
#include "check/broken/faults.h"
#include "nbd/server_handshake.h"
#include "nbd/transmission.h"

namespace weft::check::broken {

class Connection {
 public:
  struct Settings {
    uint64_t number = 0;  // of the connection
    uint64_t size = 0;    // of the export, bytes
    uint16_t transmission_flags = 0;
    uint32_t workers = 4;
  };

  Connection(Fd socket, const Settings& settings, Disk& disk, Dice& dice);
  // Cuts the connection, and waits for what it still does.
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // Everything has ended: the destructor will not wait.
  [[nodiscard]] bool finished() const { return finished_; }

 private:
  struct Job {
    nbd::Request request;
    std::vector<std::byte> data;     // of a WRITE
    std::optional<Disk::Turn> turn;  // of a change
  };

  void serve();
  bool negotiate();
  void receive_requests();
  // False: the connection ends.
  bool take(const nbd::Request& request);
  bool refuse(const nbd::Request& request, const nbd::Check& check);
  void queue(Job job);
  void work();
  void perform(Job job);
  Status change(const Job& job);
  void answer_read(const nbd::Request& request);
  void answer_status(const nbd::Request& request);
  void answer(const nbd::Request& request, const Status& done);
  void answer_error(const nbd::Request& request, uint32_t error, const char* text);
  void send_chunk(nbd::Request request, uint16_t type, ByteSpan payload);
  void send_reply(std::vector<std::byte> reply);
  [[nodiscard]] uint64_t cookie_for(const nbd::Request& request);
  [[nodiscard]] bool peer_gone() const;
  bool receive(MutableByteSpan into);
  bool send(ByteSpan bytes);
  void cut();

  const Fd socket_;
  const Settings settings_;
  Disk& disk_;
  Dice& dice_;
  View view_;
  nbd::TransmissionRules rules_;

  std::mutex send_lock_;

  std::mutex lock_;  // what follows
  std::condition_variable moved_;
  std::deque<Job> queue_;
  uint32_t in_flight_ = 0;                        // queued or in work
  bool closing_ = false;                          // no more will be queued
  std::map<uint64_t, nbd::Request> unanswered_;   // by cookie
  std::map<uint64_t, uint64_t> swapped_cookies_;  // wrong-cookie: whose reply goes where

  std::atomic<bool> mute_ = false;  // nothing is answered any more
  std::atomic<bool> cut_ = false;   // the client is gone, without a word
  std::atomic<bool> finished_ = false;
  std::jthread thread_;
};

}  // namespace weft::check::broken
