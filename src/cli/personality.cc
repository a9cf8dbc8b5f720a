// SPDX-License-Identifier: BSD-3-Clause
#include "cli/personality.h"

#include <fmt/format.h>

namespace weft::cli {

const Personality& weft_personality() {
  static constexpr Personality kWeft{"weft", WEFT_VERSION, log::Form::kWeft, false};
  return kWeft;
}

const Personality& nbdkit_personality() {
  // The release whose command line this is.
  static constexpr Personality kNbdkit{"nbdkit", "1.46.0", log::Form::kNbdkit, true};
  return kNbdkit;
}

const Personality& choose_personality(std::string_view program, std::vector<std::string>& words) {
  const size_t slash = program.rfind('/');
  if (slash != std::string_view::npos) program.remove_prefix(slash + 1);
  const Personality* chosen = program == "nbdkit" ? &nbdkit_personality() : &weft_personality();
  for (size_t i = 0; i < words.size() && words[i] != "--";) {
    std::string name;
    size_t count = 1;
    if (words[i] == "--as" && i + 1 < words.size()) {
      name = words[i + 1];
      count = 2;
    } else if (words[i].starts_with("--as=")) {
      name = words[i].substr(5);
    } else {
      i++;
      continue;
    }
    if (name == "weft") {
      chosen = &weft_personality();
    } else if (name == "nbdkit") {
      chosen = &nbdkit_personality();
    } else {
      throw UsageError(fmt::format("--as={}: choose weft or nbdkit", name));
    }
    const auto first = words.begin() + static_cast<ptrdiff_t>(i);
    words.erase(first, first + static_cast<ptrdiff_t>(count));
  }
  return *chosen;
}

std::string start_error_line(const Personality& personality, std::string_view name,
                             const std::exception& error) {
  const bool usage = dynamic_cast<const UsageError*>(&error) != nullptr;
  return fmt::format("{}: {}{}\n", name, personality.nbdkit && !usage ? "error: " : "",
                     error.what());
}

}  // namespace weft::cli
