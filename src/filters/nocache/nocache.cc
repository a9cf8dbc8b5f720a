// SPDX-License-Identifier: BSD-3-Clause
// The nocache filter: takes away, emulates or swallows what a client asks to be cached.
#include "filters/choice.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

enum class Mode : uint8_t { kNone, kEmulate, kNop };

constexpr Choice<Mode> kModes[] = {
    {"none", Mode::kNone}, {"emulate", Mode::kEmulate}, {"nop", Mode::kNop}};

class NoCacheDisk final : public disk::FilterDisk {
 public:
  NoCacheDisk(std::unique_ptr<disk::Disk> below, Mode mode)
      : FilterDisk(std::move(below), disk::Reads::kForwarded) {
    capabilities_.cache = mode == Mode::kNone      ? Support::kNone
                          : mode == Mode::kEmulate ? Support::kEmulate
                                                   : Support::kNative;
  }
  // Called with kNop only: the waist above does the rest.
  Task<Status> cache(Range) override { return Status{}; }
};

class NoCache final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key != "cachemode") return false;
    mode_ = choose(name(), key, value, kModes);
    return true;
  }
  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<NoCacheDisk>(std::move(*next), mode_);
  }

 private:
  Mode mode_ = Mode::kNone;
};

}  // namespace

constinit const disk::FilterInfo nocache_filter = {
    .name = "nocache",
    .longname = "weft nocache filter",
    .description = "Takes away, emulates or swallows requests to cache",
    .config_help = "cachemode=none|emulate|nop   what becomes of them (default: none)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<NoCache>(); },
};

}  // namespace weft::filters
