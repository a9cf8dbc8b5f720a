// SPDX-License-Identifier: BSD-3-Clause
// For tests: a client on blocking calls, which can be as bad as it is asked to be. Everything that
// takes longer than kPatience throws.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"
#include "nbd/client_handshake.h"
#include "nbd/transmission.h"

namespace weft::server {

struct Answer {
  uint64_t cookie = 0;
  uint32_t error = nbd::kOk;
  std::string text;                   // of the error
  std::string data;                   // of a READ, holes as zeroes
  std::vector<uint16_t> chunk_types;  // none in a simple reply
  std::vector<nbd::StatusExtent> extents;
};

class TestClient {
 public:
  static constexpr auto kPatience = std::chrono::seconds(40);

  explicit TestClient(Fd both) : TestClient(std::move(both), Fd()) {}
  TestClient(Fd in, Fd out);  // `out` may be missing: then `in` is for both
  TestClient(TestClient&&) = default;
  TestClient& operator=(TestClient&&) = default;

  void negotiate(nbd::ClientConfig config = {});
  // What negotiate() gave.
  nbd::ClientResult session;

  // Sends a request with a new cookie, which is returned.
  uint64_t send(nbd::Request request, std::string_view payload = {});
  // The bytes that send() would send.
  std::string encode(nbd::Request request, std::string_view payload = {},
                     uint64_t* cookie = nullptr);
  void send_bytes(std::string_view bytes);
  // Sends what the socket takes within a short time, and no more; returns how much.
  size_t send_some(std::string_view bytes);
  // The next reply that is complete, or that to `cookie`, keeping the others for later.
  Answer receive();
  Answer receive(uint64_t cookie);
  Answer ask(nbd::Request request, std::string_view payload = {}) {
    return receive(send(request, payload));
  }
  std::string receive_bytes(size_t count);
  // True when a reply, or the end, is there already.
  [[nodiscard]] bool something_to_receive();
  // Waits for the server to close, taking whatever comes before; false: an error other than a
  // reset.
  bool closed_by_server();
  // Bytes not looked at yet, of those that came before the end.
  [[nodiscard]] size_t unread() const { return inbox_.size() - read_; }
  void shutdown_output();
  void close();
  [[nodiscard]] int fd() const { return in_.get(); }

  // Shorthands.
  Answer write(uint64_t offset, std::string_view data, uint16_t flags = 0) {
    return ask({.flags = flags, .type = nbd::kCmdWrite, .offset = offset, .length = data.size()},
               data);
  }
  Answer read(uint64_t offset, uint64_t length, uint16_t flags = 0) {
    return ask({.flags = flags, .type = nbd::kCmdRead, .offset = offset, .length = length});
  }
  Answer flush() { return ask({.type = nbd::kCmdFlush}); }
  void disconnect() { send({.type = nbd::kCmdDisc}); }

 private:
  [[nodiscard]] int out_fd() const { return out_ ? out_.get() : in_.get(); }
  // Waits for `events`, and takes what has come.
  void wait(short events_out, bool input);
  bool take_input();  // false: nothing there now
  void need(size_t count);
  bool take_part(Answer& finished);

  Fd in_, out_;
  std::string inbox_;
  size_t read_ = 0;
  bool ended_ = false;
  uint64_t next_cookie_ = 1000;
  std::map<uint64_t, nbd::Request> pending_;
  std::map<uint64_t, Answer> partial_;
  std::map<uint64_t, Answer> kept_;
};

}  // namespace weft::server
