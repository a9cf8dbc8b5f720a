// SPDX-License-Identifier: BSD-3-Clause
#include "filters/stats/tally.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weft::filters {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::Not;

// The very text, which other programs read.
TEST(StatsReport, IsThisText) {
  Tally tally;
  for (uint64_t i = 1; i <= 60; i++) {
    tally[Operation::kRead].add({i * 4096, 4096}, microseconds(1));
  }
  for (uint64_t i = 1; i <= 40; i++) tally[Operation::kRead].add({i * 512, 512}, nanoseconds(0));
  tally[Operation::kZero].add({0, uint64_t{3} << 30}, seconds(1));
  tally[Operation::kCache].add({1, 100}, nanoseconds(0));
  tally[Operation::kFlush].add({}, microseconds(2));
  EXPECT_EQ(tally.report(seconds(2), 50),
            "total: 103 ops, 2.000000 s, 3.00 GiB, 1.50 GiB/s\n"
            "read: 100 ops, 0.000060 s, 260.00 KiB, 4.13 GiB/s op, 130.00 KiB/s total\n"
            "  Request size and alignment breakdown:\n"
            "    12 bits: 60.0% (60 reqs, 240.00 KiB total)\n"
            "         12 bit aligned: 100.0% (60)\n"
            "         13 bit aligned:  50.0% (30)\n"
            "         14+ bit-aligned: 25.0% (15)\n"
            "    other sizes: 40.0% (40 reqs, 20.00 KiB total)\n"
            "\n"
            "zero: 1 ops, 1.000000 s, 3.00 GiB, 3.00 GiB/s op, 1.50 GiB/s total\n"
            "  Request size and alignment breakdown:\n"
            "    31 bits: 100.0% (1 reqs, 3.00 GiB total)\n"
            "\n"
            "cache: 1 ops, 0.000000 s, 100 bytes, (n/a)/s op, 50 bytes/s total\n"
            "  Request size and alignment breakdown:\n"
            "     6 bits: 100.0% (1 reqs, 100 bytes total)\n"
            "          0 bit aligned: 100.0% (1)\n"
            "\n"
            "flush: 1 ops, 0.000002 s, 0 bytes, 0 bytes/s op, 0 bytes/s total\n");
  EXPECT_THAT(tally.report(seconds(2), 0), Not(HasSubstr("breakdown")));
}

TEST(StatsReport, OfNothingIsOneLine) {
  EXPECT_EQ(Tally().report(microseconds(1500000), 95),
            "total: 0 ops, 1.500000 s, 0 bytes, 0 bytes/s\n");
}

TEST(StatsReport, ShowsEverySizeAtAHundredPercent) {
  OperationTally tally;
  for (uint64_t bits = 0; bits < 63; bits++) {
    tally.add({uint64_t{1} << bits, uint64_t{1} << bits}, nanoseconds(0));
  }
  const std::string text = tally.histogram(100);
  for (int bits = 0; bits < 63; bits++) {
    EXPECT_THAT(text, HasSubstr(std::to_string(bits) + " bits:  1.6% (1 reqs, "));
    EXPECT_THAT(text, HasSubstr(std::to_string(bits) + " bit aligned: 100.0% (1)\n"));
  }
  EXPECT_THAT(text, Not(HasSubstr("other")));
}

TEST(StatsTally, AddsUp) {
  Tally all;
  for (uint64_t i = 1; i <= 3; i++) {
    Tally one;
    one[Operation::kWrite].add({i * 1024, 512}, microseconds(i));
    one[Operation::kWrite].add({i * 1024, 1023}, microseconds(i));
    all.add(one);
  }
  EXPECT_EQ(all[Operation::kWrite].count(), 6U);
  EXPECT_EQ(all[Operation::kWrite].bytes(), 3U * 1535);
  EXPECT_EQ(all[Operation::kWrite].time(), microseconds(12));
  EXPECT_EQ(all[Operation::kWrite].histogram(100),
            "  Request size and alignment breakdown:\n"
            "     9 bits: 100.0% (6 reqs, 4.50 KiB total)\n"
            "         10 bit aligned: 100.0% (6)\n"
            "         11 bit aligned:  33.3% (2)\n");
}

}  // namespace
}  // namespace weft::filters
