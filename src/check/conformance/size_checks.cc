// SPDX-License-Identifier: BSD-3-Clause
// Long requests: payloads around 32 MiB, and lengths that no payload follows.
#include <fmt/format.h>

#include <algorithm>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

using nbd::Request;

constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kPortable = 32 * kMiB;  // what every server should take

void need_export_of(Probe& probe, uint64_t length) {
  if (probe.size() < length) {
    skip(fmt::format("the export is smaller than {} MiB", (length + kMiB - 1) / kMiB));
  }
}

// Long transfers may take their time.
Talk start_patiently(Probe& probe) {
  Talk talk = probe.start();
  talk.raw().set_limit(probe.patience());
  return talk;
}

void read_32(Probe& probe) {
  need_export_of(probe, kPortable);
  Talk talk = start_patiently(probe);
  const Request request{
      .type = nbd::kCmdRead, .cookie = talk.next_cookie(), .offset = 0, .length = kPortable};
  const Answer answer = talk.exchange(request, {}, State::kWarned);
  if (!answer.ok() && probe.payload_max() >= kPortable) {
    against_advice("refused",
                   fmt::format("a READ of 32 MiB fails with {}", nbd::error_name(answer.error)),
                   "the data: up to 32 MiB is no attack, and the advertised limit allows it");
  }
  probe.in_step(talk);
}

// After a request that the server may take for an attack.
void in_step_or_ended(Probe& probe, Talk& talk) {
  const Answer answer = talk.try_exchange(
      {.type = nbd::kCmdRead, .cookie = talk.next_cookie(), .offset = 0, .length = probe.block()});
  if (answer.got == Got::kSilence || (answer.got == Got::kAll && !answer.ok())) {
    broken("out-of-step", "an ordinary READ is then not answered with its data",
           "the data, or the end of the connection");
  }
}

// More than that: any answer, and in step.
void read_more(Probe& probe) {
  for (const uint64_t more : {uint64_t{1}, uint64_t{512}}) {
    const uint64_t length = kPortable + std::max<uint64_t>(more, probe.block_min());
    need_export_of(probe, length);
    Talk talk = start_patiently(probe);
    (void)talk.request(
        {.type = nbd::kCmdRead, .cookie = talk.next_cookie(), .offset = 0, .length = length});
    const Answer answer = talk.try_next_answer();
    if (answer.got == Got::kSilence) {
      broken("no-answer", fmt::format("a READ of {} bytes is not answered", length),
             "the data, an error, or the end of the connection");
    }
    if (answer.got == Got::kAll) in_step_or_ended(probe, talk);
  }
  probe.serves_others();
}

// What is there already, so that nothing changes; returns the answer.
Answer rewrite(Probe& probe, Talk& talk, uint64_t length) {
  const std::vector<std::byte> content = probe.read(talk, {0, length});
  return talk.try_exchange({.flags = probe.write_flags(),
                            .type = nbd::kCmdWrite,
                            .cookie = talk.next_cookie(),
                            .offset = 0,
                            .length = length},
                           content);
}

void need_permission(Probe& probe, uint64_t length) {
  need_export_of(probe, length);
  if (!probe.may_change({0, length})) skip("--range does not allow the first 32 MiB");
}

void write_32(Probe& probe) {
  need_permission(probe, kPortable);
  Talk talk = start_patiently(probe);
  const Answer answer = rewrite(probe, talk, kPortable);
  if (answer.got != Got::kAll) {
    against_advice("disconnected", "a WRITE of 32 MiB ends the connection",
                   "a reply: up to 32 MiB is no attack");
  }
  if (!answer.ok() && probe.payload_max() >= kPortable) {
    against_advice("refused",
                   fmt::format("a WRITE of 32 MiB fails with {}", nbd::error_name(answer.error)),
                   "success: the advertised limit allows it");
  }
  probe.in_step(talk);
}

void write_more(Probe& probe) {
  const uint64_t length = kPortable + std::max<uint64_t>(512, probe.block_min());
  need_permission(probe, length);
  Talk talk = start_patiently(probe);
  const Answer answer = rewrite(probe, talk, length);
  if (answer.got == Got::kSilence) {
    broken("no-answer", "a WRITE above 32 MiB is not answered",
           "a reply, or the end of the connection");
  }
  if (answer.got == Got::kAll) in_step_or_ended(probe, talk);
  talk.raw().close();
  probe.serves_others();
}

// Commands whose length is no payload's, beyond any limit: at the export's start if that is
// long enough (or the command harmless), otherwise past its end.
void long_command(Probe& probe, uint16_t type, bool changes) {
  const uint64_t lengths[] = {48 * kMiB, 0xfffff000 / probe.block_min() * probe.block_min()};
  Talk talk = start_patiently(probe);
  for (const uint64_t length : lengths) {
    const bool inside = length == lengths[0] && probe.size() >= length &&
                        (!changes || probe.may_change({0, length}));
    const uint64_t offset =
        inside ? 0 : (probe.size() + probe.block_min() - 1) / probe.block_min() * probe.block_min();
    probe.survives(talk, {.type = type, .offset = offset, .length = length});
  }
}

void long_zeroes(Probe& probe) {
  long_command(probe, nbd::kCmdWriteZeroes, true);
}
void long_trim(Probe& probe) {
  long_command(probe, nbd::kCmdTrim, true);
}
void long_cache(Probe& probe) {
  long_command(probe, nbd::kCmdCache, false);
}
void long_status(Probe& probe) {
  long_command(probe, nbd::kCmdBlockStatus, false);
}

constexpr In kAll = In::kEveryMode;
constexpr std::string_view kBasis = "SHOULD, NBD protocol: Block size constraints";
constexpr std::string_view kFree = "MAY, NBD protocol: Block size constraints";

constexpr std::array kChecks = {
    Check{.name = "transmission.read-32mib",
          .title = "a READ of 32 MiB is served",
          .basis = kBasis,
          .in = kAll,
          .run = read_32},
    Check{.name = "transmission.read-above-32mib",
          .title = "a longer READ is answered, or ends the connection",
          .basis = kFree,
          .in = kAll,
          .run = read_more},
    Check{.name = "transmission.write-32mib",
          .title = "a WRITE of 32 MiB is served",
          .basis = kBasis,
          .in = kAll,
          .needs = kWrites,
          .run = write_32},
    Check{.name = "transmission.write-above-32mib",
          .title = "a longer WRITE is answered, or ends the connection",
          .basis = kFree,
          .in = kAll,
          .needs = kWrites,
          .run = write_more},
    Check{.name = "transmission.zeroes-long",
          .title = "a WRITE_ZEROES above every limit does not end the connection",
          .basis = kBasis,
          .in = kAll,
          .needs = kWrites | kZeroes,
          .run = long_zeroes},
    Check{.name = "transmission.trim-long",
          .title = "a TRIM above every limit does not end the connection",
          .basis = kBasis,
          .in = kAll,
          .needs = kWrites | kTrim,
          .run = long_trim},
    Check{.name = "transmission.cache-long",
          .title = "a CACHE above every limit does not end the connection",
          .basis = kBasis,
          .in = kAll,
          .needs = kCache,
          .run = long_cache},
    Check{.name = "transmission.status-long",
          .title = "a BLOCK_STATUS above every limit does not end the connection",
          .basis = kBasis,
          .in = In::kChunkModes,
          .needs = kContext,
          .run = long_status},
};

}  // namespace

std::span<const Check> size_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
