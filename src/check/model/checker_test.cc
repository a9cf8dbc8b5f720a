// SPDX-License-Identifier: BSD-3-Clause
// Each fault by hand, beside the nearest history that is legal.
#include "check/model/checker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "check/model/draft.h"

namespace weft::check {
namespace {

using testing::ElementsAre;

constexpr uint32_t kA = 0, kB = 1, kC = 2;

// The only violation; nothing when there is none. More than one fails the test.
std::optional<Violation> only(const Draft& draft, const CheckOptions& options = {}) {
  const Verdicts verdicts = check(draft.done(), options);
  std::vector<Violation> all;
  for (const LevelVerdict& of_level : verdicts.levels) {
    all.insert(all.end(), of_level.violations.begin(), of_level.violations.end());
  }
  EXPECT_EQ(verdicts.of(Level::kAtOnce).count, all.size());
  EXPECT_LE(all.size(), 1U);
  if (all.empty()) return std::nullopt;
  return all.front();
}

void expect_legal(const Draft& draft, const CheckOptions& options = {}) {
  const std::optional<Violation> found = only(draft, options);
  EXPECT_FALSE(found) << summary(draft.done(), *found);
}

void expect_fault(const Draft& draft, Fault fault, Level level, std::vector<uint32_t> operations,
                  const CheckOptions& options = {}) {
  const std::optional<Violation> found = only(draft, options);
  ASSERT_TRUE(found) << "nothing found, but expected " << fault_name(fault);
  EXPECT_EQ(fault_name(found->fault), fault_name(fault));
  EXPECT_EQ(level_name(found->level), level_name(level));
  EXPECT_EQ(found->operations(), operations);
}

// --- Must-see sets -----------------------------------------------------------------------------

TEST(Stale, OfTheSameConnection) {
  expect_fault(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).read(kA, 0, 1, 5, 6),
               Fault::kStale, Level::kOwn, {0, 1, 2});
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).read(kA, 0, 2, 5, 6));
  // Each < is strict: writes that touch are concurrent, and so are a write and a read.
  expect_legal(Draft().write(kA, 0, 1, 1, 3).write(kA, 0, 2, 3, 4).read(kA, 0, 1, 5, 6));
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 5).read(kA, 0, 1, 5, 6));
  // Another cell.
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 1, 2, 3, 4).read(kA, 0, 1, 5, 6));
}

TEST(Stale, OfAnotherConnectionOnlyAtOnce) {
  expect_fault(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).read(kB, 0, 1, 5, 6),
               Fault::kStale, Level::kAtOnce, {0, 1, 2});
}

TEST(Stale, AfterAFlush) {
  const auto with_flush = [](uint32_t connection, uint64_t send, uint64_t reply) {
    return Draft()
        .write(kA, 0, 1, 1, 2)
        .write(kA, 0, 2, 3, 4)
        .flush(connection, send, reply)
        .read(kB, 0, 1, 20, 21);
  };
  for (const uint32_t connection : {kA, kB, kC}) {
    expect_fault(with_flush(connection, 5, 6), Fault::kStale, Level::kFlushed, {0, 1, 2, 3});
  }
  // Sent before the write was acknowledged, or replied after the read was sent: covers nothing.
  expect_fault(with_flush(kA, 4, 6), Fault::kStale, Level::kAtOnce, {0, 1, 3});
  expect_fault(with_flush(kA, 5, 20), Fault::kStale, Level::kAtOnce, {0, 1, 3});
  // A failed flush, or one without a reply, gives nothing; but the next one does.
  const auto failed = [] {
    return Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).flush(kA, 5, 6).failed();
  };
  expect_fault(failed().read(kB, 0, 1, 20, 21), Fault::kStale, Level::kAtOnce, {0, 1, 3});
  expect_fault(failed().flush(kB, 7, 8).read(kB, 0, 1, 20, 21), Fault::kStale, Level::kFlushed,
               {0, 1, 3, 4});
  expect_fault(with_flush(kA, 5, kNever), Fault::kStale, Level::kAtOnce, {0, 1, 3});
}

TEST(Stale, AfterFua) {
  expect_fault(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).fua().read(kB, 0, 1, 5, 6),
               Fault::kStale, Level::kFlushed, {0, 1, 2});
  // FUA speaks of its own command alone.
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kA, 0, 2, 3, 4)
                   .write(kA, 1, 3, 5, 6)
                   .fua()
                   .read(kB, 0, 1, 7, 8),
               Fault::kStale, Level::kAtOnce, {0, 1, 3});
}

TEST(Stale, WhatFailedNeedNotBeSeen) {
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).failed().read(kA, 0, 1, 5, 6));
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).failed().read(kA, 0, 2, 5, 6));
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, kNever).read(kA, 0, 1, 5, 6));
  // It has happened by its error, or not at all; without a reply it may come late.
  expect_fault(Draft().write(kA, 0, 1, 1, 2).failed().write(kA, 0, 2, 3, 4).read(kA, 0, 1, 5, 6),
               Fault::kStale, Level::kOwn, {0, 1, 2});
  expect_legal(Draft().write(kA, 0, 1, 1, kNever).write(kA, 0, 2, 3, 4).read(kA, 0, 1, 5, 6));
}

TEST(Stale, AReadThatFailedSaysNothing) {
  expect_legal(Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).read(kA, 0, 1, 5, 6).failed());
}

TEST(Stale, EachHalfOfATornCell) {
  const auto writes = [] { return Draft().write(kA, 0, 1, 1, 10).write(kB, 0, 2, 1, 10); };
  expect_legal(writes().torn_read(kA, 0, 1, 2, 11, 12));
  expect_fault(writes().write(kA, 0, 3, 11, 12).torn_read(kA, 0, 3, 2, 13, 14), Fault::kStale,
               Level::kOwn, {1, 2, 3});
}

TEST(Future, IsAFaultAtEveryLevel) {
  expect_fault(Draft().read(kA, 0, 1, 1, 2).write(kA, 0, 1, 3, 4), Fault::kFuture, Level::kOwn,
               {0, 1});
  expect_legal(Draft().read(kA, 0, 1, 1, 3).write(kA, 0, 1, 3, 4));
  // A trim does not excuse it.
  expect_fault(Draft().trim(kA, 0, 1, 2).read(kA, 0, 1, 3, 4).write(kA, 0, 1, 5, 6), Fault::kFuture,
               Level::kOwn, {1, 2});
}

TEST(Garbage, OnceTheContentIsKnown) {
  expect_legal(Draft().read(kA, 0, kGarbageTag, 1, 2).read(kA, 0, 77, 3, 4));
  expect_legal(Draft().write(kA, 0, 1, 1, 4).read(kA, 0, kGarbageTag, 3, 5));
  expect_fault(Draft().write(kA, 0, 1, 1, 2).read(kA, 0, kGarbageTag, 3, 4), Fault::kGarbage,
               Level::kOwn, {0, 1});
  // What another connection saw may still be what was there before.
  expect_fault(Draft().write(kA, 0, 1, 1, 2).read(kB, 0, kGarbageTag, 3, 4), Fault::kGarbage,
               Level::kAtOnce, {0, 1});
  // A tag of another cell is garbage in this one.
  expect_fault(Draft().write(kA, 1, 7, 1, 2).write(kA, 0, 1, 3, 4).read(kA, 0, 7, 5, 6),
               Fault::kGarbage, Level::kOwn, {1, 2});
}

// --- Zeroes and trims ---------------------------------------------------------------------------

TEST(Zero, IsExplainedByAnyZeroThatIsNotStale) {
  expect_legal(Draft().write(kA, 0, 1, 1, 2).zero(kA, 0, 3, 4).read(kA, 0, kZeroTag, 5, 6));
  expect_fault(Draft().write(kA, 0, 1, 1, 2).read(kA, 0, kZeroTag, 5, 6), Fault::kStale,
               Level::kOwn, {0, 1});
  expect_fault(Draft().zero(kA, 0, 1, 2).write(kA, 0, 1, 3, 4).read(kA, 0, kZeroTag, 5, 6),
               Fault::kStale, Level::kOwn, {0, 1, 2});
  expect_legal(Draft()
                   .zero(kA, 0, 1, 2)
                   .write(kA, 0, 1, 3, 4)
                   .zero(kB, 0, 4, 9)
                   .read(kA, 0, kZeroTag, 5, 6));
  // One of the future explains nothing.
  expect_fault(Draft().write(kA, 0, 1, 3, 4).read(kA, 0, kZeroTag, 5, 6).zero(kB, 0, 7, 8),
               Fault::kStale, Level::kOwn, {0, 1});
  // A zero is a change: it must be seen.
  expect_fault(Draft().write(kA, 0, 1, 1, 2).zero(kA, 0, 3, 4).read(kA, 0, 1, 5, 6), Fault::kStale,
               Level::kOwn, {0, 1, 2});
}

TEST(Zero, StatusMustNotClaimItFalsely) {
  expect_legal(Draft().write(kA, 0, 1, 1, 2).zero(kA, 0, 3, 4).status_zero(kA, 0, 5, 6));
  expect_fault(Draft().write(kA, 0, 1, 1, 2).status_zero(kA, 0, 5, 6), Fault::kFalseZero,
               Level::kOwn, {0, 1});
  expect_fault(Draft().write(kA, 0, 1, 1, 2).flush(kA, 3, 4).status_zero(kB, 0, 5, 6),
               Fault::kFalseZero, Level::kFlushed, {0, 1, 2});
  expect_legal(Draft().write(kA, 0, 1, 1, 5).status_zero(kA, 0, 5, 6));
}

TEST(Trim, FreesReadsUntilALaterWrite) {
  const auto trimmed = [] { return Draft().write(kA, 0, 1, 1, 2).trim(kA, 0, 5, 6); };
  for (const Tag tag : {Tag{1}, kZeroTag, kGarbageTag}) {
    expect_legal(trimmed().read(kA, 0, tag, 7, 8));
    // From its sending on.
    expect_legal(trimmed().read(kA, 0, tag, 4, 5));
    // A write that overlaps it mends nothing; one that was sent after its reply does.
    expect_legal(trimmed().write(kA, 0, 2, 6, 8).read(kA, 0, tag, 9, 10));
    const auto found = only(trimmed().write(kA, 0, 2, 7, 8).read(kA, 0, tag, 9, 10));
    ASSERT_TRUE(found);
    EXPECT_EQ(found->level, Level::kOwn);
  }
  expect_fault(trimmed().read(kA, 0, kGarbageTag, 3, 4), Fault::kGarbage, Level::kOwn, {0, 1});
  // A failed trim may have happened.
  expect_legal(
      Draft().write(kA, 0, 1, 1, 2).trim(kA, 0, 5, 6).failed().read(kA, 0, kGarbageTag, 7, 8));
  // The mending write must be seen at the level that is asked for.
  expect_fault(trimmed().write(kB, 0, 2, 7, 8).read(kA, 0, kGarbageTag, 9, 10), Fault::kGarbage,
               Level::kAtOnce, {2, 3});
}

// --- Linearizability ----------------------------------------------------------------------------

TEST(Linear, ReadsMustNotGoBack) {
  const auto writes = [] { return Draft().write(kA, 0, 1, 1, 50).write(kB, 0, 2, 1, 50); };
  expect_legal(writes().read(kC, 0, 1, 10, 11).read(kC, 0, 2, 12, 13));
  expect_fault(writes().read(kC, 0, 1, 10, 11).read(kC, 0, 2, 12, 13).read(kC, 0, 1, 14, 15),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3, 4});
  // Concurrent reads have no order.
  expect_legal(writes().read(kC, 0, 1, 10, 12).read(kC, 0, 2, 12, 14).read(kC, 0, 1, 14, 16));
}

TEST(Linear, NewThenOld) {
  const auto begun = [] { return Draft().write(kA, 0, 1, 1, 2).write(kB, 0, 2, 5, 50); };
  expect_fault(begun().read(kA, 0, 2, 10, 11).read(kC, 0, 1, 12, 13), Fault::kNotLinear,
               Level::kAtOnce, {0, 1, 2, 3});
  expect_legal(begun().read(kA, 0, 2, 10, 12).read(kC, 0, 1, 12, 13));
  // A write that failed, or was never answered, has happened when somebody saw it.
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kB, 0, 2, 5, kNever)
                   .read(kA, 0, 2, 10, 11)
                   .read(kC, 0, 1, 12, 13),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3});
}

TEST(Linear, FourReadsThatOnlyTogetherProveIt) {
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 100)
                   .write(kB, 0, 2, 1, 100)
                   .read(kA, 0, 1, 10, 20)
                   .read(kB, 0, 2, 10, 21)
                   .read(kC, 0, 1, 30, 40)
                   .read(kA, 0, 2, 30, 40),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3, 4, 5});
}

TEST(Linear, EachEndOfATornCellIsARegister) {
  const auto writes = [] { return Draft().write(kA, 0, 1, 1, 50).write(kB, 0, 2, 1, 50); };
  // The first byte goes from 1 to 2, the last from 2 to 1: two registers, two orders.
  expect_legal(writes().torn_read(kC, 0, 1, 2, 10, 11).torn_read(kC, 0, 2, 1, 12, 13));
  expect_fault(writes()
                   .torn_read(kC, 0, 1, 2, 10, 11)
                   .torn_read(kC, 0, 1, 1, 12, 13)
                   .torn_read(kC, 0, 1, 2, 14, 15),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3, 4});
}

TEST(Linear, ZeroesOfOneWriteTakePart) {
  const auto begun = [] {
    return Draft().write(kA, 0, 1, 1, 2).zero(kB, 0, 5, 50).read(kA, 0, kZeroTag, 10, 11);
  };
  expect_fault(begun().read(kC, 0, 1, 12, 13), Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3});
  // A change that was to be seen before is what tells the zeroes from the first content.
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kA, 0, 2, 3, 100)
                   .zero(kB, 0, 3, 100)
                   .read(kC, 0, 2, 10, 11)
                   .read(kC, 0, kZeroTag, 12, 13)
                   .read(kC, 0, 2, 14, 15),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3, 4, 5});
  // With another zero in flight nobody knows which one was seen.
  expect_legal(begun().zero(kB, 0, 10, 50).read(kC, 0, 1, 12, 13));
  // Nor after a trim.
  expect_legal(begun().trim(kB, 0, 10, 50).read(kC, 0, 1, 12, 13));
}

TEST(Linear, EveryClusterInsideALongOneIsFound) {
  const Draft draft = Draft()
                          .write(kA, 0, 1, 1, 200)
                          .write(kA, 0, 2, 1, 200)
                          .write(kA, 0, 3, 1, 200)
                          .read(kC, 0, 1, 10, 11)
                          .read(kC, 0, 2, 20, 21)
                          .read(kC, 0, 2, 30, 31)
                          .read(kC, 0, 3, 40, 41)
                          .read(kC, 0, 3, 50, 51)
                          .write(kB, 0, 4, 60, 61)
                          .read(kC, 0, 1, 100, 101);
  EXPECT_EQ(check(draft.done()).of(Level::kAtOnce).count, 3U);
}

TEST(Linear, TheWriteThatMendsATrimIsTheProof) {
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 100)
                   .read(kC, 0, 1, 10, 11)
                   .trim(kB, 0, 12, 13)
                   .write(kB, 0, 2, 14, 15)
                   .read(kC, 0, 1, 16, 17),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 3, 4});
}

TEST(Linear, WhatWasThereBeforeDoesNotComeBack) {
  expect_legal(Draft().write(kA, 0, 1, 1, 50).read(kB, 0, kZeroTag, 10, 11));
  expect_fault(Draft().write(kA, 0, 1, 1, 50).read(kC, 0, 1, 8, 9).read(kB, 0, kZeroTag, 10, 11),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2});
}

// --- Restarts -----------------------------------------------------------------------------------

constexpr CheckOptions kAll{.survival = Survival::kAcknowledged};

TEST(Restart, WhatWasFlushedSurvives) {
  const auto writes = [] { return Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4); };
  expect_fault(writes().flush(kB, 5, 6).restart(10).read(kC, 0, 1, 11, 12), Fault::kLost,
               Level::kOwn, {0, 1, 2, 3});
  expect_legal(writes().flush(kB, 5, 6).restart(10).read(kC, 0, 2, 11, 12));
  expect_legal(writes().restart(10).read(kC, 0, 1, 11, 12));
  expect_legal(writes().flush(kB, 4, 6).restart(10).read(kC, 0, 1, 11, 12));
  expect_legal(writes().flush(kB, 5, 6).failed().restart(10).read(kC, 0, 1, 11, 12));
  expect_legal(writes().flush(kB, 5, kNever).restart(10).read(kC, 0, 1, 11, 12));
  // All that was acknowledged, where that was promised.
  expect_fault(writes().restart(10).read(kC, 0, 1, 11, 12), Fault::kLost, Level::kOwn, {0, 1, 2},
               kAll);
  // A flush after the restart speaks of what there is, not of what was lost.
  expect_legal(writes().restart(10).flush(kC, 11, 12).read(kC, 0, 1, 13, 14));
}

TEST(Restart, AFlushMayCoverItsOwnConnectionAlone) {
  constexpr CheckOptions own{.flush_covers_all = false};
  const auto flushed_by = [](uint32_t connection) {
    return Draft()
        .write(kA, 0, 1, 1, 2)
        .write(kA, 0, 2, 3, 4)
        .flush(connection, 5, 6)
        .restart(10)
        .read(kC, 0, 1, 11, 12);
  };
  expect_legal(flushed_by(kB), own);
  expect_fault(flushed_by(kA), Fault::kLost, Level::kOwn, {0, 1, 2, 3}, own);
  // Though before the restart it was to be seen, and was.
  expect_legal(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kA, 0, 2, 3, 4)
                   .flush(kB, 5, 6)
                   .read(kC, 0, 2, 7, 8)
                   .restart(10)
                   .read(kC, 0, 1, 11, 12),
               own);
}

TEST(Restart, FuaSurvives) {
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kA, 0, 2, 3, 4)
                   .fua()
                   .restart(10)
                   .read(kC, 0, kGarbageTag, 11, 12),
               Fault::kGarbage, Level::kOwn, {1, 2});
}

TEST(Restart, NothingHappensAfterIt) {
  // The write without a reply has happened by the restart or never.
  const auto begun = [] { return Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, kNever); };
  expect_legal(begun().restart(10).read(kC, 0, 2, 11, 12));
  expect_legal(begun().restart(10).read(kC, 0, 1, 11, 12));
  expect_fault(begun().restart(10).write(kC, 0, 3, 11, 12).read(kC, 0, 2, 13, 14), Fault::kStale,
               Level::kOwn, {1, 2, 3});
}

TEST(Restart, WhatItLeftStays) {
  const auto writes = [] {
    return Draft().write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4).restart(10);
  };
  expect_fault(writes().read(kB, 0, 1, 11, 12).read(kC, 0, 2, 13, 14), Fault::kUnsteady,
               Level::kOwn, {0, 1, 2, 3});
  // Also over another restart.
  expect_fault(writes().read(kB, 0, 2, 11, 12).restart(20).read(kC, 0, 1, 21, 22), Fault::kUnsteady,
               Level::kOwn, {0, 1, 2, 3});
  expect_legal(writes().read(kB, 0, 1, 11, 12).read(kC, 0, 1, 13, 14));
  // A change between, though it failed; or what it left is lost with the next restart.
  expect_legal(
      writes().read(kB, 0, 1, 11, 12).write(kB, 0, 3, 13, 14).failed().read(kC, 0, 3, 15, 16));
  expect_legal(
      writes().write(kB, 0, 3, 11, 12).read(kB, 0, 3, 13, 14).restart(20).read(kC, 0, 2, 21, 22));
  // A trim's content is unsteady by itself.
  expect_legal(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .trim(kA, 0, 3, 4)
                   .restart(10)
                   .read(kB, 0, 1, 11, 12)
                   .read(kC, 0, 0, 13, 14));
}

TEST(Restart, AZeroIsKnownByWhatSurvived) {
  // Without the flush the zeroes could be what a write that was lost had covered.
  expect_fault(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .flush(kA, 3, 4)
                   .restart(10)
                   .zero(kB, 0, 11, kNever)
                   .read(kC, 0, kZeroTag, 12, 13)
                   .read(kC, 0, 1, 14, 15),
               Fault::kNotLinear, Level::kAtOnce, {0, 1, 2, 3, 4});
}

TEST(Restart, TheLostIsNoBreachOfLinearizability) {
  expect_legal(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .read(kB, 0, 1, 3, 4)
                   .write(kA, 0, 2, 5, 6)
                   .read(kB, 0, 2, 7, 8)
                   .restart(10)
                   .read(kC, 0, 1, 11, 12));
}

// --- Counting -----------------------------------------------------------------------------------

TEST(Verdicts, CountLowerLevelsAndKeepTheFirst) {
  Draft draft;
  draft.write(kA, 0, 1, 1, 2).write(kA, 0, 2, 3, 4);
  for (uint64_t i = 0; i < 300; i++) draft.read(kA, 0, 1, 10 + i, 11 + i);
  draft.read(kB, 0, 1, 500, 501);
  const Verdicts verdicts = check(draft.done(), {.violations_max = 7});
  EXPECT_EQ(verdicts.of(Level::kOwn).count, 300U);
  EXPECT_EQ(verdicts.of(Level::kFlushed).count, 300U);
  EXPECT_EQ(verdicts.of(Level::kAtOnce).count, 301U);
  ASSERT_EQ(verdicts.of(Level::kOwn).violations.size(), 7U);
  for (uint32_t i = 0; i < 7; i++) EXPECT_EQ(verdicts.of(Level::kOwn).violations[i].read, 2 + i);
  EXPECT_TRUE(verdicts.of(Level::kFlushed).violations.empty());
}

TEST(Verdicts, WideOperationsAreJudgedCellByCell) {
  const Draft draft = Draft()
                          .write(kA, 0, 1, 1, 2)
                          .over(4)
                          .write(kA, 1, 2, 3, 4)
                          .over(2)
                          .read(kA, 2, 1, 5, 6)
                          .read(kA, 3, 1, 5, 6);
  expect_fault(draft, Fault::kStale, Level::kOwn, {0, 1, 2});
}

Witnesses witnesses_of(const Draft& draft) {
  return check(draft.done()).witnesses;
}

TEST(Witnesses, OfTheLevels) {
  const auto begun = [] { return Draft().read(kB, 0, 9, 1, 2).write(kA, 0, 1, 3, 4); };
  EXPECT_EQ(witnesses_of(begun()).reads, 0U);
  EXPECT_EQ(witnesses_of(begun().read(kA, 0, 1, 5, 6)).own, 1U);
  const Witnesses at_once = witnesses_of(begun().read(kB, 0, 1, 7, 8));
  EXPECT_EQ(at_once.reads, 1U);
  EXPECT_EQ(at_once.own, 0U);
  EXPECT_EQ(at_once.flushed, 0U);
  EXPECT_EQ(at_once.at_once, 1U);
  const Witnesses flushed = witnesses_of(begun().flush(kA, 5, 6).read(kB, 0, 1, 7, 8));
  EXPECT_EQ(flushed.flushed, 1U);
  EXPECT_EQ(flushed.at_once, 0U);
  EXPECT_EQ(witnesses_of(begun().fua().read(kB, 0, 1, 7, 8)).flushed, 1U);
  // C has never used the cell: it can have no old copy.
  EXPECT_EQ(witnesses_of(begun().flush(kA, 5, 6).read(kC, 0, 1, 7, 8)).flushed, 0U);
  // What a trim frees shows nothing.
  EXPECT_EQ(witnesses_of(begun().trim(kA, 0, 5, 6).read(kB, 0, 1, 7, 8)).reads, 0U);
  EXPECT_EQ(witnesses_of(begun().flush(kA, 5, 6).restart(9).read(kC, 0, 1, 10, 11)).survived, 1U);
  EXPECT_EQ(witnesses_of(begun().restart(9).read(kC, 0, 1, 10, 11)).survived, 0U);
}

TEST(Witnesses, OverlappedFlushes) {
  const auto count = [](const Draft& draft) { return witnesses_of(draft).overlapped_flushes; };
  const auto begun = [] { return Draft().write(kA, 0, 1, 1, 5).flush(kB, 3, 8); };
  EXPECT_EQ(count(begun()), 0U);
  EXPECT_EQ(count(begun().flush(kB, 9, 10)), 1U);
  EXPECT_EQ(count(begun().flush(kB, 8, 10)), 0U);                         // before the reply
  EXPECT_EQ(count(begun().write(kB, 1, 2, 8, 9).flush(kB, 10, 11)), 0U);  // a change between
  EXPECT_EQ(count(begun().flush(kB, 9, 10).failed()), 0U);
  EXPECT_EQ(count(Draft().write(kA, 0, 1, 1, 2).flush(kB, 3, 8).flush(kB, 9, 10)), 0U);
  EXPECT_EQ(count(Draft().write(kA, 0, 1, 1, 9).flush(kB, 3, 4).flush(kB, 5, 6)), 0U);
  EXPECT_EQ(count(begun().restart(9).flush(kB, 10, 11)), 0U);
}

// --- Stories ------------------------------------------------------------------------------------

std::vector<std::string> story_of(const Draft& draft) {
  const std::optional<Violation> found = only(draft);
  if (!found) return {};
  return tell(draft.done(), *found);
}

TEST(Story, OfAStaleRead) {
  EXPECT_THAT(
      story_of(Draft()
                   .write(kA, 0, 17, 1, 2)
                   .write(kA, 0, 18, 3, 4)
                   .flush(kA, 5, 6)
                   .read(kB, 0, 17, 7, 8)),
      ElementsAre("A wrote 4096+512 (tag 17), sent at 0.000 ms, acknowledged at 1.000 ms",
                  "A wrote 4096+512 (tag 18), sent at 2.000 ms, acknowledged at 3.000 ms",
                  "A flushed, sent at 4.000 ms, acknowledged at 5.000 ms",
                  "B read 4096+512, sent at 6.000 ms, answered at 7.000 ms: it saw tag 17",
                  "wrong: B read tag 17 at 4096+512, which is older than what it had to see",
                  "had to be seen: A's write of tag 18 or what came after it; A's flush was sent "
                  "after its reply and acknowledged before the read was sent"));
}

TEST(Story, OfALostWrite) {
  EXPECT_THAT(
      story_of(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kA, 0, 2, 3, 4)
                   .fua()
                   .restart(10)
                   .read(kB, 0, 1, 11, 12)),
      ElementsAre("A wrote 4096+512 (tag 1), sent at 0.000 ms, acknowledged at 1.000 ms",
                  "A wrote 4096+512 (tag 2), with FUA, sent at 2.000 ms, acknowledged at 3.000 ms",
                  "the server was stopped and started again, at 9.000 ms",
                  "B read 4096+512, sent at 10.000 ms, answered at 11.000 ms: it saw tag 1",
                  "wrong: after the restart B read tag 1 at 4096+512, and what was durable is lost",
                  "had to be seen: A's write of tag 2 or what came after it; with FUA, "
                  "acknowledged before the restart"));
}

TEST(Story, OfNoOneOrder) {
  EXPECT_THAT(
      story_of(Draft()
                   .write(kA, 0, 1, 1, 2)
                   .write(kB, 0, 2, 5, kNever)
                   .read(kA, 0, 2, 10, 11)
                   .read(kC, 0, 1, 12, 13)),
      ElementsAre("A wrote 4096+512 (tag 1), sent at 0.000 ms, acknowledged at 1.000 ms",
                  "B wrote 4096+512 (tag 2), sent at 4.000 ms, never answered",
                  "A read 4096+512, sent at 9.000 ms, answered at 10.000 ms: it saw tag 2",
                  "C read 4096+512, sent at 11.000 ms, answered at 12.000 ms: it saw tag 1",
                  "B's write of tag 2 came before A's write of tag 1: A's read that saw tag 2 was "
                  "over at 10.000 ms, C's read that saw tag 1 was sent at 11.000 ms",
                  "A's write of tag 1 came before B's write of tag 2: A's write of tag 1 was over "
                  "at 1.000 ms, A's read that saw tag 2 was sent at 9.000 ms",
                  "wrong: what was seen at 4096+512 agrees with no order of the writes",
                  "A's write of tag 1 and B's write of tag 2 must stand in one order, the same "
                  "for every connection"));
}

TEST(Story, OfAWideUnsteadyRead) {
  EXPECT_THAT(story_of(Draft()
                           .write(kA, 0, 1, 1, 2)
                           .write(kA, 0, 2, 3, 4)
                           .restart(10)
                           .read(kB, 0, 1, 11, 12)
                           .over(2)
                           .torn_read(kC, 0, 1, 2, 13, 14)),
              testing::Contains("wrong: after the restart B saw tag 1 at 4096+512 and C saw tag 1 "
                                "at its begin and tag 2 at its end, and nobody had changed "
                                "4096+512 between"));
}

TEST(Story, InOneLine) {
  const Draft draft = Draft().read(kA, 0, 1, 1, 2).write(kB, 0, 1, 3, 4);
  EXPECT_EQ(summary(draft.done(), *only(draft)),
            "A read tag 1 at 4096+512, which nobody had begun to write");
}

TEST(Empty, IsLegal) {
  EXPECT_TRUE(check({}).keeps(Level::kAtOnce));
  expect_legal(Draft().flush(kA, 1, 2));
}

}  // namespace
}  // namespace weft::check
