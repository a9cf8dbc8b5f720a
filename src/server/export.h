// SPDX-License-Identifier: BSD-3-Clause
// What a client is told about a disk.
#pragma once

#include <memory>
#include <string>

#include "disk/disk.h"
#include "nbd/server_handshake.h"
#include "server/server.h"

namespace weft::server {

// A disk that is open for one connection.
struct OpenExport {
  std::string name;  // as the client asked for it
  std::unique_ptr<disk::Disk> disk;
  nbd::ExportInfo info;
};

// Opens the export for a connection on `loop`. ENOENT: there is no such export. `peer` outlives it.
engine::Task<Result<OpenExport>> open_export(const Config& config, disk::Plugin& plugin,
                                             std::string name, const disk::Peer* peer,
                                             engine::Loop& loop);

// Whether the server or a layer admits one client at a time.
bool one_connection(const Config& config, const disk::Plugin& plugin);

// Whether NBD_FLAG_CAN_MULTI_CONN is advertised, and why: exactly when several connections may
// exist at once and points 1 and 2 of the promise hold for the disk, or the operator has ordered
// it.
struct MultiConn {
  bool advertised;
  const char* decided_by;  // "the limit on connections", "the disk", a filter
  const char* why;
};
MultiConn multi_conn(const Config& config, const disk::Plugin& plugin,
                     const disk::Capabilities& capabilities);

// NBD transmission flags ("Transmission flags"), without those that the handshake adds.
uint16_t transmission_flags(const Config& config, const disk::Plugin& plugin,
                            const disk::Capabilities& capabilities);

}  // namespace weft::server
