// SPDX-License-Identifier: BSD-3-Clause
#include "tools/verify.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cstring>
#include <optional>

#include "base/result.h"

namespace weft::tools {
namespace {

// An entry: bits 0-23 count readers, bit 24 is a change, bits 25-26 the content, bits 32-63 the
// generation.
constexpr uint64_t kReaderMask = (1u << 24) - 1;
constexpr uint64_t kChangeBit = 1u << 24;
constexpr unsigned kContentShift = 25;
constexpr unsigned kGenerationShift = 32;
constexpr uint64_t kEntriesMax = uint64_t{1} << 32;  // 32 GiB of address space

uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

uint64_t seed_key(uint64_t seed) {
  return mix(seed + 0x9e3779b97f4a7c15);
}
uint64_t block_key(uint64_t seed, uint64_t offset) {
  return mix(seed_key(seed) ^ mix(offset + 1));
}

// The words of a block, one after the other.
class Words {
 public:
  Words(uint64_t seed, uint64_t offset, uint32_t generation)
      : first_(offset ^ seed_key(seed)),
        second_(generation ^ block_key(seed, offset)),
        state_(mix(second_)) {}
  uint64_t next() {
    const size_t index = index_++;
    if (index == 0) return first_;
    if (index == 1) return second_;
    state_ += 0x9e3779b97f4a7c15;
    return state_ ^ (state_ >> 29);
  }

 private:
  uint64_t first_;
  uint64_t second_;
  uint64_t state_;
  size_t index_ = 0;
};

uint64_t load_word(ByteSpan block, size_t at) {
  uint64_t word;
  std::memcpy(&word, block.data() + at, sizeof word);
  return word;
}

bool all_zero(ByteSpan block) {
  return block[0] == std::byte{0} &&
         std::memcmp(block.data(), block.data() + 1, block.size() - 1) == 0;
}

// The first byte that is not as tagged, or nothing.
std::optional<size_t> first_difference(ByteSpan block, uint64_t seed, uint64_t offset,
                                       BlockState expected) {
  Words words(seed, offset, expected.generation);
  for (size_t at = 0; at < block.size(); at += sizeof(uint64_t)) {
    const uint64_t wanted = expected.content == BlockContent::kZeroes ? 0 : words.next();
    const uint64_t found = load_word(block, at);
    if (found == wanted) continue;
    size_t byte = 0;
    while (((found ^ wanted) >> (8 * byte) & 0xff) == 0) byte++;  // little-endian machines
    return at + byte;
  }
  return {};
}

std::string describe(ByteSpan block, uint64_t seed, uint64_t offset, BlockState expected,
                     size_t at) {
  if (all_zero(block)) return "zeroes";
  const uint64_t found_offset = load_word(block, 0) ^ seed_key(seed);
  const uint64_t found_generation = load_word(block, 8) ^ block_key(seed, found_offset);
  if (found_generation <= UINT32_MAX) {
    const auto generation = static_cast<uint32_t>(found_generation);
    const bool whole =
        !first_difference(block, seed, found_offset, {BlockContent::kTagged, generation});
    const std::string_view part = whole ? "" : ", not all of it";
    if (found_offset != offset) {
      return fmt::format("the block of offset {}, generation {}{}", found_offset, generation, part);
    }
    if (generation != expected.generation || expected.content == BlockContent::kZeroes) {
      return fmt::format("generation {}{}{}", generation,
                         generation < expected.generation ? " (older)" : "", part);
    }
  }
  std::string bytes;
  for (size_t i = at; i < block.size() && i < at + 16; i++) {
    bytes += fmt::format("{:02x}", std::to_integer<unsigned>(block[i]));
  }
  return fmt::format("bytes {}", bytes);
}

}  // namespace

BlockTable::BlockTable(uint64_t block_count) : block_count_(block_count) {
  void* memory = MAP_FAILED;
  if (block_count <= kEntriesMax) {
    memory = ::mmap(nullptr, block_count * sizeof(uint64_t), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (memory == MAP_FAILED) {
    throw ConfigError(
        fmt::format("--verify: {} blocks are too many to remember (8 bytes each): "
                    "use --length or a larger --block-size",
                    block_count));
  }
  // Zero bytes are valid entries: unread, unchanged, anything.
  entries_ = static_cast<std::atomic<uint64_t>*>(memory);
  static_assert(sizeof *entries_ == sizeof(uint64_t) && std::atomic<uint64_t>::is_always_lock_free);
}

BlockTable::~BlockTable() {
  ::munmap(entries_, block_count_ * sizeof(uint64_t));
}

bool BlockTable::begin_read(uint64_t block, BlockState& state) {
  std::atomic<uint64_t>& entry = entries_[block];
  uint64_t value = entry.load(std::memory_order_relaxed);
  do {
    if (value & kChangeBit) return false;
  } while (!entry.compare_exchange_weak(value, value + 1, std::memory_order_acquire,
                                        std::memory_order_relaxed));
  state.content = static_cast<BlockContent>(value >> kContentShift & 3);
  state.generation = static_cast<uint32_t>(value >> kGenerationShift);
  return true;
}

void BlockTable::end_read(uint64_t block) {
  entries_[block].fetch_sub(1, std::memory_order_release);
}

bool BlockTable::begin_change(uint64_t block, uint32_t& generation) {
  std::atomic<uint64_t>& entry = entries_[block];
  uint64_t value = entry.load(std::memory_order_relaxed);
  if (value & (kChangeBit | kReaderMask)) return false;
  const uint64_t next = (value >> kGenerationShift) + 1;
  if (!entry.compare_exchange_strong(value, next << kGenerationShift | kChangeBit,
                                     std::memory_order_acquire, std::memory_order_relaxed)) {
    return false;
  }
  generation = static_cast<uint32_t>(next);
  return true;
}

void BlockTable::end_change(uint64_t block, BlockContent content) {
  // Nobody else changes an entry while its change bit is set.
  const uint64_t generation = entries_[block].load(std::memory_order_relaxed) >> kGenerationShift;
  entries_[block].store(generation << kGenerationShift | static_cast<uint64_t>(content)
                                                             << kContentShift,
                        std::memory_order_release);
}

void fill_block(MutableByteSpan block, uint64_t seed, uint64_t offset, uint32_t generation) {
  Words words(seed, offset, generation);
  for (size_t at = 0; at < block.size(); at += sizeof(uint64_t)) {
    const uint64_t word = words.next();
    std::memcpy(block.data() + at, &word, sizeof word);
  }
}

std::string check_block(ByteSpan block, uint64_t seed, uint64_t offset, BlockState expected) {
  if (expected.content == BlockContent::kAnything) return "";
  const auto at = first_difference(block, seed, offset, expected);
  if (!at) return "";
  const std::string wanted = expected.content == BlockContent::kZeroes
                                 ? "zeroes"
                                 : fmt::format("generation {}", expected.generation);
  return fmt::format("offset {} (byte {} of the block at {}): expected {}, found {}", offset + *at,
                     *at, offset, wanted, describe(block, seed, offset, expected, *at));
}

}  // namespace weft::tools
