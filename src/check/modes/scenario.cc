// SPDX-License-Identifier: BSD-3-Clause
#include "check/modes/scenario.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/result.h"

namespace weft::check {

namespace {

constexpr std::chrono::milliseconds kDrainLimit{2'000};  // for sockets of a process that has ended

std::string verb_of(const Operation& operation) {
  switch (operation.kind) {
    case Kind::kRead:
      return "reads";
    case Kind::kWrite:
      return "writes";
    case Kind::kZero:
      return "zeroes";
    case Kind::kTrim:
      return "trims";
    case Kind::kCache:
      return "caches";
    case Kind::kFlush:
      return "flushes";
    case Kind::kStatus:
      return "asks for the status of";
  }
  return "";
}

void end_server(Run& run, const std::function<void()>& signalled) {
  if (!run.server->kill(signalled)) {
    throw ConfigError(fmt::format("{}: does not end after SIGKILL", run.server->command_line()));
  }
}

}  // namespace

std::string cannot_harm(const Run& run) {
  if (!run.server) return "needs the server's command, to end and start it: write it after --";
  if (!run.disk) return "the command has no {disk}: write it where the disk's path belongs";
  return "";
}

Verdicts only(const Verdicts& verdicts, const std::function<bool(const Violation&)>& wanted) {
  Verdicts result;
  result.witnesses = verdicts.witnesses;
  for (size_t i = 0; i < kLevels.size(); ++i) {
    std::ranges::copy_if(verdicts.levels[i].violations,
                         std::back_inserter(result.levels[i].violations), wanted);
    result.levels[i].count =
        result.levels[i].violations.size() + (i ? result.levels[i - 1].count : 0);
  }
  return result;
}

Play::Play(Run& run, const Layout& layout, const LoadOptions& options)
    : run_(run), options_(options) {
  run.disk->release();
  end_server(run, {});
  run.disk->wipe();
  run.disk->set_times(std::chrono::microseconds(0), std::chrono::microseconds(0));
  run.server->start(kStartLimit);
  load_.emplace(options, layout, [&run] { return run.dial(); }, &run.interrupted);
}

Wish Play::wish(Kind kind, uint32_t block, bool fua) const {
  if (kind == Kind::kFlush) return {};
  const uint32_t cells = load_->layout().cells_per_block();
  return {
      .kind = kind, .cell = block % load_->layout().blocks() * cells, .cells = cells, .fua = fua};
}

Range Play::place(uint32_t block) const {
  const Wish whole = wish(Kind::kRead, block);
  return load_->layout().range(whole.cell, whole.cells);
}

uint32_t Play::act(uint32_t connection, const Wish& wish) {
  return act_at_once({{connection, wish}}).front();
}

std::vector<uint32_t> Play::act_at_once(const std::vector<std::pair<uint32_t, Wish>>& acts) {
  std::vector<uint32_t> result;
  for (const auto& [connection, wish] : acts) result.push_back(load_->start(connection, wish));
  for (const uint32_t index : result) {
    (void)load_->wait_for(index, options_.patience);
    say(told(index) + (acts.size() > 1 ? " (at once)" : ""));
  }
  return result;
}

std::string Play::answer(uint32_t index) const {
  const Operation& operation = this->operation(index);
  if (operation.succeeded()) return "OK";
  if (operation.replied()) return std::string(nbd::error_name(operation.error));
  for (uint32_t i = 0; i < load_->connections(); ++i) {
    if (load_->lost(i)) return "no answer, the connection is lost";
  }
  return "no answer";
}

std::string Play::told(uint32_t index) const {
  const Operation& operation = this->operation(index);
  std::string text = fmt::format("{} {}", load_->history().connection_names[operation.connection],
                                 verb_of(operation));
  if (operation.cells > 0) {
    const Range range = load_->layout().range(operation.cell, operation.cells);
    text += fmt::format(" {}+{}", range.offset, range.length);
  }
  if (operation.fua) text += " with FUA";
  return text + ": " + answer(index);
}

uint64_t Play::cut_power(FaultDisk::Cut cut, uint64_t seed) {
  run_.disk->freeze();
  end_server(run_, [&] { run_.disk->fail_held(); });
  load_->drain_lost(kDrainLimit);
  return run_.disk->restore(cut, seed);
}

void Play::kill() {
  end_server(run_, [&] { run_.disk->release(); });
  load_->drain_lost(kDrainLimit);
  run_.disk->restore_nothing_lost();
}

bool Play::start_again() {
  run_.disk->set_times(std::chrono::microseconds(0), std::chrono::microseconds(0));
  try {
    run_.server->start(kStartLimit);
  } catch (const ConfigError& error) {
    why_ = error.what();
    return false;
  }
  if (load_->reconnect_all()) return true;
  why_ = load_->failure();
  return false;
}

}  // namespace weft::check
