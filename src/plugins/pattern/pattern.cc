// SPDX-License-Identifier: BSD-3-Clause
// The pattern plugin: every 8 bytes hold their own offset, big-endian. Read-only.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "base/bytes.h"
#include "base/parse.h"
#include "disk/disk.h"
#include "plugins/parameters.h"
#include "plugins/plugins.h"

namespace weft::plugins {
namespace {

using disk::Support;
using disk::Task;

constexpr uint64_t kWordSize = 8;  // bytes

class PatternDisk final : public disk::Disk {
 public:
  explicit PatternDisk(uint64_t size) {
    capabilities_.size = size;
    capabilities_.multi_conn = true;
    capabilities_.flush = Support::kNative;
    capabilities_.cache = Support::kNative;
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    std::byte* to = into.data();
    std::byte* const end = to + into.size();
    while (to < end) {
      const uint64_t begin = offset % kWordSize;
      if (begin == 0 && end - to >= static_cast<ptrdiff_t>(kWordSize)) {
        to = store_be<uint64_t>(to, offset);
        offset += kWordSize;
        continue;
      }
      std::array<std::byte, kWordSize> word;
      store_be<uint64_t>(word.data(), offset - begin);
      const uint64_t length = std::min<uint64_t>(kWordSize - begin, end - to);
      std::memcpy(to, word.data() + begin, length);
      to += length;
      offset += length;
    }
    return Status{};
  }
  Task<Status> cache(Range) override { return Status{}; }
  Task<Status> flush() override { return Status{}; }
  [[nodiscard]] std::string identity() const override { return "pattern"; }
};

class PatternPlugin final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key != "size") refuse_parameter("pattern", key, "size");
    size_ = parse_size("size", value);
  }
  void config_complete() override {
    if (!size_)
      throw ConfigError("pattern: the disk has no size: give one, as in: weft pattern 1g");
  }
  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest) override {
    return Result<std::unique_ptr<disk::Disk>>(std::make_unique<PatternDisk>(*size_));
  }
  [[nodiscard]] std::vector<disk::Explanation> explain() const override {
    return {{"visibility", "the disk is read-only and the same for every connection"},
            {"durability", "nothing is written"}};
  }

 private:
  std::optional<uint64_t> size_;
};

}  // namespace

constinit const disk::PluginInfo pattern_plugin = {
    .name = "pattern",
    .longname = "weft pattern plugin",
    .description = "A read-only disk in which every 8 bytes hold their offset",
    .config_help = "size=SIZE  (required) size of the disk",
    .magic_config_key = "size",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<PatternPlugin>(); },
};

}  // namespace weft::plugins
