// SPDX-License-Identifier: BSD-3-Clause
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <future>
#include <thread>

#include "filters/multi-conn/dirty_ranges.h"
#include "filters/multi-conn/test_bench.h"

namespace weft::filters {
namespace {

using Connection = MultiConnBench::Connection;
using disk::Task;

// ---- DirtyRanges ------------------------------------------------------------------------------

TEST(DirtyRanges, JoinsWhatTouches) {
  DirtyRanges ranges;
  EXPECT_TRUE(ranges.empty());
  ranges.add({10, 10});
  ranges.add({30, 10});
  EXPECT_EQ(ranges.count(), 2u);
  EXPECT_TRUE(ranges.overlaps({19, 1}));
  EXPECT_FALSE(ranges.overlaps({20, 10}));
  EXPECT_FALSE(ranges.overlaps({0, 10}));
  EXPECT_TRUE(ranges.overlaps({0, 100}));
  ranges.add({20, 10});
  EXPECT_EQ(ranges.count(), 1u);
  EXPECT_TRUE(ranges.overlaps({25, 1}));
}

TEST(DirtyRanges, CoversAllThatWasAddedHoweverMuch) {
  DirtyRanges ranges;
  for (uint64_t i = 0; i < 1000; i++) ranges.add({(i * 7919 % 1000) * 100, 10});
  EXPECT_LE(ranges.count(), DirtyRanges::kCountMax);
  for (uint64_t i = 0; i < 1000; i++) EXPECT_TRUE(ranges.overlaps({i * 100 + 9, 1}));
  EXPECT_FALSE(ranges.overlaps({100'000, 10}));
  DirtyRanges other;
  other.add({1'000'000, 1});
  ranges.add(other);
  EXPECT_TRUE(ranges.overlaps({1'000'000, 1}));
  ranges.clear();
  EXPECT_TRUE(ranges.empty());
}

// ---- What is advertised -----------------------------------------------------------------------

struct Advertised {
  const char* mode;
  bool remembers, can_flush, one_connection, advertised;
};

TEST(MultiConn, Advertises) {
  const Advertised cases[] = {
      {"auto", true, true, false, true},      {"auto", false, true, false, true},
      {"auto", true, false, false, false},    {"auto", true, true, true, false},
      {"emulate", true, true, false, true},   {"emulate", false, true, false, true},
      {"plugin", true, true, false, false},   {"plugin", false, true, false, true},
      {"disable", false, true, false, false}, {"unsafe", true, true, false, true},
  };
  for (const Advertised& the_case : cases) {
    SCOPED_TRACE(the_case.mode);
    MultiConnBench bench({{"multi-conn-mode", the_case.mode}});
    bench.plugin->remembers = the_case.remembers;
    bench.plugin->can_flush = the_case.can_flush;
    bench.start(1, the_case.one_connection);
    Connection a = bench.connect();
    EXPECT_EQ(a.disk->capabilities().multi_conn, the_case.advertised);
    EXPECT_TRUE(bench.close(a));
  }
}

TEST(MultiConn, RefusesToEmulateOverADiskThatCannotFlush) {
  MultiConnBench bench({{"multi-conn-mode", "emulate"}});
  bench.plugin->can_flush = false;
  bench.start();
  const auto opened = bench.try_connect();
  ASSERT_FALSE(opened);
  EXPECT_THAT(opened.error().text, testing::HasSubstr("flush"));
}

TEST(MultiConn, RefusesWrongValues) {
  EXPECT_THROW(MultiConnBench({{"multi-conn-mode", "always"}}), ConfigError);
  EXPECT_THROW(MultiConnBench({{"multi-conn-track-dirty", "slow"}}), ConfigError);
  EXPECT_THROW(MultiConnBench({{"multi-conn-exportname", "maybe"}}), ConfigError);
}

// ---- How many flushes -------------------------------------------------------------------------

struct Counts {
  const char* mode;
  const char* tracking;
  bool remembers;
  std::array<int, 3> flushes;
};

TEST(MultiConn, FlushesOnlyWhatNeedsIt) {
  const Counts cases[] = {
      {"emulate", "off", true, {6, 12, 12}},      {"emulate", "off", false, {6, 12, 12}},
      {"emulate", "connection", true, {0, 4, 4}}, {"emulate", "connection", false, {0, 4, 4}},
      {"emulate", "fast", true, {0, 8, 6}},       {"emulate", "fast", false, {0, 8, 6}},
      {"plugin", "off", true, {2, 3, 4}},         {"plugin", "off", false, {2, 3, 4}},
      {"plugin", "connection", true, {0, 3, 4}},  {"plugin", "conn", false, {0, 2, 2}},
      {"plugin", "fast", true, {0, 2, 2}},        {"plugin", "fast", false, {0, 2, 2}},
  };
  for (const Counts& the_case : cases) {
    SCOPED_TRACE(testing::Message()
                 << the_case.mode << " " << the_case.tracking << " " << the_case.remembers);
    for (int which = 0; which < 3; which++) {
      MultiConnBench bench(
          {{"multi-conn-mode", the_case.mode}, {"multi-conn-track-dirty", the_case.tracking}});
      bench.plugin->remembers = the_case.remembers;
      bench.start();
      Connection a = bench.connect();
      Connection b = bench.connect();
      Connection c = bench.connect();
      if (which == 0) {
        EXPECT_TRUE(bench.flush(a));
        (void)bench.read(a, 0, 1);
        EXPECT_TRUE(bench.flush(a));
      } else if (which == 1) {
        Connection d = bench.connect();
        (void)bench.read(a, 0, 1);
        EXPECT_TRUE(bench.write(b, 0, "x"));
        EXPECT_TRUE(bench.flush(d));
        EXPECT_TRUE(bench.write(c, 0, "y"));
        (void)bench.read(a, 0, 1);
        EXPECT_TRUE(bench.flush(d));
        EXPECT_TRUE(bench.flush(d));
        EXPECT_TRUE(bench.close(d));
      } else {
        (void)bench.read(a, 0, 1);
        EXPECT_TRUE(bench.trim(b, {0, 512}));
        EXPECT_TRUE(bench.flush(a));
        EXPECT_TRUE(bench.flush(b));
        (void)bench.read(a, 0, 1);
        EXPECT_TRUE(bench.trim(c, {0, 512}));
        EXPECT_TRUE(bench.flush(a));
        EXPECT_TRUE(bench.flush(c));
      }
      EXPECT_EQ(bench.plugin->flushes(), the_case.flushes[static_cast<size_t>(which)])
          << "case " << which + 1;
      EXPECT_TRUE(bench.close(a));
      EXPECT_TRUE(bench.close(b));
      EXPECT_TRUE(bench.close(c));
    }
  }
}

// A flush that starts and ends while a write is in progress must not make it look clean.
TEST(MultiConn, AFlushDuringAWriteDoesNotHideIt) {
  for (const char* mode : {"emulate", "plugin"}) {
    for (const char* tracking : {"connection", "fast", "off"}) {
      for (const bool same : {true, false}) {
        SCOPED_TRACE(testing::Message() << mode << " " << tracking << " " << same);
        MultiConnBench bench({{"multi-conn-mode", mode}, {"multi-conn-track-dirty", tracking}});
        bench.plugin->remembers = false;
        std::promise<void> reached;
        std::promise<void> released;
        std::shared_future<void> release = released.get_future().share();
        bench.plugin->before_write_ends = [&](disk::Loop& loop, int) -> Task<void> {
          reached.set_value();
          engine::Timer timer(loop);
          while (release.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
            co_await timer.sleep(std::chrono::milliseconds(1));
          }
        };
        bench.start();
        Connection a = bench.connect();
        Connection b = bench.connect();
        std::thread writer([&] {
          const auto own = disk::Loop::create(engine::EngineKind::kEpoll, bench.pool);
          EXPECT_TRUE(own->run_until_done(engine::run_elsewhere(
              *own, *a.loop, [&] { return MultiConnBench::ordered_write(a, 0, "new", false); })));
        });
        reached.get_future().wait();
        Connection& flusher = same ? a : b;
        EXPECT_TRUE(bench.flush(flusher));
        released.set_value();
        writer.join();
        const int before = bench.plugin->flushes();
        EXPECT_TRUE(bench.flush(flusher));
        EXPECT_GT(bench.plugin->flushes(), before);
        EXPECT_TRUE(bench.close(a));
        EXPECT_TRUE(bench.close(b));
      }
    }
  }
}

// ---- Rounds -----------------------------------------------------------------------------------

TEST(MultiConn, ConnectionsAreFlushedAtTheSameTime) {
  MultiConnBench bench({});
  bench.plugin->before_flush = [](disk::Loop& loop, int) -> Task<void> {
    engine::Timer timer(loop);
    co_await timer.sleep(std::chrono::milliseconds(20));
  };
  bench.start();
  std::vector<Connection> all;
  for (int i = 0; i < 8; i++) all.push_back(bench.connect());
  for (size_t i = 0; i < all.size(); i++) EXPECT_TRUE(bench.write(all[i], i * 512, "new"));
  EXPECT_TRUE(bench.flush(all[0]));
  EXPECT_EQ(bench.plugin->flushes(), 8);
  EXPECT_EQ(bench.plugin->flushes_at_once_max(), 8);
  for (Connection& each : all) EXPECT_TRUE(bench.close(each));
}

TEST(MultiConn, FlushesAskedForAtOnceShareARound) {
  MultiConnBench bench({{"multi-conn-track-dirty", "off"}});
  bench.plugin->before_flush = [](disk::Loop& loop, int) -> Task<void> {
    engine::Timer timer(loop);
    co_await timer.sleep(std::chrono::milliseconds(20));
  };
  bench.start();
  std::vector<Connection> all;
  for (int i = 0; i < 8; i++) all.push_back(bench.connect());
  const auto flush_all = [&]() -> Task<Status> {
    engine::Scope scope(*bench.main);
    const auto flush_one = [](disk::Loop& here, Connection& on) -> Task<void> {
      EXPECT_TRUE(co_await engine::run_elsewhere(here, *on.loop, [&] { return on.disk->flush(); }));
    };
    for (Connection& each : all) scope.spawn(flush_one(*bench.main, each));
    co_await scope.join();
    co_return Status{};
  };
  EXPECT_TRUE(bench.main->run_until_done(flush_all()));
  EXPECT_LE(bench.plugin->flushes(), 16);  // the first alone, then all others
  for (Connection& each : all) EXPECT_TRUE(bench.close(each));
}

TEST(MultiConn, OneThatFailsDoesNotStopTheOthersAndIsRemembered) {
  MultiConnBench bench({});
  std::atomic<bool> broken = true;
  bench.plugin->flush_result = [&](int connection) -> Status {
    if (connection == 0 && broken) return fail(ENOSPC);
    return {};
  };
  bench.start();
  Connection a = bench.connect();
  Connection b = bench.connect();
  Connection c = bench.connect();
  EXPECT_TRUE(bench.write(a, 0, "aaa"));
  EXPECT_TRUE(bench.write(b, 512, "bbb"));
  const Status failed = bench.flush(c);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ENOSPC);
  EXPECT_EQ(bench.plugin->flushes(), 2);
  EXPECT_EQ(bench.read(c, 512, 3), "bbb");
  broken = false;
  Connection d = bench.connect();
  for (Connection* each : {&a, &b, &c, &d}) EXPECT_FALSE(bench.flush(*each));
  EXPECT_FALSE(bench.write(d, 1024, "ddd", true));
  EXPECT_EQ(bench.read(d, 0, 3), "aaa");  // it was passed on all the same
  for (Connection* each : {&a, &b, &c, &d}) (void)bench.close(*each);
}

TEST(MultiConn, AConnectionThatEndsIsFlushed) {
  for (const char* tracking : {"connection", "fast", "off"}) {
    MultiConnBench bench({{"multi-conn-track-dirty", tracking}});
    bench.start();
    Connection a = bench.connect();
    Connection b = bench.connect();
    EXPECT_TRUE(bench.write(a, 0, "old"));
    EXPECT_TRUE(bench.close(a));
    EXPECT_EQ(bench.plugin->flushes(), 1);
    EXPECT_TRUE(bench.flush(b));
    EXPECT_EQ(bench.read(b, 0, 3), "old");
    EXPECT_TRUE(bench.close(b));
  }
}

TEST(MultiConn, AFlushThatFailsWhenAConnectionEndsIsRemembered) {
  MultiConnBench bench({});
  bench.plugin->flush_result = [](int connection) -> Status {
    if (connection == 0) return fail(EIO);
    return {};
  };
  bench.start();
  Connection a = bench.connect();
  Connection b = bench.connect();
  EXPECT_TRUE(bench.write(a, 0, "old"));
  EXPECT_FALSE(bench.close(a));
  EXPECT_FALSE(bench.flush(b));
  Connection c = bench.connect();
  EXPECT_FALSE(bench.flush(c));
  EXPECT_TRUE(bench.close(b));
  EXPECT_TRUE(bench.close(c));
}

TEST(MultiConn, TheLaterOfTwoWritesWinsWhateverIsFlushedFirst) {
  for (const bool b_first : {true, false}) {
    MultiConnBench bench({});
    bench.start();
    Connection a = bench.connect();
    Connection b = bench.connect();
    EXPECT_TRUE(bench.write(a, 0, "1111"));
    EXPECT_TRUE(bench.write(b, 2, "22"));  // the same block
    EXPECT_TRUE(bench.close(b_first ? b : a));
    EXPECT_TRUE(bench.close(b_first ? a : b));
    Connection c = bench.connect();
    EXPECT_EQ(bench.read(c, 0, 4), "1122");
    EXPECT_TRUE(bench.close(c));
  }
}

// While a connection is flushed the disk may still hold what it remembers for it.
TEST(MultiConn, AWriteDuringTheFlushOfItsConnectionUndoesNothing) {
  MultiConnBench bench({});
  std::promise<void> released;
  std::shared_future<void> release = released.get_future().share();
  bench.plugin->before_flush = [release](disk::Loop& loop, int connection) -> Task<void> {
    engine::Timer timer(loop);
    while (connection == 1 &&
           release.wait_for(std::chrono::seconds(0)) != std::future_status::ready) {
      co_await timer.sleep(std::chrono::milliseconds(1));
    }
  };
  bench.start();
  Connection a = bench.connect();
  Connection b = bench.connect();
  (void)bench.read(b, 0, 1);
  EXPECT_TRUE(bench.write(a, 0, "AAAA"));
  const auto elsewhere = [&](Connection& on, auto make) {
    return std::thread([&bench, &on, make] {
      const auto own = disk::Loop::create(engine::EngineKind::kEpoll, bench.pool);
      EXPECT_TRUE(own->run_until_done(engine::run_elsewhere(*own, *on.loop, make)));
    });
  };
  std::thread flusher = elsewhere(a, [&] { return a.disk->flush(); });
  while (bench.plugin->flushes() < 2) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));  // a's flush has ended, b's has not
  std::thread writer =
      elsewhere(b, [&] { return MultiConnBench::ordered_write(b, 100, "BB", false); });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  released.set_value();
  flusher.join();
  writer.join();
  EXPECT_TRUE(bench.close(b));
  Connection c = bench.connect();
  EXPECT_EQ(bench.read(c, 0, 4), "AAAA");
  EXPECT_EQ(bench.read(c, 100, 2), "BB");
  EXPECT_TRUE(bench.close(a));
  EXPECT_TRUE(bench.close(c));
}

TEST(MultiConn, ADiskThatSerialisesItsRequestsNeverGetsTwoAtOnce) {
  for (const auto model :
       {disk::ThreadModel::kSerializeRequests, disk::ThreadModel::kSerializeAllRequests}) {
    MultiConnBench bench({{"multi-conn-track-dirty", "off"}});
    bench.plugin->model = model;
    bench.plugin->hesitates = true;
    bench.start(3);
    std::vector<Connection> all;
    for (int i = 0; i < 6; i++) all.push_back(bench.connect());
    std::vector<std::thread> clients;
    for (size_t i = 0; i < all.size(); i++) {
      clients.emplace_back([&, i] {
        const auto own = disk::Loop::create(engine::EngineKind::kEpoll, bench.pool);
        for (int round = 0; round < 30; round++) {
          EXPECT_TRUE(own->run_until_done(engine::run_elsewhere(*own, *all[i].loop, [&] {
            return MultiConnBench::ordered_write(all[i], i * 512, "new", round % 3 == 0);
          })));
        }
      });
    }
    for (std::thread& client : clients) client.join();
    EXPECT_FALSE(bench.plugin->overlapped());
    if (model == disk::ThreadModel::kSerializeAllRequests) {
      EXPECT_EQ(bench.plugin->flushes_at_once_max(), 1);
    }
    for (Connection& each : all) EXPECT_TRUE(bench.close(each));
  }
}

}  // namespace
}  // namespace weft::filters
