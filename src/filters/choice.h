// SPDX-License-Identifier: BSD-3-Clause
// A parameter that is one word of a few.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>

#include "base/result.h"

namespace weft::filters {

template <typename T>
struct Choice {
  std::string_view word;
  T value;
};

// The value that `word` stands for. Throws ConfigError with the words there are.
template <typename T, size_t N>
T choose(std::string_view filter, std::string_view key, std::string_view word,
         const Choice<T> (&choices)[N]) {
  std::string words;
  for (size_t i = 0; i < N; i++) {
    if (choices[i].word == word) return choices[i].value;
    words += choices[i].word;
    if (i + 2 < N) words += ", ";
    if (i + 2 == N) words += " or ";
  }
  throw ConfigError(
      fmt::format("{}: {}={}: there is no such mode: give {}", filter, key, word, words));
}

}  // namespace weft::filters
