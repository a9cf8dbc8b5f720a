// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/collections.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <string>

#include "nbdkit/exported.h"

namespace weft::nbdkit {
namespace {

using Extent = nbdkit_extents::Extent;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint32_t kHole = NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO;

struct FreeExtents {
  void operator()(nbdkit_extents* extents) const { nbdkit_extents_free(extents); }
};
using ExtentsPtr = std::unique_ptr<nbdkit_extents, FreeExtents>;

ExtentsPtr window(uint64_t start, uint64_t end) {
  return ExtentsPtr(nbdkit_extents_new(start, end));
}

// -1 with errno is told as -errno.
int add(const ExtentsPtr& extents, uint64_t offset, uint64_t length, uint32_t type) {
  errno = 0;
  const int result = nbdkit_add_extent(extents.get(), offset, length, type);
  return result == 0 ? 0 : -errno;
}

TEST(Extents, JoinsNeighboursOfOneType) {
  const ExtentsPtr extents = window(0, 1 << 20);
  EXPECT_EQ(add(extents, 0, 1000, 0), 0);
  EXPECT_EQ(add(extents, 1000, 24, 0), 0);
  EXPECT_EQ(add(extents, 1024, 1024, kHole), 0);
  EXPECT_EQ(add(extents, 2048, 2048, kHole), 0);
  EXPECT_EQ(add(extents, 4096, 1, NBDKIT_EXTENT_ZERO), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{0, 1024, 0}, Extent{1024, 3072, kHole},
                                            Extent{4096, 1, NBDKIT_EXTENT_ZERO}));
  EXPECT_EQ(nbdkit_extents_count(extents.get()), 3u);
  const nbdkit_extent second = nbdkit_get_extent(extents.get(), 1);
  EXPECT_EQ(second.offset, 1024u);
  EXPECT_EQ(second.length, 3072u);
  EXPECT_EQ(second.type, kHole);
}

TEST(Extents, DropsWhatLiesBeforeTheWindow) {
  const ExtentsPtr extents = window(8192, 1 << 20);
  EXPECT_EQ(add(extents, 0, 100, 0), 0);
  EXPECT_EQ(add(extents, 100, 8092, kHole), 0);
  EXPECT_THAT(extents->extents, IsEmpty());
  EXPECT_EQ(add(extents, 8192, 10, 0), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{8192, 10, 0}));
}

TEST(Extents, ClipsTheFirstAndTheLast) {
  const ExtentsPtr extents = window(8192, 16384);
  EXPECT_EQ(add(extents, 200, 10000, kHole), 0);
  EXPECT_EQ(add(extents, 10200, 1000000, 0), 0);
  EXPECT_EQ(add(extents, 1010200, 5, kHole), 0);  // behind the window: of no interest
  EXPECT_THAT(extents->extents, ElementsAre(Extent{8192, 2008, kHole}, Extent{10200, 6184, 0}));
}

TEST(Extents, OneMayCoverEverything) {
  const ExtentsPtr extents = window(4096, 8192);
  EXPECT_EQ(add(extents, 0, UINT64_MAX, 0), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{4096, 4096, 0}));
}

TEST(Extents, ALengthMayOverflow) {
  const ExtentsPtr extents = window(4096, 8192);
  EXPECT_EQ(add(extents, 4096, UINT64_MAX, kHole), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{4096, 4096, kHole}));
  EXPECT_EQ(add(extents, 4095, 10, 0), -ERANGE);
}

TEST(Extents, RefusesGapsAndOverlaps) {
  const ExtentsPtr extents = window(0, 1 << 20);
  EXPECT_EQ(add(extents, 0, 1000, 0), 0);
  EXPECT_EQ(add(extents, 2000, 10, 0), -ERANGE);
  EXPECT_EQ(add(extents, 500, 10, 0), -ERANGE);
  EXPECT_EQ(add(extents, 0, 1000, 0), -ERANGE);
  EXPECT_EQ(add(extents, 500, 0, 0), -ERANGE);
  EXPECT_EQ(add(extents, 1000, 10, kHole), 0);  // and is as before
  EXPECT_THAT(extents->extents, ElementsAre(Extent{0, 1000, 0}, Extent{1000, 10, kHole}));
}

TEST(Extents, RefusesAFirstThatBeginsBehindTheStart) {
  const ExtentsPtr extents = window(4096, 8192);
  EXPECT_EQ(add(extents, 4097, 10, 0), -ERANGE);
  EXPECT_EQ(add(extents, 4096, 10, 0), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{4096, 10, 0}));
}

TEST(Extents, IgnoresEmptyOnes) {
  const ExtentsPtr extents = window(4096, 8192);
  EXPECT_EQ(add(extents, 5000, 0, 0), 0);
  EXPECT_EQ(add(extents, 4096, 0, kHole), 0);
  EXPECT_EQ(add(extents, 4096, 10, 0), 0);
  EXPECT_EQ(add(extents, 4106, 0, kHole), 0);
  EXPECT_EQ(add(extents, 4106, 10, 0), 0);
  EXPECT_THAT(extents->extents, ElementsAre(Extent{4096, 20, 0}));
}

TEST(Extents, KeepsNoMoreThanTheMost) {
  const ExtentsPtr extents = window(0, 1 << 22);
  uint64_t offset = 0;
  for (; offset < nbdkit_extents::kMax + 10; ++offset) {
    ASSERT_EQ(add(extents, offset, 1, offset & 1), 0) << offset;
  }
  EXPECT_EQ(nbdkit_extents_count(extents.get()), nbdkit_extents::kMax);
  EXPECT_EQ(add(extents, offset + 1, 1, 0), -ERANGE);  // the order counts all the same
  // Not joined to the last that was kept: what lies between was left out.
  EXPECT_EQ(add(extents, offset, 1, extents->extents.back().type), 0);
  EXPECT_EQ(extents->extents.back(), (Extent{nbdkit_extents::kMax - 1, 1, 1}));
}

TEST(Extents, AWindowMustBeOne) {
  for (const auto& [start, end] : {std::pair<uint64_t, uint64_t>{10, 10},
                                   {11, 10},
                                   {0, uint64_t{1} << 63},
                                   {UINT64_MAX, UINT64_MAX}}) {
    errno = 0;
    EXPECT_EQ(nbdkit_extents_new(start, end), nullptr) << start << " " << end;
    EXPECT_EQ(errno, ERANGE);
  }
  nbdkit_extents_free(nullptr);
}

struct FreeExports {
  void operator()(nbdkit_exports* exports) const { nbdkit_exports_free(exports); }
};

TEST(Exports, ListsNamesAndDescriptions) {
  const std::unique_ptr<nbdkit_exports, FreeExports> exports(nbdkit_exports_new());
  EXPECT_EQ(nbdkit_exports_count(exports.get()), 0u);
  EXPECT_EQ(nbdkit_add_export(exports.get(), "a", "the first"), 0);
  EXPECT_EQ(nbdkit_add_export(exports.get(), "", nullptr), 0);
  EXPECT_EQ(nbdkit_add_export(exports.get(), "a", "again"), 0);
  EXPECT_FALSE(exports->use_default);
  EXPECT_EQ(nbdkit_use_default_export(exports.get()), 0);
  EXPECT_TRUE(exports->use_default);
  ASSERT_EQ(nbdkit_exports_count(exports.get()), 3u);
  const nbdkit_export first = nbdkit_get_export(exports.get(), 0);
  EXPECT_STREQ(first.name, "a");
  EXPECT_STREQ(first.description, "the first");
  const nbdkit_export second = nbdkit_get_export(exports.get(), 1);
  EXPECT_STREQ(second.name, "");
  EXPECT_EQ(second.description, nullptr);
  nbdkit_exports_free(nullptr);
}

TEST(Exports, StringsMayHave4096Bytes) {
  nbdkit_exports exports;
  const std::string longest(4096, 'x');
  const std::string too_long(4097, 'x');
  EXPECT_EQ(nbdkit_add_export(&exports, longest.c_str(), longest.c_str()), 0);
  errno = 0;
  EXPECT_EQ(nbdkit_add_export(&exports, too_long.c_str(), nullptr), -1);
  EXPECT_EQ(errno, EINVAL);
  errno = 0;
  EXPECT_EQ(nbdkit_add_export(&exports, "b", too_long.c_str()), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(exports.exports.size(), 1u);
}

TEST(Exports, ThereMayBe10000) {
  nbdkit_exports exports;
  for (int i = 0; i < 10000; ++i) ASSERT_EQ(nbdkit_add_export(&exports, "n", nullptr), 0) << i;
  errno = 0;
  EXPECT_EQ(nbdkit_add_export(&exports, "n", nullptr), -1);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(exports.exports.size(), 10000u);
  EXPECT_EQ(nbdkit_use_default_export(&exports), 0);
}

}  // namespace
}  // namespace weft::nbdkit
