// SPDX-License-Identifier: BSD-3-Clause
// Options other than INFO, GO and those of metadata contexts.
#include <fmt/format.h>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

constexpr uint32_t kManyOptions = 3000;

std::string told(const OptionAnswer& answer) {
  return fmt::format("{}{}{}", nbd::option_reply_name(answer.last), answer.text.empty() ? "" : ": ",
                     answer.text);
}

void unsupported(Probe& probe, uint32_t option, size_t data_size) {
  Talk talk = probe.open();
  const OptionAnswer answer = talk.ask(option, pattern(data_size, 1));
  if (answer.last != nbd::kRepErrUnsup) {
    broken("wrong-error", "the answer is " + told(answer), "NBD_REP_ERR_UNSUP");
  }
  probe.options_in_step(talk);
}

void unknown(Probe& probe) {
  unsupported(probe, kUnknownOption, 0);
}
void unknown_with_data(Probe& probe) {
  unsupported(probe, kUnknownOption, 4000);
}
void option_zero(Probe& probe) {
  unsupported(probe, 0, 5);
}
void peek_export(Probe& probe) {
  unsupported(probe, nbd::kOptPeekExport, 0);
}

void many(Probe& probe) {
  Talk talk = probe.open();
  const auto end = std::chrono::steady_clock::now() + kManyStepsMax;
  for (uint32_t i = 0; i < kManyOptions && std::chrono::steady_clock::now() < end; ++i) {
    talk.send_option(kUnknownOption, {});
    const OptionAnswer answer = talk.try_answer(kUnknownOption);
    if (answer.got == Got::kEnd) {
      against_advice("disconnected",
                     fmt::format("after {} unknown options the server closes the connection", i),
                     "an error for each: a server may close only what it believes to be an attack");
    }
    if (answer.got == Got::kSilence) {
      broken("no-answer", fmt::format("option {} is not answered", i + 1), "NBD_REP_ERR_UNSUP");
    }
  }
}

void huge(Probe& probe) {
  for (const uint32_t option : {uint32_t{nbd::kOptGo}, kUnknownOption}) {
    Talk talk = probe.open();
    talk.send_option_header(option, 0xffffffff);
    const std::vector<std::byte> some(1u << 20);
    const bool taken = talk.send(some, "the first MiB of 4 GiB") == Got::kAll;
    const bool waits = taken && talk.wait_for_end() == Got::kSilence;
    talk.raw().close();
    probe.serves_others();
    if (waits) {
      against_advice("no-answer", "the server waits for 4 GiB of an option's data",
                     "an error, or the end of the connection",
                     {"A client can make the server hold memory, or a connection, in this way: put "
                      "a limit on the length of options."});
    }
  }
}

// An option that has no data, with data.
void needless_data(Probe& probe, uint32_t option) {
  Talk talk = probe.open();
  const OptionAnswer answer = talk.ask(option, bytes_of("data"));
  probe.options_in_step(talk);
  if (answer.last != nbd::kRepErrInvalid) {
    against_advice("wrong-error",
                   fmt::format("with 4 bytes of data the answer is {}", told(answer)),
                   "NBD_REP_ERR_INVALID");
  }
}

void list(Probe& probe) {
  Talk talk = probe.open();
  const OptionAnswer answer = talk.ask(nbd::kOptList);
  probe.options_in_step(talk);
  if (!answer.acked()) {
    if (answer.last == nbd::kRepErrPolicy || answer.last == nbd::kRepErrUnsup) return;
    against_advice("wrong-error", "the answer is " + told(answer),
                   "a list, NBD_REP_ERR_POLICY or NBD_REP_ERR_UNSUP");
  }
  for (const OptionReply& reply : answer.before) {
    const ByteSpan data = reply.data;
    if (reply.type != nbd::kRepServer) {
      broken("malformed-reply", fmt::format("{} in a list", nbd::option_reply_name(reply.type)),
             "NBD_REP_SERVER");
    }
    if (data.size() < 4 || load_be<uint32_t>(data.data()) > data.size() - 4) {
      broken("malformed-reply", "an entry whose name is longer than the reply", "a name that fits");
    }
    const uint32_t length = load_be<uint32_t>(data.data());
    for (const std::string& fault :
         {string_fault(data.subspan(4, length)), string_fault(data.subspan(4 + length))}) {
      if (!fault.empty()) broken("malformed-reply", "an entry with " + fault, "strings");
    }
  }
}

void list_with_data(Probe& probe) {
  needless_data(probe, nbd::kOptList);
}
void structured_with_data(Probe& probe) {
  needless_data(probe, nbd::kOptStructuredReply);
}
void extended_with_data(Probe& probe) {
  needless_data(probe, nbd::kOptExtendedHeaders);
}

void starttls(Probe& probe) {
  Talk talk = probe.open();
  const OptionAnswer answer = talk.ask(nbd::kOptStarttls);
  if (answer.acked()) skip("the server offers TLS, which is not tested");
  if (answer.last == nbd::kRepErrTlsReqd) {
    broken("wrong-error", "NBD_REP_ERR_TLS_REQD where there is no TLS",
           "NBD_REP_ERR_POLICY or NBD_REP_ERR_UNSUP");
  }
  probe.options_in_step(talk);
}

void structured_twice(Probe& probe) {
  Talk talk = probe.open();
  if (!talk.ask(nbd::kOptStructuredReply).acked()) {
    broken("not-constant", "structured replies are refused", "the same answer every time");
  }
  (void)talk.ask(nbd::kOptStructuredReply);  // ACK and INVALID are both fine
  probe.use_mode(nbd::HeaderMode::kStructured);
  probe.go(talk);
  probe.in_step(talk);
}

void extended_known(Probe& probe) {
  Talk talk = probe.open();
  (void)talk.ask(nbd::kOptExtendedHeaders);
  probe.options_in_step(talk);
}

void after_errors(Probe& probe) {
  Talk talk = probe.open();
  (void)talk.ask(kUnknownOption, bytes_of("x"));
  (void)talk.ask(nbd::kOptPeekExport);
  (void)talk.ask(nbd::kOptStructuredReply, bytes_of("xyz"));
  probe.go(talk);
  probe.in_step(talk);
}

constexpr std::array kChecks = {
    Check{.name = "options.unknown",
          .title = "an unknown option is answered with UNSUP",
          .basis = "MUST, NBD protocol: Termination of the session during option haggling",
          .run = unknown},
    Check{.name = "options.unknown-with-data",
          .title = "the data of an unknown option is skipped",
          .basis = "MUST, NBD protocol: Termination of the session during option haggling",
          .run = unknown_with_data},
    Check{.name = "options.zero",
          .title = "option 0 is as unknown as any other",
          .basis = "MUST, NBD protocol: Option types",
          .run = option_zero},
    Check{.name = "options.peek-export",
          .title = "the withdrawn option PEEK_EXPORT is answered with UNSUP",
          .basis = "MUST, NBD protocol: Option types (NBD_OPT_PEEK_EXPORT)",
          .run = peek_export},
    Check{.name = "options.many",
          .title = "3000 unknown options are answered, one after the other",
          .basis = "MAY, NBD protocol: Termination of the session during option haggling",
          .run = many},
    Check{.name = "options.huge",
          .title = "an option of 4 GiB neither hangs the server nor hurts others",
          .basis = "MAY, NBD protocol: Termination of the session during option haggling",
          .run = huge},
    Check{.name = "options.list",
          .title = "LIST gives well-formed entries, or a refusal",
          .basis = "MUST, NBD protocol: Option types (NBD_OPT_LIST)",
          .run = list},
    Check{.name = "options.list-with-data",
          .title = "LIST with data is INVALID",
          .basis = "SHOULD, NBD protocol: Option types (NBD_OPT_LIST)",
          .run = list_with_data},
    Check{.name = "options.starttls",
          .title = "a server without TLS refuses STARTTLS, and goes on",
          .basis = "MUST, NBD protocol: NOTLS mode",
          .needs = kPlaintext,
          .run = starttls},
    Check{.name = "options.structured-reply-with-data",
          .title = "STRUCTURED_REPLY with data is INVALID",
          .basis = "SHOULD, NBD protocol: Option types (NBD_OPT_STRUCTURED_REPLY)",
          .needs = kStructured,
          .run = structured_with_data},
    Check{.name = "options.structured-reply-twice",
          .title = "STRUCTURED_REPLY may be repeated, whatever the second answer is",
          .basis = "MAY, NBD protocol: Option types (NBD_OPT_STRUCTURED_REPLY)",
          .needs = kStructured,
          .run = structured_twice},
    Check{.name = "options.extended-headers",
          .title = "EXTENDED_HEADERS is accepted or refused, in step",
          .basis = "MUST, NBD protocol: Termination of the session during option haggling",
          .run = extended_known},
    Check{.name = "options.extended-headers-with-data",
          .title = "EXTENDED_HEADERS with data is INVALID",
          .basis = "SHOULD, NBD protocol (extension): Option types (NBD_OPT_EXTENDED_HEADERS)",
          .needs = kExtendedHeaders,
          .run = extended_with_data},
    Check{.name = "options.after-errors",
          .title = "refused options leave no trace: GO then works",
          .basis = "MUST, NBD protocol: Termination of the session during option haggling",
          .run = after_errors},
};

}  // namespace

std::span<const Check> option_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
