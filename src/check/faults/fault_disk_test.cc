// SPDX-License-Identifier: BSD-3-Clause
// The disk through the kernel: system calls of this process on the mounted file.
#include "check/faults/fault_disk.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <future>
#include <thread>

#include "base/fd.h"
#include "base/result.h"

namespace weft::check {
namespace {

using namespace std::chrono_literals;

constexpr uint64_t kSize = 1 << 20;
constexpr size_t kBlock = 4096;
const Range kAll{0, kSize};

class FaultDiskTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string why = FaultDisk::unavailable();
    if (!why.empty()) GTEST_SKIP() << why;
    disk.emplace(FaultDiskOptions{.size = kSize, .sync_time = 0us});
    reopen();
  }

  Fd open_it(int flags = 0) const { return Fd(open(disk->path().c_str(), O_RDWR | flags)); }
  void reopen() {
    fd = open_it();
    ASSERT_TRUE(fd) << errno;
  }

  // 0, or the errno.
  static int put(int to, uint64_t offset, char value, int flags = 0) {
    std::string data(kBlock, value);
    const iovec part{data.data(), data.size()};
    const ssize_t done = pwritev2(to, &part, 1, static_cast<off_t>(offset), flags);
    if (done >= 0) EXPECT_EQ(done, static_cast<ssize_t>(kBlock));
    return done < 0 ? errno : 0;
  }
  int put(uint64_t offset, char value) const { return put(fd.get(), offset, value); }
  // The byte that all of a block is of; '?': mixed; '!': an error.
  static char get(int from, uint64_t offset) {
    std::string data(kBlock, '\0');
    if (pread(from, data.data(), kBlock, static_cast<off_t>(offset)) != kBlock) return '!';
    return data == std::string(kBlock, data[0]) ? data[0] : '?';
  }
  char get(uint64_t offset) const { return get(fd.get(), offset); }
  int sync() const { return fdatasync(fd.get()) == 0 ? 0 : errno; }
  void cut() {
    disk->freeze();
    disk->restore(FaultDisk::Cut::kLoseAll, 1);
    reopen();
  }

  std::optional<FaultDisk> disk;
  Fd fd;
};

TEST_F(FaultDiskTest, IsAFile) {
  struct stat attr;
  ASSERT_EQ(fstat(fd.get(), &attr), 0);
  EXPECT_TRUE(S_ISREG(attr.st_mode));
  EXPECT_EQ(static_cast<uint64_t>(attr.st_size), kSize);
  EXPECT_EQ(put(0, 'a'), 0);
  EXPECT_EQ(get(0), 'a');
  char byte = 0;
  EXPECT_EQ(pread(fd.get(), &byte, 1, kSize), 0);
  EXPECT_EQ(pwrite(fd.get(), &byte, 1, kSize), -1);
  EXPECT_EQ(errno, ENOSPC);
  EXPECT_EQ(ftruncate(fd.get(), kSize), 0);
  EXPECT_EQ(ftruncate(fd.get(), 0), -1);
  EXPECT_EQ(lseek(fd.get(), 0, SEEK_HOLE), static_cast<off_t>(kBlock));
}

TEST_F(FaultDiskTest, TellsOfHolesInWholeBlocks) {
  const char sector[512] = {1};
  ASSERT_EQ(pwrite(fd.get(), sector, sizeof sector, 3 * kBlock + 1024), 512);
  EXPECT_EQ(lseek(fd.get(), 0, SEEK_DATA), static_cast<off_t>(3 * kBlock));
  EXPECT_EQ(lseek(fd.get(), 3 * kBlock, SEEK_HOLE), static_cast<off_t>(4 * kBlock));
  EXPECT_EQ(lseek(fd.get(), 4 * kBlock - 1, SEEK_DATA), static_cast<off_t>(4 * kBlock - 1));
  EXPECT_EQ(lseek(fd.get(), kBlock + 5, SEEK_HOLE), static_cast<off_t>(kBlock + 5));
}

TEST_F(FaultDiskTest, LosesWhatWasNotSynced) {
  put(0, 'a');
  EXPECT_EQ(sync(), 0);
  put(0, 'b');
  put(kBlock, 'c');
  EXPECT_EQ(disk->counters().volatile_sectors, 2 * kBlock / 512);
  cut();
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(get(kBlock), '\0');
}

TEST_F(FaultDiskTest, DurableWritesAreDurable) {
  const Fd dsync = open_it(O_DSYNC);
  put(4 * kBlock, 'x');
  EXPECT_EQ(put(dsync.get(), 0, 'a'), 0);
  EXPECT_EQ(put(fd.get(), kBlock, 'b', RWF_DSYNC), 0);
  EXPECT_EQ(put(fd.get(), 2 * kBlock, 'c', RWF_SYNC), 0);
  EXPECT_EQ(put(fd.get(), 3 * kBlock, 'd'), 0);
  EXPECT_EQ(disk->counters().syncs, 3u);
  cut();
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(get(kBlock), 'b');
  EXPECT_EQ(get(2 * kBlock), 'c');
  EXPECT_EQ(get(3 * kBlock), '\0');
  EXPECT_EQ(get(4 * kBlock), '\0');  // a durable write syncs its own range only
}

TEST_F(FaultDiskTest, DirectIo) {
  const Fd direct = open_it(O_DIRECT);
  ASSERT_TRUE(direct) << errno;
  void* memory = std::aligned_alloc(kBlock, kBlock);
  std::memset(memory, 'd', kBlock);
  EXPECT_EQ(pwrite(direct.get(), memory, kBlock, kBlock), static_cast<ssize_t>(kBlock));
  EXPECT_EQ(get(kBlock), 'd');
  EXPECT_EQ(put(kBlock, 'e'), 0);
  EXPECT_EQ(pread(direct.get(), memory, kBlock, kBlock), static_cast<ssize_t>(kBlock));
  EXPECT_EQ(*static_cast<char*>(memory), 'e');
  std::free(memory);
}

TEST_F(FaultDiskTest, NothingOldIsReadAfterACut) {
  put(0, 'a');
  sync();
  const Fd other = open_it();
  put(0, 'b');
  EXPECT_EQ(get(0), 'b');
  EXPECT_EQ(get(other.get(), 0), 'b');
  cut();
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(get(other.get(), 0), '!');  // it was opened before
  EXPECT_EQ(put(other.get(), 0, 'z'), EIO);
  EXPECT_EQ(get(0), 'a');
}

TEST_F(FaultDiskTest, ZeroesAndHoles) {
  put(0, 'a');
  put(kBlock, 'a');
  sync();
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, kBlock), 0);
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kBlock, kBlock), 0);
  EXPECT_EQ(fallocate(fd.get(), FALLOC_FL_COLLAPSE_RANGE, 0, kBlock), -1);
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(get(kBlock), '\0');
  EXPECT_EQ(disk->counters().zeroes, 1u);
  EXPECT_EQ(disk->counters().trims, 1u);
  cut();
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(get(kBlock), 'a');
}

TEST_F(FaultDiskTest, Fails) {
  put(kBlock, 'a');
  disk->fail(DiskCall::kWrite, {kBlock, kBlock}, ENOSPC);
  EXPECT_EQ(put(0, 'b'), 0);
  EXPECT_EQ(put(kBlock, 'b'), ENOSPC);
  EXPECT_EQ(get(kBlock), 'a');
  EXPECT_EQ(put(kBlock, 'b'), 0);
  disk->fail(DiskCall::kRead, {0, 1}, EIO, 2);
  EXPECT_EQ(get(kBlock), 'b');
  EXPECT_EQ(get(0), '!');
  EXPECT_EQ(get(0), '!');
  EXPECT_EQ(get(0), 'b');
  EXPECT_EQ(disk->counters().failed, 3u);
}

TEST_F(FaultDiskTest, FailedSyncDooms) {
  put(0, 'a');
  put(kBlock, 'a');
  disk->fail(DiskCall::kSync, kAll, EIO);
  EXPECT_EQ(sync(), EIO);
  put(kBlock, 'b');
  EXPECT_EQ(sync(), 0);
  EXPECT_EQ(get(0), 'a');
  cut();
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(get(kBlock), 'b');
}

TEST_F(FaultDiskTest, SyncOfADurableWriteFails) {
  disk->fail(DiskCall::kSync, kAll, EIO);
  EXPECT_EQ(put(fd.get(), 0, 'a', RWF_DSYNC), EIO);
  EXPECT_EQ(get(0), 'a');
  EXPECT_EQ(sync(), 0);
  cut();
  EXPECT_EQ(get(0), '\0');
}

TEST_F(FaultDiskTest, StalledWriteHoldsNoOther) {
  if (!disk->parallel_writes()) GTEST_SKIP() << "this kernel has no parallel writes (Linux 6.2)";
  disk->stall(DiskCall::kWrite, {0, kBlock}, 1);
  auto stalled = std::async(std::launch::async, [&] { return put(0, 'a'); });
  ASSERT_TRUE(disk->wait_stalled(1, 5s));
  EXPECT_EQ(put(kBlock, 'b'), 0);
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(get(kBlock), 'b');
  EXPECT_EQ(stalled.wait_for(0s), std::future_status::timeout);
  EXPECT_EQ(disk->counters().stalled, 1u);
  disk->release();
  EXPECT_EQ(stalled.get(), 0);
  EXPECT_EQ(get(0), 'a');
  EXPECT_FALSE(disk->wait_stalled(1, 1ms));
}

// On another descriptor a sync overlaps a write; and it does not cover it.
TEST_F(FaultDiskTest, SyncDoesNotCoverAWriteInFlight) {
  const Fd other = open_it();
  put(kBlock, 'b');
  disk->stall(DiskCall::kWrite, {0, kBlock}, 1);
  auto write = std::async(std::launch::async, [&] { return put(0, 'a'); });
  ASSERT_TRUE(disk->wait_stalled(1, 5s));
  disk->stall(DiskCall::kSync, kAll, 1);
  auto syncing =
      std::async(std::launch::async, [&] { return fsync(other.get()) == 0 ? 0 : errno; });
  ASSERT_TRUE(disk->wait_stalled(2, 5s));
  disk->release();
  EXPECT_EQ(write.get(), 0);
  EXPECT_EQ(syncing.get(), 0);
  cut();
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(get(kBlock), 'b');
}

TEST_F(FaultDiskTest, CallsTakeTheirTime) {
  disk->set_times(20ms, 30ms);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(put(0, 'a'), 0);
  EXPECT_EQ(sync(), 0);
  EXPECT_GE(std::chrono::steady_clock::now() - begin, 50ms);
}

TEST_F(FaultDiskTest, FrozenNothingIsAnsweredAndNothingSynced) {
  disk->set_times(0us, 20ms);
  put(0, 'a');
  auto syncing = std::async(std::launch::async, [&] { return sync(); });
  while (disk->counters().syncs == 0) std::this_thread::sleep_for(1ms);
  disk->freeze();
  auto reading = std::async(std::launch::async, [&] { return get(0); });
  EXPECT_EQ(syncing.wait_for(60ms), std::future_status::timeout);
  EXPECT_EQ(reading.wait_for(0s), std::future_status::timeout);
  disk->fail_held();
  EXPECT_EQ(syncing.get(), EIO);
  EXPECT_EQ(reading.get(), '!');
  EXPECT_EQ(put(0, 'b'), EIO);
  EXPECT_EQ(disk->restore(FaultDisk::Cut::kLoseAll, 1), kBlock / 512);
  reopen();
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(put(0, 'c'), 0);
}

TEST_F(FaultDiskTest, RestoreWithoutLoss) {
  put(0, 'a');
  disk->restore_nothing_lost();
  reopen();
  EXPECT_EQ(get(0), 'a');
  EXPECT_GT(disk->counters().volatile_sectors, 0u);
}

TEST_F(FaultDiskTest, WipedItIsNew) {
  put(0, 'a');
  sync();
  put(kBlock, 'b');
  disk->wipe();
  EXPECT_EQ(get(0), '!');
  reopen();
  EXPECT_EQ(get(0), '\0');
  EXPECT_EQ(get(kBlock), '\0');
}

TEST_F(FaultDiskTest, LosesSome) {
  std::string seen;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    put(0, 'a');
    sync();
    std::string data(512, 'b');
    EXPECT_EQ(pwrite(fd.get(), data.data(), data.size(), 0), 512);
    disk->restore(FaultDisk::Cut::kLoseSome, seed);
    reopen();
    char byte = 0;
    EXPECT_EQ(pread(fd.get(), &byte, 1, 0), 1);
    if (seen.find(byte) == std::string::npos) seen += byte;
  }
  std::ranges::sort(seen);
  EXPECT_EQ(seen, "ab");
}

TEST_F(FaultDiskTest, EndsWhileItIsUsed) {
  disk->stall(DiskCall::kRead, kAll, 1);
  auto reading = std::async(std::launch::async, [&] { return get(0); });
  ASSERT_TRUE(disk->wait_stalled(1, 5s));
  const std::string path = disk->path();
  disk.reset();
  EXPECT_EQ(reading.get(), '!');
  EXPECT_EQ(get(0), '!');
  EXPECT_NE(access(path.substr(0, path.rfind('/')).c_str(), F_OK), 0);
}

TEST(FaultDiskOptionsTest, SizeOfWholeSectors) {
  EXPECT_THROW(FaultDisk({.size = 1000}), ConfigError);
  EXPECT_THROW(FaultDisk({.size = 0}), ConfigError);
}

}  // namespace
}  // namespace weft::check
