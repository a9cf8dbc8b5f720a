# SPDX-License-Identifier: BSD-3-Clause
# The functions with which every folder of src/ declares what it has.

add_library(weft_flags INTERFACE)
target_include_directories(weft_flags INTERFACE ${PROJECT_SOURCE_DIR}/src)
target_compile_definitions(weft_flags INTERFACE _GNU_SOURCE _FILE_OFFSET_BITS=64
                           WEFT_VERSION="${PROJECT_VERSION}")
target_compile_options(weft_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor
                       -Wimplicit-fallthrough -Werror=return-type -Werror=unused-result
                       -fno-omit-frame-pointer)
if(WEFT_SANITIZE)
  target_compile_options(weft_flags INTERFACE -fsanitize=${WEFT_SANITIZE} -fno-sanitize-recover=all)
  target_link_options(weft_flags INTERFACE -fsanitize=${WEFT_SANITIZE})
endif()
if(WEFT_FUZZ)
  # Coverage for everything; the fuzz programs themselves add libFuzzer's main().
  target_compile_options(weft_flags INTERFACE -fsanitize=fuzzer-no-link)
  target_link_options(weft_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

# weft_library(FOLDER SOURCES... LINK libraries...): the static library weft_FOLDER of src/FOLDER.
function(weft_library folder)
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_library(weft_${folder} STATIC ${A_SOURCES})
  target_link_libraries(weft_${folder} PUBLIC weft_flags ${A_LINK})
endfunction()

# weft_test(NAME SOURCES... LINK libraries...): a GoogleTest program, each TEST a ctest of its own.
function(weft_test name)
  if(NOT WEFT_TESTS)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SOURCES;LINK;LABELS" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_LINK} GTest::gmock GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST PROPERTIES TIMEOUT 120
                       LABELS "${A_LABELS}")
endfunction()

# weft_program(NAME SOURCES... LINK libraries...): an installed program in bin/.
function(weft_program name)
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_LINK})
  install(TARGETS ${name} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()

# weft_fuzz(NAME SOURCES... LINK libraries...): a libFuzzer program (preset fuzz) in fuzz/.
function(weft_fuzz name)
  if(NOT WEFT_FUZZ)
    return()
  endif()
  cmake_parse_arguments(A "" "" "SOURCES;LINK" ${ARGN})
  add_executable(${name} ${A_SOURCES})
  target_link_libraries(${name} PRIVATE ${A_LINK})
  target_link_options(${name} PRIVATE -fsanitize=fuzzer)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/fuzz)
endfunction()

# weft_manual(FILE.md SECTION): a manual page, built by weft_manuals() and installed.
set_property(GLOBAL PROPERTY weft_manual_sources "")
function(weft_manual markdown section)
  set_property(GLOBAL APPEND PROPERTY weft_manual_sources
               "${CMAKE_CURRENT_SOURCE_DIR}/${markdown}|${section}")
endfunction()

function(weft_manuals)
  find_program(WEFT_PANDOC pandoc)
  if(NOT WEFT_PANDOC)
    message(STATUS "pandoc not found: the manual pages are not built (apt-get install pandoc)")
    return()
  endif()
  get_property(entries GLOBAL PROPERTY weft_manual_sources)
  set(pages "")
  foreach(entry IN LISTS entries)
    string(REPLACE "|" ";" entry "${entry}")
    list(GET entry 0 source)
    list(GET entry 1 section)
    get_filename_component(name ${source} NAME_WE)
    set(page ${CMAKE_BINARY_DIR}/man/${name}.${section})
    add_custom_command(OUTPUT ${page} DEPENDS ${source}
      COMMAND ${WEFT_PANDOC} --standalone --from markdown-smart --to man
              --metadata footer="weft ${PROJECT_VERSION}" --output ${page} ${source}
      COMMENT "Manual page ${name}(${section})" VERBATIM)
    list(APPEND pages ${page})
    install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section} OPTIONAL)
  endforeach()
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/man)
  if(pages)
    add_custom_target(manuals ALL DEPENDS ${pages})
  endif()
endfunction()
