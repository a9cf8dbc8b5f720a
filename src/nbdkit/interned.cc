// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/interned.h"

namespace weft::nbdkit {

const char* InternedStrings::add(std::string_view text) {
  const std::lock_guard lock(mutex_);
  return strings_.emplace_back(text).c_str();
}

}  // namespace weft::nbdkit
