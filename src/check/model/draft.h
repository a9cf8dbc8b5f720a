// SPDX-License-Identifier: BSD-3-Clause
// Draft: a history written down by hand or by a simulation, for tests.
#pragma once

#include <algorithm>
#include <vector>

#include "check/model/history.h"

namespace weft::check {

class Draft {
 public:
  explicit Draft(uint32_t cells = 4) {
    for (uint32_t i = 0; i < cells; i++) history_.cells.push_back({4096 + uint64_t{i} * 512, 512});
    history_.connection_names = {"A", "B", "C", "D", "E", "F", "G", "H"};
  }

  // Times are in milliseconds here where they are small, and as they are in add().
  Draft& write(uint32_t connection, uint32_t cell, Tag tag, uint64_t send, uint64_t reply) {
    return change(Kind::kWrite, connection, cell, send, reply, tag);
  }
  Draft& zero(uint32_t connection, uint32_t cell, uint64_t send, uint64_t reply) {
    return change(Kind::kZero, connection, cell, send, reply);
  }
  Draft& trim(uint32_t connection, uint32_t cell, uint64_t send, uint64_t reply) {
    return change(Kind::kTrim, connection, cell, send, reply);
  }
  Draft& flush(uint32_t connection, uint64_t send, uint64_t reply) {
    return change(Kind::kFlush, connection, 0, send, reply);
  }
  Draft& read(uint32_t connection, uint32_t cell, Tag tag, uint64_t send, uint64_t reply) {
    return see(Kind::kRead, connection, cell, {{cell, tag}}, send, reply);
  }
  Draft& torn_read(uint32_t connection, uint32_t cell, Tag head, Tag tail, uint64_t send,
                   uint64_t reply) {
    return see(Kind::kRead, connection, cell,
               {{cell, head, Part::kHead}, {cell, tail, Part::kTail}}, send, reply);
  }
  Draft& status_zero(uint32_t connection, uint32_t cell, uint64_t send, uint64_t reply) {
    return see(Kind::kStatus, connection, cell, {{cell, kZeroTag}}, send, reply);
  }
  // Of the operation that was added last.
  Draft& fua() {
    history_.operations[last_].fua = true;
    return *this;
  }
  Draft& failed() {
    history_.operations[last_].error = 5;
    return *this;
  }
  Draft& over(uint32_t cells) {
    history_.operations[last_].cells = cells;
    return *this;
  }
  Draft& restart(uint64_t time) {
    history_.restarts_ns.push_back(scaled(time));
    return *this;
  }

  // Puts it in its place. Times in nanoseconds; `seen` may be empty.
  void add(Operation operation, const std::vector<Observation>& seen) {
    operation.seen = static_cast<uint32_t>(history_.observations.size());
    operation.seen_count = static_cast<uint32_t>(seen.size());
    history_.observations.insert(history_.observations.end(), seen.begin(), seen.end());
    const auto at =
        std::ranges::upper_bound(history_.operations, operation.send_ns, {}, &Operation::send_ns);
    last_ = static_cast<size_t>(at - history_.operations.begin());
    history_.operations.insert(at, operation);
  }
  // Ascending.
  void add_restart(uint64_t time_ns) { history_.restarts_ns.push_back(time_ns); }
  [[nodiscard]] const History& done() const { return history_; }

 private:
  static uint64_t scaled(uint64_t time) { return time == kNever ? kNever : time * 1'000'000; }
  Draft& change(Kind kind, uint32_t connection, uint32_t cell, uint64_t send, uint64_t reply,
                Tag tag = kZeroTag) {
    add({.send_ns = scaled(send),
         .reply_ns = scaled(reply),
         .connection = connection,
         .cell = cell,
         .cells = kind == Kind::kFlush ? 0U : 1U,
         .tag = tag,
         .kind = kind},
        {});
    return *this;
  }
  Draft& see(Kind kind, uint32_t connection, uint32_t cell, const std::vector<Observation>& seen,
             uint64_t send, uint64_t reply) {
    add({.send_ns = scaled(send),
         .reply_ns = scaled(reply),
         .connection = connection,
         .cell = cell,
         .cells = 1,
         .kind = kind},
        seen);
    return *this;
  }

  History history_;
  size_t last_ = 0;
};

}  // namespace weft::check
