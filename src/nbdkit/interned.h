// SPDX-License-Identifier: BSD-3-Clause
// InternedStrings: C strings given to a plugin that live as long as this object does.
#pragma once

#include <deque>
#include <mutex>
#include <string>
#include <string_view>

namespace weft::nbdkit {

// Thread-safe.
class InternedStrings {
 public:
  // A copy with a terminating NUL; what follows a NUL in `text` stays part of it.
  const char* add(std::string_view text);

 private:
  std::mutex mutex_;
  std::deque<std::string> strings_;
};

}  // namespace weft::nbdkit
