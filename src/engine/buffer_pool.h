// SPDX-License-Identifier: BSD-3-Clause
// Buffers for payloads, and the budget in bytes that they are charged to.
//
// BufferPool belongs to one loop: page-aligned buffers in power-of-two sizes, kept for the next
// request up to a fixed number of bytes. Budget belongs to the process: a request takes what it
// needs once, before its first payload byte; who finds it spent waits in line, and is not read from
// meanwhile.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "base/bytes.h"
#include "engine/loop.h"

namespace weft::engine {

class BufferPool;

// Owns one buffer; gives it back to its pool on destruction, on the pool's thread.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  [[nodiscard]] explicit operator bool() const { return data_ != nullptr; }
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] size_t capacity() const { return size_t{1} << shift_; }  // bytes

 private:
  friend class BufferPool;
  void swap(Buffer& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(data_, other.data_);
    std::swap(shift_, other.shift_);
  }
  BufferPool* pool_ = nullptr;
  std::byte* data_ = nullptr;
  uint8_t shift_ = 0;
};

// Not thread-safe. Outlives its buffers.
class BufferPool {
 public:
  static constexpr size_t kBufferMin = size_t{4} << 10;
  static constexpr size_t kBufferMax = size_t{128} << 20;
  static constexpr size_t kKeptMax = size_t{32} << 20;  // bytes kept for later

  BufferPool() = default;
  ~BufferPool() { trim(); }
  BufferPool(const BufferPool&) = delete;
  BufferPool& operator=(const BufferPool&) = delete;

  // A page-aligned buffer of at least `size` bytes, its content undefined; an empty Buffer when the
  // system has no memory, or `size` exceeds kBufferMax.
  [[nodiscard]] Buffer get(size_t size);

  // Gives all that is kept back to the system.
  void trim();
  [[nodiscard]] size_t kept_bytes() const { return kept_bytes_; }

 private:
  friend class Buffer;
  static constexpr uint8_t kShiftMin = 12;
  static constexpr uint8_t kShiftMax = 27;
  void give_back(std::byte* data, uint8_t shift) noexcept;

  std::array<std::vector<std::byte*>, kShiftMax + 1> free_;
  size_t kept_bytes_ = 0;
};

inline Buffer::~Buffer() {
  if (data_) pool_->give_back(data_, shift_);
}

// Thread-safe. Outlives those who wait.
class Budget {
 public:
  explicit Budget(uint64_t total_bytes) : total_(total_bytes) {}

  // Takes `bytes` if they are there and nobody waits. More than the whole counts as the whole: a
  // single large request is served when it is alone.
  [[nodiscard]] bool try_take(uint64_t bytes);
  // Takes them even if they are not there.
  void force(uint64_t bytes) { used_.fetch_add(capped(bytes), std::memory_order_seq_cst); }
  void give_back(uint64_t bytes);

  // `co_await budget.take(loop, bytes)` waits in line. cancel() makes it return false.
  class Taker final : public Message {
   public:
    Taker(Budget& budget, Loop& loop, uint64_t bytes)
        : budget_(budget), loop_(loop), bytes_(bytes) {}
    [[nodiscard]] bool await_ready() { return granted_ = budget_.try_take(bytes_); }
    bool await_suspend(std::coroutine_handle<> handle);
    [[nodiscard]] bool await_resume() const noexcept { return granted_; }
    void cancel();
    void run() override { loop_.schedule(wakeup_); }

   private:
    friend class Budget;
    Budget& budget_;
    Loop& loop_;
    uint64_t bytes_;
    bool granted_ = false;
    bool queued_ = false;
    Wakeup wakeup_{};
  };

  [[nodiscard]] uint64_t total() const { return total_; }
  [[nodiscard]] uint64_t used() const { return used_.load(std::memory_order_relaxed); }

 private:
  [[nodiscard]] uint64_t capped(uint64_t bytes) const { return bytes < total_ ? bytes : total_; }
  [[nodiscard]] bool take_now(uint64_t bytes);
  void serve_line();  // with mutex_ held

  const uint64_t total_;
  std::atomic<uint64_t> used_{0};
  std::atomic<size_t> waiting_{0};
  std::mutex mutex_;
  std::vector<Taker*> line_;  // guarded by mutex_
};

}  // namespace weft::engine
