// SPDX-License-Identifier: BSD-3-Clause
#include "disk/waist.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "disk/conformance.h"
#include "disk/sparse_store.h"

namespace weft::disk {
namespace {

using testing::ElementsAre;

// A layer in memory that writes down how it is called.
class Recorder final : public Disk {
 public:
  Recorder(const Capabilities& capabilities, std::vector<std::string>& calls)
      : calls_(calls), store_(capabilities.size) {
    capabilities_ = capabilities;
  }
  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    note("read", {offset, into.size()});
    store_.read(offset, into);
    return Status{};
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    note(fua ? "write fua" : "write", {offset, from.size()});
    if (offset == failing_) return fail(EIO);
    return store_.write(offset, from);
  }
  Task<Status> zero(Range range, ZeroFlags flags) override {
    note(flags.fua ? "zero fua" : "zero", range);
    store_.zero(range, true);
    return Status{};
  }
  Task<Status> trim(Range range, bool fua) override {
    note(fua ? "trim fua" : "trim", range);
    return Status{};
  }
  Task<Status> flush() override {
    calls_.emplace_back("flush");
    return Status{};
  }
  Task<Status> extents(Extents&, bool) override {
    calls_.emplace_back("extents");  // and describes nothing
    return Status{};
  }

  uint64_t failing_ = UINT64_MAX;

 private:
  void note(const char* call, Range range) {
    calls_.push_back(fmt::format("{} {}+{}", call, range.offset, range.length));
  }
  std::vector<std::string>& calls_;
  SparseStore store_;
};

class WaistTest : public testing::Test {
 protected:
  void make(Capabilities capabilities) {
    auto recorder = std::make_unique<Recorder>(capabilities, calls);
    layer = recorder.get();
    waist = make_waist(std::move(recorder), "recorder");
  }
  static Capabilities writable(uint64_t size = 8 << 20) {
    Capabilities c;
    c.size = size;
    c.writable = true;
    c.flush = Support::kNative;
    return c;
  }
  template <typename T>
  T run(Task<T> task) {
    return loop->run_until_done(std::move(task));
  }
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop = Loop::create(engine::EngineKind::kEpoll, pool);
  std::vector<std::string> calls;
  Recorder* layer = nullptr;
  std::unique_ptr<Disk> waist;
  std::vector<std::byte> bytes = std::vector<std::byte>(4096);
};

TEST_F(WaistTest, HandsOnWithoutACoroutine) {
  Capabilities c = writable();
  c.fua = c.zero = c.trim = Support::kNative;
  make(c);
  Task<Status> task = waist->write(4096, bytes, true);
  EXPECT_TRUE(task.ready());
  EXPECT_TRUE(waist->read(0, bytes).ready());
  EXPECT_TRUE(waist->zero({0, 1}, {.fua = true}).ready());
  EXPECT_TRUE(waist->trim({5, 6}, true).ready());
  EXPECT_TRUE(waist->flush().ready());
  EXPECT_THAT(calls, ElementsAre("write fua 4096+4096", "read 0+4096", "zero fua 0+1",
                                 "trim fua 5+6", "flush"));
}

TEST_F(WaistTest, EmulatesFuaByAFlushAfterTheChange) {
  Capabilities c = writable();
  c.fua = Support::kEmulate;
  c.zero = c.trim = Support::kNative;
  make(c);
  EXPECT_TRUE(run(waist->write(0, bytes, true)));
  EXPECT_TRUE(run(waist->zero({0, 10}, {.fua = true})));
  EXPECT_TRUE(run(waist->trim({0, 10}, true)));
  EXPECT_TRUE(run(waist->write(0, bytes, false)));
  EXPECT_THAT(calls, ElementsAre("write 0+4096", "flush", "zero 0+10", "flush", "trim 0+10",
                                 "flush", "write 0+4096"));
}

TEST_F(WaistTest, AFailedChangeIsNotFlushed) {
  Capabilities c = writable();
  c.fua = Support::kEmulate;
  make(c);
  layer->failing_ = 0;
  EXPECT_EQ(run(waist->write(0, bytes, true)).error().code, EIO);
  EXPECT_THAT(calls, ElementsAre("write 0+4096"));
}

TEST_F(WaistTest, EmulatesZeroByWritingInPiecesThatFollowEachOther) {
  Capabilities c = writable();
  c.fua = Support::kNative;
  c.zero = Support::kEmulate;
  make(c);
  EXPECT_TRUE(run(waist->zero({100, (2 << 20) + 5}, {.fua = true})));
  EXPECT_THAT(calls, ElementsAre("write fua 100+1048576", "write fua 1048676+1048576",
                                 "write fua 2097252+5"));
  calls.clear();
  EXPECT_EQ(run(waist->zero({0, 10}, {.fast = true})).error().code, ENOTSUP);
  EXPECT_TRUE(calls.empty());
}

TEST_F(WaistTest, EmulatesCacheByReading) {
  Capabilities c = writable();
  c.cache = Support::kEmulate;
  make(c);
  EXPECT_TRUE(run(waist->cache({1, 300000})));
  EXPECT_THAT(calls, ElementsAre("read 1+262144", "read 262145+37856"));
}

TEST_F(WaistTest, WithoutExtentsAllIsData) {
  make(writable());
  Extents extents({5, 1000});
  EXPECT_TRUE(run(waist->extents(extents, false)));
  EXPECT_THAT(extents.list(), ElementsAre(Extent{1000, kExtentData}));
  EXPECT_TRUE(calls.empty());
}

TEST_F(WaistTest, AReadOnlyDiskOffersNoChanges) {
  Capabilities c = writable();
  c.writable = false;
  c.fua = c.zero = c.trim = c.fast_zero = Support::kNative;
  make(c);
  EXPECT_EQ(waist->capabilities().zero, Support::kNone);
  EXPECT_EQ(waist->capabilities().trim, Support::kNone);
  EXPECT_EQ(waist->capabilities().fua, Support::kNone);
  EXPECT_EQ(waist->capabilities().fast_zero, Support::kNone);
}

#ifdef NDEBUG  // a debug build stops at these
TEST_F(WaistTest, RefusesWhatACallerMustNotAsk) {
  Capabilities c = writable(8192);
  c.block_size.minimum = 512;
  make(c);
  EXPECT_EQ(run(waist->read(8192, bytes)).error().code, EINVAL);
  EXPECT_EQ(run(waist->read(UINT64_MAX - 100, bytes)).error().code, EINVAL);
  EXPECT_EQ(run(waist->read(4608, bytes)).error().code, EINVAL);
  EXPECT_EQ(run(waist->read(0, {})).error().code, EINVAL);
  EXPECT_EQ(run(waist->read(1, bytes)).error().code, EINVAL);
  EXPECT_EQ(run(waist->write(0, bytes, true)).error().code, EINVAL);
  EXPECT_EQ(run(waist->trim({0, 512}, false)).error().code, EOPNOTSUPP);
  EXPECT_EQ(run(waist->zero({0, 512}, {})).error().code, EOPNOTSUPP);
  EXPECT_EQ(run(waist->cache({0, 512})).error().code, EOPNOTSUPP);
  EXPECT_TRUE(calls.empty());
}

TEST_F(WaistTest, ALayerThatDescribesNothingIsAnError) {
  Capabilities c = writable();
  c.extents = Support::kNative;
  make(c);
  Extents extents({0, 1000});
  EXPECT_EQ(run(waist->extents(extents, false)).error().code, EIO);
}
#endif

// A disk that leaves to the waist whatever can be left to it.
class FrugalPlugin final : public Plugin {
 public:
  void config(std::string_view, std::string_view) override {}
  Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) override {
    return Result<std::unique_ptr<Disk>>(
        std::make_unique<FrugalDisk>(store_, order_, request.read_only));
  }

 private:
  class FrugalDisk final : public Disk {
   public:
    FrugalDisk(SparseStore& store, ChangeOrder& order, bool read_only)
        : inner_(store, order, read_only) {
      capabilities_.size = store.size();
      capabilities_.writable = !read_only;
      capabilities_.multi_conn = true;
      capabilities_.flush = Support::kNative;
      capabilities_.fua = capabilities_.zero = capabilities_.cache = Support::kEmulate;
    }
    Task<Status> read(uint64_t offset, MutableByteSpan into) override {
      return inner_.read(offset, into);
    }
    Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
      EXPECT_FALSE(fua);
      return inner_.write(offset, from, fua);
    }
    Task<Status> flush() override { return Status{}; }
    ChangeOrder* order() override { return inner_.order(); }

   private:
    SparseDisk inner_;
  };
  SparseStore store_{(1 << 20) + 777};
  ChangeOrder order_;
};

INSTANTIATE_TEST_SUITE_P(Waist, Conformance,
                         each_engine({{"Emulated",
                                       [](const std::filesystem::path&) {
                                         return std::make_unique<FrugalPlugin>();
                                       },
                                       true}}),
                         conformance_name);

}  // namespace
}  // namespace weft::disk
