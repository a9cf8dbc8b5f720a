// SPDX-License-Identifier: BSD-3-Clause
// What the conformance suite does not ask of the file plugin: how it is configured, who may open an
// image, and storage that misbehaves by ordinary means.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cerrno>
#include <fstream>

#include "base/result.h"
#include "disk/disk.h"
#include "disk/scratch_folder.h"
#include "engine/blocking_pool.h"
#include "plugins/file/image_lock.h"
#include "plugins/testing.h"

namespace weft::plugins {
namespace {

using disk::Disk;
using disk::Loop;
using disk::Plugin;
using disk::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string refusal(const Parameters& parameters, bool read_only = false) {
  try {
    const auto plugin = make_configured("file", parameters);
    if (read_only) plugin->serve_read_only();
    plugin->config_complete();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(accepted)";
}

class FileTest : public testing::Test {
 protected:
  std::unique_ptr<Plugin> start(const Parameters& parameters) {
    auto plugin = make_plugin("file", parameters);
    plugin->start({.pool = pool});
    return plugin;
  }
  Result<std::unique_ptr<Disk>> open(Plugin& plugin, const std::string& name,
                                     bool read_only = false) {
    return loop->run_until_done(plugin.open({name, read_only, *loop}));
  }
  void close(std::unique_ptr<Disk> disk) { EXPECT_TRUE(loop->run_until_done(disk->close())); }
  ScratchFolder scratch;
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop = Loop::create(engine::choose_engine("auto").kind, pool);
  const std::string image = make_image(scratch.path() / "disk.img", 1 << 20);
  std::vector<std::byte> bytes = std::vector<std::byte>(4096, std::byte{7});
};

TEST_F(FileTest, WrongParametersAreNamed) {
  EXPECT_THAT(refusal({}), HasSubstr("give file=IMAGE"));
  EXPECT_THAT(refusal({{"file", "/does/not/exist"}}),
              AllOf(HasSubstr("/does/not/exist"), HasSubstr("No such file"), Not(HasSubstr("\n"))));
  EXPECT_THAT(refusal({{"file", scratch.path()}}),
              AllOf(HasSubstr("is a directory"), HasSubstr("dir=")));
  EXPECT_THAT(refusal({{"file", "/dev/full"}}), HasSubstr("give an image file or a block device"));
  EXPECT_THAT(refusal({{"dir", image}}), HasSubstr("Not a directory"));
  EXPECT_THAT(refusal({{"file", image}, {"dir", scratch.path()}}), HasSubstr("comes after file="));
  EXPECT_THAT(refusal({{"file", image}, {"cache", "some"}}), HasSubstr("'some' is unknown"));
  EXPECT_THAT(refusal({{"file", image}, {"fadvise", "x"}}), HasSubstr("normal, random or seq"));
  EXPECT_THAT(refusal({{"file", image}, {"lock", "x"}}), HasSubstr("lock: 'x'"));
  EXPECT_THAT(refusal({{"file", image}, {"speed", "1"}}), HasSubstr("no parameter 'speed'"));
  EXPECT_THAT(refusal({{"fd", "987654"}}), HasSubstr("not open"));
}

TEST_F(FileTest, AFifoDoesNotHoldUpTheStart) {
  const std::string fifo = scratch.path() / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_THAT(refusal({{"file", fifo}}), HasSubstr("is no file"));
}

TEST_F(FileTest, ADirectoryOffersItsImages) {
  make_image(scratch.path() / "b.img", 1000);
  make_image(scratch.path() / ".hidden", 1000);
  std::filesystem::create_directory(scratch.path() / "folder");
  const auto plugin = start({{"dir", scratch.path()}});
  const auto list = loop->run_until_done(plugin->list_exports(*loop, false));
  ASSERT_TRUE(list);
  ASSERT_EQ(list->size(), 2u);
  EXPECT_EQ((*list)[0].name, "b.img");
  EXPECT_EQ((*list)[1].name, "disk.img");
  auto disk = open(*plugin, "b.img");
  ASSERT_TRUE(disk);
  EXPECT_EQ((*disk)->capabilities().size, 1000u);
  close(std::move(*disk));
  const std::string outside = "../" + scratch.path().filename().string() + "/disk.img";
  for (const std::string& name : {std::string(), std::string("none"), outside, image,
                                  std::string(".hidden"), std::string("..")}) {
    const auto refused = open(*plugin, name);
    ASSERT_FALSE(refused) << name;
    EXPECT_EQ(refused.error().code, ENOENT) << name;
  }
  EXPECT_FALSE(open(*plugin, "folder"));
}

TEST_F(FileTest, AllNamesOfAFileLeadToOneImage) {
  std::filesystem::create_hard_link(image, scratch.path() / "hard.img");
  std::filesystem::create_symlink(image, scratch.path() / "soft.img");
  const auto plugin = start({{"dir", scratch.path()}});
  auto first = open(*plugin, "disk.img");
  auto second = open(*plugin, "hard.img");
  auto third = open(*plugin, "soft.img");
  ASSERT_TRUE(first && second && third);
  EXPECT_EQ((*first)->order(), (*second)->order());
  EXPECT_EQ((*first)->order(), (*third)->order());
  close(std::move(*first));
  close(std::move(*second));
  close(std::move(*third));
}

TEST_F(FileTest, AnImageOfADirectoryIsLetGoWhenAllHaveLeft) {
  const auto plugin = start({{"dir", scratch.path()}});
  auto disk = open(*plugin, "disk.img");
  ASSERT_TRUE(disk);
  ASSERT_TRUE(loop->run_until_done((*disk)->write(0, bytes, false)));
  EXPECT_THAT(refusal({{"file", image}}), HasSubstr("in use"));
  close(std::move(*disk));
  EXPECT_EQ(refusal({{"file", image}}), "(accepted)");
}

TEST_F(FileTest, AReaderFirstAndThenAWriter) {
  const auto plugin = start({{"dir", scratch.path()}});
  auto reader = open(*plugin, "disk.img", true);
  auto writer = open(*plugin, "disk.img", false);
  ASSERT_TRUE(reader && writer);
  EXPECT_FALSE((*reader)->capabilities().writable);
  EXPECT_TRUE((*writer)->capabilities().writable);
  EXPECT_EQ((*reader)->order(), (*writer)->order());
  ASSERT_TRUE(loop->run_until_done((*writer)->write(100, bytes, true)));
  std::vector<std::byte> now(bytes.size());
  ASSERT_TRUE(loop->run_until_done((*reader)->read(100, now)));
  EXPECT_TRUE(now == bytes);
  close(std::move(*reader));
  close(std::move(*writer));
}

TEST_F(FileTest, ADescriptorIsServedAsItWasOpened) {
  const Fd reader(::open(image.c_str(), O_RDONLY | O_CLOEXEC));
  const auto plugin = start({{"fd", std::to_string(reader.get())}});
  auto disk = open(*plugin, "");
  ASSERT_TRUE(disk);
  EXPECT_FALSE((*disk)->capabilities().writable);
  close(std::move(*disk));
  const Fd writer(::open(image.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_THAT(refusal({{"fd", std::to_string(writer.get())}}), HasSubstr("not open for reading"));
}

TEST_F(FileTest, AFileThatMayNotBeWrittenIsServedReadOnly) {
  // A program that runs cannot be written, not even by root.
  const std::string program = scratch.path() / "sleep";
  std::filesystem::copy_file("/bin/sleep", program);
  const pid_t child = fork();
  if (child == 0) {
    execl(program.c_str(), "sleep", "60", nullptr);
    _exit(127);
  }
  // Until the program runs, it can be written.
  while (Fd(::open(program.c_str(), O_RDWR | O_CLOEXEC))) usleep(1000);
  const auto plugin = start({{"file", program}});
  auto disk = open(*plugin, "");
  ASSERT_TRUE(disk);
  EXPECT_FALSE((*disk)->capabilities().writable);
  close(std::move(*disk));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST_F(FileTest, ASecondWriterIsRefusedAndToldWhoHoldsTheImage) {
  const auto first = make_plugin("file", {{"file", image}});
  EXPECT_THAT(refusal({{"file", image}}), AllOf(HasSubstr(image), HasSubstr("file_test"),
                                                HasSubstr("process " + std::to_string(getpid())),
                                                HasSubstr("lock=off"), Not(HasSubstr("\n"))));
  EXPECT_EQ(refusal({{"file", image}}, true), "(accepted)");
  EXPECT_EQ(refusal({{"file", image}, {"lock", "off"}}), "(accepted)");
}

TEST_F(FileTest, TheLockSurvivesAForkAndEndsWithTheLastProcess) {
  int up[2];
  ASSERT_EQ(pipe2(up, O_CLOEXEC), 0);
  pid_t child = -1;
  {
    const auto plugin = make_plugin("file", {{"file", image}});
    child = fork();
    if (child == 0) {
      char end = 0;
      ::close(up[1]);
      _exit(read(up[0], &end, 1) == 0 ? 0 : 1);
    }
  }
  // This process has let go; the other holds on, as a server in the background does.
  EXPECT_THAT(refusal({{"file", image}}), HasSubstr("in use"));
  ::close(up[1]);
  waitpid(child, nullptr, 0);
  ::close(up[0]);
  EXPECT_EQ(refusal({{"file", image}}), "(accepted)");
}

// What qemu's tools do to an image, and ours to them.
TEST_F(FileTest, QemuAndWeftRefuseEachOther) {
  if (system("qemu-io --version >/dev/null 2>&1") != 0) GTEST_SKIP() << "no qemu-io here";
  const std::string write = "qemu-io -f raw -c 'write 0 512' " + image + " >/dev/null 2>&1";
  const std::string read = "qemu-io -r -f raw -c 'read 0 512' " + image + " >/dev/null 2>&1";
  {
    const auto plugin = make_plugin("file", {{"file", image}});
    EXPECT_NE(system(write.c_str()), 0);
    EXPECT_EQ(system(read.c_str()), 0);
  }
  EXPECT_EQ(system(write.c_str()), 0);
  // A qemu that stays: its standard input is a pipe of ours.
  FILE* qemu = popen(("exec qemu-io -f raw " + image + " >/dev/null 2>&1").c_str(), "w");
  ASSERT_TRUE(qemu);
  std::string answer = "(accepted)";
  for (int i = 0; i < 1000 && answer == "(accepted)"; i++) {
    usleep(10000);
    answer = refusal({{"file", image}});
  }
  EXPECT_THAT(answer, HasSubstr("in use by qemu-io"));
  EXPECT_EQ(refusal({{"file", image}}, true), "(accepted)");
  pclose(qemu);
}

TEST_F(FileTest, AFileThatWasCutShortGivesErrorsAndNoZeroes) {
  for (const char* cache : {"default", "none"}) {
    ASSERT_EQ(truncate(image.c_str(), 1 << 20), 0);
    const auto plugin = start({{"file", image}, {"cache", cache}});
    auto disk = open(*plugin, "");
    ASSERT_TRUE(disk);
    ASSERT_EQ(truncate(image.c_str(), 512 << 10), 0);
    EXPECT_TRUE(loop->run_until_done((*disk)->read(0, bytes)));
    const Status beyond = loop->run_until_done((*disk)->read(512 << 10, bytes));
    ASSERT_FALSE(beyond) << cache;
    EXPECT_EQ(beyond.error().code, EIO);
    const Status half = loop->run_until_done((*disk)->read((512 << 10) - 2048, bytes));
    ASSERT_FALSE(half) << cache;
    Extents extents({600 << 10, 1000});
    ASSERT_TRUE(loop->run_until_done((*disk)->extents(extents, false)));
    EXPECT_EQ(extents.list().front().flags, kExtentData);
    close(std::move(*disk));
  }
}

TEST_F(FileTest, ALimitOnTheFilesSizeIsNoSpace) {
  signal(SIGXFSZ, SIG_IGN);
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin, "");
  ASSERT_TRUE(disk);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const rlimit limit = {64 << 10, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  const Status plain = loop->run_until_done((*disk)->write(128 << 10, bytes, false));
  const Status fua = loop->run_until_done((*disk)->write(128 << 10, bytes, true));
  setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(plain);
  EXPECT_EQ(plain.error().code, EFBIG);
  ASSERT_FALSE(fua);
  EXPECT_EQ(fua.error().code, EFBIG);
  // The writes failed; nothing that was acknowledged is in doubt.
  EXPECT_TRUE(loop->run_until_done((*disk)->flush()));
  close(std::move(*disk));
}

TEST_F(FileTest, AFullFileSystemFailsWritesAndNothingElse) {
  const std::string small = scratch.path() / "small";
  std::filesystem::create_directory(small);
  if (mount("tmpfs", small.c_str(), "tmpfs", 0, "size=256k") != 0) {
    GTEST_SKIP() << "cannot mount: " << errno_text(errno);
  }
  struct Unmount {
    const std::string& folder;
    ~Unmount() { umount2(folder.c_str(), MNT_DETACH); }
  } unmount{small};
  {
    const auto plugin = start({{"file", make_image(small + "/disk.img", 1 << 20)}});
    auto disk = open(*plugin, "");
    ASSERT_TRUE(disk);
    const std::vector<std::byte> much(512 << 10, std::byte{1});
    for (const bool fua : {false, true}) {
      const Status done = loop->run_until_done((*disk)->write(0, much, fua));
      ASSERT_FALSE(done);
      EXPECT_EQ(done.error().code, ENOSPC);
      EXPECT_TRUE(loop->run_until_done((*disk)->flush()));
    }
    ASSERT_TRUE(loop->run_until_done((*disk)->trim({0, 1 << 20}, false)));
    EXPECT_TRUE(loop->run_until_done((*disk)->write(0, bytes, true)));
    close(std::move(*disk));
  }
}

TEST_F(FileTest, TrimAndZeroGiveSpaceBackOrKeepIt) {
  const auto plugin = start({{"file", image}});
  auto disk = open(*plugin, "");
  ASSERT_TRUE(disk);
  const std::vector<std::byte> full(1 << 20, std::byte{1});
  const auto blocks = [&] {
    struct stat status = {};
    stat(image.c_str(), &status);
    return status.st_blocks * 512;
  };
  ASSERT_TRUE(loop->run_until_done((*disk)->write(0, full, true)));
  const auto before = blocks();
  ASSERT_TRUE(loop->run_until_done((*disk)->zero({0, 1 << 20}, {.fua = true})));
  EXPECT_GE(blocks(), before);
  ASSERT_TRUE(loop->run_until_done((*disk)->trim({0, 512 << 10}, true)));
  EXPECT_LE(blocks(), before - (512 << 10) + 8192);
  EXPECT_TRUE((*disk)->may_have_holes());
  ASSERT_TRUE(loop->run_until_done((*disk)->zero({0, 1 << 20}, {.may_trim = true})));
  EXPECT_LE(blocks(), 8192);
  close(std::move(*disk));
}

}  // namespace
}  // namespace weft::plugins
