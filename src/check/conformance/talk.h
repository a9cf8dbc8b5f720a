// SPDX-License-Identifier: BSD-3-Clause
// Talk: one connection that speaks the protocol, says whatever a check wants, and holds the server
// to the form of what it answers: magics, lengths, cookies, flags, ranges. Every step is told to
// the story.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "check/conformance/raw_connection.h"
#include "check/conformance/verdict.h"
#include "nbd/client_handshake.h"
#include "nbd/constants.h"
#include "nbd/transmission.h"

namespace weft::check::conformance {

struct OptionReply {
  uint32_t type = 0;  // nbd::OptionReply
  std::vector<std::byte> data;
};

// All replies to one option: the last is ACK or an error.
struct OptionAnswer {
  Got got = Got::kAll;  // otherwise `last` means nothing
  uint32_t last = 0;    // nbd::OptionReply
  std::string text;     // of an error
  std::vector<OptionReply> before;

  [[nodiscard]] bool acked() const { return got == Got::kAll && last == nbd::kRepAck; }
  [[nodiscard]] bool refused() const { return got == Got::kAll && last != nbd::kRepAck; }
};

// All of the reply to one request.
struct Answer {
  Got got = Got::kAll;  // otherwise no whole reply came
  uint64_t cookie = 0;
  uint32_t error = nbd::kOk;
  std::string text;  // the server's own words
  bool simple = false;
  std::vector<std::byte> data;           // of a READ
  uint32_t content_chunks = 0;           // of a READ
  std::vector<nbd::BlockStatus> status;  // of a BLOCK_STATUS

  [[nodiscard]] bool ok() const { return got == Got::kAll && error == nbd::kOk; }
};

class Talk {
 public:
  Talk(Fd fd, std::chrono::milliseconds limit, Story& story)
      : raw_(std::move(fd), limit), story_(&story) {}

  // The handshake. What does not come ends the check (kFailed, or `on_loss`), unless it is said
  // otherwise.

  // Reads the greeting; returns the handshake flags.
  uint16_t greeting();
  void client_flags(uint32_t flags);
  Got send_option(uint32_t option, ByteSpan data, uint64_t magic = nbd::kOptionMagic);
  // The header alone, with any length.
  Got send_option_header(uint32_t option, uint32_t length, uint64_t magic = nbd::kOptionMagic);
  // Never ends the check when the server closes or is silent.
  OptionAnswer try_answer(uint32_t option);
  OptionAnswer answer(uint32_t option, State on_loss = State::kFailed);
  OptionAnswer ask(uint32_t option, ByteSpan data = {}, State on_loss = State::kFailed);
  // Of EXPORT_NAME: size and flags, then, when `zeroes`, 124 zeroes. kAll, or why not.
  Got export_reply(bool zeroes, uint64_t& size, uint16_t& flags);

  // Transmission.
  struct Terms {
    nbd::HeaderMode mode = nbd::HeaderMode::kSimple;
    uint64_t size = 0;
    std::vector<uint32_t> contexts;  // ids
    uint32_t block_min = 1;
  };
  void enter(Terms terms) { terms_ = std::move(terms); }
  // Sends a request and its payload. Returns what became of it; answers are to be taken with
  // next_answer().
  Got request(const nbd::Request& request, ByteSpan payload = {});
  // A request that was sent with send(): its answer is awaited.
  void expect(const nbd::Request& request);
  // The next request that is wholly answered.
  Answer try_next_answer();
  Answer next_answer(State on_loss = State::kFailed);
  // One request alone.
  Answer try_exchange(const nbd::Request& request, ByteSpan payload = {});
  Answer exchange(const nbd::Request& request, ByteSpan payload = {},
                  State on_loss = State::kFailed);
  // Many requests without payload, as fast as the server takes them; all answers, in their order.
  std::vector<Answer> exchange_all(std::span<const nbd::Request> requests);
  [[nodiscard]] uint64_t next_cookie() { return next_cookie_++; }
  [[nodiscard]] size_t in_flight() const { return waiting_.size(); }
  [[nodiscard]] const Terms& terms() const { return terms_; }

  Got send(ByteSpan bytes, std::string_view what);
  // kEnd is told to the story, too.
  Got wait_for_end();
  Got wait_for_end(std::chrono::milliseconds limit);
  [[nodiscard]] RawConnection& raw() { return raw_; }
  void tell(std::string line) { story_->add(std::move(line)); }

 private:
  struct Waiting {
    nbd::Request request;
    Answer answer;
    std::map<uint64_t, uint64_t> covered;  // of a READ: offset and end of what came
    uint32_t chunks = 0;
  };

  Got receive(MutableByteSpan into);
  // Each kAll: one message was taken; the cookie of a reply that is complete is in `done`.
  Got take_simple(std::optional<uint64_t>& done);
  Got take_chunk(bool extended, std::optional<uint64_t>& done);
  void take_payload(Waiting& waiting, const nbd::ReplyChunk& chunk, ByteSpan payload);
  void cover(Waiting& waiting, Range range);
  void finish_chunks(const Waiting& waiting);
  Waiting& waiting_for(uint64_t cookie);
  [[noreturn]] void lost(Got got, State state, const std::string& waited_for);

  RawConnection raw_;
  Story* story_;
  Terms terms_;
  std::map<uint64_t, Waiting> waiting_;
  uint64_t next_cookie_ = 0x6e62640000000001;
};

// A string of the protocol as it has to be: UTF-8, without NUL, at most 4096 bytes. "" or why not.
[[nodiscard]] std::string string_fault(ByteSpan bytes);
[[nodiscard]] std::string describe(const nbd::Request& request);

}  // namespace weft::check::conformance
