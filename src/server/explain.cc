// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <cerrno>
#include <iterator>

#include "server/export.h"

namespace weft::server {
namespace {

using disk::Support;

const char* word(Support support) {
  switch (support) {
    case Support::kNone:
      return "no";
    case Support::kEmulate:
      return "yes, emulated";
    case Support::kNative:
      return "yes";
  }
  return "?";
}

}  // namespace

std::string explain(const Config& config, disk::Plugin& plugin, const std::string& plugin_name,
                    const std::string& export_name, const engine::EngineChoice& engine,
                    engine::BlockingPool& pool) {
  const std::unique_ptr<engine::Loop> loop = engine::Loop::create(engine.kind, pool);
  Result<OpenExport> opened =
      loop->run_until_done(open_export(config, plugin, export_name, nullptr, *loop));
  if (!opened) {
    const Error& error = opened.error();
    throw ConfigError(fmt::format(
        "--explain: the export \"{}\" of {} cannot be opened: {}; name one with --exportname",
        export_name, plugin_name,
        error.code == ENOENT ? "there is none of this name"
        : error.text         ? error.text
                             : errno_text(error.code)));
  }
  const disk::Capabilities can = opened->disk->capabilities();
  const MultiConn multi = multi_conn(config, plugin, can);
  const bool writable = can.writable && !config.read_only;

  std::string text;
  auto out = std::back_inserter(text);
  fmt::format_to(out, "export      \"{}\", {} bytes, {}\n", export_name, can.size,
                 writable ? "writable" : "read-only");
  fmt::format_to(out, "disk        {}\n", plugin_name);
  fmt::format_to(out, "multi-conn  {}: decided by {}: {}\n",
                 multi.advertised ? "advertised" : "not advertised", multi.decided_by, multi.why);
  const bool promised = multi.advertised && !can.multi_conn_ordered;
  if (promised) {
    out = fmt::format_to(
        out,
        "visibility  what one connection wrote and was told is done is seen by all others, at\n"
        "            the latest after a flush on any of them\n");
  } else {
    out = fmt::format_to(
        out, "visibility  a client should use one connection; nothing is promised over several{}\n",
        multi.advertised ? ",\n            though the operator has it advertised" : "");
  }
  if (!writable) {
    fmt::format_to(out, "durability  nothing is written\n");
  } else if (can.flush_ignored) {
    fmt::format_to(out, "durability  none: the operator has flushes ignored\n");
  } else if (can.flush != Support::kNone) {
    fmt::format_to(out,
                   "durability  a flush covers every write acknowledged before it was sent, on "
                   "{};\n            if a sync ever fails, every later flush fails until the disk "
                   "is reopened\n",
                   promised ? "any connection" : "its connection");
  } else {
    fmt::format_to(out, "durability  none: the disk cannot flush\n");
  }
  if (writable) {
    fmt::format_to(out,
                   "order       overlapping writes take effect in the order they arrived, over all "
                   "connections;\n            a write left over from a dead connection never "
                   "undoes a newer one\n");
  }
  fmt::format_to(out, "flush {}; FUA {}; trim {}; zero {}; fast zero {}; cache {}; extents {}\n",
                 word(can.flush), word(can.fua), word(can.trim), word(can.zero),
                 word(can.fast_zero), word(can.cache), word(can.extents));
  fmt::format_to(out, "block size  minimum {}, preferred {}, maximum {} bytes\n",
                 can.block_size.minimum, can.block_size.preferred, can.block_size.maximum);
  for (const disk::Explanation& line : plugin.explain()) {
    fmt::format_to(out, "{:<11} {}\n", line.topic, line.text);
  }
  fmt::format_to(out, "engine      {} ({})\n",
                 engine.kind == engine::EngineKind::kUring ? "io_uring" : "epoll", engine.reason);
  const Status closed = loop->run_until_done(opened->disk->close());
  (void)closed;  // nothing was written
  return text;
}

}  // namespace weft::server
