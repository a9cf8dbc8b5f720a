// SPDX-License-Identifier: BSD-3-Clause
// The cacheextents filter: remembers the last answer for extents until something changes.
//
// The memory belongs to the disk, not to the connection: a change on any connection ends it when it
// begins, and an answer that was asked for while a change was going on is not remembered.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "disk/per_export.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

constexpr size_t kCountMax = 1 << 16;  // extents that are remembered

// Gives `into` what `known` has from the start of its window on. False: nothing.
bool copy_extents(const Extents& known, Extents& into) {
  const uint64_t begin = into.window().offset;
  if (begin < known.window().offset || begin >= known.end()) return false;
  uint64_t skip = begin - known.window().offset;
  for (const Extent& extent : known.list()) {
    const uint64_t cut = std::min(skip, extent.length);
    skip -= cut;
    if (extent.length > cut && !into.append(extent.length - cut, extent.flags)) break;
  }
  return true;
}

// Of one disk, or of all that may be one: answers are told apart by the export's name, changes are
// not. Thread-safe.
class Memory {
 public:
  // A change begins and has ended, well or not.
  void begin_change() {
    const std::lock_guard lock(mutex_);
    changing_++;
    generation_++;
    known_.reset();
  }
  void end_change() {
    const std::lock_guard lock(mutex_);
    changing_--;
    generation_++;
  }

  // What a question that is asked now must know, to be remembered.
  struct Ticket {
    uint64_t generation;
    bool quiet;
  };
  // True: answered.
  bool answer(const std::string& name, Extents& into, Ticket& ticket) const {
    const std::lock_guard lock(mutex_);
    ticket = {generation_, changing_ == 0};
    return known_ && known_name_ == name && copy_extents(*known_, into);
  }
  void remember(const std::string& name, const Extents& answer, Ticket ticket) {
    const std::lock_guard lock(mutex_);
    if (ticket.quiet && ticket.generation == generation_) {
      known_ = std::make_unique<Extents>(answer);
      known_name_ = name;
    }
  }

 private:
  mutable std::mutex mutex_;
  uint64_t generation_ = 0;
  uint64_t changing_ = 0;
  std::unique_ptr<Extents> known_;
  std::string known_name_;
};

class CacheextentsDisk final : public disk::FilterDisk {
 public:
  CacheextentsDisk(std::unique_ptr<disk::Disk> next, std::shared_ptr<Memory> memory,
                   std::string name)
      : FilterDisk(std::move(next), disk::Reads::kForwarded),
        memory_(std::move(memory)),
        name_(next_is_known() ? std::string() : std::move(name)) {}

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    memory_->begin_change();
    return ended(next().write(offset, from, fua));
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    memory_->begin_change();
    return ended(next().zero(range, flags));
  }
  Task<Status> trim(Range range, bool fua) override {
    memory_->begin_change();
    return ended(next().trim(range, fua));
  }

  Task<Status> extents(Extents& into, bool) override {
    Memory::Ticket ticket{};
    if (memory_->answer(name_, into, ticket)) return Status{};
    return ask(into, ticket);
  }

 private:
  Task<Status> ended(Task<Status> change) {
    if (!change.ready()) return wait(std::move(change));
    memory_->end_change();
    return change;
  }
  Task<Status> wait(Task<Status> change) {
    const Status done = co_await change;
    memory_->end_change();
    co_return done;
  }

  // Asks for all that the layer below will tell, also when one extent is wanted.
  Task<Status> ask(Extents& into, Memory::Ticket ticket) {
    Extents answer(into.window(), kCountMax);
    const Status done = co_await next().extents(answer, false);
    if (!done) co_return done;
    memory_->remember(name_, answer, ticket);
    copy_extents(answer, into);
    co_return Status{};
  }

  [[nodiscard]] bool next_is_known() { return !next().identity().empty(); }

  const std::shared_ptr<Memory> memory_;
  const std::string name_;  // empty: the disk itself is known
};

class Cacheextents final : public disk::Filter {
 public:
  bool take(std::string_view, std::string_view) override { return false; }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    std::string name = request.name;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    std::shared_ptr<Memory> memory =
        memories_.get(disk::storage_key(**next), [] { return std::make_shared<Memory>(); });
    co_return std::make_unique<CacheextentsDisk>(std::move(*next), std::move(memory),
                                                 std::move(name));
  }

 private:
  disk::PerExport<Memory> memories_;
};

}  // namespace

constinit const disk::FilterInfo cacheextents_filter = {
    .name = "cacheextents",
    .longname = "weft cacheextents filter",
    .description = "Remembers the last answer for extents",
    .config_help = nullptr,
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Cacheextents>(); },
};

}  // namespace weft::filters
