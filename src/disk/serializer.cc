// SPDX-License-Identifier: BSD-3-Clause
#include "disk/serializer.h"

#include <utility>

namespace weft::disk {
namespace {

using engine::AsyncMutex;

class SerializedDisk final : public Disk {
 public:
  // `shared`: the lock of all disks of the layer; null: this disk has its own. `whole`: held as
  // long as the disk is open, by one whose calls are not in each other's way.
  SerializedDisk(std::unique_ptr<Disk> next, Loop& loop, AsyncMutex* shared,
                 AsyncMutex::Guard whole)
      : next_(std::move(next)), loop_(loop), shared_(shared), whole_(std::move(whole)) {
    capabilities_ = next_->capabilities();
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->read(offset, into);
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->write(offset, from, fua);
  }
  Task<Status> zero(Range range, ZeroFlags flags) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->zero(range, flags);
  }
  Task<Status> trim(Range range, bool fua) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->trim(range, fua);
  }
  Task<Status> cache(Range range) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->cache(range);
  }
  Task<Status> flush() override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->flush();
  }
  Task<Status> extents(Extents& into, bool one) override {
    const Turn turn = co_await my_turn();
    co_return co_await next_->extents(into, one);
  }
  ChangeOrder* order() override { return next_->order(); }
  [[nodiscard]] std::string identity() const override { return next_->identity(); }
  [[nodiscard]] std::string description() const override { return next_->description(); }
  void client_gone() override { next_->client_gone(); }
  Task<Status> close() override {
    const Turn turn = co_await my_turn();
    const Status closed = co_await next_->close();
    next_.reset();
    whole_.unlock();
    co_return closed;
  }

 private:
  struct Turn {
    AsyncMutex::Guard own;
    AsyncMutex::Guard shared;
  };
  // A disk stands in the line of all with one call at a time, so that they take turns, however many
  // calls each has.
  Task<Turn> my_turn() {
    Turn turn{co_await own_.lock(loop_), {}};
    if (shared_) turn.shared = co_await shared_->lock(loop_);
    co_return turn;
  }

  std::unique_ptr<Disk> next_;
  Loop& loop_;
  AsyncMutex own_;
  AsyncMutex* shared_;
  AsyncMutex::Guard whole_;
};

}  // namespace

Task<Result<std::unique_ptr<Disk>>> Serializer::open(Plugin& layer, OpenRequest request) {
  const ThreadModel model = layer.own_thread_model();
  if (model == ThreadModel::kParallel) co_return co_await layer.open(std::move(request));
  Loop& loop = request.loop;
  AsyncMutex::Guard guard;
  if (model != ThreadModel::kSerializeRequests) guard = co_await layer.serial_.lock(loop);
  Result<std::unique_ptr<Disk>> disk = co_await layer.open(std::move(request));
  if (!disk) co_return disk;
  const bool all = model == ThreadModel::kSerializeAllRequests;
  if (all) guard.unlock();
  co_return std::make_unique<SerializedDisk>(std::move(*disk), loop, all ? &layer.serial_ : nullptr,
                                             std::move(guard));
}

}  // namespace weft::disk
