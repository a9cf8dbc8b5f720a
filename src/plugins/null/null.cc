// SPDX-License-Identifier: BSD-3-Clause
// The null plugin: reads zeroes, and forgets what is written.
#include <cstring>

#include "base/parse.h"
#include "disk/disk.h"
#include "plugins/parameters.h"
#include "plugins/plugins.h"

namespace weft::plugins {
namespace {

using disk::Support;
using disk::Task;

class NullDisk final : public disk::Disk {
 public:
  NullDisk(uint64_t size, bool read_only) {
    capabilities_ = {.size = size,
                     .writable = !read_only,
                     .multi_conn = true,
                     .flush = Support::kNative,
                     .fua = Support::kNative,
                     .trim = Support::kNative,
                     .zero = Support::kNative,
                     .fast_zero = Support::kNative,
                     .cache = Support::kNative,
                     .extents = Support::kNative,
                     .block_size = {}};
  }

  Task<Status> read(uint64_t, MutableByteSpan into) override {
    std::memset(into.data(), 0, into.size());
    return Status{};
  }
  [[nodiscard]] std::string identity() const override { return "null"; }
  bool lend(Range range, disk::Lease& lease) override {
    lease.pieces.push_back({nullptr, range.length});
    return true;
  }
  Task<Status> write(uint64_t, ByteSpan, bool) override { return Status{}; }
  Task<Status> zero(Range, disk::ZeroFlags) override { return Status{}; }
  Task<Status> trim(Range, bool) override { return Status{}; }
  Task<Status> cache(Range) override { return Status{}; }
  Task<Status> flush() override { return Status{}; }
  Task<Status> extents(Extents& into, bool) override {
    into.append(into.window().length, kExtentHole | kExtentZero);
    return Status{};
  }
};

class NullPlugin final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key != "size") refuse_parameter("null", key, "size");
    size_ = parse_size("size", value);
  }
  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    return Result<std::unique_ptr<disk::Disk>>(
        std::make_unique<NullDisk>(size_, request.read_only));
  }
  [[nodiscard]] std::vector<disk::Explanation> explain() const override {
    return {{"visibility", "every connection reads zeroes; what is written is forgotten at once"},
            {"durability", "nothing is kept, so nothing can be lost later"}};
  }

 private:
  uint64_t size_ = 0;
};

}  // namespace

constinit const disk::PluginInfo null_plugin = {
    .name = "null",
    .longname = "weft null plugin",
    .description = "Reads zeroes and discards what is written",
    .config_help = "size=SIZE  size of the disk (default 0)",
    .magic_config_key = "size",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<NullPlugin>(); },
};

}  // namespace weft::plugins
