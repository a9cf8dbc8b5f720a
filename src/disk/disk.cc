// SPDX-License-Identifier: BSD-3-Clause
#include "disk/disk.h"

#include <cerrno>

namespace weft::disk {
namespace {

// Reached only when a layer calls what the next one said it does not have.
Task<Status> unsupported(const char* text) {
  return fail(EOPNOTSUPP, text);
}

}  // namespace

Task<Status> Disk::write(uint64_t, ByteSpan, bool) {
  return unsupported("this disk cannot be written");
}
Task<Status> Disk::zero(Range, ZeroFlags) {
  return unsupported("this disk cannot zero a range");
}
Task<Status> Disk::trim(Range, bool) {
  return unsupported("this disk cannot trim");
}
Task<Status> Disk::cache(Range) {
  return unsupported("this disk has no cache to fill");
}
Task<Status> Disk::flush() {
  return unsupported("this disk cannot flush");
}
Task<Status> Disk::extents(Extents&, bool) {
  return unsupported("this disk does not know its extents");
}

Task<Status> Plugin::preconnect(Loop&, const Peer&, bool) {
  return Status{};
}

Result<std::shared_ptr<void>> Plugin::admit(const Peer&) {
  return nullptr;
}

Task<Result<std::string>> Plugin::default_export(Loop&, bool) {
  return Result<std::string>(std::string());
}

Task<Result<std::vector<ExportEntry>>> Plugin::list_exports(Loop&, bool) {
  return Result<std::vector<ExportEntry>>(std::vector<ExportEntry>{{"", ""}});
}

Task<Status> Plugin::finish(Loop&) {
  return Status{};
}

}  // namespace weft::disk
