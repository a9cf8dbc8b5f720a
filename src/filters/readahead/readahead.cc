// SPDX-License-Identifier: BSD-3-Clause
// The readahead filter: prefetches, by the cache() of the layer below, what a sequential reader
// will want next.
//
// Each connection is watched by itself. A read that begins where the last one ended, or not far
// behind it, doubles the window; any other read closes it. One prefetch runs at a time; it starts
// after the read that asked for it has been handed on.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/log.h"
#include "engine/scope.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

constexpr uint64_t kWindowMin = 64 << 10;
constexpr uint64_t kWindowMax = 4 << 20;

class ReadaheadDisk final : public disk::FilterDisk {
 public:
  ReadaheadDisk(std::unique_ptr<disk::Disk> next, disk::Loop& loop)
      : FilterDisk(std::move(next), disk::Reads::kForwarded),
        loop_(loop),
        scope_(loop),
        ended_(loop) {}

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    watch({offset, into.size()});
    return next().read(offset, into);
  }

  // A flush may make the layers below forget what they remember for this connection; a prefetch
  // that began before must not bring it back.
  Task<Status> flush() override {
    if (scope_.count() == 0) return next().flush();
    return flush_later();
  }

  Task<Status> close() override {
    co_await scope_.join();
    co_return co_await next().close();
  }

 private:
  void watch(Range range) {
    // Several requests of one reader may come a little out of order.
    const uint64_t slack = std::max(window_, kWindowMin);
    const bool sequential =
        range.offset <= expected_ + slack && range.offset + slack >= expected_ && expected_ != 0;
    if (!sequential) {
      expected_ = range.end();
      window_ = 0;
      ahead_ = 0;
      return;
    }
    if (range.end() > expected_) {
      expected_ = range.end();
      window_ = std::clamp(2 * window_, kWindowMin, kWindowMax);
    }
    if (scope_.count() != 0) return;
    const uint64_t begin = std::max(ahead_, expected_);
    const uint64_t end = std::min(expected_ + window_, capabilities_.size);
    // Small steps would cost more than they save.
    if (begin >= end || (end - begin < window_ / 2 && end != capabilities_.size)) return;
    Range wanted = Range{begin, end - begin}.rounded_out(capabilities_.block_size.minimum);
    wanted.length = std::min(wanted.length, capabilities_.size - wanted.offset);
    ahead_ = wanted.end();
    scope_.spawn(prefetch(wanted));
  }

  Task<void> prefetch(Range range) {
    co_await loop_.yield();  // the read goes first
    const Status done = co_await next().cache(range);
    // Whoever reads there will hear of it.
    if (!done) log::debug("readahead: no prefetch: {}", errno_text(done.error().code));
    prefetches_++;
    ended_.notify_all();
  }

  Task<Status> flush_later() {
    const uint64_t before = prefetches_;
    while (prefetches_ == before) co_await ended_.wait();
    co_return co_await next().flush();
  }

  disk::Loop& loop_;
  engine::Scope scope_;
  engine::Signal ended_;     // a prefetch
  uint64_t prefetches_ = 0;  // that have ended
  uint64_t expected_ = 0;    // where a sequential reader goes on; 0: nothing was read
  uint64_t window_ = 0;      // bytes that are prefetched
  uint64_t ahead_ = 0;       // the end of what has been prefetched
};

class Readahead final : public disk::Filter {
 public:
  bool take(std::string_view, std::string_view) override { return false; }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    disk::Loop& loop = request.loop;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    const char* const why = useless((*next)->capabilities());
    if (!why) co_return std::make_unique<ReadaheadDisk>(std::move(*next), loop);
    if (!warned_.exchange(true)) {
      log::warning("readahead: nothing will be prefetched: {}", why);
    }
    co_return std::make_unique<disk::FilterDisk>(std::move(*next), disk::Reads::kForwarded);
  }

 private:
  // Null: a prefetch may be of use.
  [[nodiscard]] const char* useless(const disk::Capabilities& can) const {
    if (can.cache == disk::Support::kNone) {
      return "the layer below cannot prefetch (put --filter=cache, or --filter=cow with "
             "cow-on-cache=true, after this filter)";
    }
    if (next().thread_model() != disk::ThreadModel::kParallel) {
      return "the layers below take one request at a time, so that a prefetch would be in the way "
             "of the reads";
    }
    return nullptr;
  }

  std::atomic<bool> warned_{false};
};

}  // namespace

constinit const disk::FilterInfo readahead_filter = {
    .name = "readahead",
    .longname = "weft readahead filter",
    .description = "Prefetches for sequential readers",
    .config_help = nullptr,
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Readahead>(); },
};

}  // namespace weft::filters
