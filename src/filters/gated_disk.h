// SPDX-License-Identifier: BSD-3-Clause
// GatedPlugin: a disk for tests of filters whose calls stand still until the test lets them go. All
// of it is a hole until something is written, and data from then on. For one loop.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "disk/disk.h"
#include "engine/scope.h"

namespace weft::filters {

// What the test sets and looks at. Outlives the plugin.
struct Gates {
  explicit Gates(engine::Loop& on) : signal(on) {}
  void open_all() {
    hold_cache = hold_extents = hold_write = false;
    signal.notify_all();
  }

  bool hold_cache = false;
  bool hold_extents = false;  // after the answer has been looked up
  bool hold_write = false;    // before anything has changed
  engine::Signal signal;

  bool data = false;  // something was written
  int extents_calls = 0;
  int caches_running = 0;
  int closes = 0;
  std::vector<Range> caches;
  disk::Support cache = disk::Support::kNative;
};

class GatedPlugin final : public disk::Plugin {
 public:
  GatedPlugin(Gates& gates, uint64_t size) : gates_(gates), size_(size) {}
  void config(std::string_view, std::string_view) override {}
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest) override {
    return Result<std::unique_ptr<disk::Disk>>(std::make_unique<GatedDisk>(gates_, size_));
  }

 private:
  class GatedDisk final : public disk::Disk {
   public:
    GatedDisk(Gates& gates, uint64_t size) : gates_(gates) {
      using disk::Support;
      capabilities_ = {.size = size,
                       .writable = true,
                       .multi_conn = true,
                       .flush = Support::kNative,
                       .zero = Support::kEmulate,
                       .cache = gates.cache,
                       .extents = Support::kNative,
                       .block_size = {}};
    }
    disk::Task<Status> read(uint64_t, MutableByteSpan into) override {
      std::memset(into.data(), 0, into.size());
      return Status{};
    }
    disk::Task<Status> write(uint64_t, ByteSpan, bool) override {
      while (gates_.hold_write) co_await gates_.signal.wait();
      gates_.data = true;
      co_return Status{};
    }
    disk::Task<Status> cache(Range range) override {
      gates_.caches.push_back(range);
      gates_.caches_running++;
      while (gates_.hold_cache) co_await gates_.signal.wait();
      gates_.caches_running--;
      co_return Status{};
    }
    disk::Task<Status> flush() override { return Status{}; }
    disk::Task<Status> extents(Extents& into, bool) override {
      gates_.extents_calls++;
      const uint32_t flags = gates_.data ? kExtentData : kExtentHole | kExtentZero;
      while (gates_.hold_extents) co_await gates_.signal.wait();
      into.append(into.window().length, flags);
      co_return Status{};
    }
    disk::Task<Status> close() override {
      gates_.closes++;
      return Status{};
    }

   private:
    Gates& gates_;
  };

  Gates& gates_;
  const uint64_t size_;
};

}  // namespace weft::filters
