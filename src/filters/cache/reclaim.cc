// SPDX-License-Identifier: BSD-3-Clause
// The cache's size: geometry, room, and the reclaimer, which runs on the loop of the disk below.
#include <algorithm>
#include <utility>
#include <vector>

#include "base/log.h"
#include "engine/elsewhere.h"
#include "filters/cache/export_cache.h"

namespace weft::filters {

using disk::Support;

namespace {

constexpr uint64_t kRunSize = 1 << 20;  // bytes moved in one piece, if blocks are smaller
constexpr size_t kBatchMax = 64;        // blocks reclaimed together

// A percentage of a size, in blocks, rounded down.
uint64_t threshold(const CacheSettings& settings, unsigned percent, uint64_t block_size) {
  if (settings.size_max == UINT64_MAX) return UINT64_MAX;
  return settings.size_max / block_size * percent / 100;
}

}  // namespace

ExportCache::ExportCache(std::string name, const CacheSettings& settings, uint64_t block_size,
                         std::unique_ptr<disk::SharedDisk> below,
                         std::unique_ptr<disk::ScratchFile> scratch)
    : name_(std::move(name)),
      settings_(settings),
      block_size_(block_size),
      run_blocks_(std::max<uint64_t>(1, kRunSize / block_size)),
      blocks_max_(threshold(settings, 100, block_size)),
      blocks_high_(threshold(settings, settings.high_threshold, block_size)),
      blocks_low_(threshold(settings, settings.low_threshold, block_size)),
      below_(std::move(below)),
      scratch_(std::move(scratch)),
      order_(block_size),
      holds_(block_size),
      always_fua_(this->below().writable && this->below().flush == Support::kNone &&
                  this->below().fua == Support::kNative),
      reclaimers_(below_->home()) {}

ExportCache::~ExportCache() = default;

// ---- Geometry ---------------------------------------------------------------------------------

ExportCache::Blocks ExportCache::around(Range range) const {
  return {range.offset / block_size_, (range.end() - 1) / block_size_ + 1};
}

// The last block of the disk may be short: it lies in what reaches the disk's end.
ExportCache::Blocks ExportCache::inside(Range range) const {
  const uint64_t first = (range.offset + block_size_ - 1) / block_size_;
  const uint64_t end = range.end() == size() ? around(range).end : range.end() / block_size_;
  return {first, std::max(first, end)};
}

Range ExportCache::bytes_of(Blocks blocks) const {
  const uint64_t offset = blocks.first * block_size_;
  return {offset, std::min(blocks.end * block_size_, size()) - offset};
}

// ---- Room -------------------------------------------------------------------------------------

// Room for at most `count` more blocks. Starts the reclaimer in good time.
uint64_t ExportCache::reserve(uint64_t count) {
  const uint64_t got = std::min(count, blocks_max_ - std::min(blocks_max_, taken_));
  taken_ += got;
  if (taken_ > blocks_high_ || got < count) start_reclaim();
  return got;
}

void ExportCache::give_back(uint64_t count) {
  taken_ -= count;
}

void ExportCache::folder_is_full() {
  const Lock lock(mutex_);
  squeeze_ = std::min(squeeze_, taken_ - taken_ / 4);
  start_reclaim();
}

void ExportCache::start_reclaim() {
  if (reclaiming_ || stopping_) return;
  reclaiming_ = true;
  below_->home().call([this] { reclaimers_.spawn(reclaim()); });
}

ExportCache::Task ExportCache::stop_reclaim(Loop& loop) {
  {
    const Lock lock(mutex_);
    stopping_ = true;
  }
  co_return co_await engine::run_elsewhere(loop, below_->home(),
                                           [this] { return reclaimers_ended(); });
}

ExportCache::Task ExportCache::reclaimers_ended() {
  co_await reclaimers_.join();
  co_return Status{};
}

// ---- The reclaimer ----------------------------------------------------------------------------

// The blocks that have not been used for the longest time, and that nobody uses now, in ascending
// order. None: there is nothing to do, or nothing that can be done, and the reclaimer has ended.
std::vector<uint64_t> ExportCache::choose_victims() {
  std::vector<uint64_t> victims;
  const bool failed = !status();
  const Lock lock(mutex_);
  const uint64_t target = std::min(blocks_low_, squeeze_);
  if (taken_ > target && !stopping_) {
    const uint64_t wanted = std::min<uint64_t>(kBatchMax, taken_ - target);
    for (Block* block = table_.oldest(); block && victims.size() < wanted; block = block->newer) {
      if (block->pins || block->writing_back || block->leaving || (block->dirty && failed))
        continue;
      victims.push_back(block->index);
    }
  }
  if (victims.empty()) {
    reclaiming_ = false;
    squeeze_ = UINT64_MAX;
  }
  std::ranges::sort(victims);
  return victims;
}

// Ends when there is room, and when a batch made none: the next write that needs it tries again.
engine::Task<void> ExportCache::reclaim() {
  for (;;) {
    const std::vector<uint64_t> victims = choose_victims();
    if (victims.empty()) co_return;
    const Result<bool> written = co_await write_back(below_->home(), victims, false);
    (void)written;  // marked, and what is clean goes all the same
    if (co_await evict(victims) > 0) continue;
    const Lock lock(mutex_);
    reclaiming_ = false;
    co_return;
  }
}

// How many have gone.
engine::Task<size_t> ExportCache::evict(const std::vector<uint64_t>& indices) {
  size_t gone = 0;
  for (size_t first = 0; first < indices.size();) {
    size_t end = first + 1;
    while (end < indices.size() && indices[end] == indices[end - 1] + 1) end++;
    gone += co_await evict_run({indices[first], indices[end - 1] + 1});
    first = end;
  }
  co_return gone;
}

// Whoever has the blocks may have changed them: those that are clean and not in use go.
engine::Task<size_t> ExportCache::evict_run(Blocks blocks) {
  Loop& loop = below_->home();
  Hold hold(holds_, bytes_of(blocks), loop);
  co_await hold;
  std::vector<uint64_t> gone;
  {
    const Lock lock(mutex_);
    for (uint64_t index = blocks.first; index < blocks.end; index++) {
      Block* const block = table_.find(index);
      if (!block || block->dirty || block->pins || block->writing_back) continue;
      table_.erase(*block);
      gone.push_back(index);
    }
  }
  co_await release(loop, gone);
  co_return gone.size();
}

}  // namespace weft::filters
