// SPDX-License-Identifier: BSD-3-Clause
// ServerHandshake: the server's side of fixed newstyle negotiation ("Fixed newstyle negotiation",
// "Option types"; ext for extended headers), from the greeting to transmission or to the end.
// Bytes in, events and bytes out; it owns no socket, never blocks and knows no export.
//
//   ServerHandshake h(options);
//   send(h.greeting());
//   for (;;) {
//     used = h.consume(received);            // stops early when an event is pending
//     event = h.event();                     // handle it: answer_..., refuse_...
//     send(h.output()); h.clear_output();    // always before acting on Established or Closed
//   }
//
// States: waiting for the client flags; then, in turn, for an option's header, for its data
// (buffered, or skipped when the answer does not depend on them), and for the caller's answer to an
// event; at last established or closed. While an event is pending no input is consumed. After
// Established the bytes left over belong to the transmission phase.
//
// What a client sends cannot make it hold more than one option's data (kOptionDataBufferedMax) and
// the answers to what one call of consume() was given.
//
// One thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "nbd/constants.h"

namespace weft::nbd {

// "Block size constraints", bytes. min and preferred are powers of two, min <= 64 KiB.
struct BlockSizes {
  uint32_t min = 1;
  uint32_t preferred = 4096;
  uint32_t payload_max = kPayloadAdvertisedMax;
  friend bool operator==(const BlockSizes&, const BlockSizes&) = default;
};

// What a client is told about an export.
struct ExportInfo {
  uint64_t size = 0;  // bytes
  // HAS_FLAGS, SEND_DF and BLOCK_STATUS_PAYLOAD are the handshake's business: ignored here, and set
  // as negotiated.
  uint16_t transmission_flags = 0;
  std::string name = {};  // canonical, for INFO_NAME; not sent when longer than a string may be
  std::string description = {};  // for INFO_DESCRIPTION; empty: not sent
  BlockSizes block_sizes = {};   // for INFO_BLOCK_SIZE
};

struct ListEntry {
  std::string name = {};         // UTF-8 without NUL, at most kStringLengthMax
  std::string description = {};  // may be empty
};

// The client wants the names of all exports (NBD_OPT_LIST). Answer: answer_list or refuse_list.
struct WantList {};

enum class ExportQuery : uint8_t {
  kExportName,   // NBD_OPT_EXPORT_NAME: a refusal closes the connection
  kInfo,         // NBD_OPT_INFO
  kGo,           // NBD_OPT_GO
  kMetaContext,  // NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT: does the export exist?
};

// The client names an export ("" is the default one). Answer: answer_export or refuse_export. For
// kExportName and kGo an answer leads to Established. For kMetaContext the ExportInfo's content
// does not matter.
struct WantExport {
  std::string name = {};  // UTF-8 without NUL, at most kStringLengthMax bytes
  ExportQuery query = ExportQuery::kGo;
};

// The transmission phase begins, after output() is sent. Final.
struct Established {
  std::string name = {};  // as the client asked for it
  HeaderMode mode = HeaderMode::kSimple;
  uint16_t transmission_flags = 0;  // as sent to the client
  bool allocation_context = false;  // base:allocation is selected, under kBaseAllocationId
  bool block_sizes_sent = false;    // the client asked for and got INFO_BLOCK_SIZE
  ExportInfo info = {};             // as answered
};

enum class CloseCause : uint8_t {
  kAbort,      // the client said NBD_OPT_ABORT; its ACK is in output()
  kViolation,  // the client broke a rule of the protocol
  kRefused,    // an NBD_OPT_EXPORT_NAME that the caller refused
  kLimit,      // too many or too long options
};

// Close the connection, after output() is sent. Final.
struct Closed {
  CloseCause cause = CloseCause::kViolation;
  std::string reason = {};  // for the log
};

using ServerEvent = std::variant<std::monostate, WantList, WantExport, Established, Closed>;

struct ServerHandshakeOptions {
  bool structured_replies = true;  // false: STRUCTURED_REPLY and EXTENDED_HEADERS are UNSUP
  bool meta_contexts = true;       // false: LIST_ and SET_META_CONTEXT are UNSUP
  bool extended_headers = true;    // false: EXTENDED_HEADERS is UNSUP
  uint16_t handshake_flags = kFixedNewstyle | kNoZeroes;  // what the greeting offers
  uint32_t option_count_max = kOptionCountMax;
};

class ServerHandshake {
 public:
  explicit ServerHandshake(const ServerHandshakeOptions& options);
  ServerHandshake(const ServerHandshake&) = delete;
  ServerHandshake& operator=(const ServerHandshake&) = delete;

  // What to send first, unasked: 18 bytes. Not part of output().
  [[nodiscard]] std::vector<std::byte> greeting() const;

  // Takes bytes from the client and returns how many. Less than all only when an event is pending
  // afterwards; call again with the rest when it is answered.
  [[nodiscard]] size_t consume(ByteSpan input);

  // The pending event; std::monostate: give more input. Established and Closed stay.
  [[nodiscard]] const ServerEvent& event() const { return event_; }

  // Bytes to send. The span is valid until the next call of anything but a const function.
  [[nodiscard]] ByteSpan output() const { return output_; }
  void clear_output() { output_.clear(); }

  // Answers to WantList, which must be pending. `error` is an OptionReply error; `text` is for
  // people.
  void answer_list(std::span<const ListEntry> exports);
  void refuse_list(uint32_t error, std::string_view text);

  // Answers to WantExport, which must be pending. kRepErrUnknown says that there is no such export.
  void answer_export(const ExportInfo& info);
  void refuse_export(uint32_t error, std::string_view text);

  // From now on options are answered with ERR_SHUTDOWN, EXPORT_NAME closes, ABORT is acknowledged.
  // A pending event is still the caller's to answer.
  void begin_shutdown() { shutting_down_ = true; }

  // Where the negotiation stands, for log lines: "waiting for the client flags", "reading
  // NBD_OPT_GO, 12 of 40 bytes", ...
  [[nodiscard]] std::string state_name() const;

 private:
  enum class State : uint8_t {
    kClientFlags,   // 4 bytes
    kOptionHeader,  // 16 bytes
    kOptionData,    // option_length_ bytes, kept
    kSkipData,      // skip_left_ bytes, thrown away; then skip_reply_ is sent
    kAnswer,        // WantList or WantExport is pending
    kFinal,         // Established or Closed
  };

  void on_client_flags();
  void on_option_header();
  void on_option();
  void on_structured_reply();
  void on_extended_headers();
  void on_option_data();
  void on_info_or_go();
  void on_meta_context();
  void next_option();
  void close(CloseCause cause, std::string reason);
  void establish(const ExportInfo& info, const std::string& name);
  void want_export(std::string_view name, ExportQuery query);
  void expect(State state, size_t size);
  void skip_and_reply(uint32_t error, std::string_view text);
  [[nodiscard]] bool selection_holds_for(std::string_view name) const;
  [[nodiscard]] uint16_t flags_for(const ExportInfo& info, std::string_view name) const;

  std::byte* reply(uint32_t type, size_t length);  // appends a header and `length` bytes to fill
  void reply_ack();
  void reply_error(uint32_t error, std::string_view text);
  void reply_infos(const ExportInfo& info, std::string_view name);

  const ServerHandshakeOptions options_;
  State state_ = State::kClientFlags;
  ServerEvent event_;
  std::vector<std::byte> output_;

  // What is being read: `needed_` bytes are collected in input_.
  std::vector<std::byte> input_;
  size_t needed_ = 4;
  uint32_t option_ = 0;
  uint32_t option_length_ = 0;
  uint32_t option_count_ = 0;
  uint64_t option_count_max_;  // grows with the exports that are listed
  uint32_t skip_left_ = 0;
  uint32_t skip_reply_ = 0;  // OptionReply
  std::string skip_text_;

  // What is negotiated.
  bool client_fixed_newstyle_ = false;
  bool client_no_zeroes_ = false;
  bool structured_replies_ = false;
  bool extended_headers_ = false;
  bool allocation_selected_ = false;
  std::string selected_name_;  // the export that the selection is bound to
  bool shutting_down_ = false;

  // Of the pending option.
  uint32_t requested_infos_ = 0;  // bit n: InfoType n
  bool base_allocation_matches_ = false;
};

// -o: everything a server says before oldstyle transmission, 152 bytes ("Oldstyle negotiation").
// Replies are simple, nothing is negotiated: SEND_DF and BLOCK_STATUS_PAYLOAD are cleared.
[[nodiscard]] std::vector<std::byte> oldstyle_greeting(const ExportInfo& info);

// True when `text` may be a string of the protocol: at most kStringLengthMax bytes of UTF-8 without
// NUL ("Conventions").
[[nodiscard]] bool valid_string(std::string_view text);

}  // namespace weft::nbd
