// SPDX-License-Identifier: BSD-3-Clause
// What only extended headers have. The echo of the offset is judged in Talk with every reply.
#include <fmt/format.h>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

using nbd::Request;

void implies_structured(Probe& probe) {
  Talk talk = probe.open();
  probe.agree_mode(talk);
  const auto contexts = probe.select_context(talk);
  if (contexts.empty() && probe.lacks(kContext).empty()) {
    broken("refused", "base:allocation cannot be selected after NBD_OPT_EXTENDED_HEADERS",
           "structured replies are implied");
  }
  probe.go(talk, contexts);
  probe.in_step(talk);
}

void export_name(Probe& probe) {
  Talk talk = probe.open();
  probe.agree_mode(talk);
  talk.send_option(nbd::kOptExportName, bytes_of(probe.export_name()));
  if (talk.wait_for_end() != Got::kEnd) {
    against_advice("not-refused", "EXPORT_NAME after EXTENDED_HEADERS does not end the connection",
                   "the server closes the connection");
  }
}

void offsets(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const uint64_t last = probe.size() / probe.block_min() * probe.block_min() - block;
  for (const uint64_t offset : {uint64_t{0}, last, uint64_t{1} << 62, ~uint64_t{0}}) {
    (void)talk.exchange(
        {.type = nbd::kCmdRead, .cookie = talk.next_cookie(), .offset = offset, .length = block});
  }
  if (probe.has(nbd::kSendFlush)) probe.succeeds(talk, {.type = nbd::kCmdFlush});
}

void compact_request(Probe& probe) {
  Talk talk = probe.start();
  std::array<std::byte, nbd::kExtendedRequestSize> bytes = {};
  nbd::encode_request(bytes.data(), {.type = nbd::kCmdRead, .cookie = 1, .length = probe.block()});
  talk.send(bytes, "a compact request (and 4 bytes more)");
  if (talk.raw().wait_for_bytes(probe.limit()) == Got::kSilence) {
    against_advice("no-answer", "a compact request is neither refused nor the end",
                   "an error, or the end");
  }
  talk.raw().close();
  probe.serves_others();
}

void write_without_flag(Probe& probe) {
  Talk talk = probe.start();
  probe.refuses(talk,
                {.type = nbd::kCmdWrite, .offset = probe.room().offset, .length = probe.block()},
                {}, {.success = State::kFailed});
}

void needless_payload(Probe& probe) {
  Talk talk = probe.start();
  const auto payload = pattern(64, 101);
  for (const uint16_t type : {nbd::kCmdRead, nbd::kCmdFlush}) {
    if (type == nbd::kCmdFlush && !probe.has(nbd::kSendFlush)) continue;
    probe.refuses(
        talk, {.flags = nbd::kFlagPayloadLen, .type = type, .offset = 0, .length = payload.size()},
        payload);
  }
}

void huge_lengths(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t length = (uint64_t{1} << 40) / probe.block_min() * probe.block_min();
  const auto past_end = [&](uint16_t type) {
    probe.survives(talk, {.type = type, .offset = 0, .length = length});
  };
  if (probe.size() >= length) skip("the export is larger than 1 TiB");
  past_end(nbd::kCmdRead);
  if (probe.has(nbd::kSendCache)) past_end(nbd::kCmdCache);
  if (!talk.terms().contexts.empty()) past_end(nbd::kCmdBlockStatus);
  const bool writes = probe.lacks(kWrites).empty() && !probe.run().options.range;
  if (writes && probe.has(nbd::kSendTrim)) past_end(nbd::kCmdTrim);
  if (writes && probe.has(nbd::kSendWriteZeroes)) past_end(nbd::kCmdWriteZeroes);
}

// A BLOCK_STATUS with a payload: effect length and ids.
std::vector<std::byte> status_payload(uint64_t length, std::vector<uint32_t> ids) {
  std::vector<std::byte> payload(8 + 4 * ids.size());
  nbd::encode_block_status_payload(payload.data(),
                                   {.length = length, .context_ids = std::move(ids)});
  return payload;
}

Request status_request(ByteSpan payload) {
  return {.flags = nbd::kFlagPayloadLen,
          .type = nbd::kCmdBlockStatus,
          .offset = 0,
          .length = payload.size()};
}

void status_payloads(Probe& probe) {
  if (!probe.has(nbd::kBlockStatusPayload)) {
    skip("the server does not advertise NBD_FLAG_BLOCK_STATUS_PAYLOAD");
  }
  Talk talk = probe.start();
  const uint32_t id = talk.terms().contexts.at(0);
  const auto good = status_payload(probe.block(), {id});
  const Answer answer = probe.succeeds(talk, status_request(good), good);
  if (answer.status.size() != 1 || answer.status[0].context_id != id) {
    broken("malformed-reply", fmt::format("{} status chunks", answer.status.size()),
           "one, of the context asked for");
  }
  std::vector<std::byte> odd = good;
  odd.push_back(std::byte{0});
  for (const auto& bad :
       {status_payload(probe.block(), {id + 1000}), status_payload(probe.block(), {id, id}), odd}) {
    probe.refuses(talk, status_request(bad), bad);
  }
}

void status_payload_unadvertised(Probe& probe) {
  if (probe.has(nbd::kBlockStatusPayload)) {
    skip("the server advertises NBD_FLAG_BLOCK_STATUS_PAYLOAD");
  }
  Talk talk = probe.start();
  const auto payload = status_payload(probe.block(), {1});
  probe.refuses(talk, status_request(payload), payload);
}

constexpr In kOnly = In::kExtendedOnly;
constexpr std::string_view kHeaders =
    "MUST, NBD protocol (extension): Extended request; extended reply chunk message";
constexpr std::string_view kPayloadFlag =
    "SHOULD, NBD protocol (extension): Command flags (NBD_CMD_FLAG_PAYLOAD_LEN)";

constexpr std::array kChecks = {
    Check{.name = "headers.implied",
          .title = "extended headers imply structured replies",
          .basis = "MUST, NBD protocol (extension): Option types (NBD_OPT_EXTENDED_HEADERS)",
          .in = kOnly,
          .run = implies_structured},
    Check{.name = "headers.export-name",
          .title = "EXPORT_NAME after EXTENDED_HEADERS ends the connection",
          .basis = "SHOULD, NBD protocol (extension): Option types (NBD_OPT_EXTENDED_HEADERS)",
          .in = kOnly,
          .run = export_name},
    Check{.name = "headers.offset",
          .title = "replies echo the offset of the request, errors as well",
          .basis = kHeaders,
          .in = kOnly,
          .run = offsets},
    Check{.name = "headers.compact-request",
          .title = "a compact request is refused, or ends the connection",
          .basis = kHeaders,
          .in = kOnly,
          .run = compact_request},
    Check{.name = "headers.write-without-flag",
          .title = "a WRITE without PAYLOAD_LEN is EINVAL",
          .basis = kPayloadFlag,
          .in = kOnly,
          .needs = kWrites,
          .run = write_without_flag},
    Check{.name = "headers.needless-payload",
          .title = "a payload that is not expected is skipped, and EINVAL",
          .basis = kPayloadFlag,
          .in = kOnly,
          .run = needless_payload},
    Check{.name = "headers.huge-length",
          .title = "lengths of 1 TiB do not end the connection",
          .basis = "SHOULD, NBD protocol (extension): Payload size constraints",
          .in = kOnly,
          .run = huge_lengths},
    Check{.name = "headers.status-payload",
          .title = "BLOCK_STATUS takes ids in a payload, and refuses wrong ones",
          .basis = "SHOULD, NBD protocol (extension): Request types (NBD_CMD_BLOCK_STATUS)",
          .in = kOnly,
          .needs = kContext,
          .run = status_payloads},
    Check{.name = "headers.status-payload-unadvertised",
          .title = "BLOCK_STATUS with a payload, unless advertised, is EINVAL",
          .basis = "SHOULD, NBD protocol (extension): Request types (NBD_CMD_BLOCK_STATUS)",
          .in = kOnly,
          .run = status_payload_unadvertised},
};

}  // namespace

std::span<const Check> extended_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
