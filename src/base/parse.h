// SPDX-License-Identifier: BSD-3-Clause
// Values of options and parameters as text. `what` names the option or the key as the user wrote it
// ("size", "--threads"). Every function throws ConfigError with one line that names the thing, the
// value, the reason and the mend. The grammar is that of nbdkit.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <string_view>

namespace weft {

// Bytes: a decimal number, and then at most one letter: b (bytes), s (512 byte sectors), or k, m,
// g, t, p, e (powers of 1024), in either case. At most 2^63 - 1.
[[nodiscard]] uint64_t parse_size(std::string_view what, std::string_view value);

// 1, true, t, yes, y, on; 0, false, f, no, n, off; in either case.
[[nodiscard]] bool parse_bool(std::string_view what, std::string_view value);

// A number as C writes it: decimal, hexadecimal after 0x, octal after 0. No sign.
[[nodiscard]] uint64_t parse_unsigned(std::string_view what, std::string_view value,
                                      uint64_t max = std::numeric_limits<uint64_t>::max());

// The same with a sign.
[[nodiscard]] int64_t parse_int(std::string_view what, std::string_view value,
                                int64_t min = std::numeric_limits<int64_t>::min(),
                                int64_t max = std::numeric_limits<int64_t>::max());

// A time: seconds, or a number followed by s, ms, us (or µs) or ns; fractions are allowed. At most
// a hundred years.
[[nodiscard]] std::chrono::nanoseconds parse_delay(std::string_view what, std::string_view value);

// From 0 to 1: a number (0.1, 1e-3), a percentage (10%), or odds of one number in another (1:10).
[[nodiscard]] double parse_probability(std::string_view what, std::string_view value);

}  // namespace weft
