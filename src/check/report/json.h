// SPDX-License-Identifier: BSD-3-Clause
// The parts of a report as JSON, for json_report() and for the page.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "check/report/report.h"

namespace weft::check {

using Json = nlohmann::ordered_json;  // fields stay in the order in which they are documented

// Everything but the histories.
[[nodiscard]] Json report_json(const Report& report);
// The word for a state in JSON and in the page: "passed", "failed", "warned", ...
[[nodiscard]] std::string_view state_word(State state);
// Never throws: bytes that are not UTF-8 become U+FFFD. `indent` as in Json::dump.
[[nodiscard]] std::string dump(const Json& json, int indent = -1);

}  // namespace weft::check
