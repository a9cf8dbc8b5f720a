// SPDX-License-Identifier: BSD-3-Clause
#include "server/export.h"

#include "disk/open_layer.h"

namespace weft::server {

using disk::Support;

engine::Task<Result<OpenExport>> open_export(const Config& config, disk::Plugin& plugin,
                                             std::string name, const disk::Peer* peer,
                                             engine::Loop& loop) {
  OpenExport opened;
  opened.name = name;
  if (name.empty()) {
    Result<std::string> resolved = co_await plugin.default_export(loop, config.read_only);
    if (!resolved) co_return std::unexpected(resolved.error());
    name = std::move(*resolved);
  }
  Result<std::unique_ptr<disk::Disk>> disk = co_await disk::open_layer(
      plugin, "disk", {.name = name, .read_only = config.read_only, .loop = loop, .peer = peer});
  if (!disk) co_return std::unexpected(disk.error());
  opened.disk = std::move(*disk);
  const disk::Capabilities& can = opened.disk->capabilities();
  opened.info.size = can.size;
  opened.info.transmission_flags = transmission_flags(config, plugin, can);
  opened.info.name = std::move(name);
  opened.info.description = opened.disk->description();
  opened.info.block_sizes = {.min = can.block_size.minimum,
                             .preferred = can.block_size.preferred,
                             .payload_max = can.block_size.maximum};
  co_return opened;
}

bool one_connection(const Config& config, const disk::Plugin& plugin) {
  return config.shared == 1 || plugin.connections_max() == 1;
}

MultiConn multi_conn(const Config& config, const disk::Plugin& plugin,
                     const disk::Capabilities& capabilities) {
  if (capabilities.multi_conn_ordered) {
    return {true, capabilities.multi_conn_layer, capabilities.multi_conn_reason};
  }
  if (one_connection(config, plugin)) {
    return {false, "the limit on connections",
            "only one client may be connected at once, so there is nothing to share"};
  }
  const char* const reason = capabilities.multi_conn_reason;
  if (!capabilities.multi_conn) {
    return {false, capabilities.multi_conn_layer,
            reason ? reason : "it does not say that its connections see each other's writes"};
  }
  return {true, capabilities.multi_conn_layer,
          reason ? reason : "all connections share one state, and one flush covers all of them"};
}

uint16_t transmission_flags(const Config& config, const disk::Plugin& plugin,
                            const disk::Capabilities& capabilities) {
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
  if (multi_conn(config, plugin, capabilities).advertised) flags |= nbd::kCanMultiConn;
  return static_cast<uint16_t>(flags);
}

}  // namespace weft::server
