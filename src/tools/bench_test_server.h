// SPDX-License-Identifier: BSD-3-Clause
// TestServer: a small NBD server in memory, for the tests of nbdbench, that can be told to lie, to
// fail and to fall silent. One thread accepts, one serves each connection, one request at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "nbd/server_handshake.h"
#include "nbd/transmission.h"

namespace weft::tools {

// What happens to a request, decided by TestServer::on_request.
enum class Fate : uint8_t {
  kServe,
  kFlipBit,     // READ: one bit of the last byte is wrong
  kForget,      // success is said, and nothing done
  kElsewhere,   // WRITE: one block further on
  kFail,        // NBD_EIO
  kHangUp,      // the connection is closed instead of an answer
  kSilence,     // no answer to this and all that follows on the connection
  kShort,       // READ: less data than asked for (structured replies)
  kWrongMagic,  // the reply begins with something else
};

class TestServer {
 public:
  struct Options {
    uint64_t size = 1 << 20;
    uint16_t flags = nbd::kSendFlush | nbd::kSendFua | nbd::kSendTrim | nbd::kSendWriteZeroes |
                     nbd::kSendCache | nbd::kCanMultiConn;
    nbd::BlockSizes block_sizes = {};
    nbd::ServerHandshakeOptions handshake = {};
    // Called for every request, from the connections' threads, under a lock.
    std::function<Fate(const nbd::Request&)> on_request = [](const auto&) { return Fate::kServe; };
  };

  TestServer();
  explicit TestServer(Options options);
  ~TestServer();
  TestServer(const TestServer&) = delete;
  TestServer& operator=(const TestServer&) = delete;

  [[nodiscard]] const std::string& socket() const { return socket_; }
  // Connections that said NBD_CMD_DISC. To be asked after stop().
  [[nodiscard]] int goodbyes() const { return goodbyes_; }
  [[nodiscard]] const std::vector<std::byte>& disk() const { return disk_; }
  // Waits until all clients are gone.
  void stop();

 private:
  void accept_all();
  void serve(int fd);
  bool negotiate(int fd, nbd::HeaderMode& mode);
  bool answer(int fd, nbd::HeaderMode mode, const nbd::Request& request, Fate fate);
  bool answer_read(int fd, nbd::HeaderMode mode, const nbd::Request& request, Fate fate);

  const Options options_;
  std::string directory_;
  std::string socket_;
  Fd listener_;
  std::mutex lock_;  // of the disk and on_request
  std::vector<std::byte> disk_;
  std::atomic<int> goodbyes_ = 0;
  std::vector<std::jthread> connections_;  // of the accepting thread
  std::jthread acceptor_;
};

}  // namespace weft::tools
