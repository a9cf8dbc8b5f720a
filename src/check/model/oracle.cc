// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/oracle.h"

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

namespace weft::check {

uint32_t Oracle::epoch(Index index) const {
  uint32_t count = 0;
  for (const uint64_t restart : history_.restarts_ns) count += restart <= op(index).send_ns;
  return count;
}

uint64_t Oracle::end(Index index) const {
  uint64_t result = op(index).reply_ns;
  for (const uint64_t restart : history_.restarts_ns) {
    if (restart > op(index).send_ns) result = std::min(result, restart - 1);
  }
  return result;
}

bool Oracle::touches(Index index, uint32_t cell) const {
  return op(index).cell <= cell && cell < op(index).cell_end();
}

bool Oracle::durable(Index change) const {
  if (!op(change).succeeded()) return false;
  if (options_.survival == Survival::kAcknowledged || op(change).fua) return true;
  for (Index flush = 0; flush < size(); flush++) {
    if (op(flush).kind == Kind::kFlush && op(flush).succeeded() && epoch(flush) == epoch(change) &&
        before(change, flush) &&
        (options_.flush_covers_all || op(flush).connection == op(change).connection)) {
      return true;
    }
  }
  return false;
}

bool Oracle::must_see(Index change, Index read, uint32_t cell, Level level) const {
  const Operation& w = op(change);
  if (!changes(w.kind) || !touches(change, cell) || !w.succeeded()) return false;
  if (epoch(change) < epoch(read)) return durable(change);
  if (!before(change, read)) return false;
  if (w.connection == op(read).connection) return true;
  if (level == Level::kOwn) return false;
  if (level == Level::kAtOnce || w.fua) return true;
  for (Index flush = 0; flush < size(); flush++) {
    if (op(flush).kind == Kind::kFlush && op(flush).succeeded() && before(change, flush) &&
        before(flush, read)) {
      return true;
    }
  }
  return false;
}

bool Oracle::stale(Index version, Index read, uint32_t cell, Level level) const {
  for (Index change = 0; change < size(); change++) {
    if (must_see(change, read, cell, level) && before(version, change)) return true;
  }
  return false;
}

bool Oracle::must_see_something(Index read, uint32_t cell, Level level) const {
  for (Index change = 0; change < size(); change++) {
    if (must_see(change, read, cell, level)) return true;
  }
  return false;
}

bool Oracle::freed_by_trim(Index read, uint32_t cell, Level level) const {
  for (Index trim = 0; trim < size(); trim++) {
    if (op(trim).kind == Kind::kTrim && touches(trim, cell) && op(trim).send_ns <= end(read) &&
        !stale(trim, read, cell, level)) {
      return true;
    }
  }
  return false;
}

bool Oracle::leaves(Index change, const Observation& seen) const {
  if (!touches(change, seen.cell)) return false;
  if (op(change).kind == Kind::kZero) return seen.tag == kZeroTag;
  return op(change).kind == Kind::kWrite && seen.tag == op(change).tag;
}

bool Oracle::unknown(const Observation& seen) const {
  for (Index change = 0; change < size(); change++) {
    if (op(change).kind == Kind::kWrite && leaves(change, seen)) return false;
  }
  return true;
}

bool Oracle::legal(const Sight& sight, Level level) const {
  const uint32_t cell = sight.seen.cell;
  for (Index change = 0; change < size(); change++) {
    if (op(change).kind == Kind::kWrite && leaves(change, sight.seen) &&
        end(sight.read) < op(change).send_ns) {
      return false;
    }
  }
  if (freed_by_trim(sight.read, cell, level)) return true;
  for (Index change = 0; change < size(); change++) {
    if (leaves(change, sight.seen) && op(change).send_ns <= end(sight.read) &&
        !stale(change, sight.read, cell, level)) {
      return true;
    }
  }
  return unknown(sight.seen) && !must_see_something(sight.read, cell, level);
}

std::vector<Oracle::Sight> Oracle::sights() const {
  std::vector<Sight> all;
  for (Index read = 0; read < size(); read++) {
    if (op(read).kind != Kind::kRead && op(read).kind != Kind::kStatus) continue;
    if (!op(read).succeeded()) continue;
    for (const Observation& seen : history_.seen(op(read))) all.push_back({read, seen});
  }
  return all;
}

std::set<std::tuple<uint32_t, uint32_t, Level>> Oracle::faulty_reads() const {
  std::map<std::pair<Index, uint32_t>, Level> lowest;
  for (const Sight& sight : sights()) {
    for (const Level level : kLevels) {
      if (legal(sight, level)) continue;
      const auto [at, added] = lowest.try_emplace({sight.read, sight.seen.cell}, level);
      at->second = std::min(at->second, level);
      break;
    }
  }
  std::set<std::tuple<uint32_t, uint32_t, Level>> all;
  for (const auto& [where, level] : lowest) all.insert({where.first, where.second, level});
  return all;
}

namespace {

bool covers(Part part, bool last_byte) {
  return part == Part::kWhole || part == (last_byte ? Part::kTail : Part::kHead);
}

}  // namespace

bool Oracle::steady() const {
  const std::vector<Sight> all = sights();
  for (const Sight& a : all) {
    for (const Sight& b : all) {
      if (a.seen.cell != b.seen.cell || a.seen.tag == b.seen.tag) continue;
      const bool first = covers(a.seen.part, false) && covers(b.seen.part, false);
      const bool last = covers(a.seen.part, true) && covers(b.seen.part, true);
      if (!first && !last) continue;
      if (!legal(a, Level::kOwn) || !legal(b, Level::kOwn)) continue;
      if (freed_by_trim(a.read, a.seen.cell, Level::kOwn) ||
          freed_by_trim(b.read, b.seen.cell, Level::kOwn)) {
        continue;
      }
      const uint32_t since = std::min(epoch(a.read), epoch(b.read));
      const uint64_t until = std::max(end(a.read), end(b.read));
      bool changed_before = false;
      bool changed_since = false;
      for (Index change = 0; change < size(); change++) {
        if (!changes(op(change).kind) || !touches(change, a.seen.cell)) continue;
        changed_before |= epoch(change) < since;
        changed_since |= epoch(change) >= since && op(change).send_ns <= until;
      }
      if (changed_before && !changed_since) return false;
    }
  }
  return true;
}

// Tries every order of the operations of one register in one epoch.
bool Oracle::linear(uint32_t cell, bool last_byte, uint32_t of_epoch) const {
  struct Step {
    Index index;
    bool optional;                    // a change that may never have happened
    std::optional<Observation> seen;  // of a read
  };
  std::vector<Step> steps;
  std::vector<std::optional<Index>> beginnings;  // what the register may hold at first
  bool may_begin_unknown = true;
  for (Index i = 0; i < size(); i++) {
    if (!touches(i, cell)) continue;
    const bool writes = op(i).kind == Kind::kWrite || op(i).kind == Kind::kZero;
    if (writes && epoch(i) == of_epoch) steps.push_back({i, !op(i).succeeded(), {}});
    if (changes(op(i).kind) && epoch(i) < of_epoch) {
      may_begin_unknown &= !durable(i);
      bool overtaken = false;
      for (Index later = 0; later < size(); later++) {
        overtaken |= changes(op(later).kind) && touches(later, cell) && before(i, later) &&
                     epoch(later) < of_epoch && durable(later);
      }
      if (writes && !overtaken) beginnings.emplace_back(i);
    }
  }
  beginnings.emplace_back(std::nullopt);  // what nobody wrote, or a trim has left
  for (const Sight& sight : sights()) {
    if (sight.seen.cell != cell || !covers(sight.seen.part, last_byte)) continue;
    if (epoch(sight.read) != of_epoch) continue;
    if (freed_by_trim(sight.read, cell, Level::kAtOnce)) continue;
    steps.push_back({sight.read, false, sight.seen});
  }

  const auto matches = [&](const Observation& seen, std::optional<Index> state) {
    if (state) return leaves(*state, seen);
    return may_begin_unknown && (seen.tag == kZeroTag || unknown(seen));
  };
  std::set<std::pair<uint64_t, int64_t>> tried;
  std::function<bool(uint64_t, std::optional<Index>)> search = [&](uint64_t left,
                                                                   std::optional<Index> state) {
    bool must_go_on = false;
    for (size_t i = 0; i < steps.size(); i++) must_go_on |= (left >> i & 1) && !steps[i].optional;
    if (!must_go_on) return true;
    if (!tried.insert({left, state ? int64_t{*state} : -1}).second) return false;
    for (size_t i = 0; i < steps.size(); i++) {
      if (!(left >> i & 1)) continue;
      uint64_t then = left & ~(uint64_t{1} << i);
      bool blocked = false;
      for (size_t j = 0; j < steps.size(); j++) {
        if (i == j || !(left >> j & 1) || !before(steps[j].index, steps[i].index)) continue;
        blocked |= !steps[j].optional;
        then &= ~(uint64_t{1} << j);  // too late for it
      }
      if (blocked) continue;
      if (!steps[i].seen) {
        if (search(then, steps[i].index)) return true;
      } else if (matches(*steps[i].seen, state)) {
        if (search(then, state)) return true;
      }
    }
    return false;
  };
  for (const std::optional<Index> beginning : beginnings) {
    tried.clear();
    if (search((uint64_t{1} << steps.size()) - 1, beginning)) return true;
  }
  return false;
}

bool Oracle::linear() const {
  const auto epochs = static_cast<uint32_t>(history_.restarts_ns.size() + 1);
  uint32_t cells = 0;
  for (const Operation& one : history_.operations) cells = std::max(cells, one.cell_end());
  for (uint32_t cell = 0; cell < cells; cell++) {
    for (uint32_t one = 0; one < epochs; one++) {
      if (!linear(cell, false, one) || !linear(cell, true, one)) return false;
    }
  }
  return true;
}

bool Oracle::keeps(Level level) const {
  for (const Sight& sight : sights()) {
    if (!legal(sight, level)) return false;
  }
  return steady() && (level < Level::kAtOnce || linear());
}

bool Oracle::unambiguous() const {
  for (const Sight& sight : sights()) {
    if (sight.seen.tag != kZeroTag) continue;
    int explanations = !must_see_something(sight.read, sight.seen.cell, Level::kAtOnce);
    for (Index change = 0; change < size(); change++) {
      explanations += leaves(change, sight.seen) && op(change).send_ns <= end(sight.read) &&
                      !stale(change, sight.read, sight.seen.cell, Level::kAtOnce);
    }
    if (explanations > 1) return false;
  }
  return true;
}

}  // namespace weft::check
