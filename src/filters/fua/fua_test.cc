// SPDX-License-Identifier: BSD-3-Clause
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "filters/recorder.h"

namespace weft::filters {
namespace {

using disk::Capabilities;
using disk::Support;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class FuaTest : public testing::Test, public Recorded {
 protected:
  disk::Disk& with_mode(const std::string& mode) { return open("fua", {{"fuamode", mode}}); }
  void change_all(bool fua) {
    EXPECT_TRUE(run(disk->write(0, bytes, fua)));
    EXPECT_TRUE(run(disk->zero({0, 512}, {.fua = fua, .may_trim = true})));
    EXPECT_TRUE(run(disk->trim({0, 512}, fua)));
  }
};

TEST_F(FuaTest, PassChangesNothing) {
  with_mode("pass");
  change_all(true);
  change_all(false);
  EXPECT_TRUE(run(disk->flush()));
  EXPECT_THAT(recording.calls,
              ElementsAre("write 0+512 fua", "zero 0+512 fua may_trim", "trim 0+512 fua",
                          "write 0+512", "zero 0+512 may_trim", "trim 0+512", "flush"));
}

TEST_F(FuaTest, NoneTakesFuaAwayAndIsTheDefault) {
  const Capabilities& can = open("fua").capabilities();
  EXPECT_EQ(can.fua, Support::kNone);
  EXPECT_EQ(can.flush, Support::kNative);
  EXPECT_TRUE(can.multi_conn);
  EXPECT_TRUE(run(disk->flush()));
  EXPECT_THAT(recording.calls, ElementsAre("flush"));
}

TEST_F(FuaTest, EmulateFlushesAlthoughTheDiskHasFua) {
  EXPECT_EQ(with_mode("emulate").capabilities().fua, Support::kEmulate);
  change_all(true);
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512", "flush", "zero 0+512 may_trim", "flush",
                                           "trim 0+512", "flush"));
}

TEST_F(FuaTest, NativeIsToldAboveAndEmulatedBelow) {
  recording.capabilities.fua = Support::kEmulate;
  EXPECT_EQ(with_mode("native").capabilities().fua, Support::kNative);
  change_all(true);
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512", "flush", "zero 0+512 may_trim", "flush",
                                           "trim 0+512", "flush"));
}

TEST_F(FuaTest, ForceMakesEveryChangeDurableSoThatAFlushHasNothingToDo) {
  with_mode("force");
  EXPECT_TRUE(disk->capabilities().multi_conn);
  change_all(false);
  EXPECT_TRUE(run(disk->flush()));
  EXPECT_THAT(recording.calls,
              ElementsAre("write 0+512 fua", "zero 0+512 fua may_trim", "trim 0+512 fua"));
}

TEST_F(FuaTest, ForceOverEmulatedFuaAndZeroFlushesOnceForAllPieces) {
  recording.capabilities.fua = recording.capabilities.zero = Support::kEmulate;
  recording.capabilities.fast_zero = Support::kNone;
  with_mode("force");
  EXPECT_TRUE(run(disk->zero({0, 3 << 20}, {})));
  EXPECT_THAT(recording.calls, ElementsAre("write 0+1048576", "write 1048576+1048576",
                                           "write 2097152+1048576", "flush"));
  EXPECT_EQ(run(disk->zero({0, 512}, {.fast = true})).error().code, ENOTSUP);
}

TEST_F(FuaTest, ForceAsksTheDiskOnceAChangeHasFailed) {
  with_mode("force");
  const std::unique_ptr<disk::Disk> other = std::move(*try_open());  // of the same export
  recording.calls.clear();
  recording.outcome = [](const std::string& call) -> Status {
    if (call.starts_with("zero")) return fail(ENOTSUP);
    return fail(EIO);
  };
  EXPECT_FALSE(run(disk->zero({0, 512}, {.fast = true})));
  EXPECT_TRUE(run(disk->flush()));  // nothing was changed
  EXPECT_FALSE(run(disk->write(0, bytes, false)));
  EXPECT_EQ(run(disk->flush()).error().code, EIO);
  EXPECT_EQ(run(other->flush()).error().code, EIO);
  recording.outcome = nullptr;
  EXPECT_TRUE(run(disk->flush()));
  EXPECT_TRUE(run(other->close()));
}

TEST_F(FuaTest, ForceDoesWithoutAFlush) {
  recording.capabilities.flush = Support::kNone;
  EXPECT_EQ(with_mode("force").capabilities().flush, Support::kNative);
  recording.outcome = [](const std::string&) -> Status { return fail(EIO); };
  EXPECT_FALSE(run(disk->write(0, bytes, false)));
  EXPECT_TRUE(run(disk->flush()));  // all that was acknowledged is durable
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512 fua"));
  recording.outcome = nullptr;
}

TEST_F(FuaTest, DiscardDropsBothAndSaysSo) {
  recording.capabilities.flush = recording.capabilities.fua = Support::kNone;
  const Capabilities& can = with_mode("discard").capabilities();
  EXPECT_EQ(can.fua, Support::kNative);
  EXPECT_EQ(can.flush, Support::kNative);
  EXPECT_FALSE(can.multi_conn);
  EXPECT_STREQ(can.multi_conn_layer, "the fua filter");
  EXPECT_THAT(can.multi_conn_reason, HasSubstr("discard"));
  change_all(true);
  EXPECT_TRUE(run(disk->flush()));
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512", "zero 0+512 may_trim", "trim 0+512"));

  testing::internal::CaptureStderr();
  plugin->start({.pool = pool});
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("unsafe"));
}

TEST_F(FuaTest, DiscardLeavesWhatTheOperatorHasOrdered) {
  recording.capabilities.multi_conn_ordered = true;
  EXPECT_TRUE(with_mode("discard").capabilities().multi_conn);
}

TEST_F(FuaTest, RefusesToOpenWhatItCannotDo) {
  const auto refused = [&](const std::string& mode) {
    make("fua", {{"fuamode", mode}});
    recording.calls.clear();
    const auto opened = try_open();
    if (opened) {
      EXPECT_TRUE(run((*opened)->close()));
      return std::string();
    }
    EXPECT_THAT(recording.calls, ElementsAre("open", "close"));
    return std::string(opened.error().text);
  };
  recording.capabilities.fua = Support::kNone;
  EXPECT_THAT(refused("emulate"), IsEmpty());
  EXPECT_THAT(refused("native"), HasSubstr("fuamode=native needs"));
  EXPECT_THAT(refused("force"), HasSubstr("fuamode=force needs"));
  EXPECT_THAT(refused("discard"), IsEmpty());
  recording.capabilities.flush = Support::kNone;
  EXPECT_THAT(refused("emulate"), HasSubstr("fuamode=emulate needs"));
  EXPECT_THAT(refused("none"), IsEmpty());
  EXPECT_THAT(refused("pass"), IsEmpty());
  recording.capabilities.writable = false;  // nothing is written: there is nothing to refuse
  EXPECT_THAT(refused("emulate"), IsEmpty());
  EXPECT_THAT(refused("native"), IsEmpty());
  EXPECT_THAT(refused("force"), IsEmpty());
}

TEST_F(FuaTest, FlushesOnClosingWhatThisConnectionHasChanged) {
  const Parameters parameters = {{"flush-on-close", "true"}};
  open("fua", parameters);
  EXPECT_TRUE(close());
  EXPECT_THAT(recording.calls, ElementsAre("close"));

  open("fua", parameters);
  EXPECT_TRUE(run(disk->trim({0, 512}, false)));
  EXPECT_TRUE(close());
  EXPECT_THAT(recording.calls, ElementsAre("trim 0+512", "flush", "close"));

  open("fua", {{"fua-mode", "discard"}, {"flush-on-close", "1"}});
  EXPECT_TRUE(run(disk->write(0, bytes, true)));
  recording.outcome = [](const std::string& call) {
    return call == "flush" ? Status(fail(EIO)) : Status{};
  };
  EXPECT_EQ(close().error().code, EIO);
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512", "flush", "close"));

  recording.capabilities.flush = recording.capabilities.fua = Support::kNone;
  open("fua", parameters);
  EXPECT_TRUE(run(disk->write(0, bytes, false)));
  EXPECT_TRUE(close());
  EXPECT_THAT(recording.calls, ElementsAre("write 0+512", "close"));
}

TEST_F(FuaTest, RefusesOtherWords) {
  for (const Parameters& bad :
       {Parameters{{"fuamode", "NONE"}}, {{"fuamode", ""}}, {{"flush-on-close", "maybe"}}}) {
    EXPECT_THROW(make("fua", bad), ConfigError);
  }
}

}  // namespace
}  // namespace weft::filters
