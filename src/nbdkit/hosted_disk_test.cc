// SPDX-License-Identifier: BSD-3-Clause
// What a hosted plugin's disk owes: nbdkit's defaults and emulations, its rule of errors, and clear
// words for plugins that break their contract.
#include "nbdkit/hosted_disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/log.h"
#include "disk/scratch_folder.h"
#include "engine/scope.h"
#include "nbdkit/hosted_testing.h"

namespace weft::nbdkit {
namespace {

using disk::Disk;
using disk::Support;
using disk::Task;
using testing::HasSubstr;
using Bytes = std::vector<std::byte>;

class HostedDiskTest : public testing::Test {
 public:
  void SetUp() override {
    path_ = folder_.path() / "log";
    log::configure({.target = log::Target::kFile, .path = path_});
  }
  void TearDown() override { log::configure({}); }

  std::string logged() {
    std::ifstream file(path_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  // Opens a disk of test_ram, as `control` has it, and calls f(disk, hosted).
  template <typename F>
  void with_disk(F f, const char* name = "test_ram") {
    Hosted hosted(test_plugin(name));
    hosted.with_disk([&](Disk& disk) { f(disk, hosted); });
  }
  // The errno with which opening fails; 0: it does not.
  int open_error() {
    Hosted hosted(test_plugin("test_ram"));
    auto disk = hosted.open();
    if (!disk) return disk.error().code;
    (void)hosted.run((*disk)->close());
    return 0;
  }

  disk::ScratchFolder folder_;
  std::filesystem::path path_;
  test_control& control_ = control_of("test_ram");
};

int code_of(const Status& status) {
  return status ? 0 : status.error().code;
}

// ---- Capabilities -------------------------------------------------------------------------------

TEST_F(HostedDiskTest, AnswersAreTakenOver) {
  control_.size = 12345;
  with_disk([](Disk& disk, Hosted&) {
    const disk::Capabilities& can = disk.capabilities();
    EXPECT_EQ(can.size, 12345u);
    EXPECT_TRUE(can.writable && can.multi_conn);
    EXPECT_EQ(can.flush, Support::kNative);
    EXPECT_EQ(can.fua, Support::kNative);
    EXPECT_EQ(can.trim, Support::kNative);
    EXPECT_EQ(can.zero, Support::kNative);
    EXPECT_EQ(can.fast_zero, Support::kNative);
    EXPECT_EQ(can.cache, Support::kNative);
    EXPECT_EQ(can.extents, Support::kNative);
    EXPECT_EQ(disk.description(), "a disk in memory");
  });
  for (int* answer : {&control_.can_write, &control_.can_multi_conn, &control_.can_flush,
                      &control_.can_cache, &control_.can_extents}) {
    *answer = 0;
  }
  with_disk([](Disk& disk, Hosted&) {
    const disk::Capabilities& can = disk.capabilities();
    EXPECT_FALSE(can.writable || can.multi_conn);
    EXPECT_EQ(can.flush, Support::kNone);
    EXPECT_EQ(can.fua, Support::kNone);
    EXPECT_EQ(can.trim, Support::kNone);
    EXPECT_EQ(can.cache, Support::kNone);
    EXPECT_EQ(can.extents, Support::kNone);
  });
}

TEST_F(HostedDiskTest, AnyNumberIsAYes) {
  control_.can_trim = 17;
  with_disk([](Disk& disk, Hosted&) { EXPECT_EQ(disk.capabilities().trim, Support::kNative); });
}

TEST_F(HostedDiskTest, BlockSizes) {
  const auto set = [&](uint32_t minimum, uint32_t preferred, uint32_t maximum) {
    control_.block_size[0] = minimum;
    control_.block_size[1] = preferred;
    control_.block_size[2] = maximum;
  };
  set(512, 65536, UINT32_MAX);
  with_disk([](Disk& disk, Hosted&) {
    EXPECT_EQ(disk.capabilities().block_size, (disk::BlockSize{512, 65536, 32 << 20}));
  });
  for (const auto& [minimum, preferred, maximum] :
       std::vector<std::array<uint32_t, 3>>{{3, 4096, UINT32_MAX},
                                            {1 << 17, 1 << 17, UINT32_MAX},
                                            {512, 100, UINT32_MAX},
                                            {512, 4096, 4097},
                                            {4096, 512, UINT32_MAX},
                                            {0, 4096, UINT32_MAX}}) {
    set(minimum, preferred, maximum);
    EXPECT_EQ(open_error(), EIO) << minimum << " " << preferred << " " << maximum;
  }
  EXPECT_THAT(logged(), HasSubstr("test-ram[1]: block_size: it returned 512, 100, "));
}

// ---- Changes, and that they are durable ---------------------------------------------------------

TEST_F(HostedDiskTest, FuaIsPassedOn) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    const Bytes data(4096);
    ASSERT_TRUE(hosted.run(disk.write(0, data, true)));
    EXPECT_EQ(control_.last_flags[kPwrite], 2);
    ASSERT_TRUE(hosted.run(disk.zero({0, 4096}, {.fua = true, .may_trim = true, .fast = true})));
    EXPECT_EQ(control_.last_flags[kZero], 1 | 2 | 8);
    ASSERT_TRUE(hosted.run(disk.trim({0, 4096}, true)));
    EXPECT_EQ(control_.last_flags[kTrim], 2);
    EXPECT_EQ(control_.calls[kFlush], 0);
  });
}

TEST_F(HostedDiskTest, FuaIsAFlushAfterTheChangeWhereItIsEmulated) {
  for (const int can_flush : {1, 0}) {
    control_.can_fua = 1;
    control_.can_flush = can_flush;
    control_.calls[kFlush] = 0;
    with_disk([&](Disk& disk, Hosted& hosted) {
      EXPECT_EQ(disk.capabilities().flush == Support::kNative, can_flush == 1);
      EXPECT_NE(disk.capabilities().fua, Support::kNone);
      const Bytes data(4096);
      ASSERT_TRUE(hosted.run(disk.write(0, data, true)));
      EXPECT_EQ(control_.last_flags[kPwrite], 0);
      EXPECT_EQ(control_.calls[kFlush], 1);
      ASSERT_TRUE(hosted.run(disk.zero({0, 4096}, {.fua = true})));
      ASSERT_TRUE(hosted.run(disk.trim({0, 4096}, true)));
      EXPECT_EQ(control_.calls[kFlush], 3);
      ASSERT_TRUE(hosted.run(disk.write(0, data, false)));
      EXPECT_EQ(control_.calls[kFlush], 3);
    });
  }
}

TEST_F(HostedDiskTest, AFailedFlushIsRemembered) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    control_.fail[kFlush] = ENOSPC;
    EXPECT_EQ(code_of(hosted.run(disk.flush())), ENOSPC);
    control_.fail[kFlush] = 0;
    EXPECT_EQ(code_of(hosted.run(disk.flush())), EIO);
    EXPECT_EQ(control_.calls[kFlush], 2);
    const Bytes data(4096);
    EXPECT_EQ(code_of(hosted.run(disk.write(0, data, true))), EIO);
    EXPECT_TRUE(hosted.run(disk.write(0, data, false)));
  });
  EXPECT_THAT(logged(), HasSubstr("test-ram: a flush failed"));
}

TEST_F(HostedDiskTest, AFailedSyncOfFuaIsRemembered) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    const Bytes data(4096);
    control_.fua_fails = 1;
    EXPECT_EQ(code_of(hosted.run(disk.write(0, data, true))), EIO);
    control_.fua_fails = 0;
    EXPECT_EQ(code_of(hosted.run(disk.flush())), EIO);
  });
  EXPECT_THAT(logged(), HasSubstr("a write with FUA failed"));
}

TEST_F(HostedDiskTest, AFailedChangeIsNotAFailedSync) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    const Bytes data(4096);
    control_.fail[kPwrite] = EIO;
    EXPECT_EQ(code_of(hosted.run(disk.write(0, data, true))), EIO);
    control_.fail[kPwrite] = 0;
    EXPECT_TRUE(hosted.run(disk.flush()));
  });
}

TEST_F(HostedDiskTest, ZeroesAreWrittenWhereZeroIsNotSupported) {
  control_.size = kTestDiskMax;
  with_disk([&](Disk& disk, Hosted& hosted) {
    const Bytes ones(kTestDiskMax, std::byte{1});
    Bytes now(kTestDiskMax);
    for (const int code : {EOPNOTSUPP, ENOTSUP}) {
      ASSERT_TRUE(hosted.run(disk.write(0, ones, false)));
      control_.fail[kZero] = code;
      EXPECT_EQ(code_of(hosted.run(disk.zero({1, kTestDiskMax - 2}, {.fast = true}))), ENOTSUP);
      ASSERT_TRUE(hosted.run(disk.zero({1, kTestDiskMax - 2}, {})));
      ASSERT_TRUE(hosted.run(disk.read(0, now)));
      EXPECT_EQ(now.front(), std::byte{1});
      EXPECT_EQ(now.back(), std::byte{1});
      EXPECT_EQ(std::count(now.begin(), now.end(), std::byte{0}), kTestDiskMax - 2);
    }
    control_.fail[kZero] = EPERM;
    EXPECT_EQ(code_of(hosted.run(disk.zero({0, 4096}, {}))), EPERM);
  });
}

TEST_F(HostedDiskTest, ErrnoCountsForZeroEvenIfItIsNotPreserved) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    control_.fail_errno[kZero] = EOPNOTSUPP;
    EXPECT_TRUE(hosted.run(disk.zero({0, 4096}, {})));
    EXPECT_EQ(control_.calls[kPwrite], 1);
  });
}

TEST_F(HostedDiskTest, ZeroIsAlwaysThere) {
  control_.can_zero = 0;
  control_.can_fast_zero = 0;
  with_disk([&](Disk& disk, Hosted& hosted) {
    EXPECT_EQ(disk.capabilities().zero, Support::kEmulate);
    EXPECT_EQ(disk.capabilities().fast_zero, Support::kNone);
    EXPECT_TRUE(hosted.run(disk.zero({0, 4096}, {.fua = true})));
    EXPECT_EQ(control_.calls[kZero], 0);
    EXPECT_EQ(control_.last_flags[kPwrite], 2);
  });
}

TEST_F(HostedDiskTest, CacheIsReadingWhereItIsEmulated) {
  control_.can_cache = 1;
  with_disk([&](Disk& disk, Hosted& hosted) {
    EXPECT_TRUE(hosted.run(disk.cache({0, 1 << 20})));
    EXPECT_EQ(control_.calls[kCache], 0);
    EXPECT_GT(control_.calls[kPread], 0);
  });
}

// ---- Errors -------------------------------------------------------------------------------------

TEST_F(HostedDiskTest, TheErrorIsTheOneThatWasSetElseEio) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    Bytes data(4096);
    control_.fail[kPread] = ENOMEM;
    EXPECT_EQ(code_of(hosted.run(disk.read(0, data))), ENOMEM);
    control_.fail[kPread] = 0;
    control_.fail_errno[kPread] = ENOMEM;
    EXPECT_EQ(code_of(hosted.run(disk.read(0, data))), EIO);
    control_.fail_errno[kPread] = 0;
    EXPECT_TRUE(hosted.run(disk.read(0, data)));
  });
}

TEST_F(HostedDiskTest, ErrnoCountsWhereItIsPreserved) {
  test_control& control = control_of("test_ram_errno");
  with_disk(
      [&](Disk& disk, Hosted& hosted) {
        Bytes data(4096);
        control.fail_errno[kPread] = ENOMEM;
        EXPECT_EQ(code_of(hosted.run(disk.read(0, data))), ENOMEM);
        control.fail[kPread] = EPERM;
        EXPECT_EQ(code_of(hosted.run(disk.read(0, data))), EPERM);
      },
      "test_ram_errno");
}

// ---- Broken contracts ---------------------------------------------------------------------------

TEST_F(HostedDiskTest, OpeningFails) {
  control_.fail[kOpen] = ENOENT;
  EXPECT_EQ(open_error(), ENOENT);
  EXPECT_EQ(control_.calls[kClose], 0);
  control_.fail[kOpen] = 0;
  control_.null_handle = 1;
  EXPECT_EQ(open_error(), EIO);
  EXPECT_EQ(control_.calls[kClose], 0);
  control_.null_handle = 0;
  control_.fail[kGetSize] = EACCES;
  EXPECT_EQ(open_error(), EACCES);
  EXPECT_EQ(control_.calls[kClose], 1);
  control_.fail[kGetSize] = 0;
  control_.size = -5;
  EXPECT_EQ(open_error(), EIO);
  EXPECT_EQ(control_.calls[kClose], 2);
  EXPECT_THAT(logged(), HasSubstr("test-ram[1]: get_size: it returned -5, which is no size"));
  control_.size = 4096;
  control_.can_fua = 3;
  EXPECT_EQ(open_error(), EIO);
  EXPECT_THAT(logged(), HasSubstr("test-ram[1]: can_fua: it returned 3"));
  control_.can_fua = 2;
  control_.can_flush = -1;
  EXPECT_EQ(open_error(), EIO);
  EXPECT_EQ(control_.calls[kClose], 4);
  control_.can_flush = 1;
  EXPECT_EQ(open_error(), 0);
}

TEST_F(HostedDiskTest, ExtentsThatAreNotThere) {
  with_disk([&](Disk& disk, Hosted& hosted) {
    const auto ask = [&] {
      Extents extents({4096, 8192});
      return code_of(hosted.run(disk.extents(extents, true)));
    };
    EXPECT_EQ(ask(), 0);
    EXPECT_EQ(control_.last_flags[kExtents], 4);
    control_.no_extents = 1;
    EXPECT_EQ(ask(), EIO);
    EXPECT_EQ(ask(), EIO);
    control_.no_extents = 0;
    control_.extents_gap = 1;
    EXPECT_EQ(ask(), EIO);
  });
  const std::string text = logged();
  const std::string line = "test-ram: extents: it succeeded without adding an extent";
  EXPECT_THAT(text, HasSubstr(line));
  EXPECT_EQ(text.find(line), text.rfind(line));
}

// ---- Thread models ------------------------------------------------------------------------------

// The most calls at once, when two connections of two loops are at work.
int most_at_once(test_control& control, int model) {
  control.thread_model = model;
  for (const test_method method : {kPread, kPwrite, kOpen, kPreconnect}) {
    control.sleep_us[method] = 2000;
  }
  Hosted hosted(test_plugin("test_ram"));
  std::atomic<uint64_t> clients{0};
  const auto client = [&] {
    const std::unique_ptr<engine::Loop> loop =
        engine::Loop::create(engine::EngineKind::kEpoll, hosted.pool);
    // Nobody keeps two clients' writes apart here, so each has its own place.
    const uint64_t begin = clients++ * 8 * 4096;
    loop->run_until_done(
        [](HostedPlugin& plugin, engine::Loop& the_loop, uint64_t its_begin) -> Task<void> {
          engine::Scope scope(the_loop);
          disk::Peer peer;
          for (int i = 0; i < 3; i++) {
            (void)co_await plugin.preconnect(the_loop, peer, false);
            auto disk = co_await disk::open_layer(plugin, "test", {.name = "", .loop = the_loop});
            for (int k = 0; k < 8; k++) {
              scope.spawn([](Disk& its_disk, uint64_t offset) -> Task<void> {
                Bytes data(4096);
                (void)co_await its_disk.write(offset, data, false);
                (void)co_await its_disk.read(offset, data);
              }(**disk, its_begin + static_cast<uint64_t>(k) * 4096));
            }
            co_await scope.join();
            (void)co_await (*disk)->close();
          }
        }(hosted.plugin, *loop, begin));
  };
  // As in a server, the loops run as long as a disk is open.
  std::atomic<int> working{2};
  const auto stay = [&](const auto& f) {
    f();
    working--;
    while (working > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  std::thread one([&] { stay(client); });
  std::thread two([&] { stay(client); });
  one.join();
  two.join();
  EXPECT_EQ(control.calls[kPread], 48);
  return control.in_progress_max;
}

TEST_F(HostedDiskTest, SerialisedConnectionsAndRequestsNeverMeet) {
  EXPECT_EQ(most_at_once(control_, 1), 1);
}
TEST_F(HostedDiskTest, SerialisedRequestsMeetThoseOfOtherConnectionsOnly) {
  EXPECT_LE(most_at_once(control_, 2), 2);
}
TEST_F(HostedDiskTest, ParallelOnesMeet) {
  EXPECT_GT(most_at_once(control_, 3), 2);
}

// A client that has its disk open and says nothing.
TEST_F(HostedDiskTest, ASilentClientOfASerialPluginIsInNobodysWay) {
  control_.thread_model = 1;
  Hosted hosted(test_plugin("test_ram"));
  hosted.with_disk([&](Disk&) {
    disk::Peer peer;
    EXPECT_TRUE(hosted.run(hosted.plugin.preconnect(*hosted.loop, peer, false)));
    EXPECT_TRUE(hosted.run(hosted.plugin.list_exports(*hosted.loop, false)));
    hosted.with_disk([&](Disk& other) { EXPECT_TRUE(hosted.run(other.flush())); });
  });
}

}  // namespace
}  // namespace weft::nbdkit
