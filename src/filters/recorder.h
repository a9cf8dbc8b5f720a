// SPDX-License-Identifier: BSD-3-Clause
// For tests of filters: a disk in memory that can what it is told to, and writes down its calls.
#pragma once

#include <fmt/format.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "disk/disk.h"
#include "disk/open_layer.h"
#include "disk/sparse_store.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"
#include "filters/testing.h"

namespace weft::filters {

// What the recording disks of a plugin share. Used by one thread.
struct Recording {
  disk::Capabilities capabilities;
  std::vector<std::string> calls;                     // "write 0+512 fua", "flush", "close"
  std::function<Status(const std::string&)> outcome;  // of a call; null: all succeed

  Status call(std::string what) {
    calls.push_back(what);
    return outcome ? outcome(what) : Status{};
  }
};

class RecordingDisk final : public disk::Disk {
 public:
  explicit RecordingDisk(Recording& recording)
      : recording_(recording), store_(recording.capabilities.size) {
    capabilities_ = recording.capabilities;
  }
  engine::Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    store_.read(offset, into);
    return recording_.call(fmt::format("read {}+{}", offset, into.size()));
  }
  engine::Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return change("write", {offset, from.size()}, fua ? " fua" : "");
  }
  engine::Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return change("zero", range,
                  fmt::format("{}{}{}", flags.fua ? " fua" : "", flags.may_trim ? " may_trim" : "",
                              flags.fast ? " fast" : ""));
  }
  engine::Task<Status> trim(Range range, bool fua) override {
    return change("trim", range, fua ? " fua" : "");
  }
  engine::Task<Status> cache(Range range) override { return change("cache", range, ""); }
  engine::Task<Status> flush() override { return recording_.call("flush"); }
  engine::Task<Status> close() override { return recording_.call("close"); }

 private:
  engine::Task<Status> change(const char* what, Range range, const std::string& flags) {
    return recording_.call(fmt::format("{} {}+{}{}", what, range.offset, range.length, flags));
  }
  Recording& recording_;
  disk::SparseStore store_;
};

class RecordingPlugin final : public disk::Plugin {
 public:
  explicit RecordingPlugin(Recording& recording) : recording_(recording) {}
  void config(std::string_view, std::string_view) override {}
  engine::Task<Status> preconnect(engine::Loop&, const disk::Peer&, bool) override {
    return recording_.call("preconnect");
  }
  engine::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest) override {
    if (Status status = recording_.call("open"); !status) co_return fail(status.error().code);
    co_return std::make_unique<RecordingDisk>(recording_);
  }

 private:
  Recording& recording_;
};

// A filter over a recorder, opened as a connection would.
class Recorded {
 public:
  Recorded() {
    disk::Capabilities& c = recording.capabilities;
    c.size = 8 << 20;
    c.writable = c.multi_conn = true;
    c.flush = c.fua = c.trim = c.zero = c.fast_zero = c.cache = disk::Support::kNative;
  }
  ~Recorded() {
    if (disk) close();
  }
  Recorded(const Recorded&) = delete;
  Recorded& operator=(const Recorded&) = delete;

  void make(std::string_view filter, const Parameters& parameters = {}) {
    plugin = make_filtered(filter, parameters, std::make_unique<RecordingPlugin>(recording));
  }
  Result<std::unique_ptr<disk::Disk>> try_open(const disk::Peer* peer = nullptr) {
    return run(disk::open_layer(*plugin, "filter", {.name = "", .loop = *loop, .peer = peer}));
  }
  // Makes and opens it; what has been called until then is forgotten.
  disk::Disk& open(std::string_view filter, const Parameters& parameters = {}) {
    make(filter, parameters);
    disk = std::move(*try_open());
    recording.calls.clear();
    return *disk;
  }
  Status close() {
    const Status closed = run(disk->close());
    disk.reset();
    return closed;
  }
  template <typename T>
  T run(engine::Task<T> task) {
    return loop->run_until_done(std::move(task));
  }

  Recording recording;
  engine::BlockingPool pool;
  std::unique_ptr<engine::Loop> loop = engine::Loop::create(engine::EngineKind::kEpoll, pool);
  std::unique_ptr<disk::Plugin> plugin;
  std::unique_ptr<disk::Disk> disk;
  std::vector<std::byte> bytes = std::vector<std::byte>(512);
};

}  // namespace weft::filters
