// SPDX-License-Identifier: BSD-3-Clause
// The aligner over a disk that takes whole blocks only, and says so loudly.
#include "disk/aligner.h"

#include <gtest/gtest.h>

#include "disk/conformance.h"
#include "disk/sparse_store.h"
#include "disk/waist.h"
#include "engine/loop.h"

namespace weft::disk {
namespace {

// Each call takes a turn of the loop, so that requests really overlap.
class BlockDisk final : public Disk {
 public:
  BlockDisk(SparseStore& store, ChangeOrder& order, uint32_t block, bool read_only, Loop& loop)
      : inner_(store, order, read_only), block_(block), loop_(loop) {
    capabilities_ = inner_.capabilities();
    capabilities_.block_size.minimum = block;
    capabilities_.block_size.preferred = std::max(block, 4096u);
  }
  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    check({offset, into.size()});
    co_await pause();
    co_return co_await inner_.read(offset, into);
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    check({offset, from.size()});
    co_await pause();
    co_return co_await inner_.write(offset, from, fua);
  }
  Task<Status> zero(Range range, ZeroFlags flags) override {
    check(range);
    co_await pause();
    co_return co_await inner_.zero(range, flags);
  }
  Task<Status> trim(Range range, bool fua) override {
    check(range);
    return inner_.trim(range, fua);
  }
  Task<Status> cache(Range range) override {
    check(range);
    return inner_.cache(range);
  }
  Task<Status> flush() override { return inner_.flush(); }
  Task<Status> extents(Extents& into, bool one) override {
    check(into.window());
    return inner_.extents(into, one);
  }
  ChangeOrder* order() override { return inner_.order(); }

 private:
  void check(Range range) const {
    EXPECT_FALSE(range.empty());
    EXPECT_EQ(range.offset % block_, 0u);
    if (range.end() != capabilities_.size) EXPECT_EQ(range.length % block_, 0u);
    EXPECT_LE(range.end(), capabilities_.size);
  }
  struct Pause {
    Loop& loop;
    engine::Wakeup wakeup{};
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      wakeup.handle = handle;
      loop.schedule(wakeup);
    }
    void await_resume() const noexcept {}
  };
  Pause pause() { return {loop_}; }

  SparseDisk inner_;
  const uint32_t block_;
  Loop& loop_;
};

class BlockPlugin final : public Plugin {
 public:
  BlockPlugin(uint64_t size, uint32_t block) : block_(block), store_(size), order_(block) {}
  void config(std::string_view, std::string_view) override {}
  Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) override {
    return Result<std::unique_ptr<Disk>>(make_aligner(make_waist(
        std::make_unique<BlockDisk>(store_, order_, block_, request.read_only, request.loop),
        "blocks")));
  }

 private:
  const uint32_t block_;
  SparseStore store_;
  ChangeOrder order_;
};

Candidate blocks(std::string name, uint64_t size, uint32_t block) {
  return {std::move(name),
          [size, block](const std::filesystem::path&) {
            return std::make_unique<BlockPlugin>(size, block);
          },
          true};
}

INSTANTIATE_TEST_SUITE_P(Aligner, Conformance,
                         each_engine({
                             blocks("BlocksOf512", 1 << 20, 512),
                             blocks("BlocksOf4096OddSize", (1 << 20) + 1234, 4096),
                             blocks("BlocksOf64KiB", 3 << 20, 65536),
                             blocks("LessThanABlock", 3000, 4096),
                         }),
                         conformance_name);

class AlignerTest : public testing::Test {
 protected:
  engine::BlockingPool pool;
  std::unique_ptr<Loop> loop = Loop::create(engine::EngineKind::kEpoll, pool);
  SparseStore store{1 << 20};
  ChangeOrder order{4096};
  std::unique_ptr<Disk> disk =
      make_aligner(std::make_unique<BlockDisk>(store, order, 4096, false, *loop));
};

TEST_F(AlignerTest, AdvertisesNoMinimum) {
  EXPECT_EQ(disk->capabilities().block_size.minimum, 1u);
  EXPECT_EQ(disk->order(), &order);
}

TEST_F(AlignerTest, TrimLeavesPartsOfBlocksAlone) {
  const std::vector<std::byte> bytes(16384, std::byte{7});
  ASSERT_TRUE(store.write(0, bytes));
  ASSERT_TRUE(loop->run_until_done(disk->trim({1, 4094}, false)));
  ASSERT_TRUE(loop->run_until_done(disk->trim({1, 8192}, false)));
  std::vector<std::byte> now(16384);
  store.read(0, now);
  for (size_t i = 0; i < now.size(); i++) {
    ASSERT_EQ(now[i], i >= 4096 && i < 8192 ? std::byte{0} : std::byte{7}) << i;
  }
}

TEST_F(AlignerTest, FastZeroOfAPartOfABlockChangesNothing) {
  const std::vector<std::byte> bytes(8192, std::byte{7});
  ASSERT_TRUE(store.write(0, bytes));
  const Status done = loop->run_until_done(disk->zero({1, 5000}, {.fast = true}));
  EXPECT_EQ(done.error().code, ENOTSUP);
  std::vector<std::byte> now(8192);
  store.read(0, now);
  EXPECT_TRUE(now == bytes);
}

}  // namespace
}  // namespace weft::disk
