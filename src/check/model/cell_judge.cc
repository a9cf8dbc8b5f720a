// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/cell_judge.h"

#include <algorithm>
#include <utility>

namespace weft::check {

namespace {

uint8_t registers_of(Part part) {
  switch (part) {
    case Part::kWhole:
      return kFirstByte | kLastByte;
    case Part::kHead:
      return kFirstByte;
    case Part::kTail:
      return kLastByte;
    case Part::kMiddle:
      break;
  }
  return 0;
}

}  // namespace

void Alike::add(uint32_t change, uint64_t send_ns, uint64_t end_ns) {
  Answer answer = entries_.empty() ? Answer{} : entries_.back().so_far;
  if (!answer.end_ns || end_ns > *answer.end_ns) {
    answer = {change, end_ns, answer.end_ns};
  } else if (!answer.next_ns || end_ns > *answer.next_ns) {
    answer.next_ns = end_ns;
  }
  entries_.push_back({send_ns, answer});
}

Alike::Answer Alike::sent_by(uint64_t time_ns) const {
  const auto after = std::ranges::upper_bound(entries_, time_ns, {}, &Entry::send_ns);
  return after == entries_.begin() ? Answer{} : std::prev(after)->so_far;
}

CellJudge::CellJudge(const Timeline& timeline, Violations& violations, Witnesses& witnesses)
    : timeline_(timeline),
      violations_(violations),
      witnesses_(witnesses),
      sweep_(timeline),
      zones_(timeline, violations),
      first_uses_(timeline.connections()) {}

void CellJudge::judge(uint32_t cell) {
  cell_ = cell;
  sweep_.begin(cell);
  steady_.reset();
  sightings_.clear();
  prepare();
  for (const CellEvent& event : timeline_.events(cell)) {
    const Kind kind = timeline_.operation(event.operation).kind;
    if (kind == Kind::kRead || kind == Kind::kStatus) judge_read(event);
  }
  zones_.judge(cell, sightings_);
}

void CellJudge::prepare() {
  changes_.clear();
  zeros_.clear();
  trims_.clear();
  for (const CellEvent& event : timeline_.events(cell_)) {
    const uint32_t index = event.operation;
    const Operation& op = timeline_.operation(index);
    if (changes(op.kind)) changes_.push_back(index);
    if (op.kind == Kind::kZero) zeros_.add(index, op.send_ns, timeline_.end(index));
    if (op.kind == Kind::kTrim) trims_.add(index, op.send_ns, timeline_.end(index));
    if (!op.succeeded() || op.kind == Kind::kStatus) continue;
    FirstUse& use = first_uses_[op.connection];
    if (use.cell != cell_) use = {cell_, kNever};
    use.end_ns = std::min(use.end_ns, timeline_.end(index));
  }
}

bool CellJudge::used_before(uint32_t connection, uint32_t change) const {
  const FirstUse& use = first_uses_[connection];
  return use.cell == cell_ && use.end_ns < timeline_.send(change);
}

void CellJudge::judge_read(const CellEvent& event) {
  const uint32_t read = event.operation;
  const Operation& op = timeline_.operation(read);
  if (!op.succeeded()) return;
  const std::vector<Observation>& all = timeline_.history().observations;
  const uint32_t end = op.seen + op.seen_count;
  if (event.seen >= end || all[event.seen].cell != cell_) return;

  const Floors floors = sweep_.of(read);
  std::optional<Violation> worst;
  bool free = false;
  for (uint32_t i = event.seen; i < end && all[i].cell == cell_; i++) {
    const Observation& seen = all[i];
    const Explained explained = explain(read, seen);
    std::optional<Violation> found = violation_of(read, seen, explained, floors);
    const Floor highest = floors.highest();
    const bool trimmed = explained.trim_end_ns && !highest.above(*explained.trim_end_ns);
    free |= trimmed;
    if (!found && !trimmed) {
      found = unsteady(read, seen, explained, floors);
      if (!found) note_sighting(read, seen, explained, floors);
    }
    // Unsteady reads break what stale ones do, and say less.
    const auto rank = [](const Violation& one) {
      return std::pair(one.level, one.fault == Fault::kUnsteady);
    };
    if (found && (!worst || rank(*found) < rank(*worst))) worst = std::move(found);
  }
  if (worst) violations_.add(std::move(*worst));
  if (!free && op.kind == Kind::kRead) note_witness(read, floors);
}

CellJudge::Explained CellJudge::explain(uint32_t read, const Observation& seen) const {
  Explained result;
  const uint64_t now = timeline_.end(read);
  result.trim_end_ns = trims_.sent_by(now).end_ns;
  if (seen.tag == kZeroTag) {
    const Alike::Answer zero = zeros_.sent_by(now);
    result.writer = zero.change;
    result.end_ns = zero.end_ns;
    result.other_end_ns = zero.next_ns;
    return result;
  }
  const uint32_t writer = timeline_.writer(seen.tag);
  if (writer == kNone) return result;
  const Operation& op = timeline_.operation(writer);
  if (cell_ < op.cell || cell_ >= op.cell_end()) return result;
  result.writer = writer;
  result.end_ns = timeline_.end(writer);
  result.future = now < op.send_ns;
  return result;
}

bool CellJudge::breaks(const Explained& explained, const Floor& floor) {
  if (!floor.exists()) return false;
  if (explained.end_ns && !floor.above(*explained.end_ns)) return false;
  return !explained.trim_end_ns || floor.above(*explained.trim_end_ns);
}

std::optional<Violation> CellJudge::violation_of(uint32_t read, const Observation& seen,
                                                 const Explained& explained,
                                                 const Floors& floors) const {
  Violation found;
  found.cell = cell_;
  found.read = read;
  found.seen = explained.writer;
  found.tag = seen.tag;
  if (explained.future) {
    found.fault = Fault::kFuture;
    return found;
  }
  if (breaks(explained, floors.own)) {
    found.missed = floors.own.change;
  } else if (breaks(explained, floors.survived)) {
    found.fault = Fault::kLost;
    found.missed = floors.survived.change;
    found.flush = timeline_.surviving_flush(found.missed);
  } else if (breaks(explained, floors.flushed)) {
    found.level = Level::kFlushed;
    found.missed = floors.flushed.change;
    const bool by_itself = timeline_.operation(found.missed).fua;
    found.flush = by_itself ? kNone : timeline_.flush_of(found.missed);
  } else if (breaks(explained, floors.acknowledged)) {
    found.level = Level::kAtOnce;
    found.missed = floors.acknowledged.change;
  } else {
    return std::nullopt;
  }
  if (timeline_.operation(read).kind == Kind::kStatus) {
    found.fault = Fault::kFalseZero;
  } else if (seen.tag != kZeroTag && explained.writer == kNone) {
    found.fault = Fault::kGarbage;
  }
  return found;
}

std::optional<Violation> CellJudge::unsteady(uint32_t read, const Observation& seen,
                                             const Explained& explained, const Floors& floors) {
  if (timeline_.epoch(read) == 0) return std::nullopt;
  const auto after =
      std::ranges::upper_bound(changes_, timeline_.end(read), {},
                               [this](uint32_t change) { return timeline_.send(change); });
  if (after == changes_.begin()) return std::nullopt;  // nobody's content
  if (timeline_.epoch(*std::prev(after)) == timeline_.epoch(read)) return std::nullopt;
  const auto before = static_cast<uint32_t>(after - changes_.begin());
  if (!steady_ || steady_->changes_before != before) steady_ = Steady{before, {}, {}};

  const Seen now = {seen.tag, read, explained.writer};
  const uint8_t registers = registers_of(seen.part);
  for (const uint8_t one : {kFirstByte, kLastByte}) {
    if (!(registers & one)) continue;
    std::optional<Seen>& first = one == kFirstByte ? steady_->first_byte : steady_->last_byte;
    if (!first) first = now;
    if (first->tag == seen.tag) continue;
    Violation found;
    found.fault = Fault::kUnsteady;
    found.cell = cell_;
    found.read = read;
    found.seen = explained.writer;
    found.tag = seen.tag;
    found.other_read = first->read;
    found.other_tag = first->tag;
    found.missed = first->writer;
    // Without a change the content would be nobody's. Not a trim: it frees the read, unless
    // something had to be seen after it.
    const Floor& floor = floors.survived;
    found.more.push_back(floor.exists() ? floor.change : changes_.front());
    if (floor.exists() && timeline_.surviving_flush(floor.change) != kNone) {
      found.more.push_back(timeline_.surviving_flush(floor.change));
    }
    return found;
  }
  return std::nullopt;
}

void CellJudge::note_sighting(uint32_t read, const Observation& seen, const Explained& explained,
                              const Floors& floors) {
  const uint8_t registers = registers_of(seen.part);
  if (registers == 0) return;
  Sighting sighting = {read, explained.writer, kNone, seen.tag, registers};
  if (seen.tag == kZeroTag && explained.writer != kNone) {
    const Floor floor = floors.highest();
    if (!floor.exists()) return;  // a zero write, or what was there before
    if (explained.other_end_ns && !floor.above(*explained.other_end_ns)) return;  // which one?
    sighting.witness = floor.change;
  }
  sightings_.push_back(sighting);
}

void CellJudge::note_witness(uint32_t read, const Floors& floors) {
  const Floor highest = floors.highest();
  if (!highest.exists()) return;
  const uint32_t connection = timeline_.operation(read).connection;
  const auto of_another = [&](const Floor& floor) {
    return timeline_.operation(floor.change).connection != connection &&
           used_before(connection, floor.change);
  };
  witnesses_.reads++;
  if (floors.own.exists()) witnesses_.own++;
  Floor flushed = floors.own;
  flushed.raise(floors.flushed);
  if (flushed.exists() && of_another(flushed)) witnesses_.flushed++;
  if (floors.acknowledged.exists() && of_another(floors.acknowledged) &&
      (!floors.flushed.exists() || floors.flushed.send_ns < floors.acknowledged.send_ns)) {
    witnesses_.at_once++;
  }
  if (floors.survived.exists() && highest.change == floors.survived.change) witnesses_.survived++;
}

}  // namespace weft::check
