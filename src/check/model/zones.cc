// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/zones.h"

#include <algorithm>
#include <utility>

namespace weft::check {

void Violations::add(Violation violation) {
  OfLevel& level = levels_[static_cast<size_t>(violation.level)];
  level.count++;
  level.kept.push_back(std::move(violation));
  if (level.kept.size() >= 2 * kept_max_ + 64) keep_first(level.kept);
}

void Violations::keep_first(std::vector<Violation>& kept) const {
  std::ranges::sort(kept, [](const Violation& a, const Violation& b) {
    return a.read != b.read ? a.read < b.read : a.cell < b.cell;
  });
  if (kept.size() > kept_max_) kept.resize(kept_max_);
}

void Violations::finish(Verdicts& verdicts) {
  uint64_t count = 0;
  for (size_t i = 0; i < levels_.size(); i++) {
    count += levels_[i].count;
    keep_first(levels_[i].kept);
    verdicts.levels[i] = {count, std::move(levels_[i].kept)};
  }
}

void ZoneJudge::judge(uint32_t cell, std::span<const Sighting> sightings) {
  cell_ = cell;
  const std::span<const uint32_t> changes = timeline_.acknowledged(cell);
  size_t changes_begin = 0;
  for (size_t begin = 0, end = 0; begin < sightings.size(); begin = end) {
    const uint32_t epoch = timeline_.epoch(sightings[begin].read);
    bool torn = false;
    for (; end < sightings.size() && timeline_.epoch(sightings[end].read) == epoch; end++) {
      torn |= sightings[end].registers != (kFirstByte | kLastByte);
    }
    while (changes_begin < changes.size() && timeline_.epoch(changes[changes_begin]) < epoch) {
      changes_begin++;
    }
    size_t changes_end = changes_begin;
    while (changes_end < changes.size() && timeline_.epoch(changes[changes_end]) == epoch) {
      changes_end++;
    }
    const auto of_epoch = changes.subspan(changes_begin, changes_end - changes_begin);
    judge_epoch(sightings.subspan(begin, end - begin), of_epoch, kFirstByte);
    if (torn) judge_epoch(sightings.subspan(begin, end - begin), of_epoch, kLastByte);
    changes_begin = changes_end;
  }
}

// What was before this epoch has ended before it, and all zones of it that matter reach into it.
ZoneJudge::Zone& ZoneJudge::zone_of(uint32_t writer, uint32_t epoch) {
  uint32_t& index = writer == kNone ? zone_of_unknown_ : zone_of_[writer];
  if (index == kNone) {
    index = static_cast<uint32_t>(zones_.size());
    Zone& zone = zones_.emplace_back();
    zone.writer = zone.first = zone.last = writer;
    const uint64_t start_ns = timeline_.epoch_start(epoch);
    const uint64_t before_ns = start_ns == 0 ? 0 : start_ns - 1;
    zone.first_end = writer == kNone ? before_ns : timeline_.end(writer);
    zone.last_send = writer == kNone ? before_ns : timeline_.send(writer);
  }
  return zones_[index];
}

void ZoneJudge::judge_epoch(std::span<const Sighting> sightings, std::span<const uint32_t> changes,
                            uint8_t one_register) {
  const uint32_t epoch = timeline_.epoch(sightings.front().read);
  zones_.clear();
  zone_of_unknown_ = kNone;
  for (const Sighting& sighting : sightings) {
    if (!(sighting.registers & one_register)) continue;
    Zone& zone = zone_of(sighting.writer, epoch);
    zone.tag = sighting.tag;
    if (zone.reader == kNone) {
      zone.reader = sighting.read;
      zone.reader_witness = sighting.witness;
    }
    if (timeline_.end(sighting.read) < zone.first_end) {
      zone.first_end = timeline_.end(sighting.read);
      zone.first = sighting.read;
      zone.first_witness = sighting.witness;
    }
    if (timeline_.send(sighting.read) > zone.last_send) {
      zone.last_send = timeline_.send(sighting.read);
      zone.last = sighting.read;
      zone.last_witness = sighting.witness;
    }
  }
  // Writes that nobody saw count if they have surely happened. Not trims: where one would matter,
  // the write that mends it does.
  for (const uint32_t change : changes) {
    if (timeline_.operation(change).kind != Kind::kTrim) zone_of(change, epoch);
  }
  for (const Zone& zone : zones_) {
    if (zone.writer != kNone) zone_of_[zone.writer] = kNone;
  }
  compare();
}

void ZoneJudge::compare() {
  const auto backward = std::ranges::partition(zones_, &Zone::forward);
  const auto forward = std::ranges::subrange(zones_.begin(), backward.begin());
  std::ranges::sort(forward, {}, &Zone::first_end);
  // reach[i]: of the first i + 1 forward zones the one that reaches farthest.
  std::vector<uint32_t> reach(forward.size());
  for (uint32_t i = 0; i < reach.size(); i++) {
    reach[i] = i;
    if (i == 0) continue;
    const Zone& farthest = zones_[reach[i - 1]];
    if (farthest.conflicts(zones_[i])) report(farthest, zones_[i]);
    if (farthest.last_send >= zones_[i].last_send) reach[i] = reach[i - 1];
  }
  for (const Zone& zone : backward) {
    const auto after = std::ranges::lower_bound(forward, zone.last_send, {}, &Zone::first_end);
    if (after == forward.begin()) continue;
    const Zone& farthest = zones_[reach[static_cast<size_t>(after - forward.begin()) - 1]];
    if (farthest.conflicts(zone)) report(farthest, zone);
  }
}

void ZoneJudge::report(const Zone& a, const Zone& b) {
  Violation found;
  found.fault = Fault::kNotLinear;
  found.level = Level::kAtOnce;
  found.cell = cell_;

  struct Proof {
    uint32_t read;
    uint32_t witness;
    const Zone* zone;
  };
  std::vector<Proof> reads;
  for (const Zone* zone : {&a, &b}) {
    const size_t before = reads.size();
    const auto is_read = [zone](uint32_t member) {
      return member != kNone && member != zone->writer;
    };
    if (is_read(zone->first)) reads.push_back({zone->first, zone->first_witness, zone});
    if (is_read(zone->last)) reads.push_back({zone->last, zone->last_witness, zone});
    if (reads.size() == before && !timeline_.operation(zone->writer).succeeded()) {
      reads.push_back({zone->reader, zone->reader_witness, zone});
    }
  }
  for (const Proof& proof : reads) {
    if (proof.witness == kNone) continue;
    found.more.push_back(proof.witness);
    const uint32_t flush = timeline_.surviving_flush(proof.witness);
    if (flush != kNone) found.more.push_back(flush);
  }
  // The last read is the one that should have seen something else.
  std::ranges::sort(reads, std::greater<>(), &Proof::read);
  const Zone* const seen = reads.front().zone;
  const Zone* const missed = seen == &a ? &b : &a;
  found.read = reads.front().read;
  found.seen = seen->writer;
  found.missed = missed->writer;
  found.tag = seen->tag;
  found.other_tag = missed->tag;
  for (const Proof& proof : reads) {
    if (proof.read == found.read) continue;
    if (proof.zone == missed && found.other_read == kNone) {
      found.other_read = proof.read;
    } else {
      found.more.push_back(proof.read);
    }
  }
  add_change_between(a, b, found);
  violations_.add(std::move(found));
}

// Two versions of before a restart: when no change was sent since, that is kUnsteady, which breaks
// more. So a change of since belongs to the proof, to show this violation as it is.
void ZoneJudge::add_change_between(const Zone& a, const Zone& b, Violation& found) const {
  const uint32_t epoch = timeline_.epoch(found.read);
  for (const Zone* zone : {&a, &b}) {
    if (zone->writer != kNone && timeline_.epoch(zone->writer) == epoch) return;
  }
  const std::span<const CellEvent> events = timeline_.events(cell_);
  const auto of_epoch = std::ranges::lower_bound(events, epoch, {}, [this](const CellEvent& event) {
    return timeline_.epoch(event.operation);
  });
  for (const CellEvent& event : std::ranges::subrange(of_epoch, events.end())) {
    const Kind kind = timeline_.operation(event.operation).kind;
    if (!changes(kind) || kind == Kind::kTrim) continue;
    found.more.push_back(event.operation);
    return;
  }
}

}  // namespace weft::check
