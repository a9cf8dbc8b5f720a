// SPDX-License-Identifier: BSD-3-Clause
// ChangeOrder against a model that looks at every pair of changes: all short histories, long random
// ones, and several threads at once.
#include "disk/change_order.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "engine/blocking_pool.h"
#include "engine/scope.h"

namespace weft::disk {
namespace {

using engine::Loop;
using engine::Task;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kEnd = (uint64_t{1} << 63) - 1;  // of the largest disk

struct Tested final : Change {
  void may_start() override { starts++; }
  int starts = 0;
};

// An order, and the same order worked out by comparing each change with all before it.
class Model {
 public:
  Model(Loop& loop, uint64_t granularity) : loop_(loop), order_(granularity) {}

  void enter(Range range) {
    Entry& entry = *entries_.emplace_back(std::make_unique<Entry>());
    entry.range = range.rounded_out(order_.granularity());
    entry.started = order_.enter(entry.change, range, loop_);
    entry.at_once = entry.started;
    EXPECT_EQ(entry.started, startable(entries_.size() - 1));
  }

  // The change at `index` ends, or is dropped.
  void leave(size_t index) {
    Entry& entry = *entries_[index];
    const bool told = entry.at_once || entry.change.starts > 0;
    const bool on_its_way = !told && startable(index);
    EXPECT_EQ(order_.leave(entry.change), !on_its_way);
    entry.left = true;
    entry.expected_starts = on_its_way ? 1 : entry.change.starts;
  }

  void advance(size_t index, uint64_t offset) {
    Entry& entry = *entries_[index];
    order_.advance(entry.change, offset);
    offset &= ~(order_.granularity() - 1);
    if (offset > entry.range.offset && offset < entry.range.end()) {
      entry.range = {offset, entry.range.end() - offset};
    }
  }

  // Delivers what is on its way, and looks at all.
  void settle() {
    loop_.run_until_done(engine::done());
    for (size_t i = 0; i < entries_.size(); i++) {
      Entry& entry = *entries_[i];
      if (entry.left) {
        ASSERT_EQ(entry.change.starts, entry.expected_starts) << "change " << i;
        continue;
      }
      ASSERT_EQ(entry.change.starts, startable(i) && !entry.at_once ? 1 : 0) << "change " << i;
      entry.started = startable(i);
    }
    // What has left and heard of it need not be looked at again.
    std::erase_if(entries_, [](const auto& entry) { return entry->left; });
  }

  void leave_all() {
    while (!entries_.empty()) {
      leave(0);
      settle();
      if (testing::Test::HasFatalFailure()) return;
    }
  }

  [[nodiscard]] size_t size() const { return entries_.size(); }
  [[nodiscard]] bool started(size_t i) const { return entries_[i]->started; }
  [[nodiscard]] bool left(size_t i) const { return entries_[i]->left; }
  [[nodiscard]] Range range(size_t i) const { return entries_[i]->range; }

 private:
  struct Entry {
    Tested change;
    Range range;
    bool at_once = false;
    bool started = false;
    bool left = false;
    int expected_starts = 0;
  };

  [[nodiscard]] bool startable(size_t index) const {
    for (size_t i = 0; i < index; i++) {
      if (!entries_[i]->left && entries_[i]->range.overlaps(entries_[index]->range)) return false;
    }
    return true;
  }

  Loop& loop_;
  ChangeOrder order_;
  std::vector<std::unique_ptr<Entry>> entries_;
};

class ChangeOrderTest : public testing::Test {
 protected:
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop = Loop::create(engine::EngineKind::kEpoll, pool);
};

TEST_F(ChangeOrderTest, EveryHistoryOfSixStepsIsThatOfTheModel) {
  // In one bucket, over two, and in all of them.
  constexpr Range kRanges[] = {{0, 8}, {4, kMiB}, {kMiB, 8}, {0, 100 * kMiB}};
  constexpr int kLength = 6;
  constexpr int kRangeCount = std::size(kRanges);
  // A step enters one of the ranges, or makes the first, second or third change leave. Settling
  // once in the middle leaves some wake-ups on their way.
  constexpr int kSteps = kRangeCount + 3;
  int total = 1;
  for (int i = 0; i < kLength; i++) total *= kSteps;
  int histories = 0;
  for (int number = 0; number < total; number++) {
    Model model(*loop, 1);
    bool possible = true;
    int rest = number;
    for (int step = 0; step < kLength && possible; step++, rest /= kSteps) {
      const int what = rest % kSteps;
      if (what < kRangeCount) {
        // Nothing new once it can no more be waited for.
        possible = step < kLength - 1;
        if (possible) model.enter(kRanges[what]);
      } else {
        const auto index = static_cast<size_t>(what - kRangeCount);
        possible = index < model.size() && !model.left(index);
        if (possible) model.leave(index);
      }
      if (step == kLength / 2) model.settle();
    }
    histories += possible;
    model.settle();
    model.leave_all();
    ASSERT_FALSE(HasFailure()) << "history " << number;
  }
  EXPECT_GT(histories, 500);
}

Range random_range(std::mt19937_64& random) {
  const auto below = [&](uint64_t n) { return random() % n; };
  switch (below(6)) {
    case 0:  // bytes in a few blocks
      return {below(64), 1 + below(64)};
    case 1:  // blocks around the edge of a bucket
      return {kMiB - 4096 + below(8192), 1 + below(8192)};
    case 2:  // some buckets
      return {below(200) * kMiB / 3, 1 + below(20 * kMiB)};
    case 3: {  // the end of the largest disk
      const uint64_t length = 1 + below(2 * kMiB);
      return {kEnd - length, length};
    }
    case 4:  // nearly all
      return {below(kMiB), kEnd - kMiB};
    default: {  // buckets that share a list and nothing else
      return {below(8) * 64 * kMiB, 1 + below(kMiB)};
    }
  }
}

TEST_F(ChangeOrderTest, RandomHistoriesAreThoseOfTheModel) {
  for (const uint64_t granularity : {uint64_t{1}, uint64_t{512}, uint64_t{65536}}) {
    const uint64_t seed = 20250 + granularity;
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    Model model(*loop, granularity);
    for (int step = 0; step < 6000; step++) {
      const size_t size = model.size();
      const size_t index = size ? random() % size : 0;
      const uint64_t choice = random() % 100;
      if (size == 0 || (choice < 40 && size < 40)) {
        model.enter(random_range(random));
      } else if (choice < 85) {
        if (!model.left(index)) model.leave(index);
      } else if (model.started(index) && !model.left(index)) {
        const Range range = model.range(index);
        model.advance(index, range.offset + random() % range.length);
      }
      if (random() % 3 == 0) model.settle();
      ASSERT_FALSE(HasFailure()) << "step " << step;
    }
    model.settle();
    model.leave_all();
  }
}

TEST_F(ChangeOrderTest, AdvanceFreesWholeBlocksOnly) {
  Model model(*loop, 4096);
  model.enter({0, 64 * kMiB});
  model.enter({4096, 100});
  model.enter({9000, 100});
  model.advance(0, 8191);  // the second block is not done
  model.settle();
  EXPECT_FALSE(model.started(1));
  model.advance(0, 8192);
  model.settle();
  EXPECT_TRUE(model.started(1));
  EXPECT_FALSE(model.started(2));
  model.advance(0, 64 * kMiB);  // the end comes with leave()
  model.advance(0, 4096);       // backwards means nothing
  model.settle();
  EXPECT_FALSE(model.started(2));
  model.leave_all();
}

// A change that heard that it may start, and is dropped before it does, is free at once.
TEST_F(ChangeOrderTest, WhoOnlyTriesLeavesNothingBehind) {
  ChangeOrder order(4096);
  Tested held;
  Tested tried;
  Tested next;
  ASSERT_TRUE(order.enter(held, {0, 3 * kMiB}, *loop));
  EXPECT_FALSE(order.try_enter(tried, {kMiB, 1}, *loop));
  EXPECT_FALSE(order.try_enter(tried, {3 * kMiB - 1, 2 * kMiB}, *loop));
  ASSERT_TRUE(order.leave(held));
  EXPECT_TRUE(order.try_enter(tried, {kMiB, 3 * kMiB}, *loop));
  EXPECT_FALSE(order.enter(next, {2 * kMiB, 1}, *loop));
  EXPECT_TRUE(order.leave(tried));
  loop->run_until_done(engine::done());
  EXPECT_EQ(next.starts, 1);
  EXPECT_EQ(tried.starts, 0);
  EXPECT_TRUE(order.leave(next));
}

TEST_F(ChangeOrderTest, LeavingAfterMayStartHasNothingToWaitFor) {
  ChangeOrder order;
  Tested first, second;
  ASSERT_TRUE(order.enter(first, {0, 10}, *loop));
  ASSERT_FALSE(order.enter(second, {5, 10}, *loop));
  order.leave(first);
  loop->run_until_done(engine::done());
  ASSERT_EQ(second.starts, 1);
  EXPECT_TRUE(order.leave(second));
}

// ---- Threads ----------------------------------------------------------------------------------

constexpr uint64_t kBlock = kMiB / 2;
constexpr size_t kBlockCount = 130;  // more than there are buckets

// Written by whoever is alone on a block: a thread sanitizer sees two who are there at once, and
// so does the count.
struct Storage {
  std::vector<int> users = std::vector<int>(kBlockCount);
  std::vector<uint64_t> generation = std::vector<uint64_t>(kBlockCount);
};

struct Waiting final : Change {
  explicit Waiting(Loop& the_loop) : loop(the_loop) {}
  void may_start() override {
    told = true;
    if (wakeup.handle) loop.schedule(wakeup);
  }
  [[nodiscard]] bool await_ready() const noexcept { return told; }
  void await_suspend(std::coroutine_handle<> handle) { wakeup.handle = handle; }
  void await_resume() const noexcept {}
  Loop& loop;
  engine::Wakeup wakeup{};
  bool told = false;
};

struct Crowd {
  Loop& loop;
  ChangeOrder& order;
  Storage& storage;
  std::mt19937_64 random;
  std::vector<uint64_t> last_entered = std::vector<uint64_t>(kBlockCount);  // of this thread
  std::vector<uint64_t> last_started = std::vector<uint64_t>(kBlockCount);
  uint64_t number = 0;
  uint64_t finished = 0;
};

Task<void> change_blocks(Crowd& crowd, size_t first, size_t count) {
  Waiting change(crowd.loop);
  const uint64_t number = ++crowd.number;
  const bool drop = crowd.random() % 8 == 0;
  const Range range{first * kBlock, count * kBlock};
  bool started = crowd.order.enter(change, range, crowd.loop);
  if (!started && drop) {
    for (uint64_t i = crowd.random() % 4; i > 0; i--) co_await crowd.loop.yield();
    if (!change.told) {
      if (!crowd.order.leave(change)) co_await change;
      crowd.finished++;
      co_return;
    }
  }
  if (!started) co_await change;
  for (size_t i = first; i < first + count; i++) {
    EXPECT_EQ(crowd.storage.users[i]++, 0) << "block " << i;
    crowd.storage.generation[i]++;
    // Those of one thread entered in this order.
    EXPECT_GT(number, crowd.last_started[i]);
    crowd.last_started[i] = number;
  }
  for (size_t i = first; i < first + count; i++) {
    if (crowd.random() % 4 == 0) co_await crowd.loop.yield();
    crowd.storage.users[i]--;
    if (crowd.random() % 2 == 0) {  // one or several at a time
      crowd.order.advance(change, (i + 1) * kBlock);
    }
  }
  crowd.order.leave(change);
  crowd.finished++;
}

Task<void> run_crowd(Crowd& crowd, uint64_t changes) {
  engine::Scope scope(crowd.loop);
  for (uint64_t i = 0; i < changes; i++) {
    const bool all = crowd.random() % 50 == 0;
    const size_t count = all ? kBlockCount : 1 + crowd.random() % 4;
    const size_t first = all ? 0 : crowd.random() % (kBlockCount - 4) % 24;
    scope.spawn(change_blocks(crowd, first, count));
    while (scope.count() > 48) co_await crowd.loop.yield();
  }
  co_await scope.join();
}

TEST_F(ChangeOrderTest, SeveralThreadsAreAloneOnTheirBlocksAndAllGetThere) {
  ChangeOrder order;
  Storage storage;
  constexpr uint64_t kChanges = 3000;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 3; t++) {
    threads.emplace_back([&, t] {
      const std::unique_ptr<Loop> own = Loop::create(engine::EngineKind::kEpoll, pool);
      Crowd crowd{*own, order, storage, std::mt19937_64(t)};
      own->run_until_done(run_crowd(crowd, kChanges));
      EXPECT_EQ(crowd.finished, kChanges);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(std::ranges::count(storage.users, 0), static_cast<long>(kBlockCount));
}

}  // namespace
}  // namespace weft::disk
