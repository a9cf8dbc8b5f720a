// SPDX-License-Identifier: BSD-3-Clause
// Structured and extended replies to READ. The form of every chunk is judged in Talk; here are the
// situations in which it matters.
#include <fmt/format.h>

#include <algorithm>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

uint64_t at_most(Probe& probe, uint64_t length) {
  return std::min({length, probe.size(), probe.payload_max()}) / probe.block_min() *
         probe.block_min();
}

// Holes and data side by side, where that can be made.
void mix(Probe& probe, Talk& talk) {
  if (!probe.lacks(kWrites).empty()) return;
  const Range room = probe.room();
  const uint64_t block = probe.block();
  probe.write(talk, room.offset, pattern(room.length, 81));
  if (!probe.has(nbd::kSendWriteZeroes)) return;
  for (uint64_t at = 0; at + block <= room.length; at += 3 * block) {
    probe.succeeds(talk,
                   {.type = nbd::kCmdWriteZeroes, .offset = room.offset + at, .length = block});
  }
}

void covered_once(Probe& probe) {
  Talk talk = probe.start();
  mix(probe, talk);
  for (const uint64_t length :
       {probe.block(), at_most(probe, 1u << 16), at_most(probe, 4u << 20)}) {
    (void)probe.read(talk, {0, length});
  }
  if (probe.lacks(kWrites).empty()) (void)probe.read(talk, probe.room());
}

void same_data(Probe& probe) {
  Talk talk = probe.start();
  mix(probe, talk);
  const Range range =
      probe.lacks(kWrites).empty() ? probe.room() : Range{0, at_most(probe, 1u << 16)};
  const auto chunks = probe.read(talk, range);
  (void)talk.request({.type = nbd::kCmdDisc, .cookie = talk.next_cookie()});
  talk.raw().close();
  const nbd::HeaderMode mode = probe.mode();
  probe.use_mode(nbd::HeaderMode::kSimple);
  Talk simple = probe.start();
  const auto plain = probe.read(simple, range);
  probe.use_mode(mode);
  if (plain != chunks) {
    broken("wrong-data", "a READ gives other bytes with simple replies than in chunks",
           "the same data");
  }
}

void df(Probe& probe) {
  Talk talk = probe.start();
  mix(probe, talk);
  const Range room = probe.lacks(kWrites).empty() ? probe.room() : Range{0, probe.size()};
  for (const uint64_t wanted : {probe.block(), uint64_t{nbd::kDfLengthMin}}) {
    const uint64_t length = std::min(wanted, room.length) / probe.block_min() * probe.block_min();
    const Answer answer = probe.succeeds(
        talk,
        {.flags = nbd::kFlagDf, .type = nbd::kCmdRead, .offset = room.offset, .length = length});
    if (answer.content_chunks > 1) {
      broken("malformed-reply",
             fmt::format("a READ with DF is answered in {} chunks", answer.content_chunks),
             "one content chunk");
    }
  }
}

void df_long(Probe& probe) {
  const uint64_t length = at_most(probe, 4u << 20);
  if (length <= nbd::kDfLengthMin) skip("the export is too small");
  Talk talk = probe.start();
  const Answer answer = talk.exchange({.flags = nbd::kFlagDf,
                                       .type = nbd::kCmdRead,
                                       .cookie = talk.next_cookie(),
                                       .offset = 0,
                                       .length = length});
  probe.in_step(talk);
  if (answer.content_chunks > (answer.ok() ? 1 : 0) && answer.error == nbd::kEoverflow) {
    broken("malformed-reply", "content beside NBD_EOVERFLOW", "the error alone");
  }
  if (answer.content_chunks > 1) {
    broken("malformed-reply",
           fmt::format("a READ with DF is answered in {} chunks", answer.content_chunks),
           "one content chunk, or NBD_EOVERFLOW");
  }
  if (!answer.ok() && answer.error != nbd::kEoverflow) {
    against_advice("wrong-error",
                   fmt::format("a long READ with DF fails with {}", nbd::error_name(answer.error)),
                   "the data, or NBD_EOVERFLOW");
  }
}

void read_error(Probe& probe) {
  Talk talk = probe.start();
  // A simple reply to it ends the check in Talk.
  const Answer answer = talk.exchange({.flags = 1 << 14,
                                       .type = nbd::kCmdRead,
                                       .cookie = talk.next_cookie(),
                                       .offset = 0,
                                       .length = probe.block()},
                                      {}, State::kWarned);
  if (answer.simple)
    broken("simple-reply-to-read", "an early error comes as a simple reply", "a chunk");
  probe.in_step(talk);
}

constexpr std::array kChecks = {
    Check{.name = "replies.cover",
          .title = "the chunks of a READ cover its range, each byte once",
          .basis = "MUST, NBD protocol: Structured reply types",
          .in = In::kChunkModes,
          .run = covered_once},
    Check{.name = "replies.same-data",
          .title = "chunks and simple replies give the same data",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_READ)",
          .in = In::kChunkModes,
          .run = same_data},
    Check{.name = "replies.df",
          .title = "a READ with DF of up to 64 KiB is served in one content chunk",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_READ)",
          .in = In::kChunkModes,
          .needs = kDf,
          .run = df},
    Check{.name = "replies.df-long",
          .title = "a longer READ with DF is served in one chunk, or is EOVERFLOW",
          .basis = "MUST, NBD protocol: Request types (NBD_CMD_READ)",
          .in = In::kChunkModes,
          .needs = kDf,
          .run = df_long},
    Check{.name = "replies.read-error",
          .title = "an early error of a READ comes as a chunk",
          .basis = "MUST, NBD protocol: Structured reply chunk message",
          .in = In::kChunkModes,
          .run = read_error},
};

}  // namespace

std::span<const Check> reply_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
