// SPDX-License-Identifier: BSD-3-Clause
// The file plugin over storage that fails, by way of fault_preload.c. The program starts itself
// again with that library before it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>

#include "base/result.h"
#include "disk/disk.h"
#include "disk/scratch_folder.h"
#include "engine/blocking_pool.h"
#include "plugins/testing.h"

namespace weft::plugins {
namespace {

using disk::Disk;
using disk::Loop;
using disk::Plugin;

// On epoll, where reads go through calls that the library sees.
class FileFaultTest : public testing::Test {
 protected:
  FileFaultTest() { setenv("WEFT_FAULT_FILE", faults.c_str(), 1); }
  ~FileFaultTest() override { unsetenv("WEFT_FAULT_FILE"); }

  // The calls of fault_preload.c that are to fail from now on.
  void inject(const std::string& lines) { std::ofstream(faults) << lines << "\n"; }

  std::unique_ptr<Plugin> start(const Parameters& parameters) {
    auto plugin = make_plugin("file", parameters);
    plugin->start({.pool = pool});
    return plugin;
  }
  std::unique_ptr<Disk> open(Plugin& plugin, const std::string& name = "") {
    auto disk = loop->run_until_done(plugin.open({name, false, *loop}));
    EXPECT_TRUE(disk);
    return disk ? std::move(*disk) : nullptr;
  }
  template <typename T>
  T run(engine::Task<T> task) {
    return loop->run_until_done(std::move(task));
  }
  static int code(const Status& status) { return status ? 0 : status.error().code; }
  int flush(Disk& disk) { return code(run(disk.flush())); }
  int write(Disk& disk, bool fua = false) { return code(run(disk.write(0, bytes, fua))); }

  disk::ScratchFolder scratch;
  const std::string faults = scratch.path() / "faults";
  std::filesystem::path images = scratch.path() / "images";
  const bool made = std::filesystem::create_directory(images);
  const std::string image = make_image(images / "disk.img", 1 << 20);
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop = Loop::create(engine::EngineKind::kEpoll, pool);
  std::vector<std::byte> bytes = std::vector<std::byte>(4096, std::byte{7});
};

TEST_F(FileFaultTest, AFailedSyncFailsEveryLaterFlushOnEveryConnection) {
  for (const bool directory : {false, true}) {
    const auto plugin = start({{directory ? "dir" : "file", directory ? images.string() : image}});
    const std::string name = directory ? "disk.img" : "";
    auto a = open(*plugin, name);
    auto b = open(*plugin, name);
    ASSERT_EQ(write(*a), 0);
    ASSERT_EQ(flush(*a), 0);
    ASSERT_EQ(write(*a), 0);
    inject(directory ? "fdatasync 5 2" : "fdatasync 5 1");  // a count begins with its line
    EXPECT_EQ(flush(*b), EIO);
    inject("");
    EXPECT_EQ(flush(*a), EIO);
    EXPECT_EQ(flush(*b), EIO);
    EXPECT_EQ(write(*b), 0);
    EXPECT_EQ(write(*b, true), EIO);
    auto c = open(*plugin, name);
    EXPECT_EQ(flush(*c), EIO);
    for (auto* disk : {&a, &b, &c}) (void)run((*disk)->close());
    a.reset(), b.reset(), c.reset();
    // Not even when everybody has left.
    auto d = open(*plugin, name);
    EXPECT_EQ(flush(*d), EIO);
    EXPECT_EQ(write(*d, true), EIO);
    std::vector<std::byte> now(bytes.size());
    EXPECT_TRUE(run(d->read(0, now)));
    (void)run(d->close());
    EXPECT_FALSE(run(plugin->finish(*loop)));
  }
}

TEST_F(FileFaultTest, AFailedFuaWriteMarksTheDisk) {
  const auto plugin = start({{"file", image}});
  auto a = open(*plugin);
  auto b = open(*plugin);
  ASSERT_EQ(write(*a, true), 0);
  inject("pwritev2-dsync 5 *");
  EXPECT_EQ(write(*a, true), EIO);
  inject("");
  EXPECT_EQ(write(*b), 0);
  EXPECT_EQ(flush(*b), EIO);
  EXPECT_EQ(write(*b, true), EIO);
  (void)run(a->close());
  (void)run(b->close());
}

// The kernel says ENOSPC both when it took no data and when it could not make them durable.
TEST_F(FileFaultTest, NoSpaceMarksTheDiskOnlyIfDataWereTaken) {
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  inject("pwritev2 28 *");
  EXPECT_EQ(write(*disk, true), ENOSPC);
  inject("");
  EXPECT_EQ(flush(*disk), 0);
  EXPECT_EQ(write(*disk, true), 0);
  inject("pwritev2-dsync 28 *");
  EXPECT_EQ(write(*disk, true), ENOSPC);
  inject("");
  EXPECT_EQ(flush(*disk), EIO);
  (void)run(disk->close());
}

TEST_F(FileFaultTest, WhatOthersLeftIsSyncedAtTheFirstOpen) {
  const auto plugin = start({{"file", image}});
  inject("fdatasync 5 3");
  auto disk = open(*plugin);
  inject("");
  EXPECT_EQ(flush(*disk), EIO);
  (void)run(disk->close());
}

TEST_F(FileFaultTest, TheLastCloseSyncsAndAFailureIsRemembered) {
  const auto plugin = start({{"dir", images.string()}});
  auto disk = open(*plugin, "disk.img");
  ASSERT_EQ(write(*disk), 0);
  inject("fdatasync 5 4");
  EXPECT_EQ(code(run(disk->close())), EIO);
  inject("");
  auto next = open(*plugin, "disk.img");
  EXPECT_EQ(flush(*next), EIO);
  (void)run(next->close());
}

TEST_F(FileFaultTest, TheEndOfTheProgramReportsAFailedSync) {
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  auto other = open(*plugin);
  ASSERT_EQ(write(*disk), 0);
  (void)run(disk->close());
  inject("fdatasync 5 *");
  EXPECT_FALSE(run(plugin->finish(*loop)));
  inject("");
  (void)run(other->close());
}

TEST_F(FileFaultTest, WithoutFallocateZeroesAreWrittenAndTrimsSucceed) {
  inject("fallocate 95 *");
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  std::vector<std::byte> now(bytes.size());
  for (const bool may_trim : {true, false}) {
    ASSERT_EQ(write(*disk), 0);
    EXPECT_EQ(code(run(disk->zero({0, 4096}, {.may_trim = may_trim, .fast = true}))), ENOTSUP);
    ASSERT_TRUE(run(disk->read(0, now)));
    EXPECT_TRUE(now == bytes);
    EXPECT_EQ(code(run(disk->zero({0, 4096}, {.may_trim = may_trim}))), 0);
    ASSERT_TRUE(run(disk->read(0, now)));
    EXPECT_TRUE(now == std::vector<std::byte>(4096));
  }
  ASSERT_EQ(write(*disk), 0);
  EXPECT_EQ(code(run(disk->trim({0, 4096}, true))), 0);
  // What was learned is remembered: the system is not asked again.
  inject("fallocate 5 *");
  EXPECT_EQ(code(run(disk->zero({0, 4096}, {.may_trim = true}))), 0);
  inject("");
  (void)run(disk->close());
}

TEST_F(FileFaultTest, AFallocateThatFailsIsNotHiddenByAnotherWay) {
  inject("fallocate 5 *");
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  EXPECT_EQ(code(run(disk->zero({0, 4096}, {.may_trim = true}))), EIO);
  EXPECT_EQ(code(run(disk->trim({0, 4096}, false))), EIO);
  inject("");
  (void)run(disk->close());
}

TEST_F(FileFaultTest, ReadErrorsAreToldAndPass) {
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  std::vector<std::byte> now(bytes.size());
  inject("preadv2 11 *\npread 5 *");
  EXPECT_EQ(code(run(disk->read(0, now))), EIO);
  inject("preadv2 95 *");  // no RWF_NOWAIT here: read on another thread, from now on
  EXPECT_EQ(code(run(disk->read(0, now))), 0);
  inject("preadv2 5 *");
  EXPECT_EQ(code(run(disk->read(0, now))), 0);
  inject("");
  (void)run(disk->close());
}

TEST_F(FileFaultTest, InterruptedCallsAreContinued) {
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin);
  inject("pwritev2 4 3\nfdatasync 4 3\nfallocate 4 3\npreadv2 4 1\npread 4 3");
  EXPECT_EQ(write(*disk), 0);
  EXPECT_EQ(flush(*disk), 0);
  EXPECT_EQ(code(run(disk->zero({0, 4096}, {.may_trim = true}))), 0);
  std::vector<std::byte> now(bytes.size());
  EXPECT_EQ(code(run(disk->read(0, now))), 0);
  inject("");
  (void)run(disk->close());
}

}  // namespace
}  // namespace weft::plugins

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (!getenv("LD_PRELOAD") && !testing::GTEST_FLAG(list_tests)) {
    setenv("LD_PRELOAD", WEFT_FAULT_PRELOAD, 1);
    const std::string only = "--gtest_filter=" + testing::GTEST_FLAG(filter);
    const std::string output = "--gtest_output=" + testing::GTEST_FLAG(output);
    execl("/proc/self/exe", argv[0], only.c_str(), output.c_str(), nullptr);
    std::perror("cannot start again");
    return 1;
  }
  return RUN_ALL_TESTS();
}
