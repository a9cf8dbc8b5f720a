// SPDX-License-Identifier: BSD-3-Clause
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <thread>

#include "filters/recorder.h"
#include "plugins/testing.h"

namespace weft::filters {
namespace {

using testing::HasSubstr;

class LimitTest : public testing::Test, public Recorded {
 protected:
  std::unique_ptr<disk::Disk> must_open(const disk::Peer* peer) {
    auto opened = try_open(peer);
    EXPECT_TRUE(opened);
    return opened ? std::move(*opened) : nullptr;
  }
  void leave(std::unique_ptr<disk::Disk>& client) {
    EXPECT_TRUE(run(client->close()));
    client.reset();
  }
  Status preconnect(const disk::Peer& peer) { return run(plugin->preconnect(*loop, peer, false)); }
  disk::Peer peers[3];
};

TEST_F(LimitTest, OneByDefaultAndThatTurnsOffMultiConn) {
  make("limit");
  EXPECT_EQ(plugin->connections_max(), 1u);
  EXPECT_TRUE(preconnect(peers[0]));
  EXPECT_TRUE(preconnect(peers[1]));  // both negotiate
  std::unique_ptr<disk::Disk> first = must_open(&peers[0]);
  const auto second = try_open(&peers[1]);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, EPERM);
  EXPECT_THAT(second.error().text, HasSubstr("too many clients"));
  EXPECT_EQ(preconnect(peers[2]).error().code, EPERM);
  leave(first);
  EXPECT_TRUE(preconnect(peers[2]));
  first = must_open(&peers[1]);
  leave(first);
}

TEST_F(LimitTest, AClientCountsOnceHoweverManyDisksItHas) {
  make("limit", {{"limit", "2"}});
  EXPECT_EQ(plugin->connections_max(), 2u);
  std::unique_ptr<disk::Disk> a = must_open(&peers[0]);
  std::unique_ptr<disk::Disk> again = must_open(&peers[0]);
  std::unique_ptr<disk::Disk> b = must_open(&peers[1]);
  EXPECT_FALSE(try_open(&peers[2]));
  leave(a);
  EXPECT_FALSE(try_open(&peers[2]));
  leave(again);
  std::unique_ptr<disk::Disk> c = must_open(&peers[2]);
  leave(b);
  leave(c);
}

TEST_F(LimitTest, ALayersOwnUseAndAFailedOpenTakeNoPlace) {
  make("limit");
  std::unique_ptr<disk::Disk> own = must_open(nullptr);
  recording.outcome = [](const std::string& call) {
    return call == "open" ? Status(fail(EIO)) : Status{};
  };
  EXPECT_FALSE(try_open(&peers[0]));
  EXPECT_FALSE(try_open(&peers[0]));
  recording.outcome = nullptr;
  std::unique_ptr<disk::Disk> client = must_open(&peers[1]);
  client.reset();  // dropped without being closed, by a layer above whose open failed
  client = must_open(&peers[2]);
  leave(client);
  leave(own);
}

TEST_F(LimitTest, ClientsOfALayerThatOpensOneDiskForAllCountToo) {
  make("limit", {{"limit", "2"}});
  auto first = plugin->admit(peers[0]);
  const auto second = plugin->admit(peers[1]);
  EXPECT_TRUE(first && second);
  const auto third = plugin->admit(peers[2]);
  ASSERT_FALSE(third);
  EXPECT_EQ(third.error().code, EPERM);
  first->reset();
  EXPECT_TRUE(plugin->admit(peers[2]));
}

TEST_F(LimitTest, NoneWithZero) {
  make("limit", {{"limit", "0"}});
  EXPECT_EQ(plugin->connections_max(), 0u);
  std::vector<std::unique_ptr<disk::Disk>> disks;
  for (const disk::Peer& peer : peers) disks.push_back(must_open(&peer));
  for (auto& disk : disks) leave(disk);
}

TEST_F(LimitTest, TheSmallestLimitOfAStackCounts) {
  const auto limit_over = [](const char* outer, const char* inner) {
    return make_filtered("limit", {{"limit", outer}},
                         make_filtered("limit", {{"limit", inner}},
                                       plugins::make_configured("memory", {{"size", "1M"}})))
        ->connections_max();
  };
  EXPECT_EQ(limit_over("5", "3"), 3u);
  EXPECT_EQ(limit_over("3", "5"), 3u);
  EXPECT_EQ(limit_over("0", "5"), 5u);
  EXPECT_EQ(limit_over("5", "0"), 5u);
}

TEST(LimitStress, NeverMoreThanAllowedOnSeveralLoops) {
  constexpr int kThreads = 4, kRounds = 300;
  const std::unique_ptr<disk::Plugin> plugin = make_filtered(
      "limit", {{"limit", "2"}}, plugins::make_configured("memory", {{"size", "1M"}}));
  engine::BlockingPool pool;
  std::atomic<int> open{0}, most{0}, admitted{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; i++) {
    threads.emplace_back([&] {
      const auto loop = engine::Loop::create(engine::EngineKind::kEpoll, pool);
      const disk::Peer peer;
      for (int round = 0; round < kRounds; round++) {
        auto opened = loop->run_until_done(
            disk::open_layer(*plugin, "limit", {.name = "", .loop = *loop, .peer = &peer}));
        if (!opened) {  // until there is room
          round--;
          std::this_thread::yield();
          continue;
        }
        admitted++;
        const int now = ++open;
        for (int seen = most; now > seen && !most.compare_exchange_weak(seen, now);) {
        }
        std::this_thread::yield();
        open--;
        EXPECT_TRUE(loop->run_until_done((*opened)->close()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(most, 2);
  EXPECT_EQ(admitted, kThreads * kRounds);
  disk::Peer peer;
  const auto loop = engine::Loop::create(engine::EngineKind::kEpoll, pool);
  EXPECT_TRUE(loop->run_until_done(plugin->preconnect(*loop, peer, false)));  // nothing leaked
}

}  // namespace
}  // namespace weft::filters
