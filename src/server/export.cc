// SPDX-License-Identifier: BSD-3-Clause
#include "server/export.h"

#include "disk/waist.h"

namespace weft::server {

using disk::Support;

engine::Task<Result<OpenExport>> open_export(const Config& config, disk::Plugin& plugin,
                                             std::string name, engine::Loop& loop) {
  Result<std::unique_ptr<disk::Disk>> disk =
      co_await plugin.open({.name = name, .read_only = config.read_only, .loop = loop});
  if (!disk) co_return std::unexpected(disk.error());
  OpenExport opened;
  opened.disk = disk::make_waist(std::move(*disk), name);
  const disk::Capabilities& can = opened.disk->capabilities();
  opened.info.size = can.size;
  opened.info.transmission_flags = transmission_flags(config, can);
  opened.info.name = name;
  opened.info.block_sizes = {.min = can.block_size.minimum,
                             .preferred = can.block_size.preferred,
                             .payload_max = can.block_size.maximum};
  opened.name = std::move(name);
  co_return opened;
}

MultiConn multi_conn(const Config& config, const disk::Capabilities& capabilities) {
  if (config.shared == 1) {
    return {false, "the limit on connections",
            "only one client may be connected at once, so there is nothing to share"};
  }
  if (!capabilities.multi_conn) {
    return {false, "the disk", "it does not say that its connections see each other's writes"};
  }
  return {true, "the disk", "all connections share one state, and one flush covers all of them"};
}

uint16_t transmission_flags(const Config& config, const disk::Capabilities& capabilities) {
  uint32_t flags = nbd::kHasFlags;
  const bool writable = capabilities.writable && !config.read_only;
  if (!writable) flags |= nbd::kReadOnly;
  if (capabilities.flush != Support::kNone) flags |= nbd::kSendFlush;
  if (capabilities.fua != Support::kNone) flags |= nbd::kSendFua;
  if (capabilities.rotational) flags |= nbd::kRotational;
  if (writable && capabilities.trim != Support::kNone) flags |= nbd::kSendTrim;
  if (writable && capabilities.zero != Support::kNone) {
    flags |= nbd::kSendWriteZeroes;
    if (capabilities.fast_zero != Support::kNone) flags |= nbd::kSendFastZero;
  }
  if (capabilities.cache != Support::kNone) flags |= nbd::kSendCache;
  if (multi_conn(config, capabilities).advertised) flags |= nbd::kCanMultiConn;
  return static_cast<uint16_t>(flags);
}

}  // namespace weft::server
