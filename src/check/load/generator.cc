// SPDX-License-Identifier: BSD-3-Clause
#include "check/load/generator.h"

#include <algorithm>

namespace weft::check {

Offered Offered::of(const nbd::ClientResult& negotiated) {
  const auto has = [&](uint16_t flag) { return (negotiated.transmission_flags & flag) != 0; };
  const bool writable = !has(nbd::kReadOnly);
  return {.flush = has(nbd::kSendFlush),
          .fua = has(nbd::kSendFua),
          .zero = writable && has(nbd::kSendWriteZeroes),
          .trim = writable && has(nbd::kSendTrim),
          .cache = has(nbd::kSendCache),
          .status = negotiated.context_id(nbd::kBaseAllocation).has_value(),
          .writable = writable,
          .length_max = negotiated.block_sizes ? negotiated.block_sizes->payload_max
                                               : nbd::kPayloadAdvertisedMax};
}

bool Offered::has(Kind kind) const {
  switch (kind) {
    case Kind::kRead:
      return true;
    case Kind::kWrite:
      return writable;
    case Kind::kZero:
      return zero;
    case Kind::kTrim:
      return trim;
    case Kind::kCache:
      return cache;
    case Kind::kFlush:
      return flush;
    case Kind::kStatus:
      return status;
  }
  return false;
}

Generator::Generator(const Layout& layout, Offered offered, std::array<uint32_t, kKinds> weights,
                     uint32_t fua_percent, uint32_t in_flight)
    : layout_(layout),
      offered_(offered),
      weights_(weights),
      fua_percent_(fua_percent),
      quiet_length_(in_flight + in_flight / 2 + 2),
      tagless_(layout.cells()) {
  for (size_t i = 0; i < kKinds; i++) {
    if (!offered.has(static_cast<Kind>(i))) weights_[i] = 0;
    total_ += weights_[i];
  }
}

Kind Generator::choose_kind(tools::Random& random) const {
  uint64_t at = random.below(std::max(total_, 1u));
  for (size_t i = 0; i < kKinds; i++) {
    if (at < weights_[i]) return static_cast<Kind>(i);
    at -= weights_[i];
  }
  return Kind::kRead;
}

// One cell, or some of a block, or a whole block, or a run that crosses blocks.
void Generator::choose_cells(tools::Random& random, Wish& wish) const {
  const uint32_t in_block = layout_.cells_per_block();
  const uint32_t block = static_cast<uint32_t>(random.below(layout_.blocks()));
  wish.cell = block * in_block + static_cast<uint32_t>(random.below(in_block));
  wish.cells = 1;
  switch (random.below(8)) {
    case 0:
    case 1:
      wish.cells = 1 + static_cast<uint32_t>(random.below(in_block));
      break;
    case 2:
    case 3:
      wish.cell = block * in_block;
      wish.cells = in_block;
      break;
    case 4:
      wish.cells = in_block + 1;
      break;
    default:
      break;
  }
  wish.cells = std::min(wish.cells, layout_.cells() - wish.cell);
  while (wish.cells > 1 && layout_.range(wish.cell, wish.cells).length > offered_.length_max) {
    wish.cells--;
  }
}

Wish Generator::next(tools::Random& random) {
  Wish wish{.kind = choose_kind(random)};
  if (quiet_ > 0) {
    quiet_--;
    wish.kind = offered_.flush && random.below(4) == 0 ? Kind::kFlush : Kind::kRead;
  } else if (wish.kind == Kind::kFlush && random.below(12) == 0) {
    quiet_ = quiet_length_;
  }
  if (wish.kind == Kind::kFlush) return wish;
  choose_cells(random, wish);
  if (changes(wish.kind)) {
    if (wish.kind != Kind::kWrite) {
      for (uint32_t cell = wish.cell; cell < wish.cell + wish.cells; cell++) {
        if (tagless_[cell]) wish.kind = Kind::kWrite;
      }
    }
    wish.fua = offered_.fua && random.below(100) < fua_percent_;
    note(wish);
  }
  return wish;
}

void Generator::note(const Wish& wish) {
  for (uint32_t cell = wish.cell; cell < wish.cell + wish.cells; cell++) {
    tagless_[cell] = wish.kind != Kind::kWrite;
  }
}

}  // namespace weft::check
