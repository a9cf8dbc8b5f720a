// SPDX-License-Identifier: BSD-3-Clause
// For tests: a disk in memory whose calls fail, wait until the test lets them go, and are recorded.
#pragma once

#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "disk/change_order.h"
#include "disk/disk.h"

namespace weft::server {

struct Call {
  enum class Kind : uint8_t { kRead, kWrite, kZero, kTrim, kCache, kFlush, kExtents };
  Kind kind;
  Range range;
  bool fua = false;
};
inline bool is(const Call& call, Call::Kind kind) {
  return call.kind == kind;
}

// Thread-safe but for what says "before". The functions given to it are called on the loops'
// threads, one at a time.
class ScriptedPlugin final : public disk::Plugin {
 public:
  // Bytes beyond kMemory read as zeroes, and writes there are forgotten.
  static constexpr uint64_t kMemory = uint64_t{80} << 20;
  explicit ScriptedPlugin(uint64_t size, uint64_t granularity = 1);

  // Before the first connection.
  disk::Capabilities capabilities;
  bool lends = false;        // reads lend the bytes where they lie
  std::vector<Range> holes;  // ascending; extents() and lend() tell them
  bool hesitant = false;     // calls end now at once, now some turns of the loop later
  int open_error = 0;        // an errno

  // Calls for which `which` is true wait until they are released.
  void hold(std::function<bool(const Call&)> which);
  // Lets the first held call go for which `which` is true; all, and those to come, without it.
  void release(const std::function<bool(const Call&)>& which);
  void release();
  // What a call ends with, once it has waited.
  void answer(std::function<Status(const Call&)> how);

  // Waits until so many calls are held. Throws when that takes too long.
  void wait_until_held(size_t count);
  void wait_until_started(size_t count);
  // Calls of the disk so far, in the order in which they started.
  [[nodiscard]] std::vector<Call> started() const;
  [[nodiscard]] size_t held() const;
  [[nodiscard]] int open_disks() const;
  [[nodiscard]] int finishes() const;  // calls of finish()
  [[nodiscard]] std::string content(Range range) const;

  void config(std::string_view, std::string_view) override {}
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override;
  disk::Task<Status> finish(engine::Loop& loop) override;

 private:
  friend class ScriptedDisk;
  struct Held final : engine::Message {
    Held(ScriptedPlugin& the_plugin, const Call& the_call, engine::Loop& the_loop)
        : plugin(the_plugin), call(the_call), loop(the_loop) {}
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    bool await_suspend(std::coroutine_handle<> handle);
    void await_resume() const noexcept {}
    void run() override { loop.schedule(wakeup); }
    ScriptedPlugin& plugin;
    const Call& call;
    engine::Loop& loop;
    engine::Wakeup wakeup{};
  };
  // Records the call. True: it is to be held.
  bool begin(const Call& call);
  Status result_of(const Call& call);
  template <typename Ready>
  void wait_until(Ready ready);

  const uint64_t size_;
  const std::unique_ptr<std::byte, decltype(&std::free)> data_;
  disk::ChangeOrder order_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<bool(const Call&)> hold_;
  std::function<Status(const Call&)> answer_;
  std::vector<Call> started_;
  std::deque<Held*> held_;
  int open_disks_ = 0;
  int finishes_ = 0;
};

}  // namespace weft::server
