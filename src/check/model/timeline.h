// SPDX-License-Identifier: BSD-3-Clause
// Timeline: what the judges of single cells ask of a whole history, prepared once.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "check/model/checker.h"
#include "check/model/history.h"

namespace weft::check {

// An operation that touches a cell, and the first thing it saw there (an index into
// History::observations; the others follow it).
struct CellEvent {
  uint32_t operation = 0;
  uint32_t seen = 0;
};

// Between two restarts lies an epoch; they count from 0.
class Timeline {
 public:
  // The history outlives this, and keeps history.h's promises on order.
  Timeline(const History& history, const CheckOptions& options);
  Timeline(const Timeline&) = delete;
  Timeline& operator=(const Timeline&) = delete;

  [[nodiscard]] const History& history() const { return history_; }
  [[nodiscard]] const Operation& operation(uint32_t index) const {
    return history_.operations[index];
  }
  [[nodiscard]] uint64_t send(uint32_t index) const { return operation(index).send_ns; }
  // The last moment at which the operation can have had its effect: its reply, or the restart that
  // took it away; kNever if it may still be on its way.
  [[nodiscard]] uint64_t end(uint32_t index) const { return facts_[index].end_ns; }
  [[nodiscard]] uint32_t epoch(uint32_t index) const { return facts_[index].epoch; }
  // a < b: the one was over before the other was sent.
  [[nodiscard]] bool before(uint32_t a, uint32_t b) const { return end(a) < send(b); }
  // When an epoch began; 0 of the first.
  [[nodiscard]] uint64_t epoch_start(uint32_t epoch) const {
    return epoch == 0 ? 0 : history_.restarts_ns[epoch - 1];
  }
  // Of a change that succeeded: the first flush to reply of those that cover it and were sent in
  // the same epoch. kNone: none.
  [[nodiscard]] uint32_t flush_of(uint32_t change) const { return facts_[change].flush; }
  // The change is durable when its epoch has ended, at CheckOptions' Survival; and the flush that
  // made it so, where it was one.
  [[nodiscard]] bool survives(uint32_t change) const;
  [[nodiscard]] uint32_t surviving_flush(uint32_t change) const;

  // The operation that wrote this tag; kNone: nobody in this history.
  [[nodiscard]] uint32_t writer(Tag tag) const;
  [[nodiscard]] uint32_t cells() const { return static_cast<uint32_t>(event_bounds_.size() - 1); }
  [[nodiscard]] uint32_t connections() const { return connections_; }
  // All operations on the cell, as they were sent.
  [[nodiscard]] std::span<const CellEvent> events(uint32_t cell) const {
    return slice(events_, event_bounds_, cell);
  }
  // Changes of the cell that succeeded, ascending by end.
  [[nodiscard]] std::span<const uint32_t> acknowledged(uint32_t cell) const {
    return slice(acknowledged_, acknowledged_bounds_, cell);
  }

 private:
  struct Facts {
    uint64_t end_ns = kNever;
    uint32_t epoch = 0;
    uint32_t flush = kNone;
    uint32_t surviving_flush = kNone;
  };
  template <typename T>
  static std::span<const T> slice(const std::vector<T>& all, const std::vector<uint32_t>& bounds,
                                  uint32_t cell) {
    return std::span(all).subspan(bounds[cell], bounds[cell + 1] - bounds[cell]);
  }

  void note_ends();
  void note_tags();
  void note_flushes();
  // Of `flushes`, ascending, the first to reply of those that are after the change.
  [[nodiscard]] uint32_t first_flush_after(uint32_t change, std::span<const uint32_t> flushes,
                                           std::span<const uint32_t> first_reply) const;
  // For each of `flushes`, the first to reply of it and those after it. That is one of its epoch:
  // all that was sent there has ended before the next begins.
  [[nodiscard]] std::vector<uint32_t> first_replies(std::span<const uint32_t> flushes) const;
  void sort_by_cell();

  const History& history_;
  const CheckOptions& options_;
  std::vector<Facts> facts_;
  uint32_t connections_ = 0;
  std::vector<uint32_t> dense_writers_;  // by tag, when tags are small numbers
  std::unordered_map<Tag, uint32_t> sparse_writers_;
  std::vector<uint32_t> event_bounds_;
  std::vector<CellEvent> events_;
  std::vector<uint32_t> acknowledged_bounds_;
  std::vector<uint32_t> acknowledged_;
};

}  // namespace weft::check
