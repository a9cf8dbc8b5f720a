// SPDX-License-Identifier: BSD-3-Clause
// CellJudge: judges every read of a cell, by the floors, by what a restart left, and by zones.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "check/model/checker.h"
#include "check/model/floors.h"
#include "check/model/timeline.h"
#include "check/model/zones.h"

namespace weft::check {

// The changes of one kind of a cell, which cannot be told apart by what they leave: asked for those
// that a read can have met, the ones sent before its end.
class Alike {
 public:
  struct Answer {
    uint32_t change = kNone;          // that which ends last; kNone: there is none
    std::optional<uint64_t> end_ns;   // its end
    std::optional<uint64_t> next_ns;  // the end of the one that ends last but it
  };

  void clear() { entries_.clear(); }
  // As they were sent.
  void add(uint32_t change, uint64_t send_ns, uint64_t end_ns);
  [[nodiscard]] Answer sent_by(uint64_t time_ns) const;

 private:
  struct Entry {
    uint64_t send_ns;
    Answer so_far;
  };
  std::vector<Entry> entries_;
};

class CellJudge {
 public:
  CellJudge(const Timeline& timeline, Violations& violations, Witnesses& witnesses);
  void judge(uint32_t cell);

 private:
  // What can explain an observation.
  struct Explained {
    uint32_t writer = kNone;         // the write whose bytes they are, or the zero that ended last
    std::optional<uint64_t> end_ns;  // its end; nothing: only unknown content explains it
    bool future = false;
    bool alone = true;  // no other write explains it, whatever the floor
    std::optional<uint64_t> other_end_ns;
    std::optional<uint64_t> trim_end_ns;  // of the trim that ends last
  };
  struct Seen {
    Tag tag = kZeroTag;
    uint32_t read = kNone;
    uint32_t writer = kNone;
  };
  // What the first reads after a restart saw, until a change is sent.
  struct Steady {
    uint32_t changes_before = 0;  // which quiet time it is: the changes sent before
    std::optional<Seen> first_byte, last_byte;
  };

  // Goes through the cell once, for what the judgement of a read needs of before and after it.
  void prepare();
  void judge_read(const CellEvent& event);
  [[nodiscard]] Explained explain(uint32_t read, const Observation& seen) const;
  // Whether the floor forbids it.
  [[nodiscard]] static bool breaks(const Explained& explained, const Floor& floor);
  [[nodiscard]] std::optional<Violation> violation_of(uint32_t read, const Observation& seen,
                                                      const Explained& explained,
                                                      const Floors& floors) const;
  // The first read of the quiet time after a restart that saw something else.
  [[nodiscard]] std::optional<Violation> unsteady(uint32_t read, const Observation& seen,
                                                  const Explained& explained, const Floors& floors);
  void note_sighting(uint32_t read, const Observation& seen, const Explained& explained,
                     const Floors& floors);
  void note_witness(uint32_t read, const Floors& floors);
  [[nodiscard]] bool used_before(uint32_t connection, uint32_t change) const;

  const Timeline& timeline_;
  Violations& violations_;
  Witnesses& witnesses_;
  FloorSweep sweep_;
  ZoneJudge zones_;

  uint32_t cell_ = 0;
  std::vector<uint32_t> changes_;  // of the cell, as they were sent, failed ones too
  Alike zeros_, trims_;
  std::optional<Steady> steady_;
  std::vector<Sighting> sightings_;
  struct FirstUse {
    uint32_t cell = kNone;
    uint64_t end_ns = kNever;
  };
  std::vector<FirstUse> first_uses_;  // by connection; valid where the cell is the present one
};

}  // namespace weft::check
