// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_output.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace weft::plugins {
namespace {

using disk::BlockSize;
using disk::Support;
using disk::ThreadModel;

TEST(ScriptOutput, FirstWordOfAComplaintIsTheErrno) {
  const struct {
    const char* err;
    int code;
    const char* text;
  } cases[] = {
      {"ENOSPC the disk is full\nand more\n", ENOSPC, "the disk is full"},
      {"enospc\n", ENOSPC, ""},
      {"ENOSPC", ENOSPC, ""},
      {"EROFS\ttext", EROFS, "text"},
      {"ENOTSUP", EOPNOTSUPP, ""},
      {"ENOSPCX text", EIO, "ENOSPCX text"},
      {"ENOSPC: text", EIO, "ENOSPC: text"},
      {" ENOSPC text", EIO, "ENOSPC text"},
      {"cat: no such file\n", EIO, "cat: no such file"},
      {"", EIO, ""},
      {"\n\n", EIO, ""},
  };
  for (const auto& c : cases) {
    const ScriptComplaint complaint = read_complaint(c.err);
    EXPECT_EQ(complaint.code, c.code) << c.err;
    EXPECT_EQ(complaint.text, c.text) << c.err;
  }
}

TEST(ScriptOutput, Sizes) {
  EXPECT_EQ(read_size("1M"), 1u << 20);
  EXPECT_EQ(read_size(" 512"), 512u);
  for (const char* bad : {"", "1M 2", "1\n", "-1", "0x10", "M"})
    EXPECT_FALSE(read_size(bad)) << bad;
}

TEST(ScriptOutput, BlockSizes) {
  std::string why;
  EXPECT_EQ(read_block_size("512 4K 1M\n", why), (BlockSize{512, 4096, 1 << 20}));
  EXPECT_EQ(read_block_size("0 0 0", why), BlockSize{});
  EXPECT_EQ(read_block_size("1 512 4294967295", why), (BlockSize{1, 512, BlockSize{}.maximum}));
  for (const char* bad : {"", "512", "512 4096", "junk 4096 1M", "3 4096 1M", "128K 128K 1M",
                          "512 1000 1M", "4096 512 1M", "1 1 1M", "512 4096 5000", "512 4096 1K"}) {
    why.clear();
    EXPECT_FALSE(read_block_size(bad, why)) << bad;
    EXPECT_FALSE(why.empty()) << bad;
  }
}

TEST(ScriptOutput, Words) {
  EXPECT_EQ(read_support("NATIVE\n"), Support::kNative);
  EXPECT_EQ(read_support(" none"), Support::kNone);
  EXPECT_EQ(read_support("emulate"), Support::kEmulate);
  EXPECT_FALSE(read_support("yes"));
  EXPECT_FALSE(read_support(""));
  EXPECT_EQ(read_thread_model("parallel\n"), ThreadModel::kParallel);
  EXPECT_EQ(read_thread_model("Serialize_Requests"), ThreadModel::kSerializeRequests);
  EXPECT_FALSE(read_thread_model("par"));
}

Status read(std::string_view text, Extents& into) {
  return read_extents(text, into);
}

TEST(ScriptOutput, ExtentsAreCutToTheWindow) {
  Extents extents({4096, 8192});
  ASSERT_TRUE(read("0 1K\n1K 4K hole,zero\n\n5K 1M zero\n", extents));
  EXPECT_EQ(extents.list(), (std::vector<Extent>{{1024, 3}, {7168, 2}}));

  Extents part({0, 8192});
  ASSERT_TRUE(read("0 512 7\n512 0\n512 512 junk\n1024 1 1x", part));
  EXPECT_EQ(part.list(), (std::vector<Extent>{{512, 3}, {512, 0}, {1, 1}}));
}

TEST(ScriptOutput, BadExtents) {
  const struct {
    const char* text;
    int code;
  } cases[] = {{"", EINVAL},
               {"1K 1M", EINVAL},
               {"0 512\n1K 512", EINVAL},
               {"0 1K\n512 1K", EINVAL},
               {"0", EIO},
               {"0 x", EIO},
               {"x 1K", EIO},
               {"0 0", EINVAL},
               {"8E 1", EIO}};
  for (const auto& c : cases) {
    Extents extents({0, 8192});
    const Status status = read(c.text, extents);
    ASSERT_FALSE(status) << c.text;
    EXPECT_EQ(status.error().code, c.code) << c.text;
  }
}

}  // namespace
}  // namespace weft::plugins
