// SPDX-License-Identifier: BSD-3-Clause
// The checker against the oracle, on many small random histories.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "check/model/checker.h"
#include "check/model/draft.h"
#include "check/model/oracle.h"

namespace weft::check {
namespace {

// Nanoseconds here are small numbers, so that equal times are common.
class RandomHistory {
 public:
  explicit RandomHistory(uint64_t seed) : random_(seed) {}

  History make() {
    const uint32_t count = between(3, one_in(4) ? 12 : 8);
    cells_ = between(1, 2);
    connections_ = between(2, 3);
    // Some are of a disk that is in order, some of no disk at all, most of one with one defect.
    const bool simulate = !one_in(4);
    Draft draft(cells_);
    const uint32_t restarts = one_in(3) ? between(1, 2) : 0;
    std::vector<uint64_t> moments;
    for (uint32_t i = 0; i < restarts; i++) moments.push_back(between(8, 50));
    std::ranges::sort(moments);
    for (const uint64_t moment : moments) draft.add_restart(moment);
    // The kinds that make an answer ambiguous are left out of most.
    const bool zeros = one_in(2);
    const bool trims = one_in(5);
    for (uint32_t i = 0; i < count; i++) make_operation(zeros, trims);
    for (Pending& pending : pending_) {
      for (const uint64_t moment : moments) {
        const bool crossed = pending.op.send_ns < moment && pending.op.reply_ns >= moment;
        if (crossed && !one_in(5)) pending.op.reply_ns = kNever;
      }
    }
    if (simulate) run(moments);
    if (!simulate || one_in(2)) corrupt(simulate ? 1 : 100);
    for (const Pending& pending : pending_) draft.add(pending.op, pending.seen);
    return draft.done();
  }

 private:
  struct Pending {
    Operation op;
    std::vector<Observation> seen;
    uint64_t effect_ns = 0;
  };

  uint32_t between(uint32_t low, uint32_t high) {
    return std::uniform_int_distribution<uint32_t>(low, high)(random_);
  }
  bool one_in(uint32_t chances) { return between(1, chances) == 1; }

  void make_operation(bool zeros, bool trims) {
    Pending pending;
    Operation& op = pending.op;
    const uint32_t dice = between(0, 99);
    op.kind = dice < 40   ? Kind::kRead
              : dice < 75 ? Kind::kWrite
              : dice < 88 ? Kind::kFlush
              : dice < 94 ? Kind::kZero
              : dice < 97 ? Kind::kTrim
                          : Kind::kStatus;
    if (op.kind == Kind::kZero && !zeros) op.kind = Kind::kRead;
    if (op.kind == Kind::kTrim && !trims) op.kind = Kind::kWrite;
    op.send_ns = between(1, 50);
    op.reply_ns = op.send_ns + between(0, one_in(3) ? 40 : 8);
    op.connection = between(0, connections_ - 1);
    if (one_in(10)) op.reply_ns = kNever;
    if (one_in(10)) op.error = 5;
    if (op.kind != Kind::kFlush) {
      op.cell = between(0, cells_ - 1);
      op.cells = between(1, cells_ - op.cell);
    }
    if (changes(op.kind)) op.fua = one_in(4);
    if (op.kind == Kind::kWrite) op.tag = next_tag_++;
    pending.effect_ns =
        op.reply_ns == kNever ? op.send_ns + between(0, 40) : between(op.send_ns, op.reply_ns);
    const auto at = std::ranges::upper_bound(pending_, op.send_ns, {},
                                             [](const Pending& one) { return one.op.send_ns; });
    pending_.insert(at, pending);
  }

  // A memory that does each operation at one moment, and forgets what is not flushed or not.
  void run(const std::vector<uint64_t>& moments) {
    std::vector<Pending*> order;
    for (Pending& pending : pending_) order.push_back(&pending);
    std::ranges::sort(order, {}, [](const Pending* one) { return std::pair(one->effect_ns, one); });
    std::vector<Tag> memory(cells_, one_in(2) ? kZeroTag : kGarbageTag);
    std::vector<Tag> durable = memory;
    size_t restart = 0;
    const bool keeps_all = one_in(2);
    for (Pending* pending : order) {
      Operation& op = pending->op;
      for (; restart < moments.size() && moments[restart] <= pending->effect_ns; restart++) {
        if (!keeps_all) memory = durable;
      }
      if (restart > 0 && op.send_ns < moments[restart - 1]) continue;  // too late for it
      if (op.kind == Kind::kFlush) durable = memory;
      const bool fails = op.error != 0 || op.reply_ns == kNever;
      for (uint32_t cell = op.cell; cell < op.cell_end(); cell++) {
        if (changes(op.kind) && !(fails && one_in(2))) {
          memory[cell] = op.kind == Kind::kZero ? kZeroTag : op.tag;
          if (op.kind == Kind::kTrim) memory[cell] = one_in(2) ? kGarbageTag : kZeroTag;
          if (op.fua) durable[cell] = memory[cell];
        }
        if (op.succeeded()) see(*pending, cell, memory[cell]);
      }
    }
  }

  static void see(Pending& pending, uint32_t cell, Tag tag) {
    const Kind kind = pending.op.kind;
    if (kind == Kind::kRead || (kind == Kind::kStatus && tag == kZeroTag)) {
      pending.seen.push_back({cell, tag});
    }
  }

  void corrupt(uint32_t times) {
    for (Pending& pending : pending_) {
      const bool reads = pending.op.kind == Kind::kRead;
      if ((!reads && pending.op.kind != Kind::kStatus) || !pending.op.succeeded()) continue;
      if (times == 0 || (times < 10 && one_in(2))) continue;
      times--;
      pending.seen.clear();
      for (uint32_t cell = pending.op.cell; cell < pending.op.cell_end(); cell++) {
        if (!reads) {
          if (one_in(2)) pending.seen.push_back({cell, kZeroTag});
        } else if (one_in(5)) {
          pending.seen.push_back({cell, random_tag(pending.op, cell), Part::kHead});
          if (one_in(3)) {
            pending.seen.push_back({cell, random_tag(pending.op, cell), Part::kMiddle});
          }
          pending.seen.push_back({cell, random_tag(pending.op, cell), Part::kTail});
        } else {
          pending.seen.push_back({cell, random_tag(pending.op, cell)});
        }
      }
    }
  }

  // Mostly of a write that the read can have met.
  Tag random_tag(const Operation& read, uint32_t cell) {
    if (one_in(8)) return one_in(2) ? kGarbageTag : kZeroTag;
    if (one_in(15)) return between(1, next_tag_);
    std::vector<Tag> met;
    for (const Pending& pending : pending_) {
      const Operation& op = pending.op;
      const bool covers = op.cell <= cell && cell < op.cell_end();
      if (!changes(op.kind) || !covers || op.send_ns > read.reply_ns) continue;
      met.push_back(op.kind == Kind::kWrite ? op.tag : kZeroTag);
    }
    return met.empty() ? kZeroTag : met[between(0, static_cast<uint32_t>(met.size()) - 1)];
  }

  std::mt19937_64 random_;
  uint32_t cells_ = 1;
  uint32_t connections_ = 2;
  Tag next_tag_ = 1;
  std::vector<Pending> pending_;
};

std::string describe(const History& history) {
  std::string text;
  for (const uint64_t restart : history.restarts_ns) text += fmt::format("restart {}\n", restart);
  for (size_t i = 0; i < history.operations.size(); i++) {
    const Operation& op = history.operations[i];
    text += fmt::format("{}: connection {} {} cells {}+{} tag {}{} [{}, {}] error {}:", i,
                        op.connection, kind_name(op.kind), op.cell, op.cells, op.tag,
                        op.fua ? " fua" : "", op.send_ns,
                        op.replied() ? fmt::to_string(op.reply_ns) : "never", op.error);
    for (const Observation& seen : history.seen(op)) {
      text += fmt::format(" {}={}({})", seen.cell, seen.tag, static_cast<int>(seen.part));
    }
    text += "\n";
  }
  return text;
}

std::set<std::tuple<uint32_t, uint32_t, Level>> faulty_reads(const Verdicts& verdicts) {
  std::set<std::tuple<uint32_t, uint32_t, Level>> all;
  for (const LevelVerdict& of_level : verdicts.levels) {
    for (const Violation& one : of_level.violations) {
      if (one.fault == Fault::kNotLinear || one.fault == Fault::kUnsteady) continue;
      all.insert({one.read, one.cell, one.level});
    }
  }
  return all;
}

void expect_told(const History& history, const Violation& one) {
  const std::vector<std::string> lines = tell(history, one);
  EXPECT_GE(lines.size(), one.operations().size() + 2);
  if (one.fault != Fault::kNotLinear) return;
  // Either each must stand before the other, or both were there when the server started.
  uint32_t reasons = 0;
  for (const std::string& line : lines) {
    reasons += line.find(" came before ") != std::string::npos ||
               line.find(" was there before ") != std::string::npos;
    reasons += line.find(", not both") != std::string::npos ? 2 : 0;
  }
  EXPECT_EQ(reasons, 2U) << testing::PrintToString(lines);
}

void expect_proved(const History& history, const Verdicts& verdicts, const CheckOptions& options) {
  for (const LevelVerdict& of_level : verdicts.levels) {
    for (const Violation& one : of_level.violations) {
      const History part = part_of(history, one);
      bool again = false;
      for (const LevelVerdict& of_part : check(part, options).levels) {
        for (const Violation& other : of_part.violations) {
          again |= other.fault == one.fault && other.level == one.level && other.cell == one.cell;
        }
      }
      EXPECT_TRUE(again) << "not proved: " << summary(history, one) << "\n" << describe(part);
      expect_told(history, one);
    }
  }
}

struct Tally {
  std::map<std::string, uint64_t> faults;
  std::array<uint64_t, 3> broken{};
  uint64_t histories = 0, exact = 0, missed = 0;
};

void compare(uint64_t seed, Tally& tally) {
  const History history = RandomHistory(seed).make();
  CheckOptions options;
  options.survival = seed % 3 == 0 ? Survival::kAcknowledged : Survival::kSynced;
  options.flush_covers_all = seed % 5 != 0;
  const Verdicts verdicts = check(history, options);
  const Oracle oracle(history, options);
  SCOPED_TRACE(fmt::format("seed {}\n{}", seed, describe(history)));
  EXPECT_EQ(faulty_reads(verdicts), oracle.faulty_reads());
  EXPECT_EQ(verdicts.keeps(Level::kOwn), oracle.keeps(Level::kOwn));
  EXPECT_EQ(verdicts.keeps(Level::kFlushed), oracle.keeps(Level::kFlushed));
  const bool linear = oracle.keeps(Level::kAtOnce);
  const bool exact = oracle.unambiguous();
  if (linear || exact) EXPECT_EQ(verdicts.keeps(Level::kAtOnce), linear);
  expect_proved(history, verdicts, options);

  tally.histories++;
  tally.exact += exact;
  tally.missed += !linear && verdicts.keeps(Level::kAtOnce);
  for (size_t i = 0; i < verdicts.levels.size(); i++) {
    tally.broken[i] += verdicts.levels[i].count != 0;
    for (const Violation& one : verdicts.levels[i].violations) {
      tally.faults[fmt::format("{} of {}", fault_name(one.fault), level_name(one.level))]++;
    }
  }
}

TEST(Agreement, WithTheOracleOnSmallHistories) {
  Tally tally;
  const char* more = std::getenv("WEFT_TEST_SEEDS");
  const uint64_t seeds = more ? std::strtoull(more, nullptr, 10) : 40'000;
  for (uint64_t seed = 1; seed <= seeds; seed++) {
    compare(seed, tally);
    if (HasFailure()) break;
  }
  fmt::print("{} histories, {} unambiguous, {} missed; broken: {} own, {} flushed, {} at once\n",
             tally.histories, tally.exact, tally.missed, tally.broken[0], tally.broken[1],
             tally.broken[2]);
  for (const auto& [name, count] : tally.faults) fmt::print("  {}: {}\n", name, count);
  // The histories are worth something only if they show every fault, and none.
  for (const char* fault :
       {"stale-read of own", "stale-read of flushed", "stale-read of at-once", "future-read of own",
        "garbage-read of own", "garbage-read of flushed", "garbage-read of at-once",
        "false-zero of own", "false-zero of flushed", "false-zero of at-once", "lost-write of own",
        "unsteady-read of own", "not-linearizable of at-once"}) {
    EXPECT_GE(tally.faults[fault], 10U) << fault;
  }
  EXPECT_GE(tally.histories - tally.broken[2], tally.histories / 5);
  EXPECT_GE(tally.exact, tally.histories / 2);
}

}  // namespace
}  // namespace weft::check
