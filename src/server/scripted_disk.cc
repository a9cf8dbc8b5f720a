// SPDX-License-Identifier: BSD-3-Clause
#include "server/scripted_disk.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>

namespace weft::server {

using disk::Support;
using disk::Task;

class ScriptedDisk final : public disk::Disk {
 public:
  ScriptedDisk(ScriptedPlugin& plugin, engine::Loop& loop, bool read_only)
      : plugin_(plugin), loop_(loop) {
    capabilities_ = plugin.capabilities;
    if (read_only) capabilities_.writable = false;
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return perform({Call::Kind::kRead, {offset, into.size()}}, [this, offset, into] {
      std::ranges::fill(into, std::byte{0});
      if (offset >= ScriptedPlugin::kMemory) return;
      const size_t count = std::min(into.size(), ScriptedPlugin::kMemory - offset);
      std::memcpy(into.data(), plugin_.data_.get() + offset, count);
    });
  }

  bool lend(Range range, disk::Lease& lease) override {
    if (!plugin_.lends || range.end() > ScriptedPlugin::kMemory) return false;
    for_pieces(range, [&](Range piece, bool hole) {
      lease.pieces.push_back({hole ? nullptr : plugin_.data_.get() + piece.offset, piece.length});
    });
    return true;
  }

  [[nodiscard]] bool may_have_holes() const override { return !plugin_.holes.empty(); }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return perform({Call::Kind::kWrite, {offset, from.size()}, fua}, [this, offset, from] {
      if (offset >= ScriptedPlugin::kMemory) return;
      const size_t count = std::min(from.size(), ScriptedPlugin::kMemory - offset);
      std::memcpy(plugin_.data_.get() + offset, from.data(), count);
    });
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return perform({Call::Kind::kZero, range, flags.fua}, [this, range] { clear(range); });
  }
  Task<Status> trim(Range range, bool fua) override {
    return perform({Call::Kind::kTrim, range, fua}, [this, range] { clear(range); });
  }
  Task<Status> cache(Range range) override {
    return perform({Call::Kind::kCache, range}, [] {});
  }
  Task<Status> flush() override {
    return perform({Call::Kind::kFlush, {}}, [] {});
  }
  Task<Status> extents(Extents& into, bool) override {
    return perform({Call::Kind::kExtents, into.window()}, [this, &into] {
      for_pieces(into.window(), [&](Range piece, bool hole) {
        (void)into.append(piece.length, hole ? kExtentHole | kExtentZero : kExtentData);
      });
    });
  }
  disk::ChangeOrder* order() override { return &plugin_.order_; }
  Task<Status> close() override {
    std::lock_guard lock(plugin_.mutex_);
    plugin_.open_disks_--;
    return Status{};
  }

 private:
  template <typename F>
  Task<Status> perform(const Call& call, F work) {
    if (plugin_.begin(call)) return perform_later(call, work);
    if (plugin_.hesitant && calls_++ % 3 != 0) return perform_hesitantly(call, work, calls_ % 5);
    return conclude(call, work);
  }
  template <typename F>
  Task<Status> perform_hesitantly(Call call, F work, int turns) {
    for (int i = 0; i < turns; i++) {
      engine::Timer timer(loop_);
      co_await timer.sleep(engine::Clock::duration(0));
    }
    co_return conclude(call, work);
  }
  template <typename F>
  Task<Status> perform_later(Call call, F work) {
    ScriptedPlugin::Held held(plugin_, call, loop_);
    co_await held;
    co_return conclude(call, work);
  }
  template <typename F>
  Status conclude(const Call& call, F& work) {
    std::lock_guard lock(plugin_.mutex_);
    Status status = plugin_.answer_ ? plugin_.answer_(call) : Status{};
    if (status) work();
    return status;
  }

  void clear(Range range) {
    if (range.offset >= ScriptedPlugin::kMemory) return;
    const uint64_t count = std::min(range.length, ScriptedPlugin::kMemory - range.offset);
    std::memset(plugin_.data_.get() + range.offset, 0, count);
  }

  template <typename F>
  void for_pieces(Range range, F f) {
    uint64_t offset = range.offset;
    for (const Range& hole : plugin_.holes) {
      if (hole.end() <= offset || hole.offset >= range.end()) continue;
      if (hole.offset > offset) f(Range{offset, hole.offset - offset}, false);
      const uint64_t from = std::max(offset, hole.offset);
      offset = std::min(hole.end(), range.end());
      f(Range{from, offset - from}, true);
    }
    if (offset < range.end()) f(Range{offset, range.end() - offset}, false);
  }

  ScriptedPlugin& plugin_;
  engine::Loop& loop_;
  int calls_ = 0;
};

ScriptedPlugin::ScriptedPlugin(uint64_t size, uint64_t granularity)
    : size_(size),
      data_(static_cast<std::byte*>(std::calloc(kMemory, 1)), &std::free),
      order_(granularity) {
  capabilities = {.size = size,
                  .writable = true,
                  .multi_conn = true,
                  .flush = Support::kNative,
                  .fua = Support::kNative,
                  .trim = Support::kNative,
                  .zero = Support::kNative,
                  .fast_zero = Support::kNative,
                  .cache = Support::kNative,
                  .extents = Support::kNative,
                  .block_size = {}};
}

bool ScriptedPlugin::Held::await_suspend(std::coroutine_handle<> handle) {
  wakeup.handle = handle;
  std::lock_guard lock(plugin.mutex_);
  if (!plugin.hold_) return false;  // all were released meanwhile
  plugin.held_.push_back(this);
  plugin.changed_.notify_all();
  return true;
}

bool ScriptedPlugin::begin(const Call& call) {
  std::lock_guard lock(mutex_);
  started_.push_back(call);
  changed_.notify_all();
  return hold_ && hold_(call);
}

void ScriptedPlugin::hold(std::function<bool(const Call&)> which) {
  std::lock_guard lock(mutex_);
  hold_ = std::move(which);
}

void ScriptedPlugin::release(const std::function<bool(const Call&)>& which) {
  std::lock_guard lock(mutex_);
  const auto found = std::ranges::find_if(held_, [&](Held* held) { return which(held->call); });
  if (found == held_.end()) throw std::logic_error("no such call is held");
  Held* held = *found;
  held_.erase(found);
  held->loop.post(*held);
}

void ScriptedPlugin::release() {
  std::lock_guard lock(mutex_);
  hold_ = nullptr;
  for (Held* held : std::exchange(held_, {})) held->loop.post(*held);
}

void ScriptedPlugin::answer(std::function<Status(const Call&)> how) {
  std::lock_guard lock(mutex_);
  answer_ = std::move(how);
}

template <typename Ready>
void ScriptedPlugin::wait_until(Ready ready) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, std::chrono::seconds(30), ready)) {
    throw std::runtime_error("the disk was not called as expected");
  }
}
void ScriptedPlugin::wait_until_held(size_t count) {
  wait_until([&] { return held_.size() >= count; });
}
void ScriptedPlugin::wait_until_started(size_t count) {
  wait_until([&] { return started_.size() >= count; });
}

std::vector<Call> ScriptedPlugin::started() const {
  std::lock_guard lock(mutex_);
  return started_;
}
size_t ScriptedPlugin::held() const {
  std::lock_guard lock(mutex_);
  return held_.size();
}
int ScriptedPlugin::open_disks() const {
  std::lock_guard lock(mutex_);
  return open_disks_;
}
int ScriptedPlugin::finishes() const {
  std::lock_guard lock(mutex_);
  return finishes_;
}
std::string ScriptedPlugin::content(Range range) const {
  std::lock_guard lock(mutex_);
  return {reinterpret_cast<const char*>(data_.get()) + range.offset, range.length};
}

Task<Result<std::unique_ptr<disk::Disk>>> ScriptedPlugin::open(disk::OpenRequest request) {
  if (open_error) return Result<std::unique_ptr<disk::Disk>>(fail(open_error));
  std::lock_guard lock(mutex_);
  open_disks_++;
  return Result<std::unique_ptr<disk::Disk>>(
      std::make_unique<ScriptedDisk>(*this, request.loop, request.read_only));
}

Task<Status> ScriptedPlugin::finish(engine::Loop&) {
  std::lock_guard lock(mutex_);
  finishes_++;
  return Status{};
}

}  // namespace weft::server
