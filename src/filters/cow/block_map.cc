// SPDX-License-Identifier: BSD-3-Clause
#include "filters/cow/block_map.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace weft::filters::cow {

void BlockMap::Blocks::set(uint64_t first, uint64_t count, BlockState state) {
  for (uint64_t i = first; i < first + count; i++) {
    counts[static_cast<size_t>(states[i])]--;
    states[i] = state;
  }
  counts[static_cast<size_t>(state)] += static_cast<uint32_t>(count);
}

// The node that holds `chunk`, or end().
BlockMap::Nodes::const_iterator BlockMap::find(uint64_t chunk) const {
  auto node = nodes_.upper_bound(chunk);
  if (node == nodes_.begin()) return nodes_.end();
  --node;
  return chunk - node->first < node->second.chunks ? node : nodes_.end();
}

// Looks no further than one node.
BlockMap::Run BlockMap::run_here(uint64_t block, uint64_t count) const {
  const uint64_t chunk = block / kChunkBlocks;
  const auto node = find(chunk);
  if (node == nodes_.end()) {
    const auto next = nodes_.upper_bound(chunk);
    if (next == nodes_.end()) return {BlockState::kBelow, count};
    return {BlockState::kBelow, std::min(count, next->first * kChunkBlocks - block)};
  }
  if (!node->second.blocks) {
    // In blocks a node's end may lie beyond 2^64: it is counted from the block.
    const uint64_t chunks_left = node->second.chunks - (chunk - node->first);
    if (chunks_left > count / kChunkBlocks + 1) return {node->second.state, count};
    return {node->second.state, std::min(count, chunks_left * kChunkBlocks - block % kChunkBlocks)};
  }
  const auto& states = node->second.blocks->states;
  const uint64_t first = block % kChunkBlocks;
  const uint64_t end = first + std::min(count, kChunkBlocks - first);
  uint64_t after = first + 1;
  while (after < end && states[after] == states[first]) after++;
  return {states[first], after - first};
}

BlockMap::Run BlockMap::run(uint64_t block, uint64_t count) const {
  const std::lock_guard lock(mutex_);
  Run result = run_here(block, count);
  while (result.count < count) {
    const Run more = run_here(block + result.count, count - result.count);
    if (more.state != result.state) break;
    result.count += more.count;
  }
  return result;
}

bool BlockMap::any(uint64_t block, uint64_t count, BlockState state) const {
  const std::lock_guard lock(mutex_);
  while (count > 0) {
    const Run next = run_here(block, count);
    if (next.state == state) return true;
    block += next.count;
    count -= next.count;
  }
  return false;
}

void BlockMap::set(uint64_t block, uint64_t count, BlockState state) {
  if (state == BlockState::kZero) zeroed_.store(true, std::memory_order_relaxed);
  const std::lock_guard lock(mutex_);
  while (count > 0) {
    const uint64_t chunk = block / kChunkBlocks;
    const uint64_t first = block % kChunkBlocks;
    uint64_t done = 0;
    if (first == 0 && count >= kChunkBlocks) {
      done = count / kChunkBlocks * kChunkBlocks;
      set_chunks(chunk, count / kChunkBlocks, state);
    } else {
      done = std::min(count, kChunkBlocks - first);
      set_part(chunk, first, done, state);
    }
    block += done;
    count -= done;
  }
}

void BlockMap::set_part(uint64_t chunk, uint64_t first, uint64_t count, BlockState state) {
  const auto found = find(chunk);
  if (found == nodes_.end() || !found->second.blocks) {
    const BlockState was = found == nodes_.end() ? BlockState::kBelow : found->second.state;
    if (was == state) return;
    auto blocks = std::make_unique<Blocks>();
    blocks->states.fill(was);
    blocks->counts = {};
    blocks->counts[static_cast<size_t>(was)] = kChunkBlocks;
    clear_chunks(chunk, 1);
    nodes_.insert({chunk, Node{1, was, std::move(blocks)}});
  }
  Blocks& blocks = *nodes_.at(chunk).blocks;
  blocks.set(first, count, state);
  if (blocks.counts[static_cast<size_t>(state)] == kChunkBlocks) set_chunks(chunk, 1, state);
}

void BlockMap::set_chunks(uint64_t chunk, uint64_t count, BlockState state) {
  clear_chunks(chunk, count);
  auto node = nodes_.insert({chunk, Node{count, state, nullptr}}).first;
  const auto joins = [state](const Nodes::value_type& other) {
    return !other.second.blocks && other.second.state == state;
  };
  const auto after = std::next(node);
  if (after != nodes_.end() && after->first == chunk + count && joins(*after)) {
    node->second.chunks += after->second.chunks;
    nodes_.erase(after);
  }
  if (node != nodes_.begin()) {
    const auto before = std::prev(node);
    if (before->first + before->second.chunks == chunk && joins(*before)) {
      before->second.chunks += node->second.chunks;
      nodes_.erase(node);
    }
  }
}

// Takes the chunks out of the map; what a node has beyond them stays.
void BlockMap::clear_chunks(uint64_t chunk, uint64_t count) {
  const uint64_t end = chunk + count;
  auto node = nodes_.upper_bound(chunk);
  if (node != nodes_.begin()) --node;
  while (node != nodes_.end() && node->first < end) {
    const uint64_t first = node->first;
    const uint64_t after = first + node->second.chunks;
    if (after <= chunk) {
      ++node;
      continue;
    }
    const BlockState state = node->second.state;
    if (first < chunk) {
      node->second.chunks = chunk - first;
      ++node;
    } else {
      node = nodes_.erase(node);
    }
    if (after > end) {
      nodes_.insert({end, Node{after - end, state, nullptr}});
      break;
    }
  }
}

}  // namespace weft::filters::cow
