# SPDX-License-Identifier: BSD-3-Clause
# Makes the page's sources part of the program: cmake -DFOLDER=... -DOUTPUT=... -P embed.cmake
# writes a C++ file with a string for each. They stay files of their own, that editors understand;
# the compiler's #embed is not there yet in all that build us.
set(text "// Made by embed.cmake.\n#include \"check/report/page.h\"\n\nnamespace weft::check {\n\n")
foreach(entry "kPageHtml|page.html" "kPageCss|page.css" "kPageJs|page.js"
              "kHistoryJs|history.js" "kFigureJs|figure.js" "kPainterJs|painter.js"
              "kTimelineJs|timeline.js")
  string(REPLACE "|" ";" entry "${entry}")
  list(GET entry 0 name)
  list(GET entry 1 file)
  file(READ ${FOLDER}/${file} content)
  string(FIND "${content}" ")page\"" clash)
  string(FIND "${content}" "</script" script)
  if(NOT clash EQUAL -1 OR (file MATCHES "js$" AND NOT script EQUAL -1))
    message(FATAL_ERROR "${file} contains what would end its string: )page\" or </script")
  endif()
  string(APPEND text "const std::string_view ${name} = R\"page(${content})page\";\n\n")
endforeach()
string(APPEND text "}  // namespace weft::check\n")
file(WRITE ${OUTPUT} "${text}")
