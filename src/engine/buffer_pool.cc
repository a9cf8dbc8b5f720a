// SPDX-License-Identifier: BSD-3-Clause
#include "engine/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <cstdlib>

namespace weft::engine {

Buffer BufferPool::get(size_t size) {
  Buffer buffer;
  if (size > kBufferMax) return buffer;
  const auto shift = std::max<uint8_t>(
      kShiftMin, static_cast<uint8_t>(std::bit_width(std::max<size_t>(size, 1) - 1)));
  std::vector<std::byte*>& kept = free_[shift];
  if (!kept.empty()) {
    buffer.data_ = kept.back();
    kept.pop_back();
    kept_bytes_ -= size_t{1} << shift;
  } else {
    buffer.data_ = static_cast<std::byte*>(std::aligned_alloc(kBufferMin, size_t{1} << shift));
    if (!buffer.data_) return buffer;
  }
  buffer.pool_ = this;
  buffer.shift_ = shift;
  return buffer;
}

void BufferPool::give_back(std::byte* data, uint8_t shift) noexcept {
  const size_t size = size_t{1} << shift;
  if (kept_bytes_ + size > kKeptMax) {
    std::free(data);
    return;
  }
  free_[shift].push_back(data);
  kept_bytes_ += size;
}

void BufferPool::trim() {
  for (std::vector<std::byte*>& kept : free_) {
    for (std::byte* data : kept) std::free(data);
    kept.clear();
  }
  kept_bytes_ = 0;
}

bool Budget::take_now(uint64_t bytes) {
  bytes = capped(bytes);
  uint64_t used = used_.load(std::memory_order_seq_cst);  // after waiting_, see await_suspend()
  do {
    if (used + bytes > total_) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes, std::memory_order_seq_cst));
  return true;
}

bool Budget::try_take(uint64_t bytes) {
  return waiting_.load(std::memory_order_seq_cst) == 0 && take_now(bytes);
}

void Budget::give_back(uint64_t bytes) {
  used_.fetch_sub(capped(bytes), std::memory_order_seq_cst);
  if (waiting_.load(std::memory_order_seq_cst) == 0) return;
  std::lock_guard lock(mutex_);
  serve_line();
}

void Budget::serve_line() {
  while (!line_.empty() && take_now(line_.front()->bytes_)) {
    Taker* taker = line_.front();
    line_.erase(line_.begin());
    waiting_.fetch_sub(1, std::memory_order_seq_cst);
    taker->queued_ = false;
    taker->granted_ = true;
    taker->loop_.post(*taker);
  }
}

bool Budget::Taker::await_suspend(std::coroutine_handle<> handle) {
  wakeup_.handle = handle;
  std::lock_guard lock(budget_.mutex_);
  // Say that somebody waits, then look again: what was given back before this is seen here, what
  // is given back after it sees the line.
  budget_.waiting_.fetch_add(1, std::memory_order_seq_cst);
  if (budget_.line_.empty() && budget_.take_now(bytes_)) {
    budget_.waiting_.fetch_sub(1, std::memory_order_seq_cst);
    granted_ = true;
    return false;
  }
  queued_ = true;
  budget_.line_.push_back(this);
  return true;
}

void Budget::Taker::cancel() {
  std::lock_guard lock(budget_.mutex_);
  if (!queued_) return;  // not waiting, or granted and on its way
  std::erase(budget_.line_, this);
  budget_.waiting_.fetch_sub(1, std::memory_order_seq_cst);
  queued_ = false;
  loop_.schedule(wakeup_);
  budget_.serve_line();  // the next may want less
}

}  // namespace weft::engine
