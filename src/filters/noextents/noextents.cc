// SPDX-License-Identifier: BSD-3-Clause
// The noextents filter: hides where a disk has holes.
#include <algorithm>

#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

class NoExtentsDisk final : public disk::FilterDisk {
 public:
  explicit NoExtentsDisk(std::unique_ptr<disk::Disk> below)
      : FilterDisk(std::move(below), disk::Reads::kForwarded) {
    capabilities_.extents = disk::Support::kNone;
  }
  // A hole that is lent would reach the client as one.
  bool lend(Range range, disk::Lease& lease) override {
    if (!next().lend(range, lease)) return false;
    if (std::ranges::all_of(lease.pieces, [](const auto& piece) { return piece.data; })) {
      return true;
    }
    lease.give_back();
    return false;
  }
  [[nodiscard]] bool may_have_holes() const override { return false; }
};

class NoExtents final : public disk::Filter {
 public:
  bool take(std::string_view, std::string_view) override { return false; }
  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<NoExtentsDisk>(std::move(*next));
  }
};

}  // namespace

constinit const disk::FilterInfo noextents_filter = {
    .name = "noextents",
    .longname = "weft noextents filter",
    .description = "Hides where a disk has holes",
    .config_help = nullptr,
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<NoExtents>(); },
};

}  // namespace weft::filters
