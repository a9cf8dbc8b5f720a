// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>

#include <cerrno>
#include <fstream>
#include <iterator>

#include "disk/scratch_folder.h"
#include "filters/log/log_writer.h"
#include "filters/log/record.h"

namespace weft::filters {
namespace {

using std::chrono::microseconds;
using std::chrono::system_clock;

constexpr system_clock::time_point kWhen{microseconds(1'596'679'643'080'415)};

// The very text, which other programs read.
TEST(LogRecord, Lines) {
  EXPECT_EQ((Record{RecordType::kEnter, "Read", 1, 2, "offset=0x0 count=0x200"}).line(kWhen),
            "2020-08-06 02:07:23.080415 connection=1 Read id=2 offset=0x0 count=0x200 ...\n");
  EXPECT_EQ((Record{RecordType::kLeave, "Read", 1, 2, outcome({})}).line(kWhen),
            "2020-08-06 02:07:23.080415 connection=1 ...Read id=2 return=0\n");
  EXPECT_EQ((Record{RecordType::kEnter, "Flush", 1, 3, ""}).line(kWhen),
            "2020-08-06 02:07:23.080415 connection=1 Flush id=3 ...\n");
  EXPECT_EQ((Record{RecordType::kPrint, "Fork", 0, 0, ""}).line(kWhen),
            "2020-08-06 02:07:23.080415 Fork\n");
}

TEST(LogRecord, Assignments) {
  EXPECT_EQ((Record{RecordType::kLeave, "Read", 1, 2, outcome(fail(EIO))}).assignments(),
            "act=Read\ntype=LEAVE\nconnection=1\nid=2\nreturn=-1 error=EIO\n");
}

TEST(LogRecord, Outcomes) {
  EXPECT_EQ(outcome({}), "return=0");
  EXPECT_EQ(outcome(fail(ENOSPC)), "return=-1 error=ENOSPC");
  EXPECT_EQ(outcome(fail(EOPNOTSUPP)), "return=-1 error=ENOTSUP");
  EXPECT_EQ(outcome(fail(99999)), "return=-1 error=99999");
}

TEST(LogRecord, QuotesForAShellOnOneLine) {
  EXPECT_EQ(quoted(""), "\"\"");
  EXPECT_EQ(quoted("a.b-c_d/e:f,g=1"), "a.b-c_d/e:f,g=1");
  EXPECT_EQ(quoted("a b"), "\"a b\"");
  EXPECT_EQ(quoted("it's"), "\"it's\"");
  EXPECT_EQ(quoted("a\"b$c`d\\e"), "\"a\\\"b\\$c\\`d\\\\e\"");
  EXPECT_EQ(quoted("a\nb'c\\"), "$'a\\x0ab\\'c\\\\'");
}

TEST(LogRecord, Extents) {
  Extents extents({0x1000, 0x4000});
  extents.append(0x1000, kExtentData);
  extents.append(0x1000, kExtentHole | kExtentZero);
  extents.append(0x1000, kExtentZero);
  EXPECT_EQ(described(extents),
            "extents=(0x1000 0x1000 \"\" 0x2000 0x1000 \"hole,zero\" 0x3000 0x1000 \"zero\")");
}

std::string content(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// More than an argument of a program may have.
TEST(LogWriter, GivesTheScriptLongEntries) {
  const disk::ScratchFolder folder;
  const std::string path = folder.path() / "out";
  LogWriter writer(Fd(), "", "echo $act ${#extents[*]} >> " + path);
  writer.start();
  std::string parameters = "extents=(";
  for (int i = 0; i < 100'000; i++) parameters += "0x0 0x10 \"\" ";
  writer.write({RecordType::kLeave, "Extents", 1, 1, parameters + ")"});
  writer.write({RecordType::kEnter, "Read", 1, 2, ""});
  EXPECT_TRUE(writer.full());
  writer.wait_for_room();
  EXPECT_FALSE(writer.full());
  writer.finish(std::chrono::minutes(1));
  EXPECT_EQ(content(path), "Extents 300000\nRead 0\n");
}

TEST(LogWriter, DropsAtTheEndWhatScriptsHaveNotDone) {
  {
    LogWriter writer(Fd(), "", "exec sleep 600");
    writer.start();
    for (int i = 0; i < 10; i++) writer.write({RecordType::kEnter, "Read", 1, 2, ""});
    writer.finish(std::chrono::milliseconds(50));
    writer.write({RecordType::kEnter, "Read", 1, 2, ""});
  }
  LogWriter never_finished(Fd(), "", "exec sleep 600");
  never_finished.start();
  never_finished.write({RecordType::kEnter, "Read", 1, 2, ""});
  const LogWriter never_started(Fd(), "", "true");
}

}  // namespace
}  // namespace weft::filters
