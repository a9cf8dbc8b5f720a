// SPDX-License-Identifier: BSD-3-Clause
// Allowance: the memory that the requests of one connection may take.
//
// Every connection is sure of a small share; what goes beyond it comes from the budget of the whole
// process. A request takes what it needs once, as a Charge, before its first payload byte is
// received or read; the charge ends with the last byte of the reply.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>

#include "engine/buffer_pool.h"

namespace weft::server {

class Allowance;

// Owns some bytes of an allowance; gives them back on destruction, on the connection's thread.
class Charge {
 public:
  Charge() = default;
  Charge(Charge&& other) noexcept { swap(other); }
  Charge& operator=(Charge&& other) noexcept {
    Charge(std::move(other)).swap(*this);
    return *this;
  }
  ~Charge();

 private:
  friend class Allowance;
  void swap(Charge& other) noexcept {
    std::swap(from_, other.from_);
    std::swap(share_, other.share_);
    std::swap(budget_, other.budget_);
  }
  Allowance* from_ = nullptr;
  uint64_t share_ = 0;   // bytes of the connection's own share
  uint64_t budget_ = 0;  // bytes of the process's budget
};

// Not thread-safe. Outlives its charges.
class Allowance {
 public:
  static constexpr uint64_t kShare = 64 << 10;  // bytes

  explicit Allowance(engine::Budget& budget) : budget_(budget) {}

  // Nothing when the memory is not there now: then wait with a Budget::Taker, and make the charge
  // of it with taken(). Between begin_wait() and end_wait() the taker is cancelled when the bytes
  // can be had of the share: then try again.
  [[nodiscard]] std::optional<Charge> try_charge(uint64_t bytes) {
    if (share_used_ + bytes <= kShare) return make(bytes, 0);
    if (!budget_.try_take(bytes)) return std::nullopt;
    return make(0, bytes);
  }
  [[nodiscard]] Charge taken(uint64_t bytes) { return make(0, bytes); }
  void begin_wait(engine::Budget::Taker& taker, uint64_t bytes) {
    waiting_ = &taker;
    waiting_bytes_ = bytes;
  }
  void end_wait() { waiting_ = nullptr; }
  // A charge beyond the limits, for what is already there.
  [[nodiscard]] Charge force(uint64_t bytes) {
    budget_.force(bytes);
    return make(0, bytes);
  }

  // Bytes held of the process's budget.
  [[nodiscard]] uint64_t budget_used() const { return budget_used_; }
  [[nodiscard]] engine::Budget& budget() { return budget_; }

 private:
  friend class Charge;
  Charge make(uint64_t share, uint64_t budget) {
    Charge charge;
    charge.from_ = this;
    charge.share_ = share;
    charge.budget_ = budget;
    share_used_ += share;
    budget_used_ += budget;
    return charge;
  }

  engine::Budget& budget_;
  uint64_t share_used_ = 0;
  uint64_t budget_used_ = 0;
  engine::Budget::Taker* waiting_ = nullptr;
  uint64_t waiting_bytes_ = 0;
};

inline Charge::~Charge() {
  if (!from_) return;
  from_->share_used_ -= share_;
  from_->budget_used_ -= budget_;
  if (budget_) from_->budget_.give_back(budget_);
  if (from_->waiting_ && from_->share_used_ + from_->waiting_bytes_ <= Allowance::kShare) {
    from_->waiting_->cancel();
  }
}

}  // namespace weft::server
