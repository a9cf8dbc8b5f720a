// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/floors.h"

namespace weft::check {

Floor Floors::highest() const {
  Floor floor = survived;
  for (const Floor& one : {own, flushed, acknowledged}) floor.raise(one);
  return floor;
}

void FloorSweep::begin(uint32_t cell) {
  cell_ = cell;
  changes_ = timeline_.acknowledged(cell);
  survived_next_ = acknowledged_next_ = flushed_next_ = 0;
  epoch_ = 0;
  floors_ = {};
}

FloorSweep::Own& FloorSweep::own_of(uint32_t connection) {
  Own& own = own_[connection];
  if (own.cell != cell_ || own.epoch != epoch_) own = {cell_, epoch_, {}};
  return own;
}

// A restart lies behind: of what was before it only the durable counts.
void FloorSweep::enter(uint32_t epoch) {
  epoch_ = epoch;
  floors_.flushed = floors_.acknowledged = {};
  for (; survived_next_ < changes_.size(); survived_next_++) {
    const uint32_t change = changes_[survived_next_];
    if (timeline_.epoch(change) >= epoch) break;
    if (timeline_.survives(change)) floors_.survived.raise({change, timeline_.send(change)});
  }
}

Floors FloorSweep::of(uint32_t read) {
  const uint64_t now = timeline_.send(read);
  if (timeline_.epoch(read) != epoch_) enter(timeline_.epoch(read));

  for (; acknowledged_next_ < changes_.size(); acknowledged_next_++) {
    const uint32_t change = changes_[acknowledged_next_];
    if (timeline_.end(change) >= now) break;
    if (timeline_.epoch(change) != epoch_) continue;
    const Operation& op = timeline_.operation(change);
    const Floor floor = {change, op.send_ns};
    floors_.acknowledged.raise(floor);
    if (op.fua) floors_.flushed.raise(floor);
    own_of(op.connection).floor.raise(floor);
  }
  // A change that ended later is not covered sooner: the order by end is also that of covering.
  for (; flushed_next_ < changes_.size(); flushed_next_++) {
    const uint32_t change = changes_[flushed_next_];
    if (timeline_.epoch(change) < epoch_) continue;
    const uint32_t flush = timeline_.flush_of(change);
    if (flush == kNone || timeline_.end(flush) >= now) break;
    floors_.flushed.raise({change, timeline_.send(change)});
  }
  Floors floors = floors_;
  floors.own = own_of(timeline_.operation(read).connection).floor;
  return floors;
}

}  // namespace weft::check
