// SPDX-License-Identifier: BSD-3-Clause
// The cache over a disk that forgets, at a power cut, all that was not synced: what a flush or FUA
// promised, on any connection, is there.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "disk/open_layer.h"
#include "engine/blocking_pool.h"
#include "engine/scope.h"
#include "filters/cache/bell.h"
#include "filters/testing.h"

namespace weft::filters {
namespace {

using disk::Disk;
using disk::Support;
using disk::Task;
using engine::EngineKind;
using engine::Loop;

constexpr size_t kSector = 512;
constexpr size_t kWriters = 4;
constexpr size_t kSectors = 512;  // of which writer w has those that are w modulo kWriters
constexpr size_t kSize = kSectors * kSector;
constexpr int kSteps = 400;

uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("WEFT_SEED");
    return given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  }();
  return value;
}

uint64_t serial_at(const std::byte* image, size_t sector) {
  uint64_t serial = 0;
  std::memcpy(&serial, image + sector * kSector, sizeof serial);
  return serial;
}

// All calls take a while, so that they meet.
class ForgetfulPlugin final : public disk::Plugin {
 public:
  explicit ForgetfulPlugin(Support fua) : fua_(fua) {}
  void config(std::string_view, std::string_view) override {}
  Task<Result<std::unique_ptr<Disk>>> open(disk::OpenRequest request) override;

  // What a power cut would leave now.
  std::vector<std::byte> durable() {
    const std::lock_guard lock(mutex_);
    return durable_;
  }

 private:
  friend class ForgetfulDisk;
  const Support fua_;
  std::mutex mutex_;
  std::vector<std::byte> volatile_ = std::vector<std::byte>(kSize);
  std::vector<std::byte> durable_ = std::vector<std::byte>(kSize);
  disk::ChangeOrder order_;
};

class ForgetfulDisk final : public Disk {
 public:
  ForgetfulDisk(ForgetfulPlugin& plugin, Loop& loop) : plugin_(plugin), loop_(loop) {
    capabilities_ = {.size = kSize,
                     .writable = true,
                     .flush = Support::kNative,
                     .fua = plugin.fua_,
                     .trim = Support::kNative,
                     .zero = Support::kNative,
                     .block_size = {}};
  }
  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    co_await wait();
    const std::lock_guard lock(plugin_.mutex_);
    std::memcpy(into.data(), plugin_.volatile_.data() + offset, into.size());
    co_return Status{};
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    co_await wait();
    const std::lock_guard lock(plugin_.mutex_);
    std::memcpy(plugin_.volatile_.data() + offset, from.data(), from.size());
    if (fua) std::memcpy(plugin_.durable_.data() + offset, from.data(), from.size());
    co_return Status{};
  }
  Task<Status> zero(Range range, disk::ZeroFlags) override { return clear(range); }
  Task<Status> trim(Range range, bool) override { return clear(range); }
  // Takes with it what was there when it began, and no more.
  Task<Status> flush() override {
    std::vector<std::byte> now;
    {
      const std::lock_guard lock(plugin_.mutex_);
      now = plugin_.volatile_;
    }
    co_await wait();
    const std::lock_guard lock(plugin_.mutex_);
    for (size_t sector = 0; sector < kSectors; sector++) {
      // A FUA write may have come in between.
      if (serial_at(now.data(), sector) <= serial_at(plugin_.durable_.data(), sector)) continue;
      std::memcpy(plugin_.durable_.data() + sector * kSector, now.data() + sector * kSector,
                  kSector);
    }
    co_return Status{};
  }
  disk::ChangeOrder* order() override { return &plugin_.order_; }

 private:
  Task<Status> clear(Range range) {
    co_await wait();
    const std::lock_guard lock(plugin_.mutex_);
    std::memset(plugin_.volatile_.data() + range.offset, 0, range.length);
    co_return Status{};
  }
  Task<void> wait() {
    if (const uint64_t time = random_() % 4) {
      engine::Timer timer(loop_);
      co_await timer.sleep(std::chrono::microseconds(time * 50));
    }
  }

  ForgetfulPlugin& plugin_;
  Loop& loop_;
  std::mt19937_64 random_{seed()};
};

Task<Result<std::unique_ptr<Disk>>> ForgetfulPlugin::open(disk::OpenRequest request) {
  return Result<std::unique_ptr<Disk>>(std::make_unique<ForgetfulDisk>(*this, request.loop));
}

using Serials = std::array<uint64_t, kSectors>;

// What the writers have been promised: the serial number of each sector's newest durable write.
class Promises {
 public:
  Serials now() {
    const std::lock_guard lock(mutex_);
    return serials_;
  }
  void raise(const Serials& to) {
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < kSectors; i++) serials_[i] = std::max(serials_[i], to[i]);
  }
  void raise(size_t sector, uint64_t to) {
    const std::lock_guard lock(mutex_);
    serials_[sector] = std::max(serials_[sector], to);
  }

 private:
  std::mutex mutex_;
  Serials serials_{};
};

struct Shared {
  Promises acknowledged;
  Promises durable;
  std::atomic<size_t> working{kWriters};
};

// A sector is filled with the serial number of its write.
Task<void> work(Disk& disk, Loop& loop, size_t me, Shared& shared) {
  std::mt19937_64 random(seed() + me);
  uint64_t serial = 0;
  std::array<uint64_t, kSector / sizeof(uint64_t)> data{};
  for (int step = 0; step < kSteps; step++) {
    const size_t sector = random() % (kSectors / kWriters) * kWriters + me;
    if (random() % 16 == 0) {
      // Whatever was acknowledged before, to anybody, is promised after.
      const Serials before = shared.acknowledged.now();
      const Status done = co_await disk.flush();
      EXPECT_TRUE(done);
      shared.durable.raise(before);
      continue;
    }
    if (random() % 4 == 0) {
      const Serials before = shared.acknowledged.now();
      const Status done =
          co_await disk.read(sector * kSector, std::as_writable_bytes(std::span(data)));
      EXPECT_TRUE(done);
      EXPECT_GE(data[0], before[sector]) << "seed " << seed() << ": sector " << sector;
      continue;
    }
    const bool fua = random() % 16 == 0;
    data.fill(++serial);
    Hold turn(*disk.order(), {sector * kSector, kSector}, loop);
    co_await turn;
    const Status done = co_await disk.write(sector * kSector, std::as_bytes(std::span(data)), fua);
    turn.leave();
    EXPECT_TRUE(done);
    shared.acknowledged.raise(sector, serial);
    if (fua) shared.durable.raise(sector, serial);
  }
}

struct Setting {
  const char* name;
  Parameters parameters;
  Support fua;
};
void PrintTo(const Setting& setting, std::ostream* out) {
  *out << setting.name;
}

class PowerCut : public testing::TestWithParam<Setting> {};

TEST_P(PowerCut, WhatWasPromisedIsThere) {
  engine::BlockingPool pool;
  const EngineKind kind = engine::choose_engine("auto").kind;
  auto made = std::make_unique<ForgetfulPlugin>(GetParam().fua);
  ForgetfulPlugin& forgetful = *made;
  const std::unique_ptr<disk::Plugin> stack =
      make_filtered("cache", GetParam().parameters, std::move(made));
  stack->start({.pool = pool});
  Shared shared;
  std::vector<std::thread> threads;
  for (size_t me = 0; me < kWriters; me++) {
    threads.emplace_back([&, me] {
      const std::unique_ptr<Loop> loop = Loop::create(kind, pool);
      auto opened =
          loop->run_until_done(disk::open_layer(*stack, "cache", {.name = "", .loop = *loop}));
      EXPECT_TRUE(opened);
      if (opened) {
        loop->run_until_done(work(**opened, *loop, me, shared));
        const Status closed = loop->run_until_done((*opened)->close());
        EXPECT_TRUE(closed);
      }
      shared.working--;
    });
  }
  size_t cuts = 0;
  do {
    const Serials promised = shared.durable.now();
    const std::vector<std::byte> image = forgetful.durable();
    for (size_t sector = 0; sector < kSectors; sector++) {
      EXPECT_GE(serial_at(image.data(), sector), promised[sector])
          << "seed " << seed() << ": sector " << sector;
    }
    cuts++;
    std::this_thread::sleep_for(std::chrono::microseconds(300));
  } while (shared.working && !HasFailure());
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(cuts, 1u);
  const std::unique_ptr<Loop> loop = Loop::create(kind, pool);
  const Status finished = loop->run_until_done(stack->finish(*loop));
  EXPECT_TRUE(finished);
  // At the end of the program all is.
  const Serials all = shared.acknowledged.now();
  const std::vector<std::byte> image = forgetful.durable();
  for (size_t sector = 0; sector < kSectors; sector++) {
    EXPECT_EQ(serial_at(image.data(), sector), all[sector]) << "seed " << seed();
  }
}

Parameters with(const char* mode, const char* size_max) {
  return {{"cache", mode},
          {"cache-min-block-size", "4096"},
          {"cache-max-size", size_max},
          {"cache-on-read", "true"}};
}

INSTANTIATE_TEST_SUITE_P(
    Settings, PowerCut,
    testing::Values(Setting{"Writeback", with("writeback", "1G"), Support::kNative},
                    Setting{"WritebackWithoutFua", with("writeback", "1G"), Support::kEmulate},
                    Setting{"TinyWriteback", with("writeback", "40K"), Support::kNative},
                    Setting{"Writethrough", with("writethrough", "1G"), Support::kNative},
                    Setting{"TinyWritethrough", with("writethrough", "40K"), Support::kEmulate}),
    [](const testing::TestParamInfo<Setting>& info) { return info.param.name; });

}  // namespace
}  // namespace weft::filters
