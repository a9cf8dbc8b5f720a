// SPDX-License-Identifier: BSD-3-Clause
// Zones: is what was seen of one register linearizable? (Gibbons and Korach.)
//
// A cluster is a write with the reads that saw it; in any order of the operations that explains
// what was seen it stands together. Its zone lies between the first end and the last sending of its
// members. A cluster X must stand before Y when X's first end came before Y's last sending; two
// clusters that must each stand before the other prove that there is no order.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "check/model/checker.h"
#include "check/model/timeline.h"

namespace weft::check {

// Registers of a cell, as a bit mask.
inline constexpr uint8_t kFirstByte = 1;
inline constexpr uint8_t kLastByte = 2;

// A read that saw one write, and no other explanation.
struct Sighting {
  uint32_t read = kNone;
  uint32_t writer = kNone;   // kNone: what was there before the first write
  uint32_t witness = kNone;  // a change that the read had to see: why there is no other explanation
  Tag tag = kZeroTag;
  uint8_t registers = 0;
};

// Collects what is found: counts all, keeps the first.
class Violations {
 public:
  explicit Violations(size_t kept_max) : kept_max_(kept_max) {}
  void add(Violation violation);
  // Fills in the levels' counts and violations.
  void finish(Verdicts& verdicts);

 private:
  struct OfLevel {
    uint64_t count = 0;
    std::vector<Violation> kept;
  };
  void keep_first(std::vector<Violation>& kept) const;

  const size_t kept_max_;
  std::array<OfLevel, kLevels.size()> levels_;
};

class ZoneJudge {
 public:
  ZoneJudge(const Timeline& timeline, Violations& violations)
      : timeline_(timeline),
        violations_(violations),
        zone_of_(timeline.history().operations.size(), kNone) {}

  // `sightings` of one cell, ascending by read.
  void judge(uint32_t cell, std::span<const Sighting> sightings);

 private:
  struct Zone {
    uint32_t writer = kNone;
    Tag tag = kZeroTag;
    uint64_t first_end = 0;
    uint64_t last_send = 0;
    // Whose they are; kNone: of what was there before the first write.
    uint32_t first = kNone;
    uint32_t last = kNone;
    uint32_t first_witness = kNone;
    uint32_t last_witness = kNone;
    // One that saw it: the proof that a write without success has happened.
    uint32_t reader = kNone;
    uint32_t reader_witness = kNone;

    [[nodiscard]] bool forward() const { return first_end < last_send; }
    [[nodiscard]] bool conflicts(const Zone& other) const {
      return first_end < other.last_send && other.first_end < last_send;
    }
  };

  void judge_epoch(std::span<const Sighting> sightings, std::span<const uint32_t> changes,
                   uint8_t one_register);
  Zone& zone_of(uint32_t writer, uint32_t epoch);
  void compare();
  void report(const Zone& a, const Zone& b);
  void add_change_between(const Zone& a, const Zone& b, Violation& found) const;

  const Timeline& timeline_;
  Violations& violations_;
  uint32_t cell_ = 0;
  std::vector<Zone> zones_;
  std::vector<uint32_t> zone_of_;  // by writer, an index into zones_
  uint32_t zone_of_unknown_ = kNone;
};

}  // namespace weft::check
