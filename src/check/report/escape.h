// SPDX-License-Identifier: BSD-3-Clause
// Text from servers, made safe for the places where a report shows it. All take any bytes and
// return UTF-8: what is not UTF-8 becomes U+FFFD.
#pragma once

#include <string>
#include <string_view>

namespace weft::check {

// Control characters (C0, DEL, C1, those that turn the direction of writing) become U+FFFD too:
// nothing a terminal or XML 1.0 would choke on.
// A newline or tab becomes a space; with `keep_lines` both stay.
[[nodiscard]] std::string clean_text(std::string_view text, bool keep_lines = false);
// For text and attributes of XML and HTML: clean, and &<>"' as entities. In attributes that must
// keep their lines this is not enough: a parser makes newlines of attributes into spaces.
[[nodiscard]] std::string markup(std::string_view text, bool keep_lines = false);
// JSON as the content of an HTML <script>: no "</script" nor "<!--" can end it or change its mode.
[[nodiscard]] std::string json_in_script(std::string_view json);

}  // namespace weft::check
