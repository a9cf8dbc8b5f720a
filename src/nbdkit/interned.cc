// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/interned.h"

namespace weft::nbdkit {

const char* InternedStrings::add(std::string_view text) {
  const std::lock_guard lock(mutex_);
  const auto found = strings_.find(text);
  return (found != strings_.end() ? found : strings_.emplace(text).first)->c_str();
}

}  // namespace weft::nbdkit
