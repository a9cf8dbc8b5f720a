// SPDX-License-Identifier: BSD-3-Clause
#include "disk/conformance.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>

#include "disk/change_order.h"
#include "disk/open_layer.h"
#include "disk/turn.h"
#include "engine/scope.h"

namespace weft::disk {
namespace {

using engine::EngineKind;
using engine::Scope;
using Bytes = std::vector<std::byte>;

// One seed makes all that is random; WEFT_SEED in the environment repeats a run.
uint64_t seed() {
  static const uint64_t value = [] {
    const char* given = std::getenv("WEFT_SEED");
    return given ? std::strtoull(given, nullptr, 0) : std::random_device{}();
  }();
  return value;
}

Task<Status> ordered_write(Disk& disk, Loop& loop, uint64_t offset, ByteSpan from, bool fua) {
  Turn turn(disk, {offset, from.size()}, loop);
  co_await turn;
  const Status done = co_await disk.write(offset, from, fua);
  turn.leave();
  co_return done;
}

Task<Status> ordered_zero(Disk& disk, Loop& loop, Range range, ZeroFlags flags) {
  Turn turn(disk, range, loop);
  co_await turn;
  const Status done = co_await disk.zero(range, flags);
  turn.leave();
  co_return done;
}

Task<Status> ordered_trim(Disk& disk, Loop& loop, Range range, bool fua) {
  Turn turn(disk, range, loop);
  co_await turn;
  const Status done = co_await disk.trim(range, fua);
  turn.leave();
  co_return done;
}

Bytes random_bytes(std::mt19937_64& random, size_t length) {
  Bytes bytes((length + 7) / 8 * 8);
  for (size_t i = 0; i < bytes.size(); i += 8) {
    // No byte is zero, so that a hole cannot pass for data.
    const uint64_t word = random() | 0x0101010101010101;
    std::memcpy(bytes.data() + i, &word, sizeof word);
  }
  bytes.resize(length);
  return bytes;
}

// Offsets at which implementations change their ways, and lengths around them.
std::vector<Range> boundary_ranges(uint64_t size) {
  std::vector<uint64_t> points = {0,    1,    7,     511,   512,   513,   4095,
                                  4096, 4097, 65535, 65536, 65537, 262144};
  for (uint64_t back : {1, 2, 511, 512, 513, 4096, 65536}) {
    if (back <= size) points.push_back(size - back);
  }
  std::vector<Range> ranges;
  for (uint64_t offset : points) {
    for (uint64_t length : {1, 2, 511, 512, 513, 4096, 4097, 65536, 70000, 300001}) {
      if (Range{offset, length}.within(size)) ranges.push_back({offset, length});
    }
    if (offset < size) ranges.push_back({offset, size - offset});
  }
  return ranges;
}

bool is_zero(ByteSpan bytes) {
  return bytes.empty() || (bytes[0] == std::byte{0} &&
                           std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

bool same(ByteSpan a, ByteSpan b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

void put(Bytes& model, uint64_t offset, const Bytes& bytes) {
  std::memcpy(model.data() + offset, bytes.data(), bytes.size());
}

void put_zeroes(Bytes& model, Range range) {
  std::memset(model.data() + range.offset, 0, range.length);
}

Task<Bytes> read_range(Disk& disk, Range range) {
  Bytes bytes(range.length, std::byte{0xee});
  const Status done = co_await disk.read(range.offset, bytes);
  EXPECT_TRUE(done) << "read of " << range.length << " at " << range.offset << ": errno "
                    << (done ? 0 : done.error().code);
  co_return bytes;
}

ByteSpan part(const Bytes& bytes, Range range) {
  return ByteSpan(bytes).subspan(range.offset, range.length);
}

// A random walk over one part of a disk, with all that a client may ask for.
Task<void> walk(Disk& disk, Loop& loop, Range zone, Bytes& model, uint64_t walk_seed, int steps,
                bool remembers) {
  std::mt19937_64 random(walk_seed);
  const Capabilities& can = disk.capabilities();
  for (int step = 0; step < steps; step++) {
    const uint64_t first = random() % zone.length;
    const uint64_t longest = random() % 8 == 0 ? zone.length : 9000;
    const Range range{zone.offset + first, 1 + random() % std::min(longest, zone.length - first)};
    const bool fua = can.fua != Support::kNone && random() % 8 == 0;
    switch (random() % 8) {
      case 0:
      case 1: {
        if (!can.writable) break;
        const Bytes bytes = random_bytes(random, range.length);
        const Status done = co_await ordered_write(disk, loop, range.offset, bytes, fua);
        EXPECT_TRUE(done);
        if (remembers) put(model, range.offset, bytes);
        break;
      }
      case 2: {
        if (can.zero == Support::kNone) break;
        const ZeroFlags flags{fua, random() % 2 == 0,
                              can.fast_zero != Support::kNone && random() % 4 == 0};
        const Status done = co_await ordered_zero(disk, loop, range, flags);
        EXPECT_TRUE(done || (flags.fast && done.error().code == ENOTSUP));
        if (remembers && done) put_zeroes(model, range);
        break;
      }
      case 3: {
        if (can.trim == Support::kNone) break;
        const Status done = co_await ordered_trim(disk, loop, range, fua);
        EXPECT_TRUE(done);
        // Each byte is now what it was or a zero, and stays that.
        const Bytes now = co_await read_range(disk, range);
        const std::byte* was = model.data() + range.offset;
        uint64_t wrong = 0;
        const std::byte* is = now.data();
        while (wrong < range.length && (is[wrong] == was[wrong] || is[wrong] == std::byte{0})) {
          wrong++;
        }
        EXPECT_EQ(wrong, range.length) << "trimmed from " << range.offset;
        put(model, range.offset, now);
        break;
      }
      case 4: {
        if (can.flush == Support::kNone) break;
        const Status done = co_await disk.flush();
        EXPECT_TRUE(done);
        break;
      }
      case 5: {
        Extents extents(range);
        const Status done = co_await disk.extents(extents, random() % 2 == 0);
        EXPECT_TRUE(done);
        EXPECT_FALSE(extents.list().empty());
        uint64_t offset = range.offset;
        for (const Extent& extent : extents.list()) {
          if (extent.flags & kExtentZero) {
            EXPECT_TRUE(is_zero(part(model, {offset, extent.length}))) << "at " << offset;
          }
          offset += extent.length;
        }
        break;
      }
      case 6: {
        if (can.cache == Support::kNone) break;
        const Status done = co_await disk.cache(range);
        EXPECT_TRUE(done);
        break;
      }
      default: {
        const Bytes now = co_await read_range(disk, range);
        EXPECT_TRUE(same(now, part(model, range)))
            << range.length << " bytes at " << range.offset << ", step " << step;
      }
    }
    if (testing::Test::HasFailure()) co_return;
  }
}

}  // namespace

std::vector<ConformanceCase> each_engine_case(const std::vector<Candidate>& candidates) {
  std::vector<ConformanceCase> cases;
  for (const Candidate& candidate : candidates) {
    cases.push_back({candidate, EngineKind::kUring});
    cases.push_back({candidate, EngineKind::kEpoll});
  }
  return cases;
}

void Conformance::SetUp() {
  const ConformanceCase& parameter = GetParam();
  if (parameter.engine == EngineKind::kUring &&
      engine::choose_engine("auto").kind != EngineKind::kUring) {
    GTEST_SKIP() << engine::choose_engine("auto").reason;
  }
  plugin = parameter.candidate.make(scratch.path());
  if (!plugin) GTEST_SKIP() << "not to be had on this machine";
  loop = Loop::create(parameter.engine, pool);
  plugin->start({.pool = pool});
  disk = open(*loop);
  ASSERT_TRUE(disk);
  size = disk->capabilities().size;
  ASSERT_LE(size, 8u << 20);
  model.resize(size);
  if (size) {
    const Status done = loop->run_until_done(disk->read(0, model));
    ASSERT_TRUE(done);
  }
  RecordProperty("seed", std::to_string(seed()));
}

void Conformance::TearDown() {
  if (disk) close(*loop, disk);
  if (plugin && loop) {
    const Status done = loop->run_until_done(plugin->finish(*loop));
    EXPECT_TRUE(done);
  }
  if (HasFailure())
    std::fprintf(stderr, "repeat with WEFT_SEED=%llu\n", (unsigned long long)seed());
}

std::unique_ptr<Disk> Conformance::open(engine::Loop& on, bool read_only) {
  auto opened = on.run_until_done(open_layer(*plugin, GetParam().candidate.name,
                                             {.name = "", .read_only = read_only, .loop = on}));
  EXPECT_TRUE(opened);
  if (!opened) return nullptr;
  return std::move(*opened);
}

void Conformance::close(engine::Loop& on, std::unique_ptr<Disk>& closed) {
  const Status done = on.run_until_done(closed->close());
  EXPECT_TRUE(done);
  closed.reset();
}

TEST_P(Conformance, CapabilitiesMakeSense) {
  const Capabilities& can = disk->capabilities();
  EXPECT_LE(can.size, uint64_t{INT64_MAX});
  EXPECT_TRUE(std::has_single_bit(can.block_size.minimum));
  EXPECT_TRUE(std::has_single_bit(can.block_size.preferred));
  EXPECT_LE(can.block_size.minimum, 64u << 10);
  EXPECT_GE(can.block_size.preferred, std::max(512u, can.block_size.minimum));
  EXPECT_GE(can.block_size.maximum, can.block_size.preferred);
  if (can.writable) {
    // Without it several connections could not rely on anything.
    EXPECT_NE(can.flush, Support::kNone);
  } else {
    EXPECT_EQ(can.trim, Support::kNone);
    EXPECT_EQ(can.zero, Support::kNone);
    EXPECT_EQ(can.fua, Support::kNone);
  }
}

TEST_P(Conformance, ListsItsExports) {
  const auto list = loop->run_until_done(plugin->list_exports(*loop, false));
  ASSERT_TRUE(list);
  EXPECT_FALSE(list->empty());
}

TEST_P(Conformance, ReadsAtEveryBoundary) {
  for (const Range range : boundary_ranges(size)) {
    const Bytes now = loop->run_until_done(read_range(*disk, range));
    ASSERT_TRUE(same(now, part(model, range))) << range.length << " bytes at " << range.offset;
  }
}

TEST_P(Conformance, LendsWhatItReads) {
  std::mt19937_64 random(seed());
  if (disk->capabilities().writable && size > 300000) {
    const Bytes bytes = random_bytes(random, 100000);
    ASSERT_TRUE(loop->run_until_done(ordered_write(*disk, *loop, 70001, bytes, false)));
  }
  Lease lease;
  for (const Range range : boundary_ranges(size)) {
    if (!disk->lend(range, lease)) {
      EXPECT_TRUE(lease.pieces.empty());
      continue;
    }
    Bytes lent;
    for (const Lease::Piece& piece : lease.pieces) {
      ASSERT_GT(piece.length, 0u);
      if (piece.data) {
        lent.insert(lent.end(), piece.data, piece.data + piece.length);
      } else {
        lent.resize(lent.size() + piece.length);
      }
    }
    lease.give_back();
    EXPECT_TRUE(lease.pieces.empty());
    const Bytes read = loop->run_until_done(read_range(*disk, range));
    ASSERT_TRUE(same(lent, read)) << range.length << " bytes at " << range.offset;
  }
}

TEST_P(Conformance, WritesAtEveryBoundary) {
  if (!disk->capabilities().writable) return;  // read-only
  std::mt19937_64 random(seed());
  for (const Range range : boundary_ranges(size)) {
    const Bytes bytes = random_bytes(random, range.length);
    ASSERT_TRUE(loop->run_until_done(ordered_write(*disk, *loop, range.offset, bytes, false)));
    if (GetParam().candidate.remembers) put(model, range.offset, bytes);
    // With the neighbours on both sides.
    const uint64_t before = std::min<uint64_t>(range.offset, 5000);
    const uint64_t after = std::min<uint64_t>(size - range.end(), 5000);
    const Range around{range.offset - before, before + range.length + after};
    const Bytes now = loop->run_until_done(read_range(*disk, around));
    ASSERT_TRUE(same(now, part(model, around))) << range.length << " bytes at " << range.offset;
  }
}

TEST_P(Conformance, ZeroesAtEveryBoundary) {
  if (disk->capabilities().zero == Support::kNone) return;  // no zero
  const bool fast_known = disk->capabilities().fast_zero != Support::kNone;
  const bool fua_known = disk->capabilities().fua != Support::kNone;
  std::mt19937_64 random(seed());
  int turn = 0;
  for (const Range range : boundary_ranges(size)) {
    const uint64_t before = std::min<uint64_t>(range.offset, 5000);
    const uint64_t after = std::min<uint64_t>(size - range.end(), 5000);
    const Range around{range.offset - before, before + range.length + after};
    const Bytes bytes = random_bytes(random, around.length);
    ASSERT_TRUE(loop->run_until_done(ordered_write(*disk, *loop, around.offset, bytes, false)));
    turn++;
    const ZeroFlags flags{fua_known && turn % 8 == 0, turn % 2 == 0, fast_known && turn % 4 < 2};
    const Status done = loop->run_until_done(ordered_zero(*disk, *loop, range, flags));
    if (GetParam().candidate.remembers) {
      put(model, around.offset, bytes);
      if (done) put_zeroes(model, range);
    }
    ASSERT_TRUE(done || (flags.fast && done.error().code == ENOTSUP));
    const Bytes now = loop->run_until_done(read_range(*disk, around));
    ASSERT_TRUE(same(now, part(model, around)))
        << range.length << " bytes at " << range.offset << ", turn " << turn;
  }
}

TEST_P(Conformance, ExtentsCoverTheDiskAndAreHonest) {
  std::mt19937_64 random(seed());
  if (disk->capabilities().writable && size >= 1 << 20) {
    for (uint64_t offset : {0, 200000, 700001}) {
      const Bytes bytes = random_bytes(random, 66000);
      ASSERT_TRUE(loop->run_until_done(ordered_write(*disk, *loop, offset, bytes, false)));
    }
    const Range middle{300000, 300000};
    if (disk->capabilities().trim != Support::kNone) {
      ASSERT_TRUE(loop->run_until_done(ordered_trim(*disk, *loop, middle, false)));
    }
    ASSERT_TRUE(loop->run_until_done(disk->read(0, model)));
  }
  for (const Range window : boundary_ranges(size)) {
    for (const bool one : {false, true}) {
      uint64_t offset = window.offset;
      while (offset < window.end()) {
        Extents extents({offset, window.end() - offset});
        ASSERT_TRUE(loop->run_until_done(disk->extents(extents, one)));
        ASSERT_GT(extents.end(), offset);
        ASSERT_LE(extents.end(), window.end());
        for (const Extent& extent : extents.list()) {
          if (extent.flags & kExtentZero) {
            ASSERT_TRUE(is_zero(part(model, {offset, extent.length}))) << "at " << offset;
          }
          offset += extent.length;
        }
      }
    }
  }
}

TEST_P(Conformance, RandomOperationsMatchAModel) {
  if (size == 0) return;  // empty
  loop->run_until_done(
      walk(*disk, *loop, {0, size}, model, seed(), 1500, GetParam().candidate.remembers));
}

TEST_P(Conformance, ManyRequestsAtOnce) {
  // Each walker has its own part; their borders lie within blocks.
  constexpr int kWalkers = 16;
  if (size < kWalkers * 1000) return;  // too small
  const uint64_t share = size / kWalkers;
  auto all = [](Conformance& test, uint64_t each) -> Task<void> {
    Scope scope(*test.loop);
    for (int i = 0; i < kWalkers; i++) {
      scope.spawn(walk(*test.disk, *test.loop, {i * each, each}, test.model, seed() + i, 150,
                       GetParam().candidate.remembers));
    }
    co_await scope.join();
  };
  loop->run_until_done(all(*this, share));
  const Bytes now = loop->run_until_done(read_range(*disk, {0, size}));
  EXPECT_TRUE(same(now, model));
}

Task<void> until_none(Loop& loop, const std::atomic<int>& left) {
  engine::Timer timer(loop);
  while (left > 0) co_await timer.sleep(std::chrono::milliseconds(1));
}

TEST_P(Conformance, ManyLoopsAtOnce) {
  constexpr int kLoops = 4;
  if (size < kLoops * 1000) return;  // too small
  const uint64_t share = size / kLoops;
  // As in a server, every loop runs as long as a disk of any is open.
  std::atomic<int> walking = kLoops;
  std::atomic<int> open_disks = kLoops;
  std::vector<std::thread> threads;
  for (int i = 0; i < kLoops; i++) {
    Loop* const own = other_loops.emplace_back(Loop::create(GetParam().engine, pool)).get();
    threads.emplace_back([this, own, i, share, &walking, &open_disks] {
      std::unique_ptr<Disk> mine = open(*own);
      own->run_until_done(walk(*mine, *own, {i * share, share}, model, seed() + i, 200,
                               GetParam().candidate.remembers));
      walking--;
      own->run_until_done(until_none(*own, walking));
      close(*own, mine);
      open_disks--;
      own->run_until_done(until_none(*own, open_disks));
    });
  }
  loop->run_until_done(until_none(*loop, open_disks));
  for (std::thread& thread : threads) thread.join();
  const Bytes now = loop->run_until_done(read_range(*disk, {0, size}));
  EXPECT_TRUE(same(now, model));
}

TEST_P(Conformance, OneConnectionSeesWhatAnotherWrote) {
  const Capabilities can = disk->capabilities();
  if (!can.writable || !can.multi_conn || !GetParam().candidate.remembers || size < 100000) {
    return;  // not written, or by one connection
  }
  std::unique_ptr<Disk> other = open(*loop);
  EXPECT_EQ(other->capabilities().size, size);
  std::mt19937_64 random(seed());
  for (int i = 0; i < 50; i++) {
    const Bytes bytes = random_bytes(random, 1 + random() % 50000);
    const uint64_t offset = random() % (size - bytes.size());
    Disk& writer = i % 2 ? *disk : *other;
    Disk& reader = i % 2 ? *other : *disk;
    ASSERT_TRUE(loop->run_until_done(ordered_write(writer, *loop, offset, bytes, false)));
    const Bytes now = loop->run_until_done(read_range(reader, {offset, bytes.size()}));
    ASSERT_TRUE(same(now, bytes));
  }
  close(*loop, other);
}

TEST_P(Conformance, IsReadOnlyWhenOpenedSo) {
  std::unique_ptr<Disk> reader = open(*loop, true);
  EXPECT_FALSE(reader->capabilities().writable);
  EXPECT_EQ(reader->capabilities().size, size);
  if (size) {
    const Bytes now = loop->run_until_done(read_range(*reader, {0, size}));
    EXPECT_TRUE(same(now, model));
  }
  close(*loop, reader);
}

TEST_P(Conformance, KeepsItsContentWhenAllHaveLeft) {
  if (!disk->capabilities().writable || !GetParam().candidate.remembers || size < 10000) {
    return;  // not written
  }
  std::mt19937_64 random(seed());
  const Bytes bytes = random_bytes(random, 5000);
  ASSERT_TRUE(loop->run_until_done(ordered_write(*disk, *loop, 4001, bytes, false)));
  close(*loop, disk);
  disk = open(*loop);
  ASSERT_TRUE(disk);
  const Bytes now = loop->run_until_done(read_range(*disk, {4001, bytes.size()}));
  EXPECT_TRUE(same(now, bytes));
}

}  // namespace weft::disk
