// SPDX-License-Identifier: BSD-3-Clause
// The cache filter: one cache for all connections of an export, in a temporary file.
//
// Each export has one disk below, opened for its first client and kept to the end, on a loop of the
// filter's own; the clients' disks open nothing. So whatever is below (state per connection, one
// connection at a time) sees one connection.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/parse.h"
#include "disk/aligner.h"
#include "disk/change_order.h"
#include "disk/per_export.h"
#include "disk/shared_disk.h"
#include "engine/async_mutex.h"
#include "engine/loop_thread.h"
#include "engine/scope.h"
#include "filters/cache/export_cache.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;
using engine::Loop;

constexpr uint64_t kBlockSizeMin = 4096;
constexpr uint64_t kBlockSizeMax = 32 << 20;

const char* mode_name(CacheMode mode) {
  switch (mode) {
    case CacheMode::kWriteback:
      return "writeback";
    case CacheMode::kWritethrough:
      return "writethrough";
    case CacheMode::kUnsafe:
      return "unsafe";
  }
  return "?";
}

class CacheDisk final : public disk::Disk {
 public:
  // `place`: the client's, with the layers below.
  CacheDisk(std::shared_ptr<ExportCache> cache, CacheMode mode, Loop& loop, bool read_only,
            std::shared_ptr<void> place)
      : place_(std::move(place)), cache_(std::move(cache)), loop_(loop) {
    const disk::Capabilities& below = cache_->below();
    disk::Capabilities& c = capabilities_;
    c = below;
    if (read_only) c.writable = false;
    // What the disk below cannot make durable, several clients cannot rely on.
    const bool durable =
        !c.writable || below.flush != Support::kNone || below.fua == Support::kNative;
    c.multi_conn = durable || mode == CacheMode::kUnsafe;
    c.multi_conn_ordered = false;
    c.multi_conn_layer = "the cache filter";
    c.multi_conn_reason =
        mode == CacheMode::kUnsafe
            ? "all connections share one cache and one disk below it (and cache=unsafe ignores "
              "flushes)"
        : durable ? "all connections share one cache and one disk below it, and a flush covers all "
                    "of them"
                  : "the disk below the cache has neither flush nor FUA";
    c.flush = Support::kNative;
    c.flush_ignored = mode == CacheMode::kUnsafe;
    c.fua = c.zero = c.cache = Support::kNative;
    // Other zeroes than the disk's own are written.
    if (below.zero != Support::kNative && c.fast_zero == Support::kNative) {
      c.fast_zero = Support::kEmulate;
    }
    const auto block = static_cast<uint32_t>(cache_->block_size());
    c.block_size.minimum = 1;
    c.block_size.preferred = std::max(c.block_size.preferred, block);
    c.block_size.maximum = std::max(c.block_size.maximum, c.block_size.preferred);
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return cache_->read(loop_, offset, into);
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return cache_->write(loop_, offset, from, fua);
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return cache_->zero(loop_, range, flags);
  }
  Task<Status> trim(Range range, bool fua) override { return cache_->trim(loop_, range, fua); }
  Task<Status> cache(Range range) override { return cache_->cache(loop_, range); }
  Task<Status> flush() override { return cache_->flush(loop_); }
  Task<Status> extents(Extents& into, bool one) override {
    return cache_->extents(loop_, into, one);
  }
  disk::ChangeOrder* order() override { return &cache_->order(); }
  [[nodiscard]] std::string identity() const override { return cache_->identity(); }
  [[nodiscard]] std::string description() const override { return cache_->description(); }

 private:
  std::shared_ptr<void> place_;
  std::shared_ptr<ExportCache> cache_;
  Loop& loop_;
};

class CacheFilter final : public disk::Filter {
 public:
  ~CacheFilter() override {
    if (!thread_) return;
    // The program ends without finish().
    const std::unique_ptr<Loop> loop = Loop::create(thread_->loop().kind(), thread_->loop().pool());
    const Status finished = loop->run_until_done(finish_caches(*loop));
    if (!finished) log::error("cache: {}", errno_text(finished.error().code));
  }

  bool take(std::string_view key, std::string_view value) override;
  void complete() override;
  void begin(const disk::Surroundings& surroundings) override;
  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override;
  Task<Status> finish(Loop& loop) override;
  [[nodiscard]] std::vector<disk::Explanation> explain_layer() const override;

  // Below there is one connection an export, whatever is there.
  [[nodiscard]] disk::ThreadModel thread_model() const override {
    return disk::ThreadModel::kParallel;
  }
  [[nodiscard]] uint32_t connections_max() const override {
    return serves_one_connection() ? 0 : next().connections_max();
  }

 private:
  [[nodiscard]] bool serves_one_connection() const {
    return next().thread_model() == disk::ThreadModel::kSerializeConnections;
  }
  // A name: its first client opens, and who comes meanwhile waits.
  struct Name {
    engine::AsyncMutex opening;
    std::shared_ptr<ExportCache> cache;
  };

  Loop& home(engine::EngineKind kind);
  Task<Result<std::shared_ptr<ExportCache>>> open_cache(std::string name, bool read_only,
                                                        Loop& loop);
  Task<Result<std::unique_ptr<disk::Disk>>> open_below(std::string name, bool read_only, Loop& loop,
                                                       uint64_t& block_size);
  Task<std::unique_ptr<disk::ScratchFile>> make_scratch(Loop& loop);
  Task<Status> finish_caches(Loop& loop);
  static Task<void> finish_cache(std::shared_ptr<ExportCache> cache, Loop& loop, Status& result);
  bool count_in();
  void count_out();

  CacheSettings settings_;
  engine::BlockingPool* pool_ = nullptr;
  disk::PerExport<Name> names_;
  disk::PerExport<ExportCache> caches_;

  std::mutex mutex_;
  uint32_t disks_below_ = 0;                  // open, or being opened
  std::unique_ptr<disk::ScratchFile> spare_;  // made at the start, so that a failure is told then
  std::unique_ptr<engine::LoopThread> thread_;
};

// ---- Parameters -------------------------------------------------------------------------------

unsigned parse_percent(std::string_view key, std::string_view value) {
  return static_cast<unsigned>(parse_unsigned(key, value, 1000));
}

bool CacheFilter::take(std::string_view key, std::string_view value) {
  if (key == "cache") {
    if (value == "writeback") {
      settings_.mode = CacheMode::kWriteback;
    } else if (value == "writethrough") {
      settings_.mode = CacheMode::kWritethrough;
    } else if (value == "unsafe") {
      settings_.mode = CacheMode::kUnsafe;
    } else {
      throw ConfigError(
          fmt::format("cache: '{}' is no mode: give writeback, writethrough or unsafe", value));
    }
  } else if (key == "cache-min-block-size") {
    settings_.block_size_min = parse_size(key, value);
    if (!std::has_single_bit(settings_.block_size_min) ||
        settings_.block_size_min < kBlockSizeMin || settings_.block_size_min > kBlockSizeMax) {
      throw ConfigError(fmt::format(
          "cache-min-block-size: {} will not do: give a power of two from 4K to 32M", value));
    }
  } else if (key == "cache-max-size") {
    settings_.size_max = parse_size(key, value);
  } else if (key == "cache-high-threshold") {
    settings_.high_threshold = parse_percent(key, value);
  } else if (key == "cache-low-threshold") {
    settings_.low_threshold = parse_percent(key, value);
  } else if (key == "cache-on-read") {
    settings_.on_read = false;
    settings_.on_read_path.clear();
    if (value.starts_with('/')) {
      settings_.on_read_path = value;
    } else {
      settings_.on_read = parse_bool(key, value);
    }
  } else {
    return false;
  }
  return true;
}

void CacheFilter::complete() {
  if (settings_.low_threshold == 0) {
    throw ConfigError(
        "cache-low-threshold: 0 would empty the cache again and again: give 1 or more");
  }
  if (settings_.low_threshold >= settings_.high_threshold) {
    throw ConfigError(fmt::format(
        "cache-low-threshold: {} is not below cache-high-threshold, which is {}: give a lower one",
        settings_.low_threshold, settings_.high_threshold));
  }
  if (settings_.high_threshold > 100) {
    throw ConfigError(fmt::format(
        "cache-high-threshold: {} percent of cache-max-size cannot be reached: give at most 100",
        settings_.high_threshold));
  }
  if (settings_.size_max < settings_.block_size_min) {
    throw ConfigError(
        fmt::format("cache-max-size: {} bytes hold no block of {} bytes: give more, or set "
                    "cache-min-block-size",
                    settings_.size_max, settings_.block_size_min));
  }
}

void CacheFilter::begin(const disk::Surroundings& surroundings) {
  pool_ = &surroundings.pool;
  spare_ = std::make_unique<disk::ScratchFile>(*pool_, "cache");
  if (settings_.mode == CacheMode::kUnsafe) {
    log::warning(
        "cache: with cache=unsafe flushes are ignored, and what was written is lost when weft "
        "ends");
  }
}

// ---- Opening ----------------------------------------------------------------------------------

Loop& CacheFilter::home(engine::EngineKind kind) {
  const std::lock_guard lock(mutex_);
  if (!thread_) thread_ = std::make_unique<engine::LoopThread>(kind, *pool_, "weft-cache");
  return thread_->loop();
}

Task<Result<std::unique_ptr<disk::Disk>>> CacheFilter::open(disk::OpenRequest request) {
  Loop& loop = request.loop;
  std::shared_ptr<void> place;
  if (request.peer) {
    Result<std::shared_ptr<void>> admitted = next().admit(*request.peer);
    if (!admitted) co_return std::unexpected(admitted.error());
    place = std::move(*admitted);
  }
  const std::shared_ptr<Name> name =
      names_.get(request.name, [] { return std::make_shared<Name>(); });
  engine::AsyncMutex::Guard guard = co_await name->opening.lock(loop);
  if (!name->cache) {
    Result<std::shared_ptr<ExportCache>> opened =
        co_await open_cache(request.name, request.read_only, loop);
    if (!opened) {
      names_.forget(request.name);
      co_return std::unexpected(opened.error());
    }
    name->cache = std::move(*opened);
  }
  std::shared_ptr<ExportCache> cache = name->cache;
  guard.unlock();
  co_return std::make_unique<CacheDisk>(std::move(cache), settings_.mode, loop, request.read_only,
                                        std::move(place));
}

bool CacheFilter::count_in() {
  const std::lock_guard lock(mutex_);
  if (serves_one_connection() && disks_below_ > 0) return false;
  disks_below_++;
  return true;
}

void CacheFilter::count_out() {
  const std::lock_guard lock(mutex_);
  disks_below_--;
}

// Runs on the filter's own loop.
Task<Result<std::unique_ptr<disk::Disk>>> CacheFilter::open_below(std::string name, bool read_only,
                                                                  Loop& loop,
                                                                  uint64_t& block_size) {
  Result<std::unique_ptr<disk::Disk>> disk =
      co_await open_next({.name = std::move(name), .read_only = read_only, .loop = loop});
  if (!disk) co_return disk;
  const uint32_t minimum = (*disk)->capabilities().block_size.minimum;
  block_size = std::max<uint64_t>(block_size, minimum);
  // Two of our blocks that are written at once must not meet in one of theirs.
  if (const disk::ChangeOrder* order = (*disk)->order()) {
    block_size = std::max(block_size, order->granularity());
  }
  if (minimum > 1) co_return disk::make_aligner(std::move(*disk));
  co_return disk;
}

Task<std::unique_ptr<disk::ScratchFile>> CacheFilter::make_scratch(Loop& loop) {
  {
    const std::lock_guard lock(mutex_);
    if (spare_) co_return std::move(spare_);
  }
  co_return co_await pool_->general_lane().run(
      loop, engine::BlockingReason::kOpen, engine::BlockingKind::kParallel,
      [this]() -> std::unique_ptr<disk::ScratchFile> {
        try {
          return std::make_unique<disk::ScratchFile>(*pool_, "cache");
        } catch (const ConfigError& error) {
          log::error("{}", error.what());
          return nullptr;
        }
      });
}

Task<Result<std::shared_ptr<ExportCache>>> CacheFilter::open_cache(std::string name, bool read_only,
                                                                   Loop& loop) {
  if (!count_in()) {
    co_return fail(EBUSY, "the disk below the cache is in use by another export");
  }
  std::unique_ptr<disk::ScratchFile> scratch = co_await make_scratch(loop);
  if (!scratch) {
    count_out();
    co_return fail(EIO, "the cache has no temporary file");
  }
  uint64_t block_size = std::max(settings_.block_size_min,
                                 std::min(std::bit_ceil(scratch->block_size()), kBlockSizeMax));
  auto opened = co_await disk::SharedDisk::open(
      loop, home(loop.kind()), [this, &name, read_only, &block_size](Loop& there) {
        return open_below(name, read_only, there, block_size);
      });
  if (!opened) {
    count_out();
    co_return std::unexpected(opened.error());
  }
  if (block_size > settings_.size_max) {
    log::warning(
        "cache: the blocks of export \"{}\" have {} bytes, more than cache-max-size: "
        "nothing is cached",
        name, block_size);
  }
  // By another name it may be open already.
  std::unique_ptr<disk::SharedDisk> below = std::move(*opened);
  const std::string identity = below->identity();
  const std::string key = identity.empty() ? "@" + name : "=" + identity;
  const std::shared_ptr<ExportCache> cache = caches_.get(key, [&] {
    return std::make_shared<ExportCache>(fmt::format("the cache of export \"{}\"", name), settings_,
                                         block_size, std::move(below), std::move(scratch));
  });
  if (below) {
    const Status closed = co_await below->close(loop);
    if (!closed) log::error("cache: closing a disk: {}", errno_text(closed.error().code));
    count_out();
  }
  co_return cache;
}

// ---- The end ----------------------------------------------------------------------------------

Task<Status> CacheFilter::finish(Loop& loop) {
  const Status ours = co_await finish_caches(loop);
  const Status theirs = co_await next().finish(loop);
  co_return ours ? theirs : ours;
}

// Side by side: one that hangs does not keep the others from being saved.
Task<Status> CacheFilter::finish_caches(Loop& loop) {
  if (!thread_) co_return Status{};
  Status result;
  engine::Scope scope(loop);
  for (const std::shared_ptr<ExportCache>& cache : caches_.all()) {
    scope.spawn(finish_cache(cache, loop, result));
  }
  co_await scope.join();
  thread_.reset();
  co_return result;
}

Task<void> CacheFilter::finish_cache(std::shared_ptr<ExportCache> cache, Loop& loop,
                                     Status& result) {
  const Status finished = co_await cache->finish(loop);
  if (!finished && result) result = finished;
}

std::vector<disk::Explanation> CacheFilter::explain_layer() const {
  std::vector<disk::Explanation> lines;
  lines.push_back({"visibility",
                   "all connections of an export share one cache over one connection to the disk "
                   "below: a write is visible everywhere before it is acknowledged"});
  switch (settings_.mode) {
    case CacheMode::kWriteback:
      lines.push_back({"durability",
                       "cache=writeback: a flush writes back what all connections have written and "
                       "flushes the disk below; until then writes are in a temporary file that "
                       "goes with weft"});
      break;
    case CacheMode::kWritethrough:
      lines.push_back({"durability",
                       "cache=writethrough: a write is on the disk below before it is "
                       "acknowledged; flush and FUA are the disk's"});
      break;
    case CacheMode::kUnsafe:
      lines.push_back({"durability",
                       "none: cache=unsafe ignores flush and FUA, and what is written is lost when "
                       "weft ends"});
      break;
  }
  lines.push_back(
      {"mode", fmt::format("{}; reads {}", mode_name(settings_.mode),
                           settings_.on_read ? "are kept"
                           : settings_.on_read_path.empty()
                               ? "are not kept"
                               : "are kept while " + settings_.on_read_path + " exists")});
  return lines;
}

}  // namespace

constinit const disk::FilterInfo cache_filter = {
    .name = "cache",
    .longname = "weft cache filter",
    .description = "One cache in the server for all connections of an export",
    .config_help =
        "cache=writeback|writethrough|unsafe  when writes reach the disk (writeback)\n"
        "cache-min-block-size=SIZE  the cache's block (64K)\n"
        "cache-max-size=SIZE  limits the temporary file\n"
        "cache-high-threshold=PERCENT  of it: where reclaim begins (95)\n"
        "cache-low-threshold=PERCENT  of it: where reclaim ends (80)\n"
        "cache-on-read=true|false|/PATH  keep what is read (false); while /PATH exists",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<CacheFilter>(); },
};

}  // namespace weft::filters
