// SPDX-License-Identifier: BSD-3-Clause
// InternedStrings: C strings given to a plugin that live as long as this object does.
#pragma once

#include <cstddef>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

namespace weft::nbdkit {

// Thread-safe.
class InternedStrings {
 public:
  // A copy with a terminating NUL; what follows a NUL in `text` stays part of it. Equal texts give
  // the same string: a plugin may ask for one at every request. Throws std::bad_alloc.
  const char* add(std::string_view text);

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  std::mutex mutex_;
  std::unordered_set<std::string, Hash, std::equal_to<>> strings_;  // guarded
};

}  // namespace weft::nbdkit
