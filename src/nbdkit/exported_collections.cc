// SPDX-License-Identifier: BSD-3-Clause
#include <cerrno>
#include <exception>

#include "base/log.h"
#include "nbdkit/call.h"
#include "nbdkit/collections.h"
#include "nbdkit/exported.h"

namespace {

using weft::log::Level;
using weft::nbdkit::say;

int refuse(int code, const char* text) {
  say(Level::kError, text);
  errno = code;
  return -1;
}

}  // namespace

int nbdkit_add_extent(nbdkit_extents* extents, uint64_t offset, uint64_t length, uint32_t type) {
  try {
    switch (extents->add(offset, length, type)) {
      case nbdkit_extents::Outcome::kOk:
        return 0;
      case nbdkit_extents::Outcome::kBehindStart:
        return refuse(ERANGE, "nbdkit_add_extent: the first extent begins behind the range");
      case nbdkit_extents::Outcome::kNotNext:
        return refuse(ERANGE,
                      "nbdkit_add_extent: the extent does not begin where the one before ends");
    }
    return -1;
  } catch (const std::exception&) {
    return refuse(ENOMEM, "nbdkit_add_extent: out of memory");
  }
}

nbdkit_extents* nbdkit_extents_new(uint64_t start, uint64_t end) {
  if (end > INT64_MAX || start >= end) {
    refuse(ERANGE, "nbdkit_extents_new: the start must lie before the end, and both on a disk");
    return nullptr;
  }
  auto* result = new nbdkit_extents;
  result->start = start;
  result->end = end;
  return result;
}

void nbdkit_extents_free(nbdkit_extents* extents) {
  delete extents;
}

size_t nbdkit_extents_count(const nbdkit_extents* extents) {
  return extents->extents.size();
}

nbdkit_extent nbdkit_get_extent(const nbdkit_extents* extents, size_t index) {
  const nbdkit_extents::Extent& extent = extents->extents.at(index);
  return {extent.offset, extent.length, extent.type};
}

int nbdkit_add_export(nbdkit_exports* exports, const char* name, const char* description) {
  try {
    switch (exports->add(name, description)) {
      case nbdkit_exports::Outcome::kOk:
        return 0;
      case nbdkit_exports::Outcome::kTooMany:
        return refuse(EINVAL, "nbdkit_add_export: there are more than 10000 exports");
      case nbdkit_exports::Outcome::kTooLong:
        return refuse(EINVAL, "nbdkit_add_export: a string is longer than 4096 bytes");
    }
    return -1;
  } catch (const std::exception&) {
    return refuse(ENOMEM, "nbdkit_add_export: out of memory");
  }
}

int nbdkit_use_default_export(nbdkit_exports* exports) {
  exports->use_default = true;
  return 0;
}

nbdkit_exports* nbdkit_exports_new(void) {
  return new nbdkit_exports;
}

void nbdkit_exports_free(nbdkit_exports* exports) {
  delete exports;
}

size_t nbdkit_exports_count(const nbdkit_exports* exports) {
  return exports->exports.size();
}

const nbdkit_export nbdkit_get_export(const nbdkit_exports* exports, size_t index) {
  const weft::disk::ExportEntry& entry = exports->exports.at(index);
  return {const_cast<char*>(entry.name.c_str()),
          entry.description.empty() ? nullptr : const_cast<char*>(entry.description.c_str())};
}
