// SPDX-License-Identifier: BSD-3-Clause
// The nofilter filter: passes everything on. It shows what a layer costs, and what one looks like.
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

class NoFilter final : public disk::Filter {
 public:
  bool take(std::string_view, std::string_view) override { return false; }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<disk::FilterDisk>(std::move(*next), disk::Reads::kForwarded);
  }
};

}  // namespace

constinit const disk::FilterInfo nofilter_filter = {
    .name = "nofilter",
    .longname = "weft nofilter filter",
    .description = "Passes everything on",
    .config_help = nullptr,
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<NoFilter>(); },
};

}  // namespace weft::filters
