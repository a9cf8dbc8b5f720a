// SPDX-License-Identifier: BSD-3-Clause
// The cow filter: what is written goes to a temporary overlay; the disk below is only read.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <string>

#include "base/log.h"
#include "base/parse.h"
#include "disk/aligner.h"
#include "disk/per_export.h"
#include "filters/cow/overlay.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using cow::BlockState;
using cow::CopyOnRead;
using cow::Overlay;
using disk::Support;
using disk::Task;

constexpr uint64_t kBlockSizeMin = 4 << 10;
constexpr uint64_t kBlockSizeMax = uint64_t{2} << 30;
constexpr size_t kExtentStepsMax = 1 << 16;  // pieces looked at in one call

class CowDisk final : public disk::FilterDisk {
 public:
  // `next` takes ranges of any alignment.
  CowDisk(std::unique_ptr<disk::Disk> next, std::shared_ptr<Overlay> overlay,
          const disk::OpenRequest& request)
      : FilterDisk(std::move(next), disk::Reads::kIntercepted),
        overlay_(std::move(overlay)),
        loop_(request.loop) {
    disk::Capabilities& c = capabilities_;
    c.writable = !request.read_only;
    c.multi_conn = true;
    c.multi_conn_ordered = false;
    c.multi_conn_layer = "the cow filter";
    c.multi_conn_reason = "all connections share one overlay, and what is below is never written";
    c.flush = c.fua = c.trim = c.zero = c.fast_zero = c.extents = Support::kNative;
    if (!c.writable) c.fua = c.trim = c.zero = c.fast_zero = Support::kNone;
    if (overlay_->settings().on_cache) c.cache = Support::kNative;
    const auto block = static_cast<uint32_t>(overlay_->settings().block_size);
    const uint32_t preferred = std::min(block, std::bit_floor(c.block_size.maximum));
    c.block_size.preferred = std::max(c.block_size.preferred, preferred);
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const Range range{offset, into.size()};
    const Overlay::Piece piece = overlay_->piece(range);
    if (piece.length == range.length) {
      switch (piece.state) {
        case BlockState::kBelow:
          if (overlay_->may_copy_reads()) break;
          return next().read(offset, into);
        case BlockState::kHere:
          return overlay_->read_here(loop_, offset, into);
        case BlockState::kZero:
          std::memset(into.data(), 0, into.size());
          return Status{};
      }
    }
    if (overlay_->may_copy_reads()) return read_copying(range, into.data());
    return overlay_->read(loop_, next(), range, into.data());
  }

  bool lend(Range range, disk::Lease& lease) override {
    const Overlay::Piece piece = overlay_->piece(range);
    if (piece.length != range.length) return false;
    if (piece.state == BlockState::kZero) {
      lease.pieces.push_back({nullptr, range.length});
      return true;
    }
    return piece.state == BlockState::kBelow && !overlay_->may_copy_reads() &&
           next().lend(range, lease);
  }

  [[nodiscard]] bool may_have_holes() const override {
    return overlay_->zeroed() || FilterDisk::may_have_holes();
  }

  // The overlay ends with the server: FUA and flush have nothing to wait for.
  Task<Status> write(uint64_t offset, ByteSpan from, bool) override {
    return overlay_->write(loop_, next(), offset, from);
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return overlay_->zero(loop_, next(), range, flags);
  }
  Task<Status> trim(Range range, bool) override { return overlay_->trim(loop_, range); }
  Task<Status> flush() override { return Status{}; }

  Task<Status> cache(Range range) override {
    if (overlay_->settings().on_cache) {
      return overlay_->read_copying(loop_, next(), range, nullptr);
    }
    return cache_below(range);
  }

  Task<Status> extents(Extents& into, bool one) override {
    for (size_t step = 0; step < kExtentStepsMax && !into.full(); step++) {
      const Range rest{into.end(), into.window().end() - into.end()};
      const Overlay::Piece piece = overlay_->piece(rest);
      if (piece.state == BlockState::kBelow) {
        Extents part({rest.offset, piece.length});
        const Status done = co_await next().extents(part, one);
        if (!done) co_return done;
        bool more = true;
        for (const Extent& extent : part.list()) {
          more = into.append(extent.length, extent.flags);
          if (!more) break;
        }
        // Where the layer below stops, it has its reasons.
        if (!more || !part.full()) co_return Status{};
      } else {
        const uint32_t flags =
            piece.state == BlockState::kHere ? kExtentData : kExtentHole | kExtentZero;
        if (!into.append(piece.length, flags)) co_return Status{};
      }
    }
    co_return Status{};
  }

  disk::ChangeOrder* order() override { return &overlay_->order(); }

 private:
  Task<Status> read_copying(Range range, std::byte* into) {
    if (co_await overlay_->copies_reads(loop_)) {
      co_return co_await overlay_->read_copying(loop_, next(), range, into);
    }
    co_return co_await overlay_->read(loop_, next(), range, into);
  }

  Task<Status> cache_below(Range range) {
    while (!range.empty()) {
      const Overlay::Piece piece = overlay_->piece(range);
      if (piece.state == BlockState::kBelow) {
        const Status done = co_await next().cache({range.offset, piece.length});
        if (!done) co_return done;
      }
      range = {range.offset + piece.length, range.length - piece.length};
    }
    co_return Status{};
  }

  const std::shared_ptr<Overlay> overlay_;
  disk::Loop& loop_;
};

class Cow final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "cow-block-size") {
      settings_.block_size = parse_size("cow-block-size", value);
      if (settings_.block_size < kBlockSizeMin || settings_.block_size > kBlockSizeMax ||
          !std::has_single_bit(settings_.block_size)) {
        throw ConfigError(fmt::format(
            "cow-block-size: {} is not a power of two from 4k to 2g: give one, as in 64k", value));
      }
    } else if (key == "cow-on-cache") {
      settings_.on_cache = parse_bool("cow-on-cache", value);
    } else if (key == "cow-on-read") {
      take_on_read(value);
    } else {
      return false;
    }
    return true;
  }

  void config_complete() override {
    next().serve_read_only();
    Filter::config_complete();
  }

  void begin(const disk::Surroundings& surroundings) override {
    pool_ = &surroundings.pool;
    // Says at once if there is no place for it.
    const disk::ScratchFile probe(*pool_, "cow");
  }

  Task<Result<std::string>> default_export(disk::Loop& loop, bool) override {
    return next().default_export(loop, true);
  }
  Task<Result<std::vector<disk::ExportEntry>>> list_exports(disk::Loop& loop, bool) override {
    return next().list_exports(loop, true);
  }
  Task<Status> preconnect(disk::Loop& loop, const disk::Peer& peer, bool) override {
    return next().preconnect(loop, peer, true);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    disk::OpenRequest below = request;
    below.read_only = true;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(below));
    if (!next) co_return next;
    const uint64_t size = (*next)->capabilities().size;
    const std::shared_ptr<Overlay> overlay =
        overlays_.get(disk::export_key(**next, request.name),
                      [&] { return std::make_shared<Overlay>(*pool_, settings_, size); });
    if (overlay->size() != size) {
      log::error("cow: the disk of export \"{}\" had {} bytes and has {} now", request.name,
                 overlay->size(), size);
      const Status closed = co_await (*next)->close();
      (void)closed;  // nothing was written
      co_return fail(EIO, "the disk below the overlay has another size now");
    }
    if ((*next)->capabilities().block_size.minimum > 1) next = disk::make_aligner(std::move(*next));
    co_return std::make_unique<CowDisk>(std::move(*next), overlay, request);
  }

  [[nodiscard]] std::vector<disk::Explanation> explain_layer() const override {
    return {{"visibility",
             "all connections of an export share one overlay: a write is visible everywhere "
             "before it is acknowledged"},
            {"durability",
             "the overlay is temporary and ends with the server: flush and FUA have nothing to "
             "wait for, and nothing below is written"}};
  }

 private:
  void take_on_read(std::string_view value) {
    if (value.starts_with('/')) {
      settings_.on_read = {CopyOnRead::When::kIfPathExists, std::string(value)};
      return;
    }
    try {
      settings_.on_read = {
          parse_bool("cow-on-read", value) ? CopyOnRead::When::kAlways : CopyOnRead::When::kNever,
          ""};
    } catch (const ConfigError&) {
      throw ConfigError(fmt::format(
          "cow-on-read: '{}' is neither true nor false nor an absolute path: give one of these",
          value));
    }
  }

  cow::Settings settings_;
  engine::BlockingPool* pool_ = nullptr;
  disk::PerExport<Overlay> overlays_;
};

}  // namespace

constinit const disk::FilterInfo cow_filter = {
    .name = "cow",
    .longname = "weft cow filter",
    .description = "Keeps what is written in a temporary overlay",
    .config_help =
        "cow-block-size=SIZE  size of the overlay's blocks (default 64k)\n"
        "cow-on-cache=BOOL  keep what clients prefetch (default false)\n"
        "cow-on-read=BOOL|/PATH  keep what clients read (default false); with a path: while it "
        "exists",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Cow>(); },
};

}  // namespace weft::filters
