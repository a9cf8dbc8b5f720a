// SPDX-License-Identifier: BSD-3-Clause
// What nozero, nocache and noextents make of a disk's abilities, and of the calls.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <optional>

#include "filters/recorder.h"

namespace weft::filters {
namespace {

using disk::Support;
using testing::ElementsAre;
using testing::HasSubstr;

class NoZeroTest : public testing::Test, public Recorded {};

constexpr disk::ZeroFlags kFastTrim{.may_trim = true, .fast = true};

// What a zero that must be fast ends with in each pair of modes. Nothing: it is not advertised.
struct Row {
  const char* mode;
  const char* fast_mode;
  std::optional<int> outcome;  // an errno, or 0
  const char* call;            // of the disk
};
constexpr Row kRows[] = {
    {"none", "none", {}, nullptr},
    {"none", "slow", {}, nullptr},
    {"none", "ignore", {}, nullptr},
    {"none", "default", {}, nullptr},
    {"emulate", "none", {}, nullptr},
    {"emulate", "slow", ENOTSUP, nullptr},
    {"emulate", "ignore", 0, "write 0+512"},
    {"emulate", "default", ENOTSUP, nullptr},
    {"notrim", "none", {}, nullptr},
    {"notrim", "slow", ENOTSUP, nullptr},
    {"notrim", "ignore", 0, "zero 0+512"},
    {"notrim", "default", 0, "zero 0+512 fast"},
    {"plugin", "none", {}, nullptr},
    {"plugin", "slow", ENOTSUP, nullptr},
    {"plugin", "ignore", 0, "zero 0+512 may_trim"},
    {"plugin", "default", 0, "zero 0+512 may_trim fast"},
};

TEST_F(NoZeroTest, EveryPairOfModes) {
  for (const Row& row : kRows) {
    SCOPED_TRACE(fmt::format("zeromode={} fastzeromode={}", row.mode, row.fast_mode));
    open("nozero", {{"zeromode", row.mode}, {"fastzeromode", row.fast_mode}});
    EXPECT_EQ(disk->capabilities().zero != Support::kNone, std::string(row.mode) != "none");
    ASSERT_EQ(disk->capabilities().fast_zero != Support::kNone, row.outcome.has_value());
    if (row.outcome) {
      const Status status = run(disk->zero({0, 512}, kFastTrim));
      EXPECT_EQ(status ? 0 : status.error().code, *row.outcome);
      if (row.call) {
        EXPECT_THAT(recording.calls, ElementsAre(row.call));
      } else {
        EXPECT_THAT(recording.calls, ElementsAre());
      }
    }
    close();
  }
}

TEST_F(NoZeroTest, TheDefaultsTakeZeroAway) {
  EXPECT_EQ(open("nozero").capabilities().zero, Support::kNone);
  EXPECT_EQ(disk->capabilities().trim, Support::kNative);
  close();
  EXPECT_EQ(open("nozero", {{"zeromode", "plugin"}}).capabilities().fast_zero, Support::kNative);
}

TEST_F(NoZeroTest, SlowAndIgnoreWorkOverEmulatedZeroes) {
  recording.capabilities.zero = Support::kEmulate;
  recording.capabilities.fast_zero = Support::kNone;
  open("nozero", {{"zeromode", "plugin"}});
  EXPECT_EQ(disk->capabilities().fast_zero, Support::kNone);
  close();
  open("nozero", {{"zeromode", "plugin"}, {"fastzeromode", "slow"}});
  EXPECT_EQ(run(disk->zero({0, 512}, kFastTrim)).error().code, ENOTSUP);
  close();
  open("nozero", {{"zeromode", "plugin"}, {"fastzeromode", "ignore"}});
  EXPECT_TRUE(run(disk->zero({0, 512}, kFastTrim)));
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512"));
}

TEST_F(NoZeroTest, RefusesADiskThatCannotZero) {
  recording.capabilities.zero = Support::kNone;
  for (const char* mode : {"notrim", "plugin"}) {
    make("nozero", {{"zeromode", mode}});
    recording.calls.clear();
    const auto opened = try_open();
    ASSERT_FALSE(opened);
    EXPECT_THAT(opened.error().text, HasSubstr(mode));
    EXPECT_THAT(recording.calls, ElementsAre("open", "close"));
  }
  recording.capabilities.writable = false;
  EXPECT_EQ(open("nozero", {{"zeromode", "plugin"}}).capabilities().zero, Support::kNone);
}

TEST_F(NoZeroTest, NoCacheEveryMode) {
  EXPECT_EQ(open("nocache").capabilities().cache, Support::kNone);
  close();
  EXPECT_EQ(open("nocache", {{"cachemode", "emulate"}}).capabilities().cache, Support::kEmulate);
  EXPECT_TRUE(run(disk->cache({0, 512})));
  EXPECT_THAT(recording.calls, ElementsAre("read 0+512"));
  close();
  recording.capabilities.cache = Support::kNone;
  EXPECT_EQ(open("nocache", {{"cachemode", "nop"}}).capabilities().cache, Support::kNative);
  EXPECT_TRUE(run(disk->cache({0, 512})));
  EXPECT_THAT(recording.calls, ElementsAre());
}

TEST_F(NoZeroTest, RefusesOtherWords) {
  EXPECT_THROW(make("nozero", {{"zeromode", "default"}}), ConfigError);
  EXPECT_THROW(make("nozero", {{"fastzeromode", "plugin"}}), ConfigError);
  EXPECT_THROW(make("nocache", {{"cachemode", "native"}}), ConfigError);
  EXPECT_THROW(make("noparallel", {{"serialize", "bogus"}}), ConfigError);
  EXPECT_THROW(make("limit", {{"limit", "-1"}}), ConfigError);
  EXPECT_THROW(make("noextents", {{"any", "thing"}}), ConfigError);
}

}  // namespace
}  // namespace weft::filters
