// SPDX-License-Identifier: BSD-3-Clause
// Long histories of disks whose promise is known: a disk in order never fails; one that promises
// less fails where it does, and nowhere below.
#include "check/model/simulation.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdlib>
#include <ctime>
#include <string>

#include "check/model/checker.h"

namespace weft::check {
namespace {

constexpr uint64_t kSeeds = 150;

std::string first_story(const History& history, const Verdicts& verdicts) {
  std::string text;
  for (const LevelVerdict& of_level : verdicts.levels) {
    if (of_level.violations.empty()) continue;
    for (const std::string& line : tell(history, of_level.violations.front())) text += line + "\n";
    break;
  }
  return text;
}

// How many of the seeds keep each level.
std::array<uint64_t, 3> count_kept(SimulationOptions options, Level promised,
                                   const CheckOptions& check_options = {}) {
  std::array<uint64_t, 3> kept{};
  for (options.seed = 1; options.seed <= kSeeds; options.seed++) {
    options.cells = options.seed % 3 == 0 ? 1 : 6;
    options.zeros = options.seed % 2 == 0;
    options.trims = options.seed % 4 == 0;
    options.failures = options.seed % 5 != 0;
    const History history = simulate(options);
    const Verdicts verdicts = check(history, check_options);
    for (const Level level : kLevels) {
      kept[static_cast<size_t>(level)] += verdicts.keeps(level);
      if (level > promised) continue;
      EXPECT_TRUE(verdicts.keeps(level)) << "seed " << options.seed << "\n"
                                         << first_story(history, verdicts);
      if (testing::Test::HasFailure()) return kept;
    }
  }
  return kept;
}

TEST(Simulation, OneMemoryKeepsEveryLevel) {
  const auto kept = count_kept({}, Level::kAtOnce);
  EXPECT_EQ(kept[2], kSeeds);
}

TEST(Simulation, CachesUntilFlushAreSeenOnlyAtOnce) {
  const auto kept = count_kept({.caches = Caches::kUntilFlush}, Level::kFlushed);
  EXPECT_LT(kept[2], kSeeds / 10);
}

TEST(Simulation, CachesForeverBreakWhatAFlushPromises) {
  const auto kept = count_kept({.caches = Caches::kForever}, Level::kOwn);
  EXPECT_LT(kept[1], kSeeds / 10);
}

TEST(Simulation, RestartsThatKeepAllKeepEveryLevel) {
  const CheckOptions all{.survival = Survival::kAcknowledged};
  EXPECT_EQ(count_kept({.restarts = 3}, Level::kAtOnce, all)[2], kSeeds);
}

TEST(Simulation, RestartsThatForgetTheUnflushed) {
  const SimulationOptions options{.restarts = 3, .forgets = true};
  EXPECT_EQ(count_kept(options, Level::kAtOnce)[2], kSeeds);
  const SimulationOptions cached{.restarts = 3, .caches = Caches::kUntilFlush, .forgets = true};
  EXPECT_LT(count_kept(cached, Level::kFlushed)[2], kSeeds / 10);
}

TEST(Simulation, RestartsThatForgetTooMuch) {
  uint64_t lost = 0;
  uint64_t lost_of_all = 0;
  for (uint64_t seed = 1; seed <= kSeeds; seed++) {
    SimulationOptions options{.seed = seed, .restarts = 3, .forgets = true};
    const History forgot = simulate(options);
    lost_of_all += !check(forgot, {.survival = Survival::kAcknowledged}).keeps(Level::kOwn);
    options.ignores_flush = true;
    const Verdicts verdicts = check(simulate(options));
    for (const Violation& one : verdicts.of(Level::kOwn).violations) {
      if (one.fault != Fault::kLost) continue;
      lost++;
      break;
    }
  }
  EXPECT_GT(lost, kSeeds * 9 / 10);
  EXPECT_GT(lost_of_all, kSeeds / 2);
}

TEST(Simulation, OldReadsNowAndThenAreFound) {
  uint64_t found = 0;
  for (uint64_t seed = 1; seed <= kSeeds; seed++) {
    const SimulationOptions options{.seed = seed, .trims = false, .old_reads_each = 100};
    found += !check(simulate(options)).keeps(Level::kAtOnce);
  }
  EXPECT_GT(found, kSeeds * 9 / 10);
}

// Its figure is of interest when it is run with more: WEFT_TEST_OPERATIONS=1000000.
TEST(Simulation, Speed) {
  const char* more = std::getenv("WEFT_TEST_OPERATIONS");
  SimulationOptions options;
  options.operations = more ? static_cast<uint32_t>(std::strtoul(more, nullptr, 10)) : 20'000;
  options.cells = 64;
  options.trims = options.failures = false;  // they would free most reads
  const History history = simulate(options);
  const std::clock_t start = std::clock();
  const Verdicts verdicts = check(history);
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_TRUE(verdicts.keeps(Level::kAtOnce));
  EXPECT_GT(verdicts.witnesses.reads, history.operations.size() / 4);
  fmt::print("{} operations in {:.3f} s of processor time: {:.0f} operations/s\n",
             history.operations.size(), seconds,
             static_cast<double>(history.operations.size()) / seconds);
}

}  // namespace
}  // namespace weft::check
