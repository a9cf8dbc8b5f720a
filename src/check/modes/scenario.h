// SPDX-License-Identifier: BSD-3-Clause
// What the modes that harm the disk share: a load on a server that is ended and started again.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "check/subject.h"

namespace weft::check {

// "", or why this run can harm no disk.
[[nodiscard]] std::string cannot_harm(const Run& run);

// A part of the verdicts: the violations that `wanted` takes, counted anew.
[[nodiscard]] Verdicts only(const Verdicts& verdicts,
                            const std::function<bool(const Violation&)>& wanted);

// One life of the server and the next, seen by one load, with its story.
class Play {
 public:
  // Ends the server, gives it a new disk (so that nothing of an earlier play is read), starts it
  // and dials. Throws ConfigError when it cannot be started.
  Play(Run& run, const Layout& layout, const LoadOptions& options);

  [[nodiscard]] Load& load() { return *load_; }
  [[nodiscard]] const std::vector<std::string>& story() const { return story_; }
  void say(std::string line) { story_.push_back(std::move(line)); }

  // Whole blocks of the layout.
  [[nodiscard]] Wish wish(Kind kind, uint32_t block, bool fua = false) const;
  [[nodiscard]] Range place(uint32_t block) const;

  // An operation alone, told in the story with its answer: "B flushes: OK".
  uint32_t act(uint32_t connection, const Wish& wish);
  // Several at once, of one connection each, told like that.
  std::vector<uint32_t> act_at_once(const std::vector<std::pair<uint32_t, Wish>>& acts);
  [[nodiscard]] const Operation& operation(uint32_t index) const {
    return load_->history().operations[index];
  }
  // "B flushes: OK", of an operation of the load.
  [[nodiscard]] std::string told(uint32_t index) const;
  // Only the answer: "OK", "EIO", "no answer, the connection is lost".
  [[nodiscard]] std::string answer(uint32_t index) const;

  // The end of this life: by a cut of the power (see FaultDisk), or a SIGKILL that loses nothing of
  // the disk. Replies that were sent before are taken. Throws ConfigError: it does not end.
  uint64_t cut_power(FaultDisk::Cut cut, uint64_t seed);
  void kill();
  // The next life. False: the server does not start, or takes no connections: why() tells.
  [[nodiscard]] bool start_again();
  [[nodiscard]] const std::string& why() const { return why_; }

  [[nodiscard]] History history() const { return load_->history(); }

 private:
  Run& run_;
  const LoadOptions options_;
  std::optional<Load> load_;
  std::vector<std::string> story_;
  std::string why_;
};

}  // namespace weft::check
