// SPDX-License-Identifier: BSD-3-Clause
// Many requests, many connections, and the ways out of the transmission phase.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

using nbd::Request;

constexpr uint32_t kPipelined = 1000;
constexpr uint32_t kBeforeDisc = 8;
constexpr uint32_t kDiscRounds = 20;  // a server that loses replies may be lucky for some

void pipelining(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const bool writes = probe.lacks(kWrites).empty();
  const Range place = writes ? probe.room() : Range{0, probe.size()};
  // Where nothing may be written, the slots may be alike, and a mix-up of replies is not seen.
  if (writes) probe.write(talk, place.offset, pattern(place.length, 55));
  const uint64_t slots = std::min<uint64_t>(place.length / block, 32);
  std::vector<std::vector<std::byte>> expected;
  for (uint64_t slot = 0; slot < slots; ++slot) {
    expected.push_back(probe.read(talk, {place.offset + slot * block, block}));
  }
  std::vector<Request> requests;
  for (uint32_t i = 0; i < kPipelined; ++i) {
    requests.push_back({.type = nbd::kCmdRead,
                        .cookie = talk.next_cookie(),
                        .offset = place.offset + i % slots * block,
                        .length = block});
  }
  for (const Answer& answer : talk.exchange_all(requests)) {
    if (!answer.ok()) broken("refused", "a READ of the pipeline fails", "the data");
    if (answer.data != expected[(answer.cookie - requests.front().cookie) % slots]) {
      broken("wrong-data", "a READ of the pipeline gives the data of another", "its own data");
    }
  }
}

void disc(Probe& probe) {
  Talk talk = probe.start();
  probe.in_step(talk);
  (void)talk.request({.type = nbd::kCmdDisc, .cookie = talk.next_cookie()});
  const Got got = talk.wait_for_end();
  if (got == Got::kAll)
    broken("needless-reply", "the server answers NBD_CMD_DISC",
           "the end of the connection, and nothing before");
  if (got == Got::kSilence)
    broken("no-answer", "the server does not close after NBD_CMD_DISC",
           "the end of the connection");
}

// What came back of requests that were sent before NBD_CMD_DISC.
struct Outcome {
  uint32_t replies = 0;
  uint32_t first_error = nbd::kOk;
  std::set<uint64_t> failed;  // offsets
};

// One round: requests, DISC, and the replies that come until the end.
Outcome requests_then_disc(Probe& probe, bool writes, uint64_t round) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const Range place = writes ? probe.room() : Range{0, probe.size()};
  const uint64_t slots = std::max<uint64_t>(1, place.length / block);
  const auto data = pattern(block, 60 + round);
  std::map<uint64_t, uint64_t> offsets;  // by cookie
  for (uint32_t i = 0; i < kBeforeDisc; ++i) {
    const Request request{.flags = writes ? probe.write_flags() : uint16_t{0},
                          .type = static_cast<uint16_t>(writes ? nbd::kCmdWrite : nbd::kCmdRead),
                          .cookie = talk.next_cookie(),
                          .offset = place.offset + i % slots * block,
                          .length = block};
    offsets[request.cookie] = request.offset;
    (void)talk.request(request, writes ? ByteSpan(data) : ByteSpan());
  }
  (void)talk.request({.type = nbd::kCmdDisc, .cookie = talk.next_cookie()});
  Outcome outcome;
  while (talk.in_flight() > 0) {
    const Answer answer = talk.try_next_answer();
    if (answer.got == Got::kSilence) {
      broken("no-answer",
             fmt::format("after NBD_CMD_DISC only {} of {} requests are answered, and the "
                         "connection stays open",
                         outcome.replies, kBeforeDisc),
             "replies to all, then the end of the connection");
    }
    if (answer.got == Got::kEnd) break;
    ++outcome.replies;
    if (answer.ok()) continue;
    outcome.first_error = answer.error;
    outcome.failed.insert(offsets[answer.cookie]);
  }
  return outcome;
}

void disc_with_requests(Probe& probe, bool writes) {
  const char* const name = writes ? "WRITE" : "READ";
  for (uint32_t round = 0; round < kDiscRounds && !probe.run().interrupted; ++round) {
    probe.story().clear();
    const Outcome outcome = requests_then_disc(probe, writes, round);
    if (outcome.replies < kBeforeDisc) {
      broken("reply-lost-at-disc",
             fmt::format("of {} {} requests before NBD_CMD_DISC only {} are answered (round {})",
                         kBeforeDisc, name, outcome.replies, round + 1),
             "replies to all outstanding requests, then the end of the connection",
             {"A server must handle what came before NBD_CMD_DISC to its end, the sending of the "
              "replies included."});
    }
    if (outcome.first_error != nbd::kOk) {
      against_advice("error-at-disc",
                     fmt::format("of {} {} requests before NBD_CMD_DISC {} fail with {} (round {})",
                                 kBeforeDisc, name, outcome.failed.size(),
                                 nbd::error_name(outcome.first_error), round + 1),
                     "success: a client that leaves is no reason to fail what it asked for before");
    }
  }
}

void disc_with_writes(Probe& probe) {
  disc_with_requests(probe, true);
}
void disc_with_reads(Probe& probe) {
  disc_with_requests(probe, false);
}

void disc_applies(Probe& probe) {
  const Outcome outcome = requests_then_disc(probe, true, 99);
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const auto data = pattern(block, 60 + 99);
  const uint64_t slots =
      std::min<uint64_t>(kBeforeDisc, std::max<uint64_t>(1, probe.room().length / block));
  for (uint64_t slot = 0; slot < slots; ++slot) {
    const uint64_t offset = probe.room().offset + slot * block;
    if (outcome.failed.contains(offset)) continue;  // the client knows
    if (probe.read(talk, {offset, block}) != data) {
      broken("lost-write", "a WRITE that was sent before NBD_CMD_DISC is not there afterwards",
             "all outstanding requests are handled");
    }
  }
}

void leave_anywhere(Probe& probe) {
  {
    Talk talk = probe.start();
    talk.send(std::array{std::byte{0x25}, std::byte{0x60}}, "2 bytes of a request, and leaves");
  }
  {
    Talk talk = probe.start();
    (void)talk.request(
        {.type = nbd::kCmdRead, .cookie = talk.next_cookie(), .length = probe.block()});
    talk.tell("... and leaves without taking the reply");
  }
  probe.serves_others();
}

void half_payload(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const auto data = pattern(block, 71);
  (void)talk.request({.flags = probe.write_flags(),
                      .type = nbd::kCmdWrite,
                      .cookie = talk.next_cookie(),
                      .offset = probe.room().offset,
                      .length = block},
                     ByteSpan(data).first(block / 2));
  talk.tell("... half of its payload, and leaves");
  talk.raw().close();
  probe.serves_others();
}

void stalled(Probe& probe) {
  Talk talk = probe.start();
  talk.send(std::array{std::byte{0x25}, std::byte{0x60}}, "2 bytes of a request, and no more");
  probe.serves_others();
}

void unread(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t length =
      std::min<uint64_t>(probe.size() / probe.block_min() * probe.block_min(), 1u << 20);
  talk.raw().set_limit(std::chrono::milliseconds(100));
  talk.tell("sends READs of much data and takes no reply");
  for (uint32_t i = 0; i < 64; ++i) {
    if (talk.request({.type = nbd::kCmdRead, .cookie = talk.next_cookie(), .length = length}) !=
        Got::kAll)
      break;
  }
  probe.serves_others();
}

void same_export(Probe& probe) {
  std::vector<Talk> talks;
  for (uint32_t i = 0; i < 3; ++i) {
    Talk talk = probe.open();
    probe.agree_mode(talk);
    if (probe.mode() != nbd::HeaderMode::kSimple) (void)probe.select_context(talk);
    const nbd::ClientResult result = probe.go(talk);
    const nbd::ClientResult& first = probe.agreed();
    if (result.size != first.size || result.transmission_flags != first.transmission_flags ||
        result.block_sizes != first.block_sizes) {
      broken("not-constant",
             fmt::format("size {} and flags {:#06x}", result.size, result.transmission_flags),
             fmt::format("size {} and flags {:#06x}, as on the connection before", first.size,
                         first.transmission_flags));
    }
    if (probe.lacks(kSecond).empty()) talks.push_back(std::move(talk));
  }
}

constexpr In kAll = In::kEveryMode;
constexpr std::string_view kDisc = "MUST, NBD protocol: Request types (NBD_CMD_DISC)";
constexpr std::string_view kIndependent = "recommendation: connections are independent";

constexpr std::array kChecks = {
    Check{.name = "transmission.pipelining",
          .title = "1000 requests at once are all answered, each with its own data",
          .basis = "MUST, NBD protocol: Transmission",
          .in = kAll,
          .run = pipelining},
    Check{.name = "transmission.disc",
          .title = "DISC ends the connection, without a reply",
          .basis = kDisc,
          .in = kAll,
          .run = disc},
    Check{.name = "transmission.disc-with-reads",
          .title = "requests before DISC are all answered",
          .basis = kDisc,
          .in = kAll,
          .run = disc_with_reads},
    Check{.name = "transmission.disc-with-writes",
          .title = "writes before DISC are all answered",
          .basis = kDisc,
          .in = kAll,
          .needs = kWrites,
          .run = disc_with_writes},
    Check{.name = "transmission.disc-applies",
          .title = "writes before DISC are all carried out",
          .basis = kDisc,
          .in = kAll,
          .needs = kWrites,
          .run = disc_applies},
    Check{.name = "transmission.same-export",
          .title = "size, flags and block sizes are the same on all connections",
          .basis = "recommendation: NBD_FLAG_CAN_MULTI_CONN means one device",
          .in = kAll,
          .run = same_export},
};

// Last of all, for they have ended servers.
constexpr std::array kLeaving = {
    Check{.name = "transmission.leave",
          .title = "a client that leaves in the middle harms nobody",
          .basis = kIndependent,
          .in = kAll,
          .run = leave_anywhere},
    Check{.name = "transmission.leave-in-payload",
          .title = "a client that leaves in the middle of a payload harms nobody",
          .basis = kIndependent,
          .in = kAll,
          .needs = kWrites,
          .run = half_payload},
    Check{.name = "transmission.stalled-client",
          .title = "a client that stalls does not keep others waiting",
          .basis = kIndependent,
          .in = kAll,
          .needs = kSecond,
          .run = stalled},
    Check{.name = "transmission.unread-replies",
          .title = "a client that takes no replies does not keep others waiting",
          .basis = kIndependent,
          .in = kAll,
          .needs = kSecond,
          .run = unread},
};

}  // namespace

std::span<const Check> connection_checks() {
  return kChecks;
}
std::span<const Check> leaving_checks() {
  return kLeaving;
}

}  // namespace weft::check::conformance
