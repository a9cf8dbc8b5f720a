// SPDX-License-Identifier: BSD-3-Clause
#include "filters/cow/overlay.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "disk/turn.h"

namespace weft::filters::cow {
namespace {

using disk::Turn;
using engine::BlockingKind;
using engine::BlockingReason;
using engine::Loop;

constexpr size_t kAlignment = 4096;           // of our buffers, for layers with O_DIRECT
constexpr uint64_t kPieceSize = 256 << 10;    // bytes moved at once
constexpr uint64_t kCopySizeMin = 256 << 10;  // bytes of neighbouring blocks copied together

// Never written.
alignas(kAlignment) constinit std::byte zeroes[kPieceSize] = {};

struct Free {
  void operator()(std::byte* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<std::byte, Free>;

Buffer make_buffer(uint64_t size) {
  return Buffer(static_cast<std::byte*>(
      std::aligned_alloc(kAlignment, (size + kAlignment - 1) & ~(kAlignment - 1))));
}

Range common(Range a, Range b) {
  const uint64_t begin = std::max(a.offset, b.offset);
  const uint64_t end = std::min(a.end(), b.end());
  return begin < end ? Range{begin, end - begin} : Range{begin, 0};
}

}  // namespace

Overlay::Overlay(engine::BlockingPool& pool, const Settings& settings, uint64_t size)
    : pool_(pool),
      settings_(settings),
      size_(size),
      lane_(pool),
      order_(settings.block_size),
      copies_(settings.block_size) {}

Task<Status> Overlay::make_scratch(Loop& loop) {
  const engine::AsyncMutex::Guard guard = co_await prepare_mutex_.lock(loop);
  if (scratch_) co_return Status{};
  const auto make = [this]() -> std::string {
    try {
      scratch_ = std::make_unique<disk::ScratchFile>(pool_, "cow");
      return {};
    } catch (const ConfigError& error) {
      return error.what();
    }
  };
  const std::string failure =
      co_await lane_.run(loop, BlockingReason::kOpen, BlockingKind::kParallel, make);
  if (failure.empty()) {
    prepared_.store(true, std::memory_order_release);
    co_return Status{};
  }
  log::error("{}", failure);
  co_return fail(EIO, "there is no place for the overlay");
}

Range Overlay::blocks_around(Range range) const {
  Range result = range.rounded_out(settings_.block_size);
  result.length = std::min(result.length, size_ - result.offset);
  return result;
}

Range Overlay::whole_blocks(Range range) const {
  const uint64_t mask = settings_.block_size - 1;
  const uint64_t first = (range.offset + mask) & ~mask;
  const uint64_t end = range.end() == size_ ? size_ : range.end() & ~mask;
  return first < end ? Range{first, end - first} : Range{first, 0};
}

Overlay::Piece Overlay::piece(Range range) const {
  const Range blocks = range.rounded_out(settings_.block_size);
  const BlockMap::Run run =
      map_.run(blocks.offset / settings_.block_size, blocks.length / settings_.block_size);
  const uint64_t end = blocks.offset + run.count * settings_.block_size;
  return {run.state, std::min(end, range.end()) - range.offset};
}

bool Overlay::all(Range range, BlockState state) const {
  const Piece first = piece(range);
  return first.state == state && first.length == range.length;
}

void Overlay::set(Range blocks, BlockState state) {
  const Range rounded = blocks.rounded_out(settings_.block_size);
  map_.set(rounded.offset / settings_.block_size, rounded.length / settings_.block_size, state);
}

// ---- Reading ----------------------------------------------------------------------------------

Task<Status> Overlay::read_here(Loop& loop, uint64_t offset, MutableByteSpan into) {
  return scratch_->read(loop, offset, into);
}

Task<Status> Overlay::read(Loop& loop, disk::Disk& below, Range range, std::byte* into) {
  while (!range.empty()) {
    const Piece next = piece(range);
    const MutableByteSpan part(into, next.length);
    Status done;
    switch (next.state) {
      case BlockState::kBelow:
        done = co_await below.read(range.offset, part);
        break;
      case BlockState::kHere:
        done = co_await scratch_->read(loop, range.offset, part);
        break;
      case BlockState::kZero:
        std::memset(into, 0, next.length);
        break;
    }
    if (!done) co_return done;
    into += next.length;
    range = {range.offset + next.length, range.length - next.length};
  }
  co_return Status{};
}

Task<Status> Overlay::read_copying(Loop& loop, disk::Disk& below, Range range, std::byte* into) {
  while (!range.empty()) {
    const Piece next = piece(range);
    Range part{range.offset, next.length};
    bool copied = false;
    if (next.state == BlockState::kBelow) {
      // Up to the next border of a group of blocks.
      const uint64_t group = std::max(settings_.block_size, kCopySizeMin);
      part.length = std::min(part.length, group - part.offset % group);
      copied = co_await copy_up(loop, below, blocks_around(part), part, into);
    }
    if (!copied && into) {
      const Status done = co_await read(loop, below, part, into);
      if (!done) co_return done;
    }
    if (into) into += part.length;
    range = {part.end(), range.length - part.length};
  }
  co_return Status{};
}

Task<bool> Overlay::copy_up(Loop& loop, disk::Disk& below, Range blocks, Range range,
                            std::byte* into) {
  Turn turn(copies_, blocks, loop);
  // Nobody waits for us, and what is being changed comes here without our help.
  if (!turn.try_take() || !all(blocks, BlockState::kBelow)) co_return false;
  if (!co_await prepare(loop)) co_return false;
  const Buffer buffer = make_buffer(std::min(blocks.length, kPieceSize));
  if (!buffer) co_return false;
  for (uint64_t offset = blocks.offset; offset < blocks.end();) {
    const Range part{offset, std::min(kPieceSize, blocks.end() - offset)};
    // A failure here may lie outside of what was asked for: the caller reads that again by itself.
    if (!co_await below.read(part.offset, {buffer.get(), part.length})) co_return false;
    const Range asked = common(part, range);
    if (into && !asked.empty()) {
      std::memcpy(into + (asked.offset - range.offset), buffer.get() + (asked.offset - part.offset),
                  asked.length);
    }
    const Status written = co_await scratch_->write(loop, part.offset, {buffer.get(), part.length});
    if (!written) {
      if (!copy_failed_.exchange(true)) {
        log::warning("cow: what is read cannot be kept in the overlay: {}",
                     errno_text(written.error().code));
      }
      co_return false;
    }
    offset = part.end();
  }
  set(blocks, BlockState::kHere);
  co_return true;
}

Task<bool> Overlay::copies_reads(Loop& loop) {
  switch (settings_.on_read.when) {
    case CopyOnRead::When::kNever:
      co_return false;
    case CopyOnRead::When::kAlways:
      co_return true;
    case CopyOnRead::When::kIfPathExists:
      break;
  }
  co_return co_await lane_.run(loop, BlockingReason::kMetadata, BlockingKind::kShort, [this] {
    return ::access(settings_.on_read.path.c_str(), F_OK) == 0;
  });
}

// ---- Changing ---------------------------------------------------------------------------------

Task<Status> Overlay::write(Loop& loop, disk::Disk& below, uint64_t offset, ByteSpan from) {
  const Range range{offset, from.size()};
  if (copies()) return write_in_turn(loop, below, range, from.data());
  if (all(range, BlockState::kHere)) return scratch_->write(loop, offset, from);
  return write_now(loop, below, range, from.data());
}

Task<Status> Overlay::write_in_turn(Loop& loop, disk::Disk& below, Range range,
                                    const std::byte* from) {
  Turn turn(copies_, range, loop);
  co_await turn;
  co_return co_await write_now(loop, below, range, from);
}

// A block of which only a part is written, and which is not here yet, is brought here as a whole;
// all the rest goes straight to its place.
Task<Status> Overlay::write_now(Loop& loop, disk::Disk& below, Range range, const std::byte* from) {
  if (const Status ready = co_await prepare(loop); !ready) co_return ready;
  const Range whole = range;
  const Range first = blocks_around({range.offset, 1});
  if ((range.offset != first.offset || range.end() < first.end()) &&
      !all(first, BlockState::kHere)) {
    const Status done = co_await fill_block(loop, below, first, whole, from);
    if (!done || range.end() <= first.end()) co_return done;
    range = {first.end(), range.end() - first.end()};
  }
  const Range last = blocks_around({range.end() - 1, 1});
  if (range.end() != last.end() && !all(last, BlockState::kHere)) {
    const Status done = co_await fill_block(loop, below, last, whole, from);
    if (!done || range.offset >= last.offset) co_return done;
    range.length = last.offset - range.offset;
  }
  co_return co_await write_direct(loop, range, from + (range.offset - whole.offset));
}

// Whole blocks, and parts of such that are here.
Task<Status> Overlay::write_direct(Loop& loop, Range range, const std::byte* from) {
  const Status done = co_await scratch_->write(loop, range.offset, {from, range.length});
  if (done) set(range, BlockState::kHere);
  co_return done;
}

// Writes the whole block: the bytes of `range` from `from`, the others as they are.
Task<Status> Overlay::fill_block(Loop& loop, disk::Disk& below, Range block, Range range,
                                 const std::byte* from) {
  const bool is_zero = all(block, BlockState::kZero);
  const Buffer buffer = make_buffer(std::min(block.length, kPieceSize));
  if (!buffer) co_return fail(ENOMEM);
  for (uint64_t offset = block.offset; offset < block.end();) {
    const Range part{offset, std::min(kPieceSize, block.end() - offset)};
    const Range changed = common(part, range);
    if (changed != part) {
      if (is_zero) {
        std::memset(buffer.get(), 0, part.length);
      } else {
        const Status read = co_await below.read(part.offset, {buffer.get(), part.length});
        if (!read) co_return read;
      }
    }
    if (!changed.empty()) {
      std::memcpy(buffer.get() + (changed.offset - part.offset),
                  from + (changed.offset - range.offset), changed.length);
    }
    const Status written = co_await scratch_->write(loop, part.offset, {buffer.get(), part.length});
    if (!written) co_return written;
    offset = part.end();
  }
  set(block, BlockState::kHere);
  co_return Status{};
}

Task<Status> Overlay::write_zeroes(Loop& loop, disk::Disk& below, Range range) {
  while (!range.empty()) {
    const uint64_t length = std::min(range.length, kPieceSize);
    const Status done = co_await write_now(loop, below, {range.offset, length}, zeroes);
    if (!done) co_return done;
    range = {range.offset + length, range.length - length};
  }
  co_return Status{};
}

Task<Status> Overlay::zero(Loop& loop, disk::Disk& below, Range range, disk::ZeroFlags flags) {
  if (flags.fast && !flags.may_trim) return fail(ENOTSUP, "without holes zeroes are written");
  if (copies()) return zero_in_turn(loop, below, range, flags);
  return zero_now(loop, below, range, flags);
}

Task<Status> Overlay::zero_in_turn(Loop& loop, disk::Disk& below, Range range,
                                   disk::ZeroFlags flags) {
  Turn turn(copies_, range, loop);
  co_await turn;
  co_return co_await zero_now(loop, below, range, flags);
}

Task<Status> Overlay::zero_now(Loop& loop, disk::Disk& below, Range range, disk::ZeroFlags flags) {
  if (!flags.may_trim) co_return co_await write_zeroes(loop, below, range);
  if (all(range, BlockState::kZero)) co_return Status{};
  const Range middle = whole_blocks(range);
  if (middle.empty()) {
    // Less than two blocks, and no whole one.
    if (flags.fast) co_return fail(ENOTSUP, "a part of a block is zeroed by writing");
    co_return co_await write_zeroes(loop, below, range);
  }
  const Range head{range.offset, middle.offset - range.offset};
  const Range tail{middle.end(), range.end() - middle.end()};
  Status done = co_await zero_blocks(loop, middle);
  for (const Range part : {head, tail}) {
    if (!done || part.empty() || all(part, BlockState::kZero)) continue;
    done = co_await write_zeroes(loop, below, part);
  }
  co_return done;
}

Task<Status> Overlay::zero_blocks(Loop& loop, Range blocks) {
  const Range rounded = blocks.rounded_out(settings_.block_size);
  const bool stored = map_.any(rounded.offset / settings_.block_size,
                               rounded.length / settings_.block_size, BlockState::kHere);
  set(blocks, BlockState::kZero);
  if (!stored) co_return Status{};
  // What stays in the file when this fails is not looked at any more.
  const Status released = co_await scratch_->release(loop, blocks);
  if (!released) {
    log::debug("cow: the overlay's space is not given back: {}", errno_text(released.error().code));
  }
  co_return Status{};
}

Task<Status> Overlay::trim(Loop& loop, Range range) {
  const Range blocks = whole_blocks(range);
  if (blocks.empty()) co_return Status{};
  Turn turn(copies_, blocks, loop);
  if (copies()) co_await turn;
  co_return co_await zero_blocks(loop, blocks);
}

}  // namespace weft::filters::cow
