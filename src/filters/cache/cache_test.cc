// SPDX-License-Identifier: BSD-3-Clause
// The cache filter: what goes below and when, its races, failures, its room.
#include "filters/cache/cache_fixture.h"

namespace weft::filters {
namespace {

using namespace std::chrono_literals;

// ---- What goes below, and when ----------------------------------------------------------------

TEST_P(CacheTest, AWriteStaysInTheCacheUntilAFlush) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a') + block_of('b')).get());
  EXPECT_EQ(scripted->started().size(), 0u);
  EXPECT_EQ(b->read_now({0, 2 * kBlock}), block_of('a') + block_of('b'));
  EXPECT_EQ(scripted->started().size(), 0u);
  ASSERT_TRUE(b->flush().get());
  const std::vector<Call> calls = scripted->started();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].kind, Kind::kWrite);
  EXPECT_EQ(calls[0].range, (Range{0, 2 * kBlock}));  // neighbours go together
  EXPECT_EQ(calls[1].kind, Kind::kFlush);
  EXPECT_EQ(scripted->content({0, 2 * kBlock}), block_of('a') + block_of('b'));
}

TEST_P(CacheTest, APartOfABlockReadsTheRestOnce) {
  start();
  ASSERT_TRUE(a->write(100, "hello").get());
  ASSERT_TRUE(a->write(200, "hello").get());
  EXPECT_EQ(count(Kind::kRead), 1u);
  ASSERT_TRUE(a->write(64 * kBlock + 10, "end").get());  // the short block
  ASSERT_TRUE(a->flush().get());
  EXPECT_EQ(scripted->content({99, 7}), std::string("\0hello\0", 7));
  EXPECT_EQ(scripted->content({64 * kBlock + 10, 3}), "end");
}

TEST_P(CacheTest, ReadsAreKeptOnlyWhenAskedFor) {
  start();
  (void)a->read_now({0, 100});
  (void)b->read_now({0, 100});
  EXPECT_EQ(count(Kind::kRead), 2u);
  ASSERT_TRUE(a->cache({0, kBlock}).get());
  EXPECT_EQ(count(Kind::kRead), 3u);
  (void)b->read_now({0, 100});
  EXPECT_EQ(count(Kind::kRead), 3u);
}

TEST_P(CacheTest, FuaWritesItsOwnBlocksAndNoOthers) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  ASSERT_TRUE(b->write(8 * kBlock, block_of('b'), true).get());
  const std::vector<Call> calls = scripted->started();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_EQ(calls[0].range, (Range{8 * kBlock, kBlock}));
  EXPECT_TRUE(calls[0].fua);
}

TEST_P(CacheTest, FuaIsAFlushWhereTheDiskHasNone) {
  adjust = [](ScriptedPlugin& plugin) { plugin.capabilities.fua = Support::kEmulate; };
  start();
  ASSERT_TRUE(b->write(kBlock, block_of('b'), true).get());
  const std::vector<Call> calls = scripted->started();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].kind, Kind::kWrite);
  EXPECT_EQ(calls[1].kind, Kind::kFlush);
}

TEST_P(CacheTest, ADiskWithFuaAloneIsWrittenWithIt) {
  adjust = [](ScriptedPlugin& plugin) { plugin.capabilities.flush = Support::kNone; };
  start();
  EXPECT_TRUE(a->capabilities().multi_conn);
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  ASSERT_TRUE(a->flush().get());
  const std::vector<Call> calls = scripted->started();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_TRUE(calls[0].fua);
}

TEST_P(CacheTest, ADiskThatMakesNothingDurableIsNotShared) {
  adjust = [](ScriptedPlugin& plugin) {
    plugin.capabilities.flush = plugin.capabilities.fua = Support::kNone;
  };
  start();
  EXPECT_FALSE(a->capabilities().multi_conn);
}

TEST_P(CacheTest, WritethroughWritesBelowFirst) {
  start({{"cache", "writethrough"}});
  hold(Kind::kWrite);
  std::future<Status> write = a->write(0, block_of('a'));
  scripted->wait_until_held(1);
  EXPECT_TRUE(is_pending(write));
  scripted->release();
  ASSERT_TRUE(result(write));
  EXPECT_EQ(b->read_now({0, kBlock}), block_of('a'));
  EXPECT_EQ(count(Kind::kRead), 0u);  // the block was kept
  // A write that fails below leaves what is below.
  fail_with(Kind::kWrite, EIO);
  ASSERT_FALSE(a->write(100, "bad").get());
  EXPECT_EQ(b->read_now({0, kBlock}), block_of('a'));
  EXPECT_EQ(count(Kind::kRead), 1u);
}

TEST_P(CacheTest, UnsafeIgnoresFlushAndFuaAndTheEnd) {
  start({{"cache", "unsafe"}});
  ASSERT_TRUE(a->write(0, block_of('a'), true).get());
  ASSERT_TRUE(a->flush().get());
  for (auto* client : {&a, &b, &c}) client->reset();
  ASSERT_TRUE(finish());
  EXPECT_EQ(scripted->started().size(), 0u);
  EXPECT_EQ(scripted->open_disks(), 0);
  EXPECT_EQ(scripted->finishes(), 1);
}

TEST_P(CacheTest, TheEndWritesBack) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  for (auto* client : {&a, &b, &c}) client->reset();
  EXPECT_EQ(scripted->open_disks(), 1);  // of the export, kept
  ASSERT_TRUE(finish());
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('a'));
  EXPECT_EQ(count(Kind::kFlush), 1u);
  EXPECT_EQ(scripted->open_disks(), 0);
}

// ---- Races ------------------------------------------------------------------------------------

TEST_P(CacheTest, ReadersOfABlockShareOneFill) {
  start({{"cache-on-read", "true"}});
  hold(Kind::kRead);
  std::string first(100, '?');
  std::string second(100, '?');
  std::future<Status> one = a->read(0, first);
  scripted->wait_until_held(1);
  std::future<Status> two = b->read(50, second);
  EXPECT_TRUE(is_pending(two));
  scripted->release();
  ASSERT_TRUE(result(one));
  ASSERT_TRUE(result(two));
  EXPECT_EQ(first, std::string(100, '\0'));
  EXPECT_EQ(second, std::string(100, '\0'));
  EXPECT_EQ(count(Kind::kRead), 1u);
}

TEST_P(CacheTest, AFillNeverOverwritesNewerData) {
  start({{"cache-on-read", "true"}});
  hold(Kind::kRead);
  std::string old(kBlock, '?');
  std::future<Status> read = a->read(0, old);
  scripted->wait_until_held(1);
  std::future<Status> write = b->write(0, block_of('b'));
  scripted->release();
  ASSERT_TRUE(result(read));
  ASSERT_TRUE(result(write));
  EXPECT_EQ(c->read_now({0, kBlock}), block_of('b'));
  ASSERT_TRUE(c->flush().get());
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('b'));
}

TEST_P(CacheTest, AFailedFillFailsItsReaderAlone) {
  start({{"cache-on-read", "true"}});
  fail_with(Kind::kRead, EIO);
  std::string into(10, '?');
  EXPECT_FALSE(a->read(0, into).get());
  scripted->answer({});
  EXPECT_EQ(b->read_now({0, 10}), std::string(10, '\0'));
  ASSERT_TRUE(a->write(0, "x").get());
}

TEST_P(CacheTest, ABlockThatChangesWhileItIsWrittenBackStaysDirty) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  hold(Kind::kWrite);
  std::future<Status> flush = a->flush();
  scripted->wait_until_held(1);
  std::future<Status> write = b->write(0, block_of('b'));
  ASSERT_TRUE(result(write));  // it does not wait for the disk below
  EXPECT_EQ(c->read_now({0, kBlock}), block_of('b'));
  scripted->release();
  ASSERT_TRUE(result(flush));
  ASSERT_TRUE(c->flush().get());
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('b'));
  EXPECT_EQ(count(Kind::kWrite), 2u);
}

TEST_P(CacheTest, FuaWaitsForAWriteBackOfItsBlockAndWritesAgain) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  hold(Kind::kWrite);
  std::future<Status> flush = a->flush();
  scripted->wait_until_held(1);
  std::future<Status> write = b->write(0, block_of('b'), true);
  EXPECT_TRUE(is_pending(write));
  EXPECT_EQ(scripted->held(), 1u);  // never two of one block at once
  scripted->release();
  ASSERT_TRUE(result(flush));
  ASSERT_TRUE(result(write));
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('b'));
}

TEST_P(CacheTest, FuaIsAFlushWhereTheReclaimerWasFaster) {
  start(
      {{"cache-max-size", "40960"}, {"cache-high-threshold", "70"}, {"cache-low-threshold", "40"}});
  ASSERT_TRUE(b->write(0, block_of('o')).get());
  hold(Kind::kWrite);
  std::future<Status> flush = b->flush();
  scripted->wait_until_held(1);
  // In the cache, and waiting for block 0 ...
  std::future<Status> fua = a->write(0, block_of('a') + block_of('b'), true);
  EXPECT_TRUE(is_pending(fua));
  // ... while the reclaimer, which knows nothing of FUA, writes block 1.
  ASSERT_TRUE(c->write(10 * kBlock, std::string(7 * kBlock, 'c')).get());
  const auto is_block_1 = [](const Call& call) { return call.range.offset == kBlock; };
  ASSERT_TRUE(soon([&] { return std::ranges::any_of(scripted->started(), is_block_1); }));
  EXPECT_EQ(count(Kind::kFlush), 0u);
  scripted->release(is_block_1);
  scripted->release();
  ASSERT_TRUE(result(flush));
  ASSERT_TRUE(result(fua));
  EXPECT_EQ(count(Kind::kFlush), 2u);
}

TEST_P(CacheTest, FlushesThatWaitTogetherShareOneRound) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  hold(Kind::kFlush);
  std::future<Status> first = a->flush();
  scripted->wait_until_held(1);
  // These may not join what has begun: what was written meanwhile is not in it.
  ASSERT_TRUE(b->write(kBlock, block_of('b')).get());
  std::future<Status> second = b->flush();
  std::future<Status> third = c->flush();
  EXPECT_TRUE(is_pending(second));
  EXPECT_TRUE(is_pending(third));
  scripted->release();
  ASSERT_TRUE(result(first));
  ASSERT_TRUE(result(second));
  ASSERT_TRUE(result(third));
  EXPECT_EQ(count(Kind::kFlush), 2u);
  EXPECT_EQ(scripted->content({kBlock, kBlock}), block_of('b'));
}

TEST_P(CacheTest, AZeroWaitsForAWriteBackAndIsNotUndoneByOne) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  hold(Kind::kWrite);
  std::future<Status> flush = a->flush();
  scripted->wait_until_held(1);
  std::future<Status> zero = b->zero({0, 2 * kBlock});
  EXPECT_TRUE(is_pending(zero));
  EXPECT_EQ(count(Kind::kZero), 0u);
  scripted->release();
  ASSERT_TRUE(result(flush));
  ASSERT_TRUE(result(zero));
  EXPECT_EQ(scripted->content({0, kBlock}), std::string(kBlock, '\0'));

  // And the other way round.
  ASSERT_TRUE(a->write(0, block_of('c')).get());
  hold(Kind::kZero);
  zero = b->zero({0, 2 * kBlock});
  scripted->wait_until_held(1);
  flush = a->flush();
  EXPECT_TRUE(is_pending(flush));
  scripted->release();
  ASSERT_TRUE(result(zero));
  ASSERT_TRUE(result(flush));
  EXPECT_EQ(scripted->content({0, kBlock}), std::string(kBlock, '\0'));
  EXPECT_EQ(c->read_now({0, kBlock}), std::string(kBlock, '\0'));
}

TEST_P(CacheTest, AZeroThatFailsKeepsWhatIsDirty) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  fail_with(Kind::kZero, EIO);
  EXPECT_FALSE(b->zero({0, kBlock}).get());
  EXPECT_EQ(b->read_now({0, kBlock}), block_of('a'));
  ASSERT_TRUE(b->flush().get());
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('a'));
}

TEST_P(CacheTest, ATrimDoesNotShowWhatTheDiskHadBefore) {
  for (const Support zero : {Support::kNative, Support::kEmulate}) {
    adjust = [zero](ScriptedPlugin& plugin) { plugin.capabilities.zero = zero; };
    start();
    ASSERT_TRUE(a->write(0, block_of('o') + block_of('o')).get());
    ASSERT_TRUE(a->flush().get());
    ASSERT_TRUE(a->write(0, block_of('n')).get());
    ASSERT_TRUE(b->trim({0, 2 * kBlock}).get());
    EXPECT_EQ(c->read_now({0, 2 * kBlock}), std::string(2 * kBlock, '\0'));
    ASSERT_TRUE(c->flush().get());
    EXPECT_EQ(c->read_now({0, 2 * kBlock}), std::string(2 * kBlock, '\0'));
    for (auto* client : {&a, &b, &c}) client->reset();
    ASSERT_TRUE(finish());
    finished = false;
  }
  finished = true;
}

TEST_P(CacheTest, DirtyBlocksAreData) {
  adjust = [](ScriptedPlugin& plugin) { plugin.holes = {{0, 60 * kBlock}}; };
  start();
  ASSERT_TRUE(a->write(2 * kBlock + 5, "x").get());
  const std::vector<Extent> expected = {{2 * kBlock, kExtentHole | kExtentZero},
                                        {kBlock, kExtentData},
                                        {57 * kBlock, kExtentHole | kExtentZero},
                                        {4 * kBlock + 1000, kExtentData}};
  EXPECT_EQ(b->extents(), expected);
}

// ---- Failures ---------------------------------------------------------------------------------

TEST_P(CacheTest, AFailedWriteBackMarksTheDiskAndKeepsTheData) {
  start();
  ASSERT_TRUE(a->write(0, block_of('a')).get());
  fail_with(Kind::kWrite, ENOSPC);
  const Status first = a->flush().get();
  ASSERT_FALSE(first);
  EXPECT_EQ(first.error().code, ENOSPC);
  scripted->answer({});
  EXPECT_FALSE(b->flush().get());
  EXPECT_FALSE(c->write(kBlock, block_of('c'), true).get());
  EXPECT_FALSE(c->zero({kBlock, kBlock}, true).get());
  ASSERT_TRUE(c->write(2 * kBlock, block_of('d')).get());
  EXPECT_EQ(b->read_now({0, kBlock}), block_of('a'));
  for (auto* client : {&a, &b, &c}) client->reset();
  // What can be saved is, and the program's end tells.
  EXPECT_FALSE(finish());
  EXPECT_EQ(scripted->content({0, kBlock}), block_of('a'));
  EXPECT_EQ(scripted->content({2 * kBlock, kBlock}), block_of('d'));
}

TEST_P(CacheTest, AtTheEndAllIsSavedThatCanBe) {
  start();
  for (uint64_t index = 0; index < 64; index += 2) {
    ASSERT_TRUE(a->write(index * kBlock, block_of('x')).get());
  }
  scripted->answer([](const Call& call) -> Status {
    if (is(call, Kind::kWrite) && call.range.offset == 0) return fail(EIO);
    return {};
  });
  for (auto* client : {&a, &b, &c}) client->reset();
  EXPECT_FALSE(finish());
  for (uint64_t index = 2; index < 64; index += 2) {
    EXPECT_EQ(scripted->content({index * kBlock, kBlock}), block_of('x')) << index;
  }
}

TEST_P(CacheTest, AFailedFlushMarksTheDisk) {
  for (const char* mode : {"writeback", "writethrough"}) {
    start({{"cache", mode}});
    ASSERT_TRUE(a->write(0, block_of('a')).get());
    fail_with(Kind::kFlush, EIO);
    EXPECT_FALSE(a->flush().get());
    scripted->answer({});
    EXPECT_FALSE(b->flush().get());
    EXPECT_FALSE(b->write(0, "x", true).get());
    for (auto* client : {&a, &b, &c}) client->reset();
    EXPECT_FALSE(finish());
    finished = false;
  }
  finished = true;
}

// ---- Room -------------------------------------------------------------------------------------

TEST_P(CacheTest, AFullCacheOfDirtyBlocksIsReclaimed) {
  start({{"cache-max-size", "32768"}});  // 8 blocks
  for (uint64_t index = 0; index < 64; index++) {
    ASSERT_TRUE(a->write(index * kBlock, block_of(static_cast<char>('0' + index))).get());
  }
  for (uint64_t index = 0; index < 64; index++) {
    ASSERT_EQ(b->read_now({index * kBlock, kBlock}), block_of(static_cast<char>('0' + index)));
  }
  ASSERT_TRUE(c->flush().get());
  for (uint64_t index = 0; index < 64; index++) {
    ASSERT_EQ(scripted->content({index * kBlock, kBlock}),
              block_of(static_cast<char>('0' + index)));
  }
}

TEST_P(CacheTest, AtTheMaximumWritesGoAtTheSpeedOfTheDisk) {
  start({{"cache-max-size", "32768"}});
  hold(Kind::kWrite);
  std::vector<std::future<Status>> writes;
  for (uint64_t index = 0; index < 32; index++) {
    writes.push_back(a->write(index * kBlock, block_of('x')));
  }
  std::this_thread::sleep_for(200ms);
  const auto is_done = [](std::future<Status>& write) {
    return write.wait_for(0s) == std::future_status::ready;
  };
  EXPECT_LE(std::ranges::count_if(writes, is_done), 8);
  scripted->release();
  for (std::future<Status>& write : writes) ASSERT_TRUE(result(write));
  EXPECT_EQ(b->read_now({0, 32 * kBlock}), std::string(32 * kBlock, 'x'));
}

TEST_P(CacheTest, AFullCacheOverABrokenDiskTellsItsErrors) {
  start({{"cache-max-size", "32768"}});
  fail_with(Kind::kWrite, EIO);
  size_t failures = 0;
  for (uint64_t index = 0; index < 32; index++) {
    std::future<Status> write = a->write(index * kBlock, block_of('x'));
    failures += !result(write);
  }
  EXPECT_GE(failures, 24u);
  EXPECT_FALSE(b->flush().get());
  for (auto* client : {&a, &b, &c}) client->reset();
  EXPECT_FALSE(finish());
}

TEST_P(CacheTest, WhatWasNotUsedForTheLongestTimeGoesFirst) {
  // 10 blocks; from the 8th on, down to 4.
  start({{"cache-max-size", "40960"},
         {"cache-high-threshold", "70"},
         {"cache-low-threshold", "40"},
         {"cache-on-read", "true"}});
  for (uint64_t index = 0; index < 7; index++) (void)a->read_now({index * kBlock, 10});
  (void)a->read_now({0, 10});  // used again
  EXPECT_EQ(count(Kind::kRead), 7u);
  (void)a->read_now({7 * kBlock, 10});  // one too many: 1, 2, 3 and 4 have to go
  const auto gone = [&](uint64_t index) {
    // Extents do not tell, reads would change it: a write of a part reads its block if it is not
    // there.
    const size_t before = count(Kind::kRead);
    EXPECT_TRUE(a->write(index * kBlock, "x").get());
    return count(Kind::kRead) != before;
  };
  EXPECT_TRUE(soon([&] { return gone(1); }));
  EXPECT_FALSE(gone(0));
  EXPECT_FALSE(gone(7));
}

// ---- Opening ----------------------------------------------------------------------------------

TEST_P(CacheTest, AllConnectionsHaveOneDiskBelow) {
  start();
  EXPECT_EQ(scripted->open_disks(), 1);
  EXPECT_TRUE(a->capabilities().multi_conn);
  EXPECT_EQ(a->capabilities().block_size.minimum, 1u);
  EXPECT_EQ(a->capabilities().block_size.preferred, kBlock);
}

TEST_P(CacheTest, TheDiskBelowSeesItsOwnBlocks) {
  granularity = 2 * kBlock;
  adjust = [](ScriptedPlugin& plugin) { plugin.capabilities.block_size.minimum = 512; };
  for (const char* mode : {"writeback", "writethrough"}) {
    start({{"cache", mode}, {"cache-max-size", "32768"}});
    EXPECT_EQ(a->capabilities().block_size.minimum, 1u);
    EXPECT_EQ(a->capabilities().block_size.preferred, 2 * kBlock);
    std::mt19937_64 random(7);
    std::string model(kSize, '\0');
    for (int i = 0; i < 300; i++) {
      const uint64_t offset = random() % (kSize - 3000);
      const std::string data(1 + random() % 3000, static_cast<char>('a' + i % 26));
      ASSERT_TRUE(a->write(offset, data).get());
      model.replace(offset, data.size(), data);
      const uint64_t from = random() % (kSize - 5000);
      ASSERT_EQ(b->read_now({from, 5000}), model.substr(from, 5000));
    }
    ASSERT_TRUE(c->flush().get());
    EXPECT_EQ(scripted->content({0, kSize}), model);
    for (const Call& call : scripted->started()) {
      EXPECT_EQ(call.range.offset % 512, 0u);
      EXPECT_TRUE(call.range.end() % 512 == 0 || call.range.end() == kSize);
    }
    for (auto* client : {&a, &b, &c}) client->reset();
    ASSERT_TRUE(finish());
    finished = false;
  }
  finished = true;
}

TEST_P(CacheTest, AFailedOpenIsTriedAgain) {
  auto made = std::make_unique<ScriptedPlugin>(kSize);
  scripted = made.get();
  scripted->open_error = EACCES;
  start_over(std::move(made), {});
  a = std::make_unique<Client>(*stack, pool, GetParam());
  const Status refused = a->opened();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EACCES);
  scripted->open_error = 0;
  b = std::make_unique<Client>(*stack, pool, GetParam());
  ASSERT_TRUE(b->opened());
  ASSERT_TRUE(b->write(0, "works").get());
}

TEST_P(CacheTest, TwoFirstOpensOfANameMakeOneCache) {
  auto made = std::make_unique<ScriptedPlugin>(kSize);
  scripted = made.get();
  start_over(std::move(made), {});
  a = std::make_unique<Client>(*stack, pool, GetParam(), "one");
  b = std::make_unique<Client>(*stack, pool, GetParam(), "one");
  c = std::make_unique<Client>(*stack, pool, GetParam(), "two");
  for (auto* client : {&a, &b, &c}) ASSERT_TRUE((*client)->opened());
  EXPECT_EQ(scripted->open_disks(), 2);
}

// A layer with demands: one connection at a time, or an open that hangs until it is let go.
class Demanding final : public disk::Plugin {
 public:
  explicit Demanding(disk::ThreadModel model) : model_(model) {}
  void config(std::string_view, std::string_view) override {}
  [[nodiscard]] disk::ThreadModel own_thread_model() const override { return model_; }
  Task<Result<std::unique_ptr<Disk>>> open(disk::OpenRequest request) override {
    EXPECT_EQ(request.peer, nullptr);
    if (request.name == "slow") {
      const engine::AsyncMutex::Guard guard = co_await slow.lock(request.loop);
    }
    co_return co_await scripted.open(request);
  }

  ScriptedPlugin scripted{kSize};
  engine::AsyncMutex slow;

 private:
  const disk::ThreadModel model_;
};

TEST_P(CacheTest, WhatServesOneConnectionServesMany) {
  start_over(std::make_unique<Demanding>(disk::ThreadModel::kSerializeConnections), {});
  EXPECT_EQ(stack->thread_model(), disk::ThreadModel::kParallel);
  EXPECT_EQ(stack->connections_max(), 0u);
  a = std::make_unique<Client>(*stack, pool, GetParam());
  b = std::make_unique<Client>(*stack, pool, GetParam());
  ASSERT_TRUE(a->opened());
  ASSERT_TRUE(b->opened());
  ASSERT_TRUE(a->write(0, "shared").get());
  EXPECT_EQ(b->read_now({0, 6}), "shared");
  // Another export would need another connection, and wait for it for ever.
  c = std::make_unique<Client>(*stack, pool, GetParam(), "other");
  const Status refused = c->opened();
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EBUSY);
}

TEST_P(CacheTest, AnOpenThatHangsStallsNoOtherExport) {
  auto made = std::make_unique<Demanding>(disk::ThreadModel::kParallel);
  Demanding& demanding = *made;
  start_over(std::move(made), {});
  const std::unique_ptr<Loop> loop = Loop::create(GetParam(), pool);
  auto lock = [](Demanding& plugin, Loop& on) -> Task<engine::AsyncMutex::Guard> {
    co_return co_await plugin.slow.lock(on);
  };
  engine::AsyncMutex::Guard guard = loop->run_until_done(lock(demanding, *loop));
  a = std::make_unique<Client>(*stack, pool, GetParam(), "slow");
  b = std::make_unique<Client>(*stack, pool, GetParam(), "quick");
  ASSERT_TRUE(b->opened());
  ASSERT_TRUE(b->write(0, "works").get());
  guard.unlock();
  ASSERT_TRUE(a->opened());
}

INSTANTIATE_TEST_SUITE_P(Engines, CacheTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const testing::TestParamInfo<EngineKind>& info) {
                           return info.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

}  // namespace
}  // namespace weft::filters
