// SPDX-License-Identifier: BSD-3-Clause
// INFO and GO.
#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

constexpr std::array<uint16_t, 3> kAllInfos = {nbd::kInfoName, nbd::kInfoDescription,
                                               nbd::kInfoBlockSize};

OptionAnswer ask_info(Probe& probe, Talk& talk, std::span<const uint16_t> infos) {
  const OptionAnswer answer = talk.ask(nbd::kOptInfo, go_data(probe.export_name(), infos));
  if (!answer.acked()) {
    broken("refused",
           fmt::format("the answer is {} {}", nbd::option_reply_name(answer.last), answer.text),
           "NBD_REP_ACK");
  }
  return answer;
}

void judge_flags(uint16_t flags, bool chunks) {
  const auto need = [&](bool good, std::string_view what, std::string_view due) {
    if (!good)
      broken("wrong-flags", fmt::format("flags {:#06x}: {}", flags, what), std::string(due));
  };
  need(flags & nbd::kHasFlags, "NBD_FLAG_HAS_FLAGS is not set", "it is always set");
  need(!(flags & nbd::kSendFastZero) || flags & nbd::kSendWriteZeroes,
       "NBD_FLAG_SEND_FAST_ZERO without NBD_FLAG_SEND_WRITE_ZEROES", "both or none");
  need(!(flags & nbd::kSendDf) || chunks, "NBD_FLAG_SEND_DF without structured replies",
       "the flag is clear then");
}

void form(Probe& probe) {
  Talk talk = probe.open();
  const OptionAnswer answer = ask_info(probe, talk, kAllInfos);
  uint32_t exports = 0;
  for (const OptionReply& reply : answer.before) {
    const ByteSpan data = reply.data;
    if (reply.type != nbd::kRepInfo || data.size() < 2) {
      broken("malformed-reply", "a reply that is no NBD_REP_INFO with a type", "NBD_REP_INFO");
    }
    const auto type = load_be<uint16_t>(data.data());
    if (type == nbd::kInfoExport) {
      ++exports;
      if (data.size() != 12)
        broken("malformed-reply", "NBD_INFO_EXPORT of a wrong size", "12 bytes");
      judge_flags(load_be<uint16_t>(data.data() + 10), false);
    } else if (type == nbd::kInfoBlockSize && data.size() != 14) {
      broken("malformed-reply", "NBD_INFO_BLOCK_SIZE of a wrong size", "14 bytes");
    } else if (type == nbd::kInfoName || type == nbd::kInfoDescription) {
      if (const std::string fault = string_fault(data.subspan(2)); !fault.empty()) {
        broken("malformed-reply", "name or description is " + fault, "a string");
      }
    }
  }
  if (exports == 0) broken("malformed-reply", "no NBD_INFO_EXPORT before NBD_REP_ACK", "one");
  if (exports > 1) against_advice("malformed-reply", "NBD_INFO_EXPORT more than once", "one");
}

void flags(Probe& probe) {
  judge_flags(probe.agreed().transmission_flags, probe.mode() != nbd::HeaderMode::kSimple);
}

void block_sizes(Probe& probe) {
  const auto& sizes = probe.agreed().block_sizes;
  if (!sizes) skip("the server sends no NBD_INFO_BLOCK_SIZE");
  const std::string what = fmt::format("block sizes {}, {}, {}, export of {} bytes", sizes->min,
                                       sizes->preferred, sizes->payload_max, probe.size());
  probe.story().add(what);
  const auto need = [&](bool good, std::string_view due) {
    if (!good) broken("wrong-block-size", what, std::string(due));
  };
  need(std::has_single_bit(sizes->min) && sizes->min <= 65536,
       "a smallest block that is a power of two up to 65536");
  need(std::has_single_bit(sizes->preferred) && sizes->preferred >= std::max(sizes->min, 512u),
       "a preferred block that is a power of two, at least 512 and the smallest block");
  need(sizes->payload_max == 0xffffffff || sizes->payload_max % sizes->min == 0,
       "a largest block that is a multiple of the smallest, or 0xffffffff");
  need(sizes->payload_max >= std::min<uint64_t>(sizes->preferred, probe.size()),
       "a largest block not below the preferred one");
  if (sizes->payload_max < std::min<uint64_t>(1u << 20, probe.size())) {
    against_advice("wrong-block-size", what, "a largest block of at least 1 MiB");
  }
  if (probe.size() % sizes->min != 0) {
    against_advice("wrong-block-size", what, "an export that is a whole number of smallest blocks",
                   {"The export's last bytes cannot be reached by a client that obeys."});
  }
}

// Data that contradicts itself. `option_data` is all that is sent.
void malformed(Probe& probe, ByteSpan option_data) {
  for (const uint32_t option : {nbd::kOptInfo, nbd::kOptGo}) {
    Talk talk = probe.open();
    talk.send_option(option, option_data);
    const OptionAnswer answer = talk.try_answer(option);
    if (answer.got == Got::kEnd) continue;  // the client broke a MUST
    if (answer.got == Got::kSilence) {
      broken("no-answer", "an option whose lengths contradict each other hangs the connection",
             "NBD_REP_ERR_INVALID",
             {"Look whether the parser reads more than the option's length says."});
    }
    if (answer.acked()) {
      against_advice("not-refused", "data whose lengths contradict each other is accepted",
                     "NBD_REP_ERR_INVALID");
    }
    probe.options_in_step(talk);
    if (answer.last != nbd::kRepErrInvalid) {
      against_advice("wrong-error",
                     fmt::format("the answer is {}", nbd::option_reply_name(answer.last)),
                     "NBD_REP_ERR_INVALID");
    }
  }
}

void count_too_large(Probe& probe) {
  std::vector<std::byte> data = go_data(probe.export_name(), kAllInfos);
  store_be<uint16_t>(data.data() + data.size() - 2 - 2 * kAllInfos.size(), 200);
  malformed(probe, data);
}

void count_too_small(Probe& probe) {
  std::vector<std::byte> data = go_data(probe.export_name(), kAllInfos);
  store_be<uint16_t>(data.data() + data.size() - 2 - 2 * kAllInfos.size(), 1);
  malformed(probe, data);
}

void name_length_too_large(Probe& probe) {
  std::vector<std::byte> data = go_data(probe.export_name(), {});
  store_be<uint32_t>(data.data(), 0x7fffffff);
  malformed(probe, data);
}

void too_short(Probe& probe) {
  malformed(probe, std::array<std::byte, 3>{});
}

void bad_name(Probe& probe, std::string_view name, bool acceptable) {
  Talk talk = probe.open();
  const std::vector<std::byte> data = go_data(name, {});
  talk.send_option(nbd::kOptInfo, data);
  const OptionAnswer answer = talk.try_answer(nbd::kOptInfo);
  if (answer.got == Got::kEnd) return;
  if (answer.got == Got::kSilence) {
    broken("no-answer", "the option is not answered", "NBD_REP_ERR_INVALID or NBD_REP_ERR_UNKNOWN");
  }
  probe.options_in_step(talk);
  if (answer.acked() && !acceptable) {
    against_advice("not-refused", "a name that is no string of the protocol is accepted",
                   "NBD_REP_ERR_INVALID");
  }
}

void name_too_long(Probe& probe) {
  bad_name(probe, std::string(5000, 'x'), false);
}
void name_with_nul(Probe& probe) {
  bad_name(probe, std::string_view("a\0b", 3), false);
}
void name_of_256(Probe& probe) {
  bad_name(probe, std::string(256, 'x'), true);
}
void empty_name(Probe& probe) {
  bad_name(probe, "", true);
}

void unknown_export(Probe& probe) {
  if (probe.any_name()) skip("the server has an export of every name");
  for (const uint32_t option : {nbd::kOptInfo, nbd::kOptGo}) {
    Talk talk = probe.open();
    const OptionAnswer answer = talk.ask(option, go_data("nbdcheck-no-such-export", kAllInfos));
    if (answer.acked())
      broken("not-constant", "an export that was unknown before", "NBD_REP_ERR_UNKNOWN");
    if (answer.last == nbd::kRepErrTlsReqd) skip("the server hides exports until TLS");
    probe.options_in_step(talk);
    if (answer.last != nbd::kRepErrUnknown) {
      broken("wrong-error", fmt::format("the answer is {}", nbd::option_reply_name(answer.last)),
             "NBD_REP_ERR_UNKNOWN");
    }
    if (!answer.before.empty()) {
      against_advice("needless-reply", "NBD_REP_INFO about an unknown export", "the error alone");
    }
  }
}

void unknown_infos(Probe& probe) {
  std::vector<uint16_t> infos = {nbd::kInfoBlockSize};
  for (uint16_t info = 0x7000; info < 0x7000 + 500; ++info) infos.push_back(info);
  Talk talk = probe.open();
  (void)ask_info(probe, talk, infos);
  probe.options_in_step(talk);
}

void info_then_go(Probe& probe) {
  Talk talk = probe.open();
  OptionAnswer info = ask_info(probe, talk, kAllInfos);
  OptionAnswer go = talk.ask(nbd::kOptGo, go_data(probe.export_name(), kAllInfos));
  if (!go.acked()) broken("refused", "GO is refused after an INFO that was not", "NBD_REP_ACK");
  std::ranges::sort(info.before, {}, &OptionReply::data);
  std::ranges::sort(go.before, {}, &OptionReply::data);
  if (!std::ranges::equal(info.before, go.before, {}, &OptionReply::data, &OptionReply::data)) {
    broken("not-constant", "GO gives other information than INFO with the same data before it",
           "the same set of information");
  }
}

void no_padding(Probe& probe) {
  Talk talk = probe.open(nbd::kClientFixedNewstyle);
  probe.go(talk);
  probe.in_step(talk);
}

void no_block_size(Probe& probe) {
  Talk talk = probe.open();
  const OptionAnswer answer = talk.ask(nbd::kOptGo, go_data(probe.export_name(), {}));
  if (answer.acked()) {
    talk.enter(
        {.mode = nbd::HeaderMode::kSimple, .size = probe.size(), .contexts = {}, .block_min = 1});
    return probe.in_step(talk);
  }
  if (answer.last != nbd::kRepErrBlockSizeReqd) {
    broken("refused", fmt::format("the answer is {}", nbd::option_reply_name(answer.last)),
           "NBD_REP_ACK or NBD_REP_ERR_BLOCK_SIZE_REQD");
  }
  if (probe.block_min() == 1 && probe.agreed().block_sizes) {
    against_advice("needless-refusal",
                   "NBD_REP_ERR_BLOCK_SIZE_REQD, though the smallest block is 1", "NBD_REP_ACK");
  }
}

constexpr std::string_view kMayRefuse =
    "MUST, NBD protocol: Option types (NBD_OPT_INFO and NBD_OPT_GO)";

constexpr std::array kChecks = {
    Check{.name = "info.supported",
          .title = "INFO and GO are known, and describe the export in due form",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = form},
    Check{.name = "info.flags",
          .title = "the transmission flags do not contradict each other",
          .basis = "MUST, NBD protocol: Transmission flags",
          .in = In::kEveryMode,
          .run = flags},
    Check{.name = "info.block-size",
          .title = "the block sizes keep their rules",
          .basis = "MUST, NBD protocol: Block size constraints",
          .needs = kInfo,
          .run = block_sizes},
    Check{.name = "info.count-too-large",
          .title = "more information requests announced than sent: INVALID",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = count_too_large},
    Check{.name = "info.count-too-small",
          .title = "fewer information requests announced than sent: INVALID",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = count_too_small},
    Check{.name = "info.name-length-too-large",
          .title = "a name longer than the option: INVALID",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = name_length_too_large},
    Check{.name = "info.too-short",
          .title = "an option of 3 bytes: INVALID",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = too_short},
    Check{.name = "info.name-too-long",
          .title = "a name of 5000 bytes is refused",
          .basis = "MUST, NBD protocol: Conventions",
          .needs = kInfo,
          .run = name_too_long},
    Check{.name = "info.name-with-nul",
          .title = "a name with a NUL is refused",
          .basis = "MUST, NBD protocol: Conventions",
          .needs = kInfo,
          .run = name_with_nul},
    Check{.name = "info.name-256",
          .title = "a name of 256 bytes is answered",
          .basis = "MUST, NBD protocol: Conventions",
          .needs = kInfo,
          .run = name_of_256},
    Check{.name = "info.default-export",
          .title = "the empty name is answered",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = empty_name},
    Check{.name = "info.unknown-export",
          .title = "an unknown export is refused with UNKNOWN",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = unknown_export},
    Check{.name = "info.unknown-requests",
          .title = "unknown information requests are ignored",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = unknown_infos},
    Check{.name = "info.then-go",
          .title = "GO repeats what INFO said",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = info_then_go},
    Check{.name = "info.no-padding",
          .title = "no zeroes follow GO, with or without NO_ZEROES",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = no_padding},
    Check{.name = "info.no-block-size",
          .title = "GO without a request for block sizes is served, or BLOCK_SIZE_REQD",
          .basis = kMayRefuse,
          .needs = kInfo,
          .run = no_block_size},
};

}  // namespace

std::span<const Check> info_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
