// SPDX-License-Identifier: BSD-3-Clause
// ClientHandshake: the client's side of the negotiation, for the tools and the tests. Bytes in,
// bytes and a result out; it owns no socket and never blocks.
//
//   ClientHandshake h(config);
//   while (h.status() == ClientHandshake::Status::kNegotiating) {
//     used = h.consume(received);   // all of it, unless the negotiation ends
//     send(h.output()); h.clear_output();
//   }
//
// The order of options: EXTENDED_HEADERS, STRUCTURED_REPLY if that was refused, SET_META_CONTEXT,
// GO; or LIST and ABORT. A server that does not know one of them (any error but SHUTDOWN and
// TLS_REQD) is used without it; GO falls back to EXPORT_NAME on ERR_UNSUP only. Oldstyle servers
// are understood as well. When it ends well the bytes left over belong to transmission.
//
// A server can make it hold at most 64 KiB of one reply, and `list_count_max` exports.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "nbd/constants.h"
#include "nbd/server_handshake.h"

namespace weft::nbd {

enum class ClientGoal : uint8_t {
  kGo,          // NBD_OPT_GO
  kExportName,  // NBD_OPT_EXPORT_NAME, the old way; excludes extended headers
  kInfo,        // NBD_OPT_INFO, then ABORT: no transmission
  kList,        // NBD_OPT_LIST, then ABORT: no transmission
};

struct ClientConfig {
  std::string export_name = {};  // UTF-8, at most kStringLengthMax; "" is the default export
  ClientGoal goal = ClientGoal::kGo;
  bool want_structured = true;  // implied by want_extended
  bool want_extended = false;
  bool no_zeroes = true;                           // when the server offers it
  std::vector<std::string> contexts = {};          // to select; needs structured or extended
  std::vector<uint16_t> infos = {kInfoBlockSize};  // InfoType, to ask for
  size_t list_count_max = 100'000;
};

struct SelectedContext {
  uint32_t id = 0;
  std::string name = {};
  friend bool operator==(const SelectedContext&, const SelectedContext&) = default;
};

struct ClientResult {
  HeaderMode mode = HeaderMode::kSimple;
  uint64_t size = 0;                           // bytes
  uint16_t transmission_flags = 0;             // TransmissionFlag bits
  std::string name = {};                       // canonical, when the server told it
  std::string description = {};                // when the server told it
  std::optional<BlockSizes> block_sizes = {};  // when the server told them
  std::vector<SelectedContext> contexts = {};  // in the server's order
  std::vector<ListEntry> exports = {};         // of kList
  bool oldstyle = false;

  // The id of a selected context, or nothing.
  [[nodiscard]] std::optional<uint32_t> context_id(std::string_view context) const;
};

class ClientHandshake {
 public:
  enum class Status : uint8_t { kNegotiating, kDone, kFailed };

  explicit ClientHandshake(ClientConfig config);
  ClientHandshake(const ClientHandshake&) = delete;
  ClientHandshake& operator=(const ClientHandshake&) = delete;

  // Takes bytes from the server and returns how many. Less than all only when it is over.
  [[nodiscard]] size_t consume(ByteSpan input);

  [[nodiscard]] Status status() const { return status_; }
  // Complete when status() is kDone.
  [[nodiscard]] const ClientResult& result() const { return result_; }
  // When status() is kFailed: what happened, with the server's own text, and the server's error
  // (an OptionReply), or 0 when it was no refusal.
  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] uint32_t server_error() const { return server_error_; }

  // Bytes to send, also after the end (ABORT). Valid until the next call of a non-const function.
  [[nodiscard]] ByteSpan output() const { return output_; }
  void clear_output() { output_.clear(); }

  // Where the negotiation stands, for error messages: "waiting for the greeting", "waiting for the
  // reply to NBD_OPT_GO", ...
  [[nodiscard]] std::string state_name() const;

 private:
  enum class State : uint8_t {
    kMagic,           // 16 bytes
    kOldstyleRest,    // 136 bytes: size, flags, zeroes
    kHandshakeFlags,  // 2 bytes
    kReplyHeader,     // 20 bytes
    kReplyData,       // as long as the header says
    kExportReply,     // of EXPORT_NAME: 10 bytes, and 124 zeroes
    kOver,
  };

  void expect(State state, size_t size);
  void on_magic();
  void on_oldstyle_rest();
  void on_handshake_flags();
  void on_reply_header();
  void on_reply();
  void on_server_reply();
  void on_info_reply();
  void on_meta_context_reply();
  void on_ack();
  void on_refusal();
  void on_export_reply();
  void start();          // the first option
  void after_headers();  // SET_META_CONTEXT, or the goal
  void send_goal();
  void send_export_name();
  void send_option(uint32_t option, ByteSpan data);
  void done();
  void fail(std::string error);

  const ClientConfig config_;
  Status status_ = Status::kNegotiating;
  State state_ = State::kMagic;
  ClientResult result_;
  std::string error_;
  uint32_t server_error_ = 0;
  std::vector<std::byte> output_;

  std::vector<std::byte> input_;
  size_t needed_ = 16;
  bool fixed_newstyle_ = false;
  bool no_zeroes_ = false;
  bool info_export_seen_ = false;
  uint32_t option_ = 0;      // to which replies are awaited
  uint32_t reply_type_ = 0;  // of the reply that is being read
};

}  // namespace weft::nbd
