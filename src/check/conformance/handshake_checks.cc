// SPDX-License-Identifier: BSD-3-Clause
// Greeting, client flags, the ways into transmission and out of the handshake.
#include <fmt/format.h>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

void greeting(Probe& probe) {
  Talk talk = probe.connect();
  const uint16_t flags = talk.greeting();
  if (flags & ~(nbd::kFixedNewstyle | nbd::kNoZeroes)) {
    broken("unknown-flag", fmt::format("handshake flags {:#06x}", flags),
           "no other flags than NBD_FLAG_FIXED_NEWSTYLE and NBD_FLAG_NO_ZEROES");
  }
  if (flags != probe.handshake_flags()) {
    broken("not-constant", "the handshake flags differ between connections", "the same flags");
  }
}

// What the server does after flags that it must not accept.
void must_close_on_flags(Probe& probe, uint32_t flags) {
  Talk talk = probe.connect();
  talk.greeting();
  talk.client_flags(flags);
  talk.send_option(kUnknownOption, {});
  const OptionAnswer answer = talk.try_answer(kUnknownOption);
  if (answer.got == Got::kEnd) return;
  broken("flag-accepted",
         answer.got == Got::kAll ? "the server goes on after client flags that it cannot know"
                                 : "the server neither closes the connection nor answers",
         "the server closes the connection",
         {"A server must check that the client flags are a subset of what it offered."});
}

void unknown_client_flag(Probe& probe) {
  must_close_on_flags(probe, (probe.handshake_flags() & 3u) | 1u << 15);
}

void unoffered_client_flag(Probe& probe) {
  if (probe.handshake_flags() & nbd::kNoZeroes) skip("the server offers NBD_FLAG_NO_ZEROES");
  must_close_on_flags(probe, nbd::kClientFixedNewstyle | nbd::kClientNoZeroes);
}

void export_name(Probe& probe, uint32_t client_flags) {
  const bool zeroes = !(client_flags & nbd::kClientNoZeroes);
  Talk talk = probe.open(client_flags);
  talk.send_option(nbd::kOptExportName, bytes_of(probe.export_name()));
  uint64_t size = 0;
  uint16_t flags = 0;
  const Got got = talk.export_reply(zeroes, size, flags);
  if (got == Got::kEnd && probe.block_min() > 1) {
    skip("the server refuses clients that do not ask for its block sizes, as it may");
  }
  if (got != Got::kAll) {
    broken(got == Got::kEnd ? "disconnected" : "no-answer",
           "NBD_OPT_EXPORT_NAME is not answered as a whole",
           zeroes ? "size, flags and 124 zeroes" : "size and flags");
  }
  if (size != probe.size() || flags != probe.agreed().transmission_flags) {
    broken("not-constant", fmt::format("size {} and flags {:#06x}", size, flags),
           fmt::format("size {} and flags {:#06x}, as on other connections", probe.size(),
                       probe.agreed().transmission_flags));
  }
  talk.enter({.mode = nbd::HeaderMode::kSimple, .size = size, .contexts = {}, .block_min = 1});
  probe.in_step(talk);  // 124 bytes too many would be taken for a reply
}

void export_name_zeroes(Probe& probe) {
  export_name(probe, nbd::kClientFixedNewstyle);
}
void export_name_no_zeroes(Probe& probe) {
  if (!(probe.handshake_flags() & nbd::kNoZeroes)) skip("the server lacks NBD_FLAG_NO_ZEROES");
  export_name(probe, nbd::kClientFixedNewstyle | nbd::kClientNoZeroes);
}
void newstyle(Probe& probe) {
  export_name(probe, 0);
}

void unknown_export(Probe& probe) {
  if (probe.any_name()) skip("the server has an export of every name");
  Talk talk = probe.open();
  talk.send_option(nbd::kOptExportName, bytes_of("nbdcheck-no-such-export"));
  if (talk.wait_for_end() != Got::kEnd) {
    broken("not-refused", "NBD_OPT_EXPORT_NAME of an unknown export does not end the connection",
           "the server closes the connection: this option cannot be answered with an error");
  }
}

void abort(Probe& probe) {
  Talk talk = probe.open();
  if (!talk.ask(nbd::kOptAbort).acked())
    broken("refused", "NBD_OPT_ABORT is refused", "NBD_REP_ACK");
}

void abort_with_data(Probe& probe) {
  Talk talk = probe.open();
  if (!talk.ask(nbd::kOptAbort, bytes_of("good bye")).acked()) {
    against_advice("refused", "NBD_OPT_ABORT with data is refused",
                   "NBD_REP_ACK: the data is to be ignored");
  }
}

void abort_and_leave(Probe& probe) {
  for (int i = 0; i < 3; ++i) {
    Talk talk = probe.open();
    talk.send_option(nbd::kOptAbort, {});
    talk.raw().close();
  }
  probe.serves_others();
}

void leave_anywhere(Probe& probe) {
  {
    Talk talk = probe.connect();
    talk.tell("leaves before the greeting");
  }
  {
    Talk talk = probe.connect();
    talk.greeting();
    const std::array<std::byte, 2> half = {};
    talk.send(half, "half of the client flags, and leaves");
  }
  {
    Talk talk = probe.open();
    talk.send(std::array{std::byte{'I'}, std::byte{'H'}}, "the beginning of an option, and leaves");
  }
  {
    Talk talk = probe.open();
    talk.send_option_header(nbd::kOptGo, 100);
    talk.send(bytes_of("abc"), "3 of 100 bytes of its data, and leaves");
  }
  probe.serves_others();
}

void bad_magic(Probe& probe) {
  Talk talk = probe.open();
  talk.send_option(nbd::kOptList, {}, 0x0123456789abcdef);
  std::array<std::byte, 20> header;
  const Got got = talk.raw().receive(header);
  if (got == Got::kEnd) return talk.tell("the server closed the connection");
  if (got == Got::kSilence) {
    against_advice("no-answer", "the server neither answers nor closes after a wrong option magic",
                   "an error, or the end of the connection");
  }
  talk.tell("received " + hex(header));
  if (!(load_be<uint32_t>(header.data() + 12) & nbd::kRepErrorBit)) {
    against_advice("not-refused", "an option with a wrong magic is carried out",
                   "an error, or the end of the connection");
  }
}

void silent_client(Probe& probe) {
  Talk silent = probe.connect();
  silent.greeting();
  silent.tell("... and says nothing");
  Talk half = probe.open();
  half.send_option_header(nbd::kOptGo, 64);
  half.tell("... and sends no data");
  probe.serves_others();
}

void byte_by_byte(Probe& probe) {
  Talk talk = probe.connect();
  talk.greeting();
  std::vector<std::byte> bytes(4 + 16 + 3);
  std::byte* to = store_be<uint32_t>(bytes.data(), probe.handshake_flags() & 3u);
  to = store_be<uint64_t>(to, nbd::kOptionMagic);
  to = store_be<uint32_t>(to, kUnknownOption);
  store_be<uint32_t>(to, 3);
  talk.tell("sends client flags and an option, each byte alone");
  for (const std::byte& byte : bytes) (void)talk.raw().send({&byte, 1});
  (void)talk.answer(kUnknownOption);
}

constexpr std::array kChecks = {
    Check{.name = "handshake.greeting",
          .title = "the greeting has the right magics and no unknown flag",
          .basis = "MUST, NBD protocol: Newstyle negotiation; Handshake flags",
          .run = greeting},
    Check{.name = "handshake.unknown-client-flag",
          .title = "an unknown client flag ends the connection",
          .basis = "MUST, NBD protocol: Client flags",
          .run = unknown_client_flag},
    Check{.name = "handshake.unoffered-client-flag",
          .title = "NBD_FLAG_C_NO_ZEROES that was not offered ends the connection",
          .basis = "MUST, NBD protocol: Client flags",
          .run = unoffered_client_flag},
    Check{.name = "handshake.export-name",
          .title = "EXPORT_NAME is answered with size, flags and 124 zeroes",
          .basis = "MUST, NBD protocol: Newstyle negotiation",
          .run = export_name_zeroes},
    Check{.name = "handshake.export-name-no-zeroes",
          .title = "with NO_ZEROES agreed, nothing follows size and flags",
          .basis = "MUST, NBD protocol: Client flags",
          .run = export_name_no_zeroes},
    Check{.name = "handshake.newstyle",
          .title = "a client without client flags can use EXPORT_NAME",
          .basis = "MUST, NBD protocol: Newstyle negotiation",
          .run = newstyle},
    Check{.name = "handshake.export-name-unknown",
          .title = "EXPORT_NAME of an unknown export ends the connection",
          .basis = "MUST, NBD protocol: Option types (NBD_OPT_EXPORT_NAME)",
          .run = unknown_export},
    Check{.name = "handshake.abort",
          .title = "ABORT is acknowledged",
          .basis = "MUST, NBD protocol: Option types (NBD_OPT_ABORT)",
          .run = abort},
    Check{.name = "handshake.abort-with-data",
          .title = "ABORT with data is acknowledged",
          .basis = "MUST, NBD protocol: Option types (NBD_OPT_ABORT)",
          .run = abort_with_data},
    Check{.name = "handshake.abort-and-leave",
          .title = "a client that aborts and leaves without waiting harms nobody",
          .basis = "SHOULD, NBD protocol: Option types (NBD_OPT_ABORT)",
          .run = abort_and_leave},
    Check{.name = "handshake.leave",
          .title = "a client that leaves in the middle of the handshake harms nobody",
          .basis = "MUST, NBD protocol: Termination of the session during option haggling",
          .run = leave_anywhere},
    Check{.name = "handshake.bad-option-magic",
          .title = "an option with a wrong magic is refused, or ends the connection",
          .basis = "MAY, NBD protocol: Termination of the session during option haggling",
          .run = bad_magic},
    Check{.name = "handshake.silent-client",
          .title = "clients that stall in the handshake do not keep others waiting",
          .basis = "recommendation: connections are independent",
          .needs = kSecond,
          .run = silent_client},
    Check{.name = "handshake.byte-by-byte",
          .title = "client flags and options may arrive in any pieces",
          .basis = "MUST, NBD protocol: Newstyle negotiation",
          .run = byte_by_byte},
};

}  // namespace

std::span<const Check> handshake_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
