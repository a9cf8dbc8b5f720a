// SPDX-License-Identifier: BSD-3-Clause
// The memory plugin: a disk that lives in the server's memory, sparse.
#include <optional>

#include "base/parse.h"
#include "disk/change_order.h"
#include "disk/disk.h"
#include "disk/sparse_store.h"
#include "plugins/parameters.h"
#include "plugins/plugins.h"

namespace weft::plugins {
namespace {

using disk::Task;

// Shared by all connections: one store, one order.
class MemoryPlugin final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key == "size") {
      size_ = parse_size("size", value);
    } else if (key == "allocator") {
      // Both name what there is: pages on demand.
      if (value != "sparse" && value != "malloc") {
        throw ConfigError(fmt::format(
            "allocator: '{}' is not to be had: give sparse (to lock the server in memory: --swap)",
            value));
      }
    } else {
      refuse_parameter("memory", key, "size and allocator");
    }
  }

  void config_complete() override {
    if (!size_) throw ConfigError("memory: the disk has no size: give one, as in: weft memory 1g");
    store_ = std::make_unique<disk::SparseStore>(*size_);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    return Result<std::unique_ptr<disk::Disk>>(
        std::make_unique<disk::SparseDisk>(*store_, order_, request.read_only));
  }

  [[nodiscard]] std::vector<disk::Explanation> explain() const override {
    return {{"visibility",
             "all connections share one store: a write is visible everywhere before "
             "it is acknowledged"},
            {"durability",
             "the disk is in memory and ends with the server: flush and FUA have "
             "nothing to wait for"}};
  }

 private:
  std::optional<uint64_t> size_;
  std::unique_ptr<disk::SparseStore> store_;
  disk::ChangeOrder order_;
};

}  // namespace

constinit const disk::PluginInfo memory_plugin = {
    .name = "memory",
    .longname = "weft memory plugin",
    .description = "A sparse disk in the server's memory",
    .config_help =
        "size=SIZE  (required) size of the disk\n"
        "allocator=sparse  how memory is used",
    .magic_config_key = "size",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<MemoryPlugin>(); },
};

}  // namespace weft::plugins
