// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/timeline.h"

#include <algorithm>

namespace weft::check {

Timeline::Timeline(const History& history, const CheckOptions& options)
    : history_(history), options_(options), facts_(history.operations.size()) {
  note_ends();
  note_tags();
  note_flushes();
  sort_by_cell();
}

void Timeline::note_ends() {
  const std::vector<uint64_t>& restarts = history_.restarts_ns;
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    const auto next = std::ranges::upper_bound(restarts, op.send_ns);
    facts_[i].epoch = static_cast<uint32_t>(next - restarts.begin());
    // A reply may be read after the server that sent it is gone; what happened, did before that.
    facts_[i].end_ns = std::min(op.reply_ns, next == restarts.end() ? kNever : *next - 1);
    connections_ = std::max(connections_, op.connection + 1);
  }
}

void Timeline::note_tags() {
  size_t writes = 0;
  Tag tag_max = 0;
  for (const Operation& op : history_.operations) {
    if (op.kind != Kind::kWrite) continue;
    writes++;
    tag_max = std::max(tag_max, op.tag);
  }
  const bool dense = tag_max / 16 <= writes;
  if (dense) dense_writers_.assign(size_t{tag_max} + 1, kNone);
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    if (op.kind != Kind::kWrite) continue;
    (dense ? dense_writers_[op.tag] : sparse_writers_[op.tag]) = i;
  }
}

uint32_t Timeline::writer(Tag tag) const {
  if (tag < dense_writers_.size()) return dense_writers_[tag];
  const auto at = sparse_writers_.find(tag);
  return at == sparse_writers_.end() ? kNone : at->second;
}

std::vector<uint32_t> Timeline::first_replies(std::span<const uint32_t> flushes) const {
  std::vector<uint32_t> first(flushes.begin(), flushes.end());
  for (size_t i = first.size(); i-- > 1;) {
    if (end(first[i]) < end(first[i - 1])) first[i - 1] = first[i];
  }
  return first;
}

uint32_t Timeline::first_flush_after(uint32_t change, std::span<const uint32_t> flushes,
                                     std::span<const uint32_t> first_reply) const {
  const auto at = std::ranges::upper_bound(flushes, end(change), {},
                                           [this](uint32_t flush) { return send(flush); });
  if (at == flushes.end() || epoch(*at) != epoch(change)) return kNone;
  return first_reply[static_cast<size_t>(at - flushes.begin())];
}

void Timeline::note_flushes() {
  struct Flushes {
    std::vector<uint32_t> sent, first_reply;
  };
  Flushes all;
  const bool need_own = !options_.flush_covers_all && !history_.restarts_ns.empty();
  std::vector<Flushes> own(need_own ? connections_ : 0);
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    if (op.kind != Kind::kFlush || !op.succeeded()) continue;
    all.sent.push_back(i);
    if (need_own) own[op.connection].sent.push_back(i);
  }
  all.first_reply = first_replies(all.sent);
  for (Flushes& of_one : own) of_one.first_reply = first_replies(of_one.sent);
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    if (!changes(op.kind) || !op.succeeded()) continue;
    facts_[i].flush = first_flush_after(i, all.sent, all.first_reply);
    facts_[i].surviving_flush = facts_[i].flush;
    if (need_own) {
      const Flushes& of_one = own[op.connection];
      facts_[i].surviving_flush = first_flush_after(i, of_one.sent, of_one.first_reply);
    }
  }
}

bool Timeline::survives(uint32_t change) const {
  const Operation& op = operation(change);
  if (!op.succeeded()) return false;
  return options_.survival == Survival::kAcknowledged || op.fua ||
         facts_[change].surviving_flush != kNone;
}

uint32_t Timeline::surviving_flush(uint32_t change) const {
  const bool by_itself = options_.survival == Survival::kAcknowledged || operation(change).fua;
  return by_itself ? kNone : facts_[change].surviving_flush;
}

void Timeline::sort_by_cell() {
  uint32_t cells = 0;
  std::vector<uint32_t> by_end;
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    cells = std::max(cells, op.cell_end());
    if (changes(op.kind) && op.succeeded()) by_end.push_back(i);
  }
  std::ranges::sort(by_end, [this](uint32_t a, uint32_t b) {
    return end(a) != end(b) ? end(a) < end(b) : a < b;
  });

  // First how many lie in each cell, then where each cell begins.
  event_bounds_.assign(size_t{cells} + 1, 0);
  acknowledged_bounds_.assign(size_t{cells} + 1, 0);
  for (const Operation& op : history_.operations) {
    for (uint32_t cell = op.cell; cell < op.cell_end(); cell++) {
      event_bounds_[cell + 1]++;
      acknowledged_bounds_[cell + 1] += changes(op.kind) && op.succeeded();
    }
  }
  for (uint32_t cell = 0; cell < cells; cell++) {
    event_bounds_[cell + 1] += event_bounds_[cell];
    acknowledged_bounds_[cell + 1] += acknowledged_bounds_[cell];
  }
  events_.resize(event_bounds_[cells]);
  acknowledged_.resize(acknowledged_bounds_[cells]);
  std::vector<uint32_t> at(event_bounds_.begin(), event_bounds_.end());
  for (uint32_t i = 0; i < facts_.size(); i++) {
    const Operation& op = operation(i);
    uint32_t seen = op.seen;
    const uint32_t seen_end = op.seen + op.seen_count;
    for (uint32_t cell = op.cell; cell < op.cell_end(); cell++) {
      while (seen < seen_end && history_.observations[seen].cell < cell) seen++;
      events_[at[cell]++] = {i, seen};
    }
  }
  at.assign(acknowledged_bounds_.begin(), acknowledged_bounds_.end());
  for (const uint32_t change : by_end) {
    const Operation& op = operation(change);
    for (uint32_t cell = op.cell; cell < op.cell_end(); cell++) acknowledged_[at[cell]++] = change;
  }
}

}  // namespace weft::check
