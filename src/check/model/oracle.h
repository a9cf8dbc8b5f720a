// SPDX-License-Identifier: BSD-3-Clause
// Oracle: the definitions at the head of checker.h, word for word and slowly, for tests. Shares no
// code with the checker; linearizability is judged by trying every order. For a dozen operations.
#pragma once

#include <set>
#include <tuple>
#include <vector>

#include "check/model/checker.h"
#include "check/model/history.h"

namespace weft::check {

class Oracle {
 public:
  Oracle(const History& history, const CheckOptions& options)
      : history_(history), options_(options) {}

  [[nodiscard]] bool keeps(Level level) const;
  // Reads of cells that saw what is stale, false or of the future, each with the lowest level.
  [[nodiscard]] std::set<std::tuple<uint32_t, uint32_t, Level>> faulty_reads() const;
  // Every zero that was seen has at most one explanation: the checker must agree with the oracle
  // wholly. Otherwise it may miss what is not linearizable.
  [[nodiscard]] bool unambiguous() const;

 private:
  using Index = uint32_t;
  struct Sight {
    Index read;
    Observation seen;
  };

  [[nodiscard]] const Operation& op(Index index) const { return history_.operations[index]; }
  [[nodiscard]] Index size() const { return static_cast<Index>(history_.operations.size()); }
  [[nodiscard]] uint32_t epoch(Index index) const;
  [[nodiscard]] uint64_t end(Index index) const;
  [[nodiscard]] bool before(Index a, Index b) const { return end(a) < op(b).send_ns; }
  [[nodiscard]] bool touches(Index index, uint32_t cell) const;
  [[nodiscard]] bool durable(Index change) const;
  [[nodiscard]] bool must_see(Index change, Index read, uint32_t cell, Level level) const;
  [[nodiscard]] bool stale(Index version, Index read, uint32_t cell, Level level) const;
  [[nodiscard]] bool must_see_something(Index read, uint32_t cell, Level level) const;
  [[nodiscard]] bool freed_by_trim(Index read, uint32_t cell, Level level) const;
  // The change can have left what was seen.
  [[nodiscard]] bool leaves(Index change, const Observation& seen) const;
  // Nobody has written it, in this cell.
  [[nodiscard]] bool unknown(const Observation& seen) const;
  [[nodiscard]] bool legal(const Sight& sight, Level level) const;
  [[nodiscard]] bool steady() const;
  [[nodiscard]] bool linear() const;
  [[nodiscard]] bool linear(uint32_t cell, bool last_byte, uint32_t epoch) const;
  [[nodiscard]] std::vector<Sight> sights() const;

  const History& history_;
  const CheckOptions options_;
};

}  // namespace weft::check
