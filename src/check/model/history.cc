// SPDX-License-Identifier: BSD-3-Clause
#include "check/model/history.h"

namespace weft::check {

std::string_view kind_name(Kind kind) {
  switch (kind) {
    case Kind::kRead:
      return "read";
    case Kind::kWrite:
      return "write";
    case Kind::kZero:
      return "zero";
    case Kind::kTrim:
      return "trim";
    case Kind::kCache:
      return "cache";
    case Kind::kFlush:
      return "flush";
    case Kind::kStatus:
      return "status";
  }
  return "unknown";
}

}  // namespace weft::check
