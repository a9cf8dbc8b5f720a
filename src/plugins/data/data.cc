// SPDX-License-Identifier: BSD-3-Clause
// The data plugin: a small disk written on the command line.
#include <optional>

#include "base/parse.h"
#include "disk/change_order.h"
#include "disk/disk.h"
#include "disk/sparse_store.h"
#include "plugins/data/content.h"
#include "plugins/parameters.h"
#include "plugins/plugins.h"

namespace weft::plugins {
namespace {

using disk::Task;

// Shared by all connections: one store, one order.
class DataPlugin final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key == "raw" || key == "base64" || key == "data") {
      if (content_) {
        throw ConfigError(
            fmt::format("data: '{}' comes after another of data, raw and base64: give one", key));
      }
      if (key == "data") {
        content_ = parse_content(value);
      } else {
        std::string bytes = key == "raw" ? std::string(value) : decode_base64(value);
        content_.emplace();
        content_->size = bytes.size();
        content_->pieces.push_back({0, std::move(bytes)});
      }
    } else if (key == "size") {
      size_ = parse_size("size", value);
    } else if (key == "allocator") {
      if (value != "sparse" && value != "malloc") {
        throw ConfigError(fmt::format("allocator: '{}' is not to be had: give sparse", value));
      }
    } else {
      refuse_parameter("data", key, "data, raw, base64, size and allocator");
    }
  }

  void config_complete() override {
    if (!content_) {
      throw ConfigError("data: there is nothing to serve: give data=, raw= or base64=");
    }
    store_ = std::make_unique<disk::SparseStore>(size_.value_or(content_->size));
    for (const Content::Piece& piece : content_->pieces) {
      if (piece.offset >= store_->size()) continue;
      const ByteSpan bytes = bytes_of(piece.bytes);
      const uint64_t length = std::min<uint64_t>(bytes.size(), store_->size() - piece.offset);
      if (length > 0 && !store_->write(piece.offset, bytes.first(length))) {
        throw ConfigError("data: there is not enough memory for this disk");
      }
    }
    content_->pieces.clear();
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
  std::optional<Content> content_;
  std::optional<uint64_t> size_;
  std::unique_ptr<disk::SparseStore> store_;
  disk::ChangeOrder order_;
};

}  // namespace

constinit const disk::PluginInfo data_plugin = {
    .name = "data",
    .longname = "weft data plugin",
    .description = "A small disk whose content is given on the command line",
    .config_help =
        "data='0x55 \"text\" @512 1 2 3'  bytes, strings and offsets, or\n"
        "raw=TEXT  the text as it is, or\n"
        "base64=TEXT  bytes in base64\n"
        "size=SIZE  cuts or pads the disk\n"
        "allocator=sparse  how memory is used",
    .magic_config_key = "data",
    .make = [] -> std::unique_ptr<disk::Plugin> { return std::make_unique<DataPlugin>(); },
};

}  // namespace weft::plugins
