// SPDX-License-Identifier: BSD-3-Clause
// Record: one entry of the log filter, as text for the file and for the script.
#pragma once

#include <fmt/format.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/extents.h"
#include "base/result.h"

namespace weft::filters {

// A call that begins, a call that has returned, and an event.
enum class RecordType : uint8_t { kEnter, kLeave, kPrint };

struct Record {
  RecordType type;
  const char* action;
  uint64_t connection = 0;  // 0: of none
  uint64_t id = 0;          // of a call: pairs its two records; 0: an event
  std::string parameters;   // "key=value key=value", quoted for a shell

  // "2020-08-06 02:07:23.080415 connection=1 Read id=1 offset=0x0 count=0x200 ...\n"
  [[nodiscard]] std::string line(std::chrono::system_clock::time_point when) const;
  // "act=Read\ntype=ENTER\n...": assignments of bash.
  [[nodiscard]] std::string assignments() const;
};

// `text` as one word of bash, on one line.
std::string quoted(std::string_view text);
// "return=0", or "return=-1 error=EIO".
std::string outcome(const Status& status);
// "extents=(OFFSET LENGTH "hole,zero" ...)"
std::string described(const Extents& extents);

}  // namespace weft::filters
