// SPDX-License-Identifier: BSD-3-Clause
// Generator: what the connections of a Load ask for.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "check/load/layout.h"
#include "check/model/history.h"
#include "nbd/client_handshake.h"
#include "tools/workload.h"

namespace weft::check {

inline constexpr size_t kKinds = 7;

// One operation that is to be done. `cells` is 0 for a flush.
struct Wish {
  Kind kind = Kind::kFlush;
  uint32_t cell = 0;
  uint32_t cells = 0;
  bool fua = false;
};

// What the server offers, as far as operations are concerned.
struct Offered {
  bool flush = false, fua = false, zero = false, trim = false, cache = false, status = false;
  bool writable = true;
  uint64_t length_max = 32 << 20;  // bytes of a request

  [[nodiscard]] static Offered of(const nbd::ClientResult& negotiated);
  [[nodiscard]] bool has(Kind kind) const;
};

// Now and then a flush begins a quiet time, with nothing but reads and flushes: what was in flight
// meanwhile must be covered by the next flush, though nothing seems to be new.
//
// Zeroes are all alike, and a trim makes a content unknown: at most one of them is asked for on a
// cell between two writes, so that what a read sees tells where it comes from.
class Generator {
 public:
  Generator(const Layout& layout, Offered offered, std::array<uint32_t, kKinds> weights,
            uint32_t fua_percent, uint32_t in_flight);

  [[nodiscard]] Wish next(tools::Random& random);
  // A change was sent that next() did not choose.
  void note(const Wish& wish);

 private:
  [[nodiscard]] Kind choose_kind(tools::Random& random) const;
  void choose_cells(tools::Random& random, Wish& wish) const;

  const Layout& layout_;
  const Offered offered_;
  std::array<uint32_t, kKinds> weights_;
  uint32_t total_ = 0;
  const uint32_t fua_percent_;
  const uint32_t quiet_length_;  // operations, of all connections
  uint32_t quiet_ = 0;           // that are left of a quiet time
  std::vector<bool> tagless_;    // by cell: the last change sent was a zero or a trim
};

}  // namespace weft::check
