// SPDX-License-Identifier: BSD-3-Clause
// A history: what a load did to a disk and what it saw, as the checker wants it.
//
// The disk's tested part is divided into cells, each a register that is judged alone. An operation
// covers whole cells (or none: a flush). Every write has a tag of its own, and fills each of its
// cells with bytes that tell the tag; so a read tells which write each cell's bytes come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft::check {

enum class Kind : uint8_t { kRead, kWrite, kZero, kTrim, kCache, kFlush, kStatus };

[[nodiscard]] std::string_view kind_name(Kind kind);  // "read", "write", "zero", ...
[[nodiscard]] constexpr bool changes(Kind kind) {
  return kind == Kind::kWrite || kind == Kind::kZero || kind == Kind::kTrim;
}

using Tag = uint32_t;
inline constexpr Tag kZeroTag = 0;                                        // bytes that are zero
inline constexpr Tag kGarbageTag = std::numeric_limits<Tag>::max();       // nobody wrote them
inline constexpr Tag kTagMax = std::numeric_limits<Tag>::max() - 1;       // of a write: 1 to this
inline constexpr uint64_t kNever = std::numeric_limits<uint64_t>::max();  // a reply that never came

// As an operation's error: its connection was cut and it was given up, at the time of its reply.
inline constexpr uint32_t kGivenUp = std::numeric_limits<uint32_t>::max();

// Which bytes of a cell were seen to be of a tag. Bytes are registers of their own: a cell that two
// overlapping writes have torn is legal, and its halves are judged apart.
enum class Part : uint8_t {
  kWhole,   // all of the cell
  kHead,    // its first byte among others, but not its last
  kTail,    // its last byte among others, but not its first
  kMiddle,  // neither
};

struct Observation {
  uint32_t cell = 0;
  Tag tag = kZeroTag;
  Part part = Part::kWhole;
  friend bool operator==(const Observation&, const Observation&) = default;
};

struct Operation {
  uint64_t send_ns = 0;        // CLOCK_MONOTONIC, before the first byte was sent
  uint64_t reply_ns = kNever;  // after the reply's last byte had come; kNever: no reply came
  uint32_t connection = 0;     // one that was dialled again has a number of its own
  uint32_t cell = 0;           // the first
  uint32_t cells = 0;          // how many; 0 for a flush
  uint32_t error = 0;          // NBD's; 0: success. Means nothing without a reply
  Tag tag = kZeroTag;          // of a write: unique in the history
  Kind kind = Kind::kRead;
  bool fua = false;
  // Of a read that succeeded: what it saw, ascending by cell, at least one for each cell. Of a
  // kStatus: kZeroTag for each cell that was said to read as zeroes, nothing for the others.
  uint32_t seen = 0;  // the first, in History::observations
  uint32_t seen_count = 0;

  [[nodiscard]] bool replied() const { return reply_ns != kNever; }
  [[nodiscard]] bool succeeded() const { return replied() && error == 0; }
  [[nodiscard]] uint32_t cell_end() const { return cell + cells; }
};

// Where a cell lies, for people.
struct CellPlace {
  uint64_t offset = 0;  // bytes, in the export
  uint32_t length = 0;  // bytes
};

struct History {
  std::vector<Operation> operations;  // ascending by send_ns; an index is the operation's name
  std::vector<Observation> observations;
  std::vector<CellPlace> cells;
  std::vector<std::string> connection_names;  // for stories: "A", "B", "A2" (A dialled again)
  // The moments the server was stopped without warning and started again: no request that was sent
  // before a restart has an effect after it. Ascending; each operation was sent between two.
  std::vector<uint64_t> restarts_ns;

  [[nodiscard]] std::span<const Observation> seen(const Operation& operation) const {
    return std::span(observations).subspan(operation.seen, operation.seen_count);
  }
};

}  // namespace weft::check
