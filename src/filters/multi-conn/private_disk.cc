// SPDX-License-Identifier: BSD-3-Clause
#include "filters/multi-conn/private_disk.h"

#include <algorithm>
#include <cstring>

namespace weft::filters {

using disk::Loop;
using disk::Support;
using disk::Task;
using Block = std::vector<std::byte>;

class PrivateDisk final : public disk::Disk {
 public:
  PrivateDisk(PrivatePlugin& plugin, Loop& loop, int number, bool read_only)
      : plugin_(plugin), loop_(loop), number_(number), random_(static_cast<unsigned>(number)) {
    const uint64_t size = plugin.content_.size() * PrivatePlugin::kBlock;
    capabilities_.size = size;
    capabilities_.writable = !read_only;
    capabilities_.multi_conn = !plugin.remembers;
    capabilities_.flush = plugin.can_flush ? Support::kNative : Support::kNone;
    capabilities_.fua = Support::kNative;
    capabilities_.zero = Support::kEmulate;
    capabilities_.trim = Support::kNative;
    capabilities_.cache = Support::kEmulate;
    capabilities_.block_size.preferred = PrivatePlugin::kBlock;
    plugin_.open_disks_++;
  }
  ~PrivateDisk() override { plugin_.open_disks_--; }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const Call call(*this);
    while (!into.empty()) {
      const uint64_t number = offset / PrivatePlugin::kBlock;
      const uint64_t within = offset % PrivatePlugin::kBlock;
      const size_t length = std::min<size_t>(into.size(), PrivatePlugin::kBlock - within);
      const Block block = co_await fetch(number);
      std::memcpy(into.data(), block.data() + within, length);
      into = into.subspan(length);
      offset += length;
    }
    co_return Status{};
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    const Call call(*this);
    while (!from.empty()) {
      const uint64_t number = offset / PrivatePlugin::kBlock;
      const uint64_t within = offset % PrivatePlugin::kBlock;
      const size_t length = std::min<size_t>(from.size(), PrivatePlugin::kBlock - within);
      Block block = co_await fetch(number);
      co_await hesitate();
      std::memcpy(block.data() + within, from.data(), length);
      memory_[number] = std::move(block);
      writes_[number]++;
      if (plugin_.remembers) {
        dirty_[number]++;
      } else {
        publish(number);
        memory_.clear();
      }
      from = from.subspan(length);
      offset += length;
    }
    if (plugin_.before_write_ends) co_await plugin_.before_write_ends(loop_, number_);
    if (fua) co_return co_await publish_all();
    co_return Status{};
  }

  // Reads of it may give anything: it does nothing.
  Task<Status> trim(Range, bool) override {
    const Call call(*this);
    co_await hesitate();
    co_return Status{};
  }

  Task<Status> flush() override {
    const Call call(*this);
    plugin_.flushes_++;
    const int at_once = ++plugin_.flushing_;
    int most = plugin_.at_once_max_;
    while (most < at_once && !plugin_.at_once_max_.compare_exchange_weak(most, at_once)) {
    }
    if (plugin_.before_flush) co_await plugin_.before_flush(loop_, number_);
    Status done;
    if (plugin_.flush_result) done = plugin_.flush_result(number_);
    if (done) done = co_await publish_all();
    plugin_.flushing_--;
    co_return done;
  }

  disk::ChangeOrder* order() override { return &plugin_.order_; }

 private:
  // A call in progress.
  struct Call {
    explicit Call(PrivateDisk& the_disk) : disk(the_disk) {
      if (disk.calls_++ > 0) disk.plugin_.overlapped_ = true;
    }
    ~Call() { disk.calls_--; }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    PrivateDisk& disk;
  };

  Task<void> hesitate() {
    if (!plugin_.hesitates) co_return;
    for (unsigned turns = random_() % 6; turns > 0; turns--) co_await loop_.yield();
    if (random_() % 8 == 0) {
      engine::Timer timer(loop_);
      co_await timer.sleep(std::chrono::microseconds(random_() % 600));
    }
  }

  // What this connection takes for the block's content: perhaps old, but never older than what it
  // has itself written.
  Task<Block> fetch(uint64_t number) {
    for (;;) {
      if (const auto known = memory_.find(number); known != memory_.end()) co_return known->second;
      const uint64_t writes = writes_[number];
      co_await hesitate();
      Block block;
      {
        const std::lock_guard lock(plugin_.mutex_);
        block = plugin_.content_[number];
      }
      co_await hesitate();
      if (writes_[number] != writes) continue;
      if (!plugin_.remembers) co_return block;
      memory_.emplace(number, std::move(block));
    }
  }

  void publish(uint64_t number) {
    const std::lock_guard lock(plugin_.mutex_);
    plugin_.content_[number] = memory_[number];
  }

  Task<Status> publish_all() {
    const std::map<uint64_t, uint64_t> dirty = dirty_;
    std::erase_if(memory_, [&](const auto& entry) { return !dirty_.contains(entry.first); });
    for (const auto& [number, version] : dirty) {
      co_await hesitate();
      const auto now = dirty_.find(number);
      if (now == dirty_.end()) continue;  // another flush has done it
      publish(number);
      dirty_.erase(now);
      memory_.erase(number);
    }
    co_return Status{};
  }

  PrivatePlugin& plugin_;
  Loop& loop_;
  const int number_;
  std::mt19937 random_;
  int calls_ = 0;
  std::map<uint64_t, Block> memory_;
  std::map<uint64_t, uint64_t> dirty_;   // number -> writes
  std::map<uint64_t, uint64_t> writes_;  // the same, for ever
};

Task<Result<std::unique_ptr<disk::Disk>>> PrivatePlugin::open(disk::OpenRequest request) {
  return Result<std::unique_ptr<disk::Disk>>(
      std::make_unique<PrivateDisk>(*this, request.loop, opened_++, request.read_only));
}

}  // namespace weft::filters
