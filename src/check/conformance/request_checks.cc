// SPDX-License-Identifier: BSD-3-Clause
// Requests: magics, commands, flags, cookies, and that each command does what it is for.
#include <fmt/format.h>

#include <algorithm>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

using nbd::Request;

std::vector<std::byte> request_bytes(Probe& probe, const Request& request) {
  std::vector<std::byte> bytes(nbd::request_size(probe.mode()));
  probe.mode() == nbd::HeaderMode::kExtended ? nbd::encode_extended_request(bytes.data(), request)
                                             : nbd::encode_request(bytes.data(), request);
  return bytes;
}

Request small_read(Probe& probe) {
  return {.type = nbd::kCmdRead, .offset = 0, .length = probe.block()};
}

// After bytes that are no request: an error or the end, but no waiting.
void must_notice(Talk& talk, Probe& probe) {
  if (talk.raw().wait_for_bytes(probe.limit()) == Got::kSilence) {
    against_advice("no-answer", "the server neither answers nor closes the connection",
                   "an error, or the end of the connection");
  }
  talk.tell("the server reacts");
}

void bad_magic(Probe& probe) {
  Talk talk = probe.start();
  std::vector<std::byte> bytes = request_bytes(probe, small_read(probe));
  store_be<uint32_t>(bytes.data(), 0x12345678);
  talk.send(bytes, "a READ with the magic 12345678");
  must_notice(talk, probe);
  talk.raw().close();
  probe.serves_others();
}

void unknown_command(Probe& probe) {
  Talk talk = probe.start();
  for (const uint16_t type : {uint16_t{0x63}, uint16_t{0xffff}}) {
    probe.refuses(talk, {.type = type, .offset = 0, .length = probe.block()}, {},
                  {.success = State::kWarned, .loss = State::kFailed});
  }
}

void resize(Probe& probe) {
  if (probe.has(nbd::kSendResize)) skip("the server advertises NBD_FLAG_SEND_RESIZE");
  Talk talk = probe.start();
  probe.refuses(talk, {.type = nbd::kCmdResize, .offset = probe.size(), .length = 0});
}

void unknown_flag(Probe& probe) {
  Talk talk = probe.start();
  Request request = small_read(probe);
  request.flags = 1 << 14;
  probe.refuses(talk, request);
  if (probe.has(nbd::kSendFlush)) {
    probe.refuses(talk, {.flags = 1 << 14, .type = nbd::kCmdFlush});
  }
}

void unknown_flag_on_write(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t offset = probe.room().offset;
  const uint64_t length = probe.block();
  const auto before = probe.read(talk, {offset, length});
  probe.refuses(talk,
                {.flags = static_cast<uint16_t>(probe.write_flags() | 1 << 14),
                 .type = nbd::kCmdWrite,
                 .offset = offset,
                 .length = length},
                pattern(length, 11));
  if (probe.read(talk, {offset, length}) != before) {
    broken("data-changed", "a refused WRITE has changed the export", "what was there before");
  }
}

void df_on_write(Probe& probe) {
  Talk talk = probe.start();
  probe.refuses(talk,
                {.flags = static_cast<uint16_t>(probe.write_flags() | nbd::kFlagDf),
                 .type = nbd::kCmdWrite,
                 .offset = probe.room().offset,
                 .length = probe.block()},
                pattern(probe.block(), 12));
}

void misplaced_flags(Probe& probe) {
  Talk talk = probe.start();
  for (const uint16_t flag : {nbd::kFlagNoHole, nbd::kFlagReqOne, nbd::kFlagFastZero}) {
    Request request = small_read(probe);
    request.flags = flag;
    probe.refuses(talk, request);
  }
}

void df_unadvertised(Probe& probe) {
  Talk talk = probe.start();
  Request request = small_read(probe);
  request.flags = nbd::kFlagDf;
  probe.refuses(talk, request);
}

void cache_flags(Probe& probe) {
  Talk talk = probe.start();
  probe.refuses(talk,
                {.flags = 1 << 14, .type = nbd::kCmdCache, .offset = 0, .length = probe.block()},
                {}, {.success = State::kFailed});
}

void fua_tolerated(Probe& probe) {
  Talk talk = probe.start();
  const auto accepts = [&](uint16_t type, uint64_t length) {
    probe.succeeds(talk, {.flags = nbd::kFlagFua, .type = type, .offset = 0, .length = length});
  };
  accepts(nbd::kCmdRead, probe.block());
  if (probe.has(nbd::kSendFlush)) accepts(nbd::kCmdFlush, 0);
  if (!talk.terms().contexts.empty()) accepts(nbd::kCmdBlockStatus, probe.block());
}

void cookies(Probe& probe) {
  Talk talk = probe.start();
  for (const uint64_t cookie : {uint64_t{0}, uint64_t{1}, ~uint64_t{0},
                                uint64_t{0x0123456789abcdef}, uint64_t{0}, uint64_t{0}}) {
    Request request = small_read(probe);
    request.cookie = cookie;
    if (!talk.exchange(request).ok()) broken("refused", "a READ fails", "the data");
  }
}

void byte_by_byte(Probe& probe) {
  Talk talk = probe.start();
  const auto expected = probe.read(talk, {0, probe.block()});
  Request request = small_read(probe);
  request.cookie = talk.next_cookie();
  const std::vector<std::byte> bytes = request_bytes(probe, request);
  talk.tell("sends a READ, each byte alone");
  for (const std::byte& byte : bytes) (void)talk.raw().send({&byte, 1});
  talk.expect(request);
  const Answer answer = talk.next_answer();
  if (!answer.ok() || answer.data != expected)
    broken("wrong-data", "the READ fails, or differs", "the same data");
}

void flush(Probe& probe) {
  Talk talk = probe.start();
  probe.succeeds(talk, {.type = nbd::kCmdFlush});
}

void flush_with_range(Probe& probe) {
  Talk talk = probe.start();
  probe.survives(talk, {.type = nbd::kCmdFlush, .offset = 0, .length = probe.block()});
  probe.survives(talk, {.type = nbd::kCmdFlush, .offset = probe.block(), .length = 0});
}

void written_is_read(Probe& probe, uint16_t flags) {
  Talk talk = probe.start();
  const Range room = probe.room();
  const auto data = pattern(room.length, 21 + flags);
  probe.write(talk, room.offset, data, flags);
  if (probe.read(talk, room) != data) {
    broken("wrong-data", "a READ gives other bytes than the WRITE before it", "what was written");
  }
}

void write_read(Probe& probe) {
  written_is_read(probe, 0);
}
void write_fua(Probe& probe) {
  written_is_read(probe, nbd::kFlagFua);
}

void zeroed(Probe& probe, uint16_t flags, bool may_be_slow) {
  Talk talk = probe.start();
  const Range room = probe.room();
  const auto data = pattern(room.length, 31 + flags);
  probe.write(talk, room.offset, data);
  const Request request{.flags = flags,
                        .type = nbd::kCmdWriteZeroes,
                        .cookie = talk.next_cookie(),
                        .offset = room.offset,
                        .length = room.length};
  const Answer answer = talk.exchange(request);
  const auto after = probe.read(talk, room);
  if (may_be_slow && answer.error == nbd::kEnotsup) {
    if (after != data) {
      against_advice("data-changed", "a fast WRITE_ZEROES that failed has changed the export",
                     "what was there before");
    }
    return;
  }
  if (!answer.ok()) {
    broken("refused",
           fmt::format("{} fails with {}", describe(request), nbd::error_name(answer.error)),
           may_be_slow ? "success, or NBD_ENOTSUP" : "success");
  }
  if (std::ranges::any_of(after, [](std::byte b) { return b != std::byte{0}; })) {
    broken("wrong-data", "bytes after a WRITE_ZEROES are not zero", "zeroes");
  }
}

void zeroes(Probe& probe) {
  zeroed(probe, 0, false);
}
void zeroes_no_hole(Probe& probe) {
  zeroed(probe, nbd::kFlagNoHole, false);
}
void zeroes_fua(Probe& probe) {
  zeroed(probe, nbd::kFlagFua, false);
}
void zeroes_fast(Probe& probe) {
  zeroed(probe, nbd::kFlagFastZero, true);
}

void fast_unadvertised(Probe& probe) {
  Talk talk = probe.start();
  const Range room = probe.room();
  probe.refuses(talk, {.flags = nbd::kFlagFastZero,
                       .type = nbd::kCmdWriteZeroes,
                       .offset = room.offset,
                       .length = probe.block()});
}

void trim(Probe& probe) {
  Talk talk = probe.start();
  const Range room = probe.room();
  probe.succeeds(talk, {.type = nbd::kCmdTrim, .offset = room.offset, .length = room.length});
  const auto data = pattern(room.length, 41);
  probe.write(talk, room.offset, data);
  if (probe.read(talk, room) != data) {
    broken("wrong-data", "a WRITE after a TRIM is not read back", "what was written");
  }
}

void cache(Probe& probe) {
  Talk talk = probe.start();
  const auto before = probe.read(talk, {0, probe.block()});
  probe.survives(talk, {.type = nbd::kCmdCache, .offset = 0, .length = probe.block()});
  if (probe.read(talk, {0, probe.block()}) != before) {
    broken("data-changed", "CACHE has changed the export", "what was there before");
  }
}

void no_status(Probe& probe) {
  Talk talk = probe.start(false);
  probe.refuses(talk, {.type = nbd::kCmdBlockStatus, .offset = 0, .length = probe.block()}, {},
                {.success = State::kFailed});
}

constexpr In kAll = In::kEveryMode;
constexpr std::string_view kErrors = "SHOULD, NBD protocol: Error values";

constexpr std::array kChecks = {
    Check{.name = "transmission.bad-magic",
          .title = "a request with a wrong magic is refused, or ends the connection",
          .basis = "MAY, NBD protocol: Terminating the transmission phase",
          .in = kAll,
          .run = bad_magic},
    Check{.name = "transmission.unknown-command",
          .title = "an unknown command is EINVAL, and the connection goes on",
          .basis = kErrors,
          .in = kAll,
          .run = unknown_command},
    Check{.name = "transmission.resize",
          .title = "RESIZE, unless advertised, is as unknown as any other command",
          .basis = kErrors,
          .in = kAll,
          .run = resize},
    Check{.name = "transmission.unknown-flag",
          .title = "an unknown flag is EINVAL",
          .basis = kErrors,
          .in = kAll,
          .run = unknown_flag},
    Check{.name = "transmission.unknown-flag-on-write",
          .title = "a WRITE with an unknown flag is EINVAL, its payload is skipped",
          .basis = kErrors,
          .in = kAll,
          .needs = kWrites,
          .run = unknown_flag_on_write},
    Check{.name = "transmission.df-on-write",
          .title = "a WRITE with DF is EINVAL",
          .basis = kErrors,
          .in = kAll,
          .needs = kWrites,
          .run = df_on_write},
    Check{.name = "transmission.misplaced-flag",
          .title = "a READ with a flag of another command is EINVAL",
          .basis = kErrors,
          .in = kAll,
          .run = misplaced_flags},
    Check{.name = "transmission.df-unadvertised",
          .title = "a READ with DF, where that is not advertised, is EINVAL",
          .basis = kErrors,
          .in = kAll,
          .needs = kNoDf,
          .run = df_unadvertised},
    Check{.name = "transmission.cache-flags",
          .title = "CACHE refuses unknown flags",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_CACHE)",
          .in = kAll,
          .needs = kCache,
          .run = cache_flags},
    Check{.name = "transmission.fua-tolerated",
          .title = "FUA is accepted on commands that write nothing",
          .basis = "MUST, NBD protocol: Command flags",
          .in = kAll,
          .needs = kFua,
          .run = fua_tolerated},
    Check{.name = "transmission.cookies",
          .title = "every cookie is echoed, 0 as well, and may be used again",
          .basis = "MUST, NBD protocol: Transmission",
          .in = kAll,
          .run = cookies},
    Check{.name = "transmission.byte-by-byte",
          .title = "a request may arrive in any pieces",
          .basis = "MUST, NBD protocol: Request message",
          .in = kAll,
          .run = byte_by_byte},
    Check{.name = "transmission.flush",
          .title = "FLUSH succeeds",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_FLUSH)",
          .in = kAll,
          .needs = kFlush,
          .run = flush},
    Check{.name = "transmission.flush-with-range",
          .title = "FLUSH with an offset or a length is answered",
          .basis = "MAY, NBD protocol: Request types (NBD_CMD_FLUSH)",
          .in = kAll,
          .needs = kFlush,
          .run = flush_with_range},
    Check{.name = "transmission.write",
          .title = "what was written is read back",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_WRITE)",
          .in = kAll,
          .needs = kWrites,
          .run = write_read},
    Check{.name = "transmission.write-fua",
          .title = "what was written with FUA is read back",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_WRITE)",
          .in = kAll,
          .needs = kWrites | kFua,
          .run = write_fua},
    Check{.name = "transmission.zeroes",
          .title = "WRITE_ZEROES gives zeroes",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_WRITE_ZEROES)",
          .in = kAll,
          .needs = kWrites | kZeroes,
          .run = zeroes},
    Check{.name = "transmission.zeroes-no-hole",
          .title = "WRITE_ZEROES takes NO_HOLE",
          .basis = "MUST, NBD protocol: Command flags",
          .in = kAll,
          .needs = kWrites | kZeroes,
          .run = zeroes_no_hole},
    Check{.name = "transmission.zeroes-fua",
          .title = "WRITE_ZEROES takes FUA",
          .basis = "MUST, NBD protocol: Command flags",
          .in = kAll,
          .needs = kWrites | kZeroes | kFua,
          .run = zeroes_fua},
    Check{.name = "transmission.zeroes-fast",
          .title = "WRITE_ZEROES with FAST_ZERO succeeds, or is ENOTSUP without a change",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_WRITE_ZEROES)",
          .in = kAll,
          .needs = kWrites | kZeroes | kFastZero,
          .run = zeroes_fast},
    Check{.name = "transmission.zeroes-fast-unadvertised",
          .title = "FAST_ZERO, where that is not advertised, is EINVAL",
          .basis = "SHOULD, NBD protocol: Request types (NBD_CMD_WRITE_ZEROES)",
          .in = kAll,
          .needs = kWrites | kZeroes | kNoFastZero,
          .run = fast_unadvertised},
    Check{.name = "transmission.trim",
          .title = "TRIM succeeds, and what is written afterwards is read back",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_TRIM)",
          .in = kAll,
          .needs = kWrites | kTrim,
          .run = trim},
    Check{.name = "transmission.cache",
          .title = "CACHE changes nothing",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_CACHE)",
          .in = kAll,
          .needs = kCache,
          .run = cache},
    Check{.name = "transmission.status-without-context",
          .title = "BLOCK_STATUS without a selected context is EINVAL",
          .basis = "SHOULD, NBD protocol: Metadata querying",
          .in = kAll,
          .run = no_status},
};

}  // namespace

std::span<const Check> request_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
