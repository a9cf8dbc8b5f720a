// SPDX-License-Identifier: BSD-3-Clause
// Requests past the end, on read-only exports, unaligned, of length 0.
#include <fmt/format.h>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

using nbd::Request;

constexpr uint64_t kTop = ~uint64_t{0};

// Ranges that are not inside of the export, all aligned to the smallest block.
std::vector<Range> outside(Probe& probe) {
  const uint64_t block = probe.block();
  const uint64_t end = probe.size() / probe.block_min() * probe.block_min();
  const uint64_t beyond =
      (probe.size() + probe.block_min() - 1) / probe.block_min() * probe.block_min();
  std::vector<Range> ranges = {{beyond, block},
                               {end - block, 2 * block},
                               {uint64_t{1} << 62, block},
                               {uint64_t{1} << 63, block},
                               {kTop - block + 1, block},       // ends at 2^64, which is 0
                               {kTop - block + 1, 2 * block}};  // wraps
  std::erase_if(ranges, [&](const Range& range) { return range.within(probe.size()); });
  return ranges;
}

void past_end(Probe& probe, uint16_t type, State success) {
  Talk talk = probe.start();
  for (const Range& range : outside(probe)) {
    probe.refuses(talk, {.type = type, .offset = range.offset, .length = range.length}, {},
                  {.success = success});
  }
}

void read_past_end(Probe& probe) {
  past_end(probe, nbd::kCmdRead, State::kFailed);
}
void cache_past_end(Probe& probe) {
  past_end(probe, nbd::kCmdCache, State::kWarned);
}
void status_past_end(Probe& probe) {
  past_end(probe, nbd::kCmdBlockStatus, State::kWarned);
}

// A command that would change something: whatever the answer, the last block keeps its content.
void change_past_end(Probe& probe, uint16_t type, uint32_t error, State success) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const Range last{probe.size() / probe.block_min() * probe.block_min() - block, block};
  const bool write = type == nbd::kCmdWrite;
  const std::vector<std::byte> before = probe.read(talk, last);
  for (const Range& range : outside(probe)) {
    if (range.overlaps(last) && !probe.may_change(last)) continue;
    probe.refuses(talk,
                  {.flags = write ? probe.write_flags() : uint16_t{0},
                   .type = type,
                   .offset = range.offset,
                   .length = range.length},
                  write ? pattern(range.length, range.offset) : std::vector<std::byte>{},
                  {.error = error,
                   .success = success,
                   .advice = error == nbd::kEnospc
                                 ? "The specification wants ENOSPC here, as for a full disk, and "
                                   "EINVAL for commands that do not need room."
                                 : ""});
  }
  if (probe.read(talk, last) != before) {
    broken("data-changed", "a refused command has changed the export's last block",
           "what was there before");
  }
}

void write_past_end(Probe& probe) {
  change_past_end(probe, nbd::kCmdWrite, nbd::kEnospc, State::kFailed);
}
void zeroes_past_end(Probe& probe) {
  change_past_end(probe, nbd::kCmdWriteZeroes, nbd::kEnospc, State::kFailed);
}
void trim_past_end(Probe& probe) {
  change_past_end(probe, nbd::kCmdTrim, nbd::kEinval, State::kWarned);
}

void on_read_only(Probe& probe, uint16_t type) {
  Talk talk = probe.start();
  const uint64_t block = probe.block();
  const bool write = type == nbd::kCmdWrite;
  // What is there already: a server that obeys by mistake does no harm.
  const std::vector<std::byte> content = probe.read(talk, {0, block});
  probe.refuses(talk,
                {.flags = write ? probe.write_flags() : uint16_t{0},
                 .type = type,
                 .offset = 0,
                 .length = block},
                write ? content : std::vector<std::byte>{},
                {.error = nbd::kEperm, .success = State::kFailed});
  if (probe.read(talk, {0, block}) != content) {
    broken("data-changed", "a read-only export has changed", "what was there before");
  }
}

void write_read_only(Probe& probe) {
  on_read_only(probe, nbd::kCmdWrite);
}
void harmful_on_read_only(Probe& probe, uint16_t type) {
  if (!probe.run().options.destroy && probe.run().disk == nullptr) {
    skip("a server that obeys by mistake would do harm: --destroy allows that");
  }
  on_read_only(probe, type);
}
void zeroes_read_only(Probe& probe) {
  harmful_on_read_only(probe, nbd::kCmdWriteZeroes);
}
void trim_read_only(Probe& probe) {
  harmful_on_read_only(probe, nbd::kCmdTrim);
}

void unaligned(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t block = probe.block_min();
  if (probe.size() < 2 * block) skip("the export is too small");
  probe.refuses(talk, {.type = nbd::kCmdRead, .offset = block / 2, .length = block});
  probe.refuses(talk, {.type = nbd::kCmdRead, .offset = 0, .length = block / 2});
}

void unaligned_write(Probe& probe) {
  Talk talk = probe.start();
  const uint64_t block = probe.block_min();
  const Range room{probe.room().offset, 2 * block};
  if (probe.room().length < room.length) skip("there is no room for two blocks");
  const auto before = probe.read(talk, room);
  probe.refuses(talk,
                {.flags = probe.write_flags(),
                 .type = nbd::kCmdWrite,
                 .offset = room.offset + block / 2,
                 .length = block},
                pattern(block, 51));
  if (probe.read(talk, room) != before) {
    broken("data-changed", "a refused WRITE has changed the export", "what was there before");
  }
}

void length_zero(Probe& probe, uint16_t type, uint16_t flags) {
  Talk talk = probe.start();
  probe.survives(talk, {.flags = flags, .type = type, .offset = 0, .length = 0});
}

void zero_read(Probe& probe) {
  length_zero(probe, nbd::kCmdRead, 0);
}
void zero_write(Probe& probe) {
  length_zero(probe, nbd::kCmdWrite, probe.write_flags());
}
void zero_trim(Probe& probe) {
  length_zero(probe, nbd::kCmdTrim, 0);
}
void zero_zeroes(Probe& probe) {
  length_zero(probe, nbd::kCmdWriteZeroes, 0);
}
void zero_cache(Probe& probe) {
  length_zero(probe, nbd::kCmdCache, 0);
}
void zero_status(Probe& probe) {
  length_zero(probe, nbd::kCmdBlockStatus, 0);
}

constexpr In kAll = In::kEveryMode;
constexpr std::string_view kErrors = "SHOULD, NBD protocol: Error values";
constexpr std::string_view kRequests = "SHOULD, NBD protocol: Request types";

constexpr std::array kChecks = {
    Check{.name = "transmission.read-past-end",
          .title = "a READ past the end is EINVAL, also where the sum wraps",
          .basis = kErrors,
          .in = kAll,
          .run = read_past_end},
    Check{.name = "transmission.write-past-end",
          .title = "a WRITE past the end is ENOSPC, and changes nothing",
          .basis = kErrors,
          .in = kAll,
          .needs = kWrites,
          .run = write_past_end},
    Check{.name = "transmission.zeroes-past-end",
          .title = "a WRITE_ZEROES past the end is ENOSPC, and changes nothing",
          .basis = "SHOULD, NBD protocol: Request types (NBD_CMD_WRITE_ZEROES)",
          .in = kAll,
          .needs = kWrites | kZeroes,
          .run = zeroes_past_end},
    Check{.name = "transmission.trim-past-end",
          .title = "a TRIM past the end is EINVAL, and changes nothing",
          .basis = kErrors,
          .in = kAll,
          .needs = kWrites | kTrim,
          .run = trim_past_end},
    Check{.name = "transmission.cache-past-end",
          .title = "a CACHE past the end is EINVAL",
          .basis = "recommendation: as READ, NBD protocol: Error values",
          .in = kAll,
          .needs = kCache,
          .run = cache_past_end},
    Check{.name = "transmission.status-past-end",
          .title = "a BLOCK_STATUS past the end is EINVAL",
          .basis = "SHOULD, NBD protocol: Request types (NBD_CMD_BLOCK_STATUS)",
          .in = In::kChunkModes,
          .needs = kContext,
          .run = status_past_end},
    Check{.name = "transmission.write-read-only",
          .title = "a WRITE on a read-only export fails, with EPERM",
          .basis = "MUST, NBD protocol: Transmission flags; Error values",
          .in = kAll,
          .needs = kReadOnlyExport,
          .run = write_read_only},
    Check{.name = "transmission.zeroes-read-only",
          .title = "a WRITE_ZEROES on a read-only export fails, with EPERM",
          .basis = "MUST, NBD protocol: Transmission flags; Error values",
          .in = kAll,
          .needs = kReadOnlyExport | kZeroes,
          .run = zeroes_read_only},
    Check{.name = "transmission.trim-read-only",
          .title = "a TRIM on a read-only export fails, with EPERM",
          .basis = "MUST, NBD protocol: Transmission flags; Error values",
          .in = kAll,
          .needs = kReadOnlyExport | kTrim,
          .run = trim_read_only},
    Check{.name = "transmission.read-unaligned",
          .title = "a READ that is not aligned to the smallest block is EINVAL",
          .basis = "SHOULD, NBD protocol: Block size constraints",
          .in = kAll,
          .needs = kMinimum,
          .run = unaligned},
    Check{.name = "transmission.write-unaligned",
          .title = "a WRITE that is not aligned is EINVAL, and changes nothing",
          .basis = "SHOULD, NBD protocol: Block size constraints",
          .in = kAll,
          .needs = kMinimum | kWrites,
          .run = unaligned_write},
    Check{.name = "transmission.read-nothing",
          .title = "a READ of length 0 does not end the connection",
          .basis = kRequests,
          .in = kAll,
          .run = zero_read},
    Check{.name = "transmission.write-nothing",
          .title = "a WRITE of length 0 does not end the connection",
          .basis = kRequests,
          .in = kAll,
          .needs = kWrites,
          .run = zero_write},
    Check{.name = "transmission.trim-nothing",
          .title = "a TRIM of length 0 does not end the connection",
          .basis = kRequests,
          .in = kAll,
          .needs = kWrites | kTrim,
          .run = zero_trim},
    Check{.name = "transmission.zeroes-nothing",
          .title = "a WRITE_ZEROES of length 0 does not end the connection",
          .basis = kRequests,
          .in = kAll,
          .needs = kWrites | kZeroes,
          .run = zero_zeroes},
    Check{.name = "transmission.cache-nothing",
          .title = "a CACHE of length 0 does not end the connection",
          .basis = kRequests,
          .in = kAll,
          .needs = kCache,
          .run = zero_cache},
    Check{.name = "transmission.status-nothing",
          .title = "a BLOCK_STATUS of length 0 does not end the connection",
          .basis = kRequests,
          .in = In::kChunkModes,
          .needs = kContext,
          .run = zero_status},
};

}  // namespace

std::span<const Check> bounds_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
