// SPDX-License-Identifier: BSD-3-Clause
// Serializer with every thread model: calls that are held show who waits for whom, in which order;
// several threads show that nobody slips through.
#include "disk/serializer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "disk/open_layer.h"
#include "engine/blocking_pool.h"
#include "engine/scope.h"

namespace weft::disk {
namespace {

using engine::EngineKind;
using engine::Scope;
using testing::ElementsAre;
using testing::IsEmpty;

constexpr uint64_t kSize = 1 << 20;

// What the calls of a layer do.
class Calls {
 public:
  virtual ~Calls() = default;
  virtual Task<Status> call(Loop& loop, int disk, std::string what) = 0;
};

class CalledDisk final : public Disk {
 public:
  CalledDisk(Calls& calls, Loop& loop, int number) : calls_(calls), loop_(loop), number_(number) {
    Capabilities& c = capabilities_;
    c.size = kSize;
    c.writable = true;
    c.flush = c.fua = c.trim = c.zero = c.cache = c.extents = Support::kNative;
  }
  Task<Status> read(uint64_t, MutableByteSpan) override { return call("read"); }
  Task<Status> write(uint64_t, ByteSpan, bool) override { return call("write"); }
  Task<Status> zero(Range, ZeroFlags) override { return call("zero"); }
  Task<Status> trim(Range, bool) override { return call("trim"); }
  Task<Status> cache(Range) override { return call("cache"); }
  Task<Status> flush() override { return call("flush"); }
  Task<Status> extents(Extents& into, bool) override {
    into.append(into.window().length, kExtentData);
    return call("extents");
  }
  bool lend(Range, Lease&) override {
    ADD_FAILURE() << "a lease is given back without a lock";
    return false;
  }
  Task<Status> close() override { return call("close"); }

 private:
  Task<Status> call(const char* what) { return calls_.call(loop_, number_, what); }
  Calls& calls_;
  Loop& loop_;
  const int number_;
};

class CalledPlugin final : public Plugin {
 public:
  CalledPlugin(Calls& calls, ThreadModel model) : calls_(calls), model_(model) {}
  void config(std::string_view, std::string_view) override {}
  [[nodiscard]] ThreadModel own_thread_model() const override { return model_; }
  // The name of the export is the disk's number.
  Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) override {
    const int number = std::stoi(request.name);
    const Status opened = co_await calls_.call(request.loop, number, "open");
    if (!opened) co_return std::unexpected(opened.error());
    co_return std::make_unique<CalledDisk>(calls_, request.loop, number);
  }

 private:
  Calls& calls_;
  const ThreadModel model_;
};

class SerializerTest : public testing::TestWithParam<EngineKind> {
 protected:
  void SetUp() override {
    if (GetParam() == EngineKind::kUring &&
        engine::choose_engine("auto").kind != EngineKind::kUring) {
      GTEST_SKIP() << engine::choose_engine("auto").reason;
    }
    loop = Loop::create(GetParam(), pool);
  }
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop;
};

INSTANTIATE_TEST_SUITE_P(Engines, SerializerTest,
                         testing::Values(EngineKind::kUring, EngineKind::kEpoll),
                         [](const auto& param) {
                           return param.param == EngineKind::kUring ? "IoUring" : "Epoll";
                         });

// ---- Held calls, on one loop ------------------------------------------------------------------

// Calls begin and wait until they are released; "A read" is one of disk 0.
class HeldCalls final : public Calls {
 public:
  explicit HeldCalls(Loop& loop) : loop_(loop), changed_(loop) {}

  Task<Status> call(Loop&, int disk, std::string what) override {
    const std::string name = fmt::format("{} {}", static_cast<char>('A' + disk), what);
    begun.push_back(name);
    while (held && std::erase(released_, name) == 0) co_await changed_.wait();
    ended.push_back(name);
    if (what == failing) co_return fail(EIO);
    co_return Status{};
  }
  // Lets the call end, and all that waits for it begin.
  Task<void> release(const char* name) {
    released_.emplace_back(name);
    changed_.notify_all();
    co_await settle();
  }
  Task<void> release_all() {
    held = false;
    changed_.notify_all();
    co_await settle();
  }
  // The lock is handed over by a message to the loop: another turn.
  Task<void> settle() {
    for (int turn = 0; turn < 5; turn++) {
      engine::Timer timer(loop_);
      co_await timer.sleep(engine::Clock::duration(0));
    }
  }
  std::vector<std::string> take_begun() { return std::exchange(begun, {}); }

  bool held = false;
  std::string failing;
  std::vector<std::string> begun;
  std::vector<std::string> ended;

 private:
  Loop& loop_;
  engine::Signal changed_;
  std::vector<std::string> released_;
};

// A client: opens its disk, makes calls side by side, and closes it.
class Client {
 public:
  Client(Plugin& plugin, Loop& loop, int number)
      : plugin_(plugin), loop_(loop), scope_(loop), number_(number) {}

  void open() { scope_.spawn(run_open()); }
  void call(const char* what) { scope_.spawn(run(what)); }
  Task<void> join() { co_await scope_.join(); }
  void drop() { disk.reset(); }

  std::unique_ptr<Disk> disk;
  std::vector<int> errors;

 private:
  Task<void> run_open() {
    auto opened =
        co_await open_layer(plugin_, "plugin", {.name = std::to_string(number_), .loop = loop_});
    if (opened) {
      disk = std::move(*opened);
    } else {
      errors.push_back(opened.error().code);
    }
  }
  Task<void> run(std::string what) {
    std::vector<std::byte> bytes(512);
    Status status;
    if (what == "read") {
      status = co_await disk->read(0, bytes);
    } else if (what == "write") {
      status = co_await disk->write(0, bytes, false);
    } else if (what == "zero") {
      status = co_await disk->zero({0, 512}, {});
    } else if (what == "trim") {
      status = co_await disk->trim({0, 512}, false);
    } else if (what == "cache") {
      status = co_await disk->cache({0, 512});
    } else if (what == "flush") {
      status = co_await disk->flush();
    } else if (what == "extents") {
      Extents extents(Range{0, 512});
      status = co_await disk->extents(extents, false);
    } else {
      status = co_await disk->close();
      disk.reset();
    }
    if (!status) errors.push_back(status.error().code);
  }

  Plugin& plugin_;
  Loop& loop_;
  Scope scope_;
  const int number_;
};

// Clients A, B and C of one plugin.
struct Stage {
  Stage(Loop& loop, ThreadModel model)
      : calls(loop),
        plugin(calls, model),
        a(plugin, loop, 0),
        b(plugin, loop, 1),
        c(plugin, loop, 2) {}
  Task<void> open_all() {
    for (Client* client : {&a, &b, &c}) {
      client->open();
      co_await client->join();
    }
    EXPECT_THAT(calls.take_begun(), ElementsAre("A open", "B open", "C open"));
    calls.held = true;
  }
  Task<void> close_all() {
    co_await calls.release_all();
    for (Client* client : {&a, &b, &c}) {
      co_await client->join();
      if (client->disk) client->call("close");
      co_await client->join();
    }
  }
  HeldCalls calls;
  CalledPlugin plugin;
  Client a, b, c;
};

constexpr const char* kEveryCall[] = {"read", "write", "zero", "trim", "cache", "flush", "extents"};

Task<void> parallel(Loop& loop) {
  Stage stage(loop, ThreadModel::kParallel);
  co_await stage.open_all();
  for (const char* what : kEveryCall) stage.a.call(what);
  co_await stage.calls.settle();
  EXPECT_EQ(stage.calls.take_begun().size(), std::size(kEveryCall));
  co_await stage.close_all();
}

TEST_P(SerializerTest, ParallelHoldsNothing) {
  loop->run_until_done(parallel(*loop));
}

// Each kind of call holds off each other kind.
Task<void> every_pair(Loop& loop, ThreadModel model) {
  Stage stage(loop, model);
  co_await stage.open_all();
  for (const char* first : kEveryCall) {
    for (const char* second : kEveryCall) {
      stage.a.call(first);
      stage.a.call(second);
      co_await stage.calls.settle();
      const std::string name_1 = fmt::format("A {}", first), name_2 = fmt::format("A {}", second);
      EXPECT_THAT(stage.calls.take_begun(), ElementsAre(name_1)) << second;
      co_await stage.calls.release(name_1.c_str());
      EXPECT_THAT(stage.calls.take_begun(), ElementsAre(name_2)) << first;
      co_await stage.calls.release(name_2.c_str());
      co_await stage.a.join();
    }
  }
  co_await stage.close_all();
  EXPECT_THAT(stage.a.errors, IsEmpty());
}

TEST_P(SerializerTest, EachKindOfCallHoldsOffEachOther) {
  loop->run_until_done(every_pair(*loop, ThreadModel::kSerializeRequests));
  loop->run_until_done(every_pair(*loop, ThreadModel::kSerializeAllRequests));
}

Task<void> requests(Loop& loop) {
  Stage stage(loop, ThreadModel::kSerializeRequests);
  co_await stage.open_all();
  stage.a.call("read");
  stage.a.call("write");
  stage.a.call("flush");
  stage.b.call("read");
  stage.b.call("trim");
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A read", "B read"));
  co_await stage.calls.release("A read");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A write"));
  co_await stage.calls.release("A write");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A flush"));
  co_await stage.calls.release("B read");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("B trim"));
  co_await stage.close_all();
}

TEST_P(SerializerTest, RequestsOfAConnectionComeOneByOneInOrder) {
  loop->run_until_done(requests(*loop));
}

Task<void> all_requests(Loop& loop) {
  Stage stage(loop, ThreadModel::kSerializeAllRequests);
  co_await stage.open_all();
  stage.c.call("close");
  co_await stage.calls.settle();
  stage.a.call("read");
  stage.b.call("write");
  stage.a.call("flush");
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("C close"));
  co_await stage.calls.release("C close");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A read"));
  co_await stage.c.join();
  stage.c.open();  // waits in the same line
  stage.b.call("trim");
  co_await stage.calls.release("A read");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("B write"));
  // A had its turn: its second call stands behind those who have not had theirs.
  co_await stage.calls.release("B write");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("C open"));
  co_await stage.calls.release("C open");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A flush"));
  co_await stage.calls.release("A flush");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("B trim"));
  co_await stage.close_all();
}

TEST_P(SerializerTest, RequestsOfAllConnectionsComeOneByOneInTurns) {
  loop->run_until_done(all_requests(*loop));
}

Task<void> a_failed_call(Loop& loop) {
  Stage stage(loop, ThreadModel::kSerializeAllRequests);
  co_await stage.open_all();
  stage.calls.failing = "read";
  stage.a.call("read");
  stage.b.call("write");
  co_await stage.calls.release("A read");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A read", "B write"));
  co_await stage.close_all();
  EXPECT_THAT(stage.a.errors, ElementsAre(EIO));
  EXPECT_THAT(stage.b.errors, IsEmpty());
}

TEST_P(SerializerTest, AFailedCallLetsTheNextOneGo) {
  loop->run_until_done(a_failed_call(*loop));
}

Task<void> connections(Loop& loop) {
  Stage stage(loop, ThreadModel::kSerializeConnections);
  stage.calls.held = true;
  stage.a.open();
  stage.b.open();
  stage.c.open();
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A open"));
  co_await stage.calls.release("A open");
  co_await stage.a.join();
  stage.a.call("read");
  stage.a.call("write");
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A read"));  // and B waits on
  co_await stage.calls.release("A read");
  co_await stage.calls.release("A write");
  co_await stage.a.join();
  stage.a.call("close");
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("A write", "A close"));
  co_await stage.calls.release("A close");
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("B open"));
  stage.calls.failing = "open";
  co_await stage.calls.release("B open");  // fails: its turn is over
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("C open"));
  stage.calls.failing = "";
  co_await stage.calls.release("C open");
  co_await stage.c.join();
  stage.b.open();
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), IsEmpty());
  stage.c.drop();  // as who opened it and failed then
  co_await stage.calls.settle();
  EXPECT_THAT(stage.calls.take_begun(), ElementsAre("B open"));
  co_await stage.close_all();
  EXPECT_THAT(stage.b.errors, ElementsAre(EIO));
}

TEST_P(SerializerTest, AConnectionHasTheLayerToItself) {
  loop->run_until_done(connections(*loop));
}

TEST_P(SerializerTest, OnlyTheLastModelAdmitsOneConnection) {
  HeldCalls calls(*loop);
  for (const ThreadModel model : {ThreadModel::kParallel, ThreadModel::kSerializeRequests,
                                  ThreadModel::kSerializeAllRequests}) {
    EXPECT_EQ(CalledPlugin(calls, model).connections_max(), 0u);
  }
  EXPECT_EQ(CalledPlugin(calls, ThreadModel::kSerializeConnections).connections_max(), 1u);
}

// ---- Several threads --------------------------------------------------------------------------

// Not atomic, on purpose: what holds the calls apart must order them as well, or ThreadSanitizer
// tells.
struct Inside {
  int calls = 0;
  bool open = false;
  uint64_t count = 0;
};

class CountedCalls final : public Calls {
 public:
  explicit CountedCalls(ThreadModel model) : model_(model) {}

  Task<Status> call(Loop& loop, int disk, std::string what) override {
    Inside& inside = model_ == ThreadModel::kSerializeRequests ? disks_[disk] : all_;
    EXPECT_EQ(inside.calls++, 0) << what;
    if (model_ == ThreadModel::kSerializeConnections) {
      if (what == "open") {
        EXPECT_FALSE(std::exchange(inside.open, true));
      }
      EXPECT_TRUE(inside.open) << what;
    }
    const uint64_t turn = inside.count++;
    for (uint64_t i = 0; i < turn % 3; i++) co_await loop.yield();
    if (what == "close") inside.open = false;
    EXPECT_EQ(--inside.calls, 0) << what;
    co_return Status{};
  }
  uint64_t count() const {
    uint64_t sum = all_.count;
    for (const Inside& disk : disks_) sum += disk.count;
    return sum;
  }

 private:
  const ThreadModel model_;
  Inside all_;
  Inside disks_[8];
};

constexpr int kRounds = 20, kRequests = 40;

Task<void> one_thread(Plugin& plugin, Loop& loop, int number) {
  std::mt19937_64 random(static_cast<uint64_t>(number) + 1);
  for (int i = 0; i < kRounds; i++) {
    Client client(plugin, loop, number);
    client.open();
    co_await client.join();
    for (int j = 0; j < kRequests; j++) {
      client.call(kEveryCall[random() % std::size(kEveryCall)]);
      if (random() % 4 == 0) co_await loop.yield();
    }
    co_await client.join();
    client.call("close");
    co_await client.join();
  }
}

TEST_P(SerializerTest, NobodySlipsThroughOnSeveralThreads) {
  constexpr int kThreads = 4;
  for (const ThreadModel model :
       {ThreadModel::kSerializeRequests, ThreadModel::kSerializeAllRequests,
        ThreadModel::kSerializeConnections}) {
    CountedCalls calls(model);
    CalledPlugin plugin(calls, model);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; i++) {
      threads.emplace_back([&, i] {
        const std::unique_ptr<Loop> own = Loop::create(GetParam(), pool);
        own->run_until_done(one_thread(plugin, *own, i));
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(calls.count(), uint64_t{kThreads} * kRounds * (kRequests + 2));
  }
}

}  // namespace
}  // namespace weft::disk
