// SPDX-License-Identifier: BSD-3-Clause
// The checker: is a history one that a disk could have produced, at each level of the promise?
//
// Let a < b mean that a's reply came before b was sent. For a read R that saw version V of a cell:
//   V must not be from the future: not R < V.
//   V is stale for a write W of the same cell iff V < W. R must not see what is stale for any W in
//   its must-see set:
//     kOwn      writes acknowledged on R's own connection before R was sent
//     kFlushed  and those with FUA, and those followed by a flush (W < F < R) on any connection:
//               what NBD_FLAG_CAN_MULTI_CONN promises
//     kAtOnce   and all that were acknowledged, on any connection; and the history of every cell is
//               linearizable (Gibbons and Korach's zones)
// A trim makes a cell's content unknown until a later write; a write that overlaps it does not mend
// that. A write-class operation that failed may have happened, until its reply; one without a reply
// may happen at any time up to the next restart. What failed covers nothing and must be seen by
// nobody; a failed flush gives nothing and takes nothing away. A status that says zero is judged as
// a read that saw zeroes. What a cell held before its first write is not known: as long as a read's
// must-see set is empty it may see anything but the future.
//
// A zero is explained by any zero write that is not stale. Which one a read saw is known only when
// there is just one; a read with several explanations, and one that a trim leaves free, takes no
// part in the judgement of linearizability. So the checker is complete where every zero that was
// seen has one explanation: give a cell a tagged write between two zero writes or trims.
//
// After a restart the must-see set is what was durable before it: writes with FUA, and those
// followed by a flush (Survival::kSynced), or all that were acknowledged (Survival::kAcknowledged).
// And the content that a restart left stays: until the next change is sent all reads agree.
// Linearizability is judged for each stretch between two restarts alone.
// Sound always: what it reports, no correct server can have done. O(n log n) time, O(n) memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "check/model/history.h"

namespace weft::check {

enum class Level : uint8_t { kOwn, kFlushed, kAtOnce };
inline constexpr std::array<Level, 3> kLevels = {Level::kOwn, Level::kFlushed, Level::kAtOnce};
[[nodiscard]] std::string_view level_name(Level level);  // "own", "flushed", "at-once"

enum class Survival : uint8_t { kSynced, kAcknowledged };

enum class Fault : uint8_t {
  kStale,      // an older version than must be seen
  kFuture,     // a version whose write was sent after the read's reply
  kGarbage,    // bytes that nobody wrote
  kFalseZero,  // BLOCK_STATUS says zero where data must be seen
  kLost,       // stale after a restart: what was durable did not survive
  kUnsteady,   // two reads after a restart, without a change between them, differ
  kNotLinear,  // two reads that agree with no one order of the writes
};
[[nodiscard]] std::string_view fault_name(Fault fault);  // "stale-read", ...; as in reports

inline constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// One violation, with the operations that prove it: a checker given only these reports it again.
struct Violation {
  Fault fault = Fault::kStale;
  Level level = Level::kOwn;  // the lowest level it breaks
  uint32_t cell = 0;
  uint32_t read = kNone;        // who saw it
  uint32_t seen = kNone;        // the write whose version was seen; kNone: nobody's
  uint32_t missed = kNone;      // the write that had to be seen
  uint32_t flush = kNone;       // the flush that says so; kNone: FUA, or the same connection
  uint32_t other_read = kNone;  // of kNotLinear and kUnsteady; it saw `missed`, if it is there
  Tag tag = kZeroTag;           // what `read` saw
  Tag other_tag = kZeroTag;     // of kNotLinear and kUnsteady: what `missed` had left
  std::vector<uint32_t> more;   // of these: what else the proof needs

  // The operations named above, ascending, each once.
  [[nodiscard]] std::vector<uint32_t> operations() const;
};

// How much the history could have shown: without witnesses a clean verdict means nothing.
struct Witnesses {
  // Each counts reads of one cell. One read may be a witness of several levels: each level has a
  // must-see set of its own, and its last change is what counts.
  uint64_t reads = 0;  // with a known answer
  uint64_t own = 0;    // that must see a change of the same connection
  // whose last must-see change was of another connection, made known by flush or FUA, of a cell
  // that the reading connection had used before that change (so it may have kept a copy).
  uint64_t flushed = 0;
  uint64_t at_once = 0;  // the same, for changes acknowledged but not flushed yet
  // Flushes sent while a change was in flight, when after the replies of both another flush was
  // sent, with no change sent between: what a server that forgets such a change would get wrong.
  uint64_t overlapped_flushes = 0;
  uint64_t survived = 0;  // reads after a restart of a cell that had to keep a change
  void add(const Witnesses& more);
};

struct CheckOptions {
  Survival survival = Survival::kSynced;
  // What a flush makes durable: changes of all connections (the server advertises
  // NBD_FLAG_CAN_MULTI_CONN), or those of its own connection. Only for what survives a restart; the
  // level kFlushed asks the same of every server.
  bool flush_covers_all = true;
  size_t violations_max = 100;  // kept for each level; all are counted
};

struct LevelVerdict {
  uint64_t count = 0;  // of violations, this level's own and those of the levels below it
  std::vector<Violation> violations;  // the first of those whose lowest level this is
};

struct Verdicts {
  std::array<LevelVerdict, kLevels.size()> levels;
  Witnesses witnesses;

  [[nodiscard]] const LevelVerdict& of(Level level) const {
    return levels[static_cast<size_t>(level)];
  }
  [[nodiscard]] bool keeps(Level level) const { return of(level).count == 0; }
};

// kFuture and the faults after a restart break every level and are filed under kOwn. Garbage, too,
// unless it can be what was there before the first write: then it breaks the levels at which a
// write had to be seen. All observations of a cell in one read make at most one violation.
[[nodiscard]] Verdicts check(const History& history, const CheckOptions& options = {});

// The story of one violation, a line for each step, times relative to the first of its operations:
//   "A wrote block at 4096+512 (tag 17), sent at 0.000 ms, acknowledged at 0.120 ms" ...
// in plain words, ending with what is wrong and what had to be seen.
[[nodiscard]] std::vector<std::string> tell(const History& history, const Violation& violation);
// The same in one line.
[[nodiscard]] std::string summary(const History& history, const Violation& violation);

// The part of a history that these operations make: for a small replay, or a picture. Cells,
// connection names and restarts are kept as they are.
[[nodiscard]] History part_of(const History& history, const std::vector<uint32_t>& operations);
// The same for one violation: of what its reads saw only what it is about is kept, so that check()
// finds this violation and nothing else.
[[nodiscard]] History part_of(const History& history, const Violation& violation);

}  // namespace weft::check
