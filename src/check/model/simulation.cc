// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/simulation.h"

#include <algorithm>
#include <array>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

namespace weft::check {

namespace {

constexpr uint32_t kFlushRegister = UINT32_MAX;
constexpr uint64_t kStretch = 5'000;  // of an operation without a reply, nanoseconds

struct State {
  Tag tag = kZeroTag;
  Tag before = kZeroTag;
  uint64_t trim_end_ns = 0;  // not 0: undefined, until a write that was sent after this
  uint64_t order = 0;
};
struct View {
  bool valid = false;
  bool dirty = false;
  State state;
};
// An operation comes to a register.
struct Visit {
  uint64_t time_ns;
  uint32_t operation;
  uint32_t at;
};

class Simulator {
 public:
  explicit Simulator(const SimulationOptions& options) : options_(options), random_(options.seed) {}

  History run() {
    choose_operations();
    choose_visits();
    base_.assign(size_t{options_.cells} * 2, State{one_in(2) ? kZeroTag : kGarbageTag, 0, 0, 0});
    durable_ = base_;
    views_.assign(options_.connections * (options_.restarts + 1), std::vector<View>(base_.size()));
    looks_.resize(history_.operations.size());
    size_t restart = 0;
    for (const Visit& one : visits_) {
      for (; restart < restarts().size() && restarts()[restart] <= one.time_ns; restart++) reset();
      visit(one);
    }
    write_down();
    return std::move(history_);
  }

 private:
  uint64_t between(uint64_t low, uint64_t high) {
    return std::uniform_int_distribution<uint64_t>(low, high)(random_);
  }
  bool one_in(uint32_t chances) { return between(1, chances) == 1; }
  std::vector<uint64_t>& restarts() { return history_.restarts_ns; }

  void choose_operations() {
    const uint32_t slots = options_.connections * options_.depth;
    const uint64_t length = uint64_t{options_.operations} / slots * 530 + 1000;
    const uint32_t epochs = options_.restarts + 1;
    for (uint32_t i = 1; i < epochs; i++) restarts().push_back(length * i / epochs);
    for (uint32_t epoch = 0; epoch < epochs; epoch++) {
      const uint64_t begin = length * epoch / epochs;
      const uint64_t end = length * (epoch + 1) / epochs;
      for (uint32_t slot = 0; slot < slots; slot++) {
        uint64_t time = begin + between(1, 50);
        while (time < end) {
          Operation op = choose(slot / options_.depth + epoch * options_.connections);
          op.send_ns = time;
          op.reply_ns = time + between(1, one_in(10) ? 4000 : 500);
          time = op.reply_ns + between(1, 50);
          if (op.reply_ns >= end || (options_.failures && one_in(60))) op.reply_ns = kNever;
          if (options_.failures && one_in(60)) op.error = 5;
          history_.operations.push_back(op);
        }
      }
    }
    std::ranges::sort(history_.operations, {},
                      [](const Operation& op) { return std::pair(op.send_ns, op.connection); });
    Tag tag = 1;
    for (Operation& op : history_.operations) {
      if (op.kind == Kind::kWrite) op.tag = tag++;
    }
    for (uint32_t cell = 0; cell < options_.cells; cell++) {
      history_.cells.push_back({uint64_t{cell} * 512, 512});
    }
  }

  Operation choose(uint32_t connection) {
    Operation op;
    op.connection = connection;
    const uint64_t dice = between(0, 99);
    op.kind = dice < 40   ? Kind::kRead
              : dice < 75 ? Kind::kWrite
              : dice < 80 ? Kind::kZero
              : dice < 82 ? Kind::kTrim
              : dice < 84 ? Kind::kCache
              : dice < 88 ? Kind::kStatus
                          : Kind::kFlush;
    if (op.kind == Kind::kZero && !options_.zeros) op.kind = Kind::kWrite;
    if (op.kind == Kind::kTrim && !options_.trims) op.kind = Kind::kRead;
    if (op.kind == Kind::kFlush) return op;
    op.cell = static_cast<uint32_t>(between(0, options_.cells - 1));
    op.cells = static_cast<uint32_t>(between(1, std::min(3U, options_.cells - op.cell)));
    op.fua = changes(op.kind) && one_in(5);
    return op;
  }

  void choose_visits() {
    for (uint32_t i = 0; i < history_.operations.size(); i++) {
      const Operation& op = history_.operations[i];
      const auto next = std::ranges::upper_bound(restarts(), op.send_ns);
      const uint64_t restart = next == restarts().end() ? kNever : *next;
      const uint64_t last =
          std::min(op.replied() ? op.reply_ns : op.send_ns + kStretch, restart - 1);
      if (op.kind == Kind::kFlush) {
        if (op.succeeded()) visits_.push_back({between(op.send_ns, last), i, kFlushRegister});
        continue;
      }
      for (uint32_t at = op.cell * 2; at < op.cell_end() * 2; at++) {
        if (!op.succeeded() && one_in(2)) continue;
        visits_.push_back({between(op.send_ns, last), i, at});
      }
    }
    std::ranges::sort(visits_, {}, [](const Visit& one) {
      return std::tuple(one.time_ns, one.operation, one.at);
    });
  }

  void reset() {
    for (size_t at = 0; at < base_.size(); at++) {
      if (options_.forgets && one_in(2)) base_[at] = durable_[at];
    }
    durable_ = base_;
    for (std::vector<View>& views : views_) {
      for (View& view : views) view = {};
    }
  }

  void visit(const Visit& one) {
    const Operation& op = history_.operations[one.operation];
    if (one.at == kFlushRegister) {
      flush(op.connection);
    } else if (changes(op.kind)) {
      change(one.operation, one.at);
    } else if (op.kind == Kind::kRead || op.kind == Kind::kStatus) {
      looks_[one.operation].push_back({one.at, look(op.connection, one.at)});
    }
  }

  void change(uint32_t index, uint32_t at) {
    const Operation& op = history_.operations[index];
    const bool cached = options_.caches != Caches::kNone;
    View& view = views_[op.connection][at];
    State state = cached && view.valid ? view.state : base_[at];
    state.order = ++order_;
    if (op.kind == Kind::kTrim) {
      const auto next = std::ranges::upper_bound(restarts(), op.send_ns);
      const uint64_t end = std::min(op.reply_ns, next == restarts().end() ? kNever : *next);
      state.trim_end_ns = std::max(state.trim_end_ns, end);
    } else {
      state.before = state.tag;
      state.tag = op.kind == Kind::kZero ? kZeroTag : op.tag;
      // In a cache of its own a write lands after the trim, whole.
      if (cached || op.send_ns > state.trim_end_ns) state.trim_end_ns = 0;
    }
    if (cached) view = {true, true, state};
    if (!cached || (op.fua && options_.caches == Caches::kUntilFlush)) {
      base_[at] = state;
      for (std::vector<View>& views : views_) views[at] = {};
    }
    if (op.fua && !options_.ignores_flush) durable_[at] = base_[at];
  }

  Tag look(uint32_t connection, uint32_t at) {
    View& view = views_[connection][at];
    if (options_.caches == Caches::kNone) {
      view.state = base_[at];
    } else if (!view.valid) {
      view = {true, false, base_[at]};
    }
    const State& state = view.state;
    if (state.trim_end_ns != 0 && one_in(2)) {
      return std::array{kZeroTag, kGarbageTag, state.before}[between(0, 2)];
    }
    const bool old = options_.old_reads_each != 0 && one_in(options_.old_reads_each);
    return old ? state.before : state.tag;
  }

  void flush(uint32_t connection) {
    if (options_.caches != Caches::kNone) {
      for (uint32_t c = 0; c < views_.size(); c++) {
        if (options_.caches == Caches::kForever && c != connection) continue;
        for (size_t at = 0; at < base_.size(); at++) {
          View& view = views_[c][at];
          if (view.dirty && view.state.order > base_[at].order) base_[at] = view.state;
          view.dirty = false;
          if (options_.caches == Caches::kUntilFlush) view.valid = false;
        }
      }
    }
    if (!options_.ignores_flush) durable_ = base_;
  }

  // Looks come in any order of the registers; they are written down by cell.
  void write_down() {
    for (uint32_t i = 0; i < looks_.size(); i++) {
      Operation& op = history_.operations[i];
      op.seen = static_cast<uint32_t>(history_.observations.size());
      if (!op.succeeded()) continue;
      std::ranges::sort(looks_[i], {}, &Look::at);
      for (size_t at = 0; at + 1 < looks_[i].size(); at += 2) {
        const uint32_t cell = looks_[i][at].at / 2;
        const Tag head = looks_[i][at].tag;
        const Tag tail = looks_[i][at + 1].tag;
        if (op.kind == Kind::kStatus && (head != kZeroTag || tail != kZeroTag)) continue;
        if (head == tail) {
          history_.observations.push_back({cell, head});
        } else {
          history_.observations.push_back({cell, head, Part::kHead});
          history_.observations.push_back({cell, tail, Part::kTail});
        }
      }
      op.seen_count = static_cast<uint32_t>(history_.observations.size()) - op.seen;
    }
  }

  struct Look {
    uint32_t at;
    Tag tag;
  };

  const SimulationOptions options_;
  std::mt19937_64 random_;
  History history_;
  std::vector<Visit> visits_;
  uint64_t order_ = 0;
  std::vector<State> base_, durable_;
  std::vector<std::vector<View>> views_;  // by connection and register
  std::vector<std::vector<Look>> looks_;  // by operation
};

}  // namespace

History simulate(const SimulationOptions& options) {
  return Simulator(options).run();
}

}  // namespace weft::check
