// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <thread>

#include "base/result.h"

namespace weft::tools {
namespace {

// Small enough to stay in the processor's cache, large enough for what a Unix socket holds.
constexpr size_t kReceiveSize = size_t{256} << 10;
constexpr size_t kPiecesMax = 1024;  // UIO_MAXIOV
constexpr size_t kExamplesMax = 10;
constexpr uint64_t kWaitMaxNs = 50'000'000;  // to see that the round is to stop
constexpr uint64_t kRetryNs = 100'000;       // a block that another client works on
constexpr int kBlockAttempts = 16;

constexpr std::array<uint16_t, kOpKindCount> kCommands = {nbd::kCmdRead,        nbd::kCmdWrite,
                                                          nbd::kCmdWriteZeroes, nbd::kCmdTrim,
                                                          nbd::kCmdCache,       nbd::kCmdFlush};

std::string lost(std::string_view doing, int code) {
  if (code == EPIPE || code == ECONNRESET) return "the server closed the connection";
  return fmt::format("{} failed: {}", doing, errno_text(code));
}

size_t error_index(uint32_t error) {
  return static_cast<size_t>(std::find(kCountedErrors.begin(), kCountedErrors.end() - 1, error) -
                             kCountedErrors.begin());
}

}  // namespace

uint64_t KindStats::error_count() const {
  return std::accumulate(errors.begin(), errors.end(), uint64_t{0});
}

void KindStats::merge(const KindStats& other) {
  latency.merge(other.latency);
  for (size_t i = 0; i < errors.size(); i++) errors[i] += other.errors[i];
}

void VerifyStats::merge(const VerifyStats& other) {
  checked += other.checked;
  unchecked += other.unchecked;
  mismatches += other.mismatches;
  for (const std::string& example : other.examples) {
    if (examples.size() < kExamplesMax) examples.push_back(example);
  }
}

void ClientStats::merge(const ClientStats& other) {
  for (size_t i = 0; i < kOpKindCount; i++) kinds[i].merge(other.kinds[i]);
  verify.merge(other.verify);
}

BenchClient::BenchClient(Dialled dialled, BlockTable* table, uint64_t verify_seed)
    : fd_(std::move(dialled.fd)),
      negotiated_(std::move(dialled.result)),
      table_(table),
      verify_seed_(verify_seed),
      stats_(std::make_unique<ClientStats>()) {}

BenchClient::~BenchClient() {
  if (failed() || in_flight_ != 0 || unsent_ != 0) return;
  std::array<std::byte, nbd::kExtendedRequestSize> header;
  const nbd::Request request = {.type = nbd::kCmdDisc};
  if (negotiated_.mode == nbd::HeaderMode::kExtended) {
    nbd::encode_extended_request(header.data(), request);
  } else {
    nbd::encode_request(header.data(), request);
  }
  // The connection ends either way, so a failure does not matter.
  const ssize_t sent = ::send(fd_.get(), header.data(), nbd::request_size(negotiated_.mode),
                              MSG_NOSIGNAL | MSG_DONTWAIT);
  static_cast<void>(sent);
}

void BenchClient::begin(const Workload& workload, const std::atomic<Phase>& phase) {
  workload_ = workload;
  generator_.emplace(workload);
  postponed_.reset();
  phase_ = &phase;
  stats_ = std::make_unique<ClientStats>();
  stopping_ = false;
  issued_ = 0;
  slots_.assign(workload.depth, Slot{});
  free_.resize(workload.depth);
  std::iota(free_.rbegin(), free_.rend(), 0u);
  headers_.resize(size_t{workload.depth} * nbd::request_size(negotiated_.mode));
  pieces_.clear();
  pieces_.reserve(2 * size_t{workload.depth});
  buffer_.resize(kReceiveSize);
  have_ = 0;
  if (table_ != nullptr) {
    checked_data_.resize(size_t{workload.depth} * workload.block_size);
  } else if (workload.mix.weight(OpKind::kWrite) != 0) {
    payload_.resize(workload.block_size);
    Random random(workload.seed);
    for (std::byte& byte : payload_) byte = static_cast<std::byte>(random.next());
  }
  now_ns_ = now_ns();
  next_due_ns_ = static_cast<double>(now_ns_);
}

std::byte* BenchClient::slot_data(const Slot& slot) {
  return checked_data_.data() + static_cast<size_t>(&slot - slots_.data()) * workload_.block_size;
}

bool BenchClient::may_issue(uint64_t now) const {
  if (free_.empty()) return false;
  if (workload_.operations != 0 && issued_ == workload_.operations) return false;
  return workload_.interval_ns == 0 || next_due_ns_ <= static_cast<double>(now);
}

std::optional<uint64_t> BenchClient::due_ns() const {
  if (stopping_ || free_.empty() || unsent_ != 0) return {};
  if (postponed_) return now_ns_ + kRetryNs;
  if (workload_.interval_ns == 0) return {};
  return std::min(static_cast<uint64_t>(next_due_ns_), now_ns_ + kWaitMaxNs);
}

// Reserves the block of the operation, or of another one.
bool BenchClient::choose(Operation& operation, Slot& slot) {
  slot.expected = {};
  if (table_ == nullptr) return true;
  if (operation.kind == OpKind::kFlush || operation.kind == OpKind::kCache) return true;
  for (int i = 0; i < kBlockAttempts; i++) {
    if (operation.kind == OpKind::kRead) {
      if (table_->begin_read(operation.block, slot.expected)) return true;
    } else if (table_->begin_change(operation.block, slot.expected.generation)) {
      return true;
    }
    operation.block = generator_->next_block();
  }
  return false;
}

void BenchClient::append(const std::byte* data, size_t size) {
  unsent_ += size;
  if (!pieces_.empty()) {
    iovec& last = pieces_.back();
    if (static_cast<const std::byte*>(last.iov_base) + last.iov_len == data) {
      last.iov_len += size;
      return;
    }
  }
  pieces_.push_back({const_cast<std::byte*>(data), size});
}

void BenchClient::add_request(uint32_t index, const Operation& operation) {
  Slot& slot = slots_[index];
  slot.block = operation.block;
  slot.sequence++;
  slot.data_got = 0;
  slot.error = nbd::kOk;
  slot.kind = operation.kind;
  slot.busy = true;
  slot.counted = phase_now_ == Phase::kMeasure;
  slot.start_ns = now_ns_;
  if (workload_.interval_ns != 0) {
    // From the time it should have begun: a server that stalls does not hide it by being asked
    // less.
    slot.start_ns = static_cast<uint64_t>(next_due_ns_);
    next_due_ns_ += workload_.interval_ns;
  }
  const bool extended = negotiated_.mode == nbd::HeaderMode::kExtended;
  nbd::Request request = {.type = kCommands[static_cast<size_t>(operation.kind)],
                          .cookie = uint64_t{slot.sequence} << 32 | index};
  if (operation.fua) request.flags |= nbd::kFlagFua;
  if (operation.kind == OpKind::kWrite && extended) request.flags |= nbd::kFlagPayloadLen;
  if (operation.kind != OpKind::kFlush) {
    request.offset = workload_.offset + operation.block * workload_.block_size;
    request.length = workload_.block_size;
  }
  std::byte* const header = headers_.data() + headers_size_;
  std::byte* const end = extended ? nbd::encode_extended_request(header, request)
                                  : nbd::encode_request(header, request);
  headers_size_ = static_cast<size_t>(end - headers_.data());
  append(header, static_cast<size_t>(end - header));
  if (operation.kind == OpKind::kWrite) {
    std::byte* data = payload_.data();
    if (table_ != nullptr) {
      data = slot_data(slot);
      fill_block({data, workload_.block_size}, verify_seed_, request.offset,
                 slot.expected.generation);
    }
    append(data, workload_.block_size);
  }
  in_flight_++;
  if (slot.counted) issued_++;
}

void BenchClient::issue() {
  if (failed()) return;
  if (unsent_ != 0) {
    send_pending();
    if (unsent_ != 0) return;
  }
  phase_now_ = phase_->load(std::memory_order_relaxed);
  if (phase_now_ == Phase::kStop ||
      (workload_.operations != 0 && issued_ == workload_.operations)) {
    stopping_ = true;
    return;
  }
  pieces_.clear();
  piece_at_ = 0;
  headers_size_ = 0;
  while (may_issue(now_ns_)) {
    Operation operation = postponed_ ? *postponed_ : generator_->next();
    const uint32_t index = free_.back();
    if (!choose(operation, slots_[index])) {
      postponed_ = operation;
      break;
    }
    postponed_.reset();
    free_.pop_back();
    add_request(index, operation);
  }
  waiting_.store(in_flight_ != 0, std::memory_order_relaxed);
  if (unsent_ != 0) send_pending();
}

void BenchClient::send_pending() {
  while (unsent_ != 0) {
    msghdr message = {};
    message.msg_iov = &pieces_[piece_at_];
    message.msg_iovlen = std::min(pieces_.size() - piece_at_, kPiecesMax);
    const ssize_t sent = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN) return;
      fail(lost("sending", errno));
      return;
    }
    activity_.store(activity() + 1, std::memory_order_relaxed);
    auto left = static_cast<size_t>(sent);
    unsent_ -= left;
    while (left != 0) {
      iovec& piece = pieces_[piece_at_];
      const size_t part = std::min(left, piece.iov_len);
      left -= part;
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + part;
      piece.iov_len -= part;
      if (piece.iov_len == 0) piece_at_++;
    }
  }
}

bool BenchClient::receive_once(bool wait) {
  const ssize_t got =
      ::recv(fd_.get(), buffer_.data() + have_, buffer_.size() - have_, wait ? 0 : MSG_DONTWAIT);
  now_ns_ = now_ns();
  if (got < 0) {
    if (errno == EINTR || errno == EAGAIN) return true;
    return fail(lost("receiving", errno));
  }
  if (got == 0) return fail("the server closed the connection");
  activity_.store(activity() + 1, std::memory_order_relaxed);
  have_ += static_cast<size_t>(got);
  phase_now_ = phase_->load(std::memory_order_relaxed);
  const bool sound = parse();
  operations_.store(ended_, std::memory_order_relaxed);
  return sound;
}

void BenchClient::wait_for_socket() {
  pollfd ready = {.fd = fd_.get(), .events = POLLIN, .revents = 0};
  if (unsent_ != 0) ready.events |= POLLOUT;
  timespec timeout = {};
  const timespec* limit = nullptr;
  if (const auto due = due_ns()) {
    const uint64_t now = now_ns();
    const uint64_t wait = *due > now ? *due - now : 0;
    timeout = {.tv_sec = static_cast<time_t>(wait / 1'000'000'000),
               .tv_nsec = static_cast<long>(wait % 1'000'000'000)};
    limit = &timeout;
  }
  const int count = ::ppoll(&ready, 1, limit, nullptr);
  now_ns_ = now_ns();
  if (count > 0 && (ready.revents & ~POLLOUT) != 0) (void)receive_once(false);
}

void BenchClient::run() {
  issue();
  while (!over()) {
    // Without a reason to do anything else before the next reply, one blocking call is enough.
    if (unsent_ == 0 && in_flight_ != 0 && !due_ns()) {
      (void)receive_once(true);
    } else {
      wait_for_socket();
    }
    issue();
  }
}

void BenchClient::complete(Slot& slot) {
  const auto index = static_cast<uint32_t>(&slot - slots_.data());
  slot.busy = false;
  in_flight_--;
  ended_++;
  free_.push_back(index);
  if (table_ != nullptr && slot.kind == OpKind::kRead) {
    if (slot.error == nbd::kOk) check(slot, {slot_data(slot), workload_.block_size});
    table_->end_read(slot.block);
  } else if (table_ != nullptr && changes(slot.kind)) {
    const bool known = slot.error == nbd::kOk && slot.kind != OpKind::kTrim;
    const BlockContent content =
        slot.kind == OpKind::kWrite ? BlockContent::kTagged : BlockContent::kZeroes;
    table_->end_change(slot.block, known ? content : BlockContent::kAnything);
  }
  const bool counted = workload_.operations != 0 ? slot.counted : phase_now_ == Phase::kMeasure;
  if (!counted) return;
  KindStats& stats = stats_->kinds[static_cast<size_t>(slot.kind)];
  if (slot.error != nbd::kOk) {
    stats.errors[error_index(slot.error)]++;
  } else {
    stats.latency.add(now_ns_ > slot.start_ns ? now_ns_ - slot.start_ns : 0);
  }
}

void BenchClient::check(const Slot& slot, ByteSpan data) {
  VerifyStats& stats = stats_->verify;
  if (slot.expected.content == BlockContent::kAnything) {
    stats.unchecked++;
    return;
  }
  stats.checked++;
  const uint64_t offset = workload_.offset + slot.block * workload_.block_size;
  std::string wrong = check_block(data, verify_seed_, offset, slot.expected);
  if (wrong.empty()) return;
  stats.mismatches++;
  if (stats.examples.size() < kExamplesMax) stats.examples.push_back(std::move(wrong));
}

void BenchClient::abort() {
  aborted_.store(true, std::memory_order_relaxed);
  ::shutdown(fd_.get(), SHUT_RDWR);
}

bool BenchClient::fail(std::string why) {
  if (aborted_.load(std::memory_order_relaxed)) why = "the server does not answer (timeout)";
  failure_ = fmt::format("{}; requests without an answer: {}", why, in_flight_);
  // Nobody knows what the requests in flight did; other clients must be able to go on.
  if (table_ != nullptr) {
    for (const Slot& slot : slots_) {
      if (!slot.busy) continue;
      if (slot.kind == OpKind::kRead) table_->end_read(slot.block);
      if (changes(slot.kind)) table_->end_change(slot.block, BlockContent::kAnything);
    }
  }
  waiting_.store(false, std::memory_order_relaxed);
  return false;
}

}  // namespace weft::tools
