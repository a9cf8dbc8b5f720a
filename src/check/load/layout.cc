// SPDX-License-Identifier: BSD-3-Clause
#include "check/load/layout.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

namespace weft::check {
namespace {

constexpr uint64_t kCellMin = 16;  // bytes: holds a whole word wherever it begins
constexpr size_t kWord = sizeof(uint64_t);

// Where the cells of a block of 4096 begin, when any offset will do: some even, some not, some
// straddling a sector.
constexpr std::array<uint64_t, 7> kUnevenBounds = {0, 24, 512, 1000, 1543, 2048, 4077};

// Mixes all bits (the finalizer of splitmix64).
constexpr uint64_t mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// The word of the export's number `word`, as 8 bytes in the machine's order: the tag, and a check
// sum that depends on the place.
uint64_t word_of(Tag tag, uint64_t salt, uint64_t word) {
  if (tag == kZeroTag) return 0;
  return uint64_t{tag} << 32 | (mix(mix(word << 32 ^ tag) + salt) & 0xffffffff);
}

std::optional<Tag> tag_of(uint64_t value, uint64_t salt, uint64_t word) {
  const Tag tag = static_cast<Tag>(value >> 32);
  if (tag == kGarbageTag || value != word_of(tag, salt, word)) return std::nullopt;
  return tag;
}

std::byte byte_of(Tag tag, uint64_t salt, uint64_t offset) {
  const uint64_t word = word_of(tag, salt, offset / kWord);
  std::byte bytes[kWord];
  std::memcpy(bytes, &word, kWord);
  return bytes[offset % kWord];
}

// A run of bytes of one tag, or of none (not recognised).
struct Run {
  size_t begin;
  size_t end;
  std::optional<Tag> tag;
};

void extend(std::vector<Run>& runs, size_t begin, size_t end, std::optional<Tag> tag) {
  if (!runs.empty() && runs.back().tag == tag && runs.back().end == begin) {
    runs.back().end = end;
  } else {
    runs.push_back({begin, end, tag});
  }
}

}  // namespace

Layout::Layout(uint64_t offset, uint32_t blocks, uint32_t block_size, uint32_t granularity) {
  std::vector<uint64_t> within;
  for (const uint64_t bound : kUnevenBounds) {
    const uint64_t scaled = bound * block_size / 4096 / granularity * granularity;
    const uint64_t cell_min = std::max<uint64_t>(kCellMin, granularity);
    if (scaled + cell_min > block_size) continue;
    if (within.empty() || scaled >= within.back() + cell_min) within.push_back(scaled);
  }
  cells_per_block_ = static_cast<uint32_t>(within.size());
  for (uint32_t block = 0; block < blocks; block++) {
    for (const uint64_t bound : within) {
      bounds_.push_back(offset + uint64_t{block} * block_size + bound);
    }
  }
  bounds_.push_back(offset + uint64_t{blocks} * block_size);
}

std::vector<CellPlace> Layout::places() const {
  std::vector<CellPlace> places;
  for (uint32_t cell = 0; cell < cells(); cell++) {
    const Range where = range(cell);
    places.push_back({where.offset, static_cast<uint32_t>(where.length)});
  }
  return places;
}

void fill(Tag tag, uint64_t salt, uint64_t offset, MutableByteSpan into) {
  for (size_t i = 0; i < into.size();) {
    const uint64_t at = offset + i;
    if (at % kWord == 0 && into.size() - i >= kWord) {
      const uint64_t word = word_of(tag, salt, at / kWord);
      std::memcpy(&into[i], &word, kWord);
      i += kWord;
    } else {
      into[i++] = byte_of(tag, salt, at);
    }
  }
}

void recognise(uint32_t cell, uint64_t salt, uint64_t offset, ByteSpan bytes, Candidates& known,
               std::vector<Observation>& into) {
  // Whole words first; then each run of bytes between them is taken for what stands beside it, if
  // it can be.
  std::vector<Run> runs;
  size_t i = 0;
  while (i < bytes.size()) {
    const uint64_t at = offset + i;
    if (at % kWord == 0 && bytes.size() - i >= kWord) {
      uint64_t value;
      std::memcpy(&value, &bytes[i], kWord);
      extend(runs, i, i + kWord, tag_of(value, salt, at / kWord));
      i += kWord;
    } else {
      extend(runs, i, i + 1, std::nullopt);
      i++;
    }
  }
  const auto explains = [&](Tag tag, size_t begin, size_t end) {
    for (size_t k = begin; k < end; k++) {
      if (bytes[k] != byte_of(tag, salt, offset + k)) return false;
    }
    return true;
  };
  // A byte alone could be of two tags by chance; a whole word cannot. So the first and the last
  // whole word stand for the cell's ends.
  const size_t first_word = (kWord - offset % kWord) % kWord;
  const size_t last_word_end = bytes.size() - (offset + bytes.size()) % kWord;
  std::vector<Run> settled;
  std::optional<std::vector<Tag>> candidates;
  bool garbage = false;
  for (size_t r = 0; r < runs.size(); r++) {
    const Run& run = runs[r];
    if (run.tag) {
      extend(settled, run.begin, run.end, run.tag);
      continue;
    }
    std::optional<Tag> tag;
    if (r > 0 && runs[r - 1].tag && explains(*runs[r - 1].tag, run.begin, run.end)) {
      tag = runs[r - 1].tag;
    } else if (r + 1 < runs.size() && runs[r + 1].tag &&
               explains(*runs[r + 1].tag, run.begin, run.end)) {
      tag = runs[r + 1].tag;
    } else {
      // Torn inside a word: any byte may be of any write that could be seen now.
      if (!candidates) candidates = known.candidates(cell);
      for (size_t k = run.begin; k < run.end && !garbage; k++) {
        garbage = std::ranges::none_of(*candidates, [&](Tag candidate) {
          return bytes[k] == byte_of(candidate, salt, offset + k);
        });
      }
    }
    extend(settled, run.begin, run.end, tag);
  }
  if (garbage) {
    into.push_back({cell, kGarbageTag, Part::kWhole});
    return;
  }
  for (const Run& run : settled) {
    if (!run.tag) continue;
    const bool head = run.begin <= first_word;
    const bool tail = run.end >= last_word_end;
    const Part part = head && tail ? Part::kWhole
                      : head       ? Part::kHead
                      : tail       ? Part::kTail
                                   : Part::kMiddle;
    into.push_back({cell, *run.tag, part});
  }
}

}  // namespace weft::check
