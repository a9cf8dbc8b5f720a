// SPDX-License-Identifier: BSD-3-Clause
// The sources of the HTML page, put into the program by embed.cmake.
#pragma once

#include <string_view>

namespace weft::check {

extern const std::string_view kPageHtml;   // page.html: the frame, with {{name}} for what is put in
extern const std::string_view kPageCss;    // page.css
extern const std::string_view kPageJs;     // page.js: verdict, tests, findings
extern const std::string_view kHistoryJs;  // history.js: what both pictures know of operations
extern const std::string_view kFigureJs;   // figure.js: the picture of one finding
extern const std::string_view kPainterJs;  // painter.js: how the timeline is drawn
extern const std::string_view kTimelineJs;  // timeline.js: the history on a canvas

}  // namespace weft::check
