// SPDX-License-Identifier: BSD-3-Clause
// BLOCK_STATUS of base:allocation.
#include <fmt/format.h>

#include <algorithm>

#include "base/extents.h"
#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

constexpr uint64_t kStateBits = 3;  // NBD_STATE_HOLE, NBD_STATE_ZERO

// The extents of the answer, which has to be one chunk for the one context.
std::vector<nbd::StatusExtent> status_of(Probe& probe, Talk& talk, Range range, uint16_t flags) {
  if (talk.terms().contexts.empty())
    broken("not-constant", "base:allocation is refused", "it as before");
  const Answer answer = probe.succeeds(talk, {.flags = flags,
                                              .type = nbd::kCmdBlockStatus,
                                              .offset = range.offset,
                                              .length = range.length});
  if (answer.status.size() != 1) {
    broken("malformed-reply", fmt::format("{} status chunks for one context", answer.status.size()),
           "exactly one");
  }
  if (answer.status[0].context_id != talk.terms().contexts[0]) {
    broken("malformed-reply", fmt::format("a status of context {}", answer.status[0].context_id),
           fmt::format("of context {}, which was selected", talk.terms().contexts[0]));
  }
  const auto& extents = answer.status[0].extents;
  uint64_t sum = 0;
  for (size_t i = 0; i < extents.size(); ++i) {
    if (i > 0 && sum >= range.length) {
      broken("malformed-reply",
             fmt::format("extents go on after {} bytes, of {}", sum, range.length),
             "only the last extent may pass the end of the request");
    }
    sum += extents[i].length;
    if (extents[i].length % probe.block_min() != 0 && range.offset + sum != probe.size()) {
      broken("malformed-reply", fmt::format("an extent of {} bytes", extents[i].length),
             fmt::format("multiples of the smallest block, {}", probe.block_min()));
    }
  }
  if (sum > probe.size() - range.offset) {
    broken("malformed-reply",
           fmt::format("extents of {} bytes from {} on, past the export's end", sum, range.offset),
           "the status of bytes that exist");
  }
  if (std::ranges::any_of(extents, [](const auto& e) { return e.flags & ~kStateBits; })) {
    against_advice("wrong-status", "reserved bits of base:allocation are set", "zeroes there");
  }
  return extents;
}

uint64_t at_most(Probe& probe, uint64_t length) {
  return std::min(length, probe.size()) / probe.block_min() * probe.block_min();
}

void form(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t all = at_most(probe, 0x40000000);
  for (const Range& range :
       {Range{0, probe.block()}, Range{0, all}, Range{all - probe.block(), probe.block()}}) {
    (void)status_of(probe, talk, range, 0);
  }
}

void req_one(Probe& probe) {
  Talk talk = probe.start();
  for (const uint64_t length : {probe.block(), at_most(probe, 0x40000000)}) {
    const auto extents = status_of(probe, talk, {0, length}, nbd::kFlagReqOne);
    if (extents.size() != 1 || extents[0].length > length) {
      broken("malformed-reply",
             fmt::format("with REQ_ONE, {} extents, the first of {} bytes", extents.size(),
                         extents[0].length),
             fmt::format("one extent of at most {} bytes", length));
    }
  }
}

// The whole export (a bounded part of it) can be walked, and what is said to be zero is.
void truth(Probe& probe) {
  Talk talk = probe.start();
  if (probe.lacks(kWrites).empty()) {
    probe.write(talk, probe.room().offset, pattern(probe.room().length, 91));
  }
  const uint64_t end = at_most(probe, 8u << 20);
  uint64_t at = 0;
  const auto stop = std::chrono::steady_clock::now() + kManyStepsMax;
  while (at < end && std::chrono::steady_clock::now() < stop) {
    for (const nbd::StatusExtent& extent : status_of(probe, talk, {at, end - at}, 0)) {
      const uint64_t length = std::min(extent.length, end - std::min(at, end));
      if (extent.flags & kExtentZero && length > 0) {
        const auto data = probe.read(talk, {at, length});
        if (std::ranges::any_of(data, [](std::byte b) { return b != std::byte{0}; })) {
          broken("false-zero",
                 fmt::format("{} bytes at {} are said to be zero and are not", length, at),
                 "NBD_STATE_ZERO only where zeroes are read");
        }
      }
      at += extent.length;
    }
  }
}

constexpr std::string_view kBasis =
    "MUST, NBD protocol: Structured reply types (NBD_REPLY_TYPE_BLOCK_STATUS)";

constexpr std::array kChecks = {
    Check{.name = "status.form",
          .title = "BLOCK_STATUS gives one chunk, whose extents keep to the request",
          .basis = kBasis,
          .in = In::kChunkModes,
          .needs = kContext,
          .run = form},
    Check{.name = "status.req-one",
          .title = "with REQ_ONE there is one extent, not longer than the request",
          .basis = kBasis,
          .in = In::kChunkModes,
          .needs = kContext,
          .run = req_one},
    Check{.name = "status.truth",
          .title = "what is said to be zero reads as zeroes",
          .basis = "MUST, NBD protocol: base:allocation metadata context",
          .in = In::kChunkModes,
          .needs = kContext,
          .run = truth},
};

}  // namespace

std::span<const Check> status_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
