// SPDX-License-Identifier: BSD-3-Clause
// The stats filter: counts what passes, and writes a summary when the server ends.
//
// Each connection counts for itself, on its own loop, and adds its tally to the filter's when it
// closes: counting costs two looks at the clock and no shared memory.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

#include "base/fd.h"
#include "base/log.h"
#include "base/parse.h"
#include "engine/blocking_pool.h"
#include "filters/filters.h"
#include "filters/stats/tally.h"

namespace weft::filters {
namespace {

using disk::Task;
using engine::Clock;

// Shared by all connections.
class SharedTally {
 public:
  void add(const Tally& tally) {
    const std::lock_guard lock(mutex_);
    tally_.add(tally);
  }
  std::string report(std::chrono::nanoseconds elapsed, unsigned threshold) {
    const std::lock_guard lock(mutex_);
    return tally_.report(elapsed, threshold);
  }

 private:
  std::mutex mutex_;
  Tally tally_;
};

// Reads that are lent are counted as reads. Holes are not offered to the readers above, whose
// questions for them would be counted as if clients had asked.
class StatsDisk final : public disk::FilterDisk {
 public:
  StatsDisk(std::unique_ptr<disk::Disk> next, std::shared_ptr<SharedTally> shared)
      : FilterDisk(std::move(next), disk::Reads::kForwarded), shared_(std::move(shared)) {}
  ~StatsDisk() override { shared_->add(tally_); }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kRead, {offset, into.size()}, begun, next().read(offset, into));
  }
  bool lend(Range range, disk::Lease& lease) override {
    const Clock::time_point begun = Clock::now();
    if (!next().lend(range, lease)) return false;
    tally_[Operation::kRead].add(range, Clock::now() - begun);
    return true;
  }
  [[nodiscard]] bool may_have_holes() const override { return false; }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kWrite, {offset, from.size()}, begun,
                   next().write(offset, from, fua));
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kZero, range, begun, next().zero(range, flags));
  }
  Task<Status> trim(Range range, bool fua) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kTrim, range, begun, next().trim(range, fua));
  }
  Task<Status> cache(Range range) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kCache, range, begun, next().cache(range));
  }
  Task<Status> flush() override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kFlush, {}, begun, next().flush());
  }
  Task<Status> extents(Extents& into, bool one) override {
    const Clock::time_point begun = Clock::now();
    return counted(Operation::kExtents, into.window(), begun, next().extents(into, one));
  }

 private:
  Task<Status> counted(Operation operation, Range range, Clock::time_point begun,
                       Task<Status> call) {
    if (!call.ready()) return counted_later(operation, range, begun, std::move(call));
    const Status status = call.take();
    if (status) tally_[operation].add(range, Clock::now() - begun);
    return status;
  }
  Task<Status> counted_later(Operation operation, Range range, Clock::time_point begun,
                             Task<Status> call) {
    const Status status = co_await call;
    if (status) tally_[operation].add(range, Clock::now() - begun);
    co_return status;
  }

  const std::shared_ptr<SharedTally> shared_;
  Tally tally_;
};

class Stats final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "statsfile") {
      if (value.empty()) throw ConfigError("statsfile: the name is empty: give the path of a file");
      path_ = value;
    } else if (key == "statsappend") {
      append_ = parse_bool(key, value);
    } else if (key == "statsthreshold") {
      threshold_ = static_cast<unsigned>(parse_unsigned(key, value, 100));
    } else {
      return false;
    }
    return true;
  }

  void complete() override {
    if (path_.empty()) {
      throw ConfigError(
          "stats: there is no file to write to: give one, as in: statsfile=stats.txt");
    }
    // Emptied when the server starts: a parameter that is wrong changes no file.
    file_ = Fd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
    if (!file_) {
      throw ConfigError(
          fmt::format("statsfile: '{}' cannot be opened: {}: give a path that can be "
                      "written",
                      path_, errno_text(errno)));
    }
  }

  void begin(const disk::Surroundings& surroundings) override {
    started_ = Clock::now();
    if (surroundings.explaining) return;
    // What is no regular file cannot be emptied, and need not be.
    if (!append_ && ::ftruncate(file_.get(), 0) != 0 && errno != EINVAL) complain(errno);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<StatsDisk>(std::move(*next), shared_);
  }

  Task<Status> finish(disk::Loop& loop) override {
    const std::string text = shared_->report(Clock::now() - started_, threshold_);
    const int error = co_await loop.pool().general_lane().run(loop, engine::BlockingReason::kWrite,
                                                              engine::BlockingKind::kParallel,
                                                              [&] { return write_all(text); });
    if (error != 0) complain(error);
    co_return co_await next().finish(loop);
  }

 private:
  // 0 or an errno.
  int write_all(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t n = ::write(file_.get(), text.data(), text.size());
      if (n >= 0) {
        text.remove_prefix(static_cast<size_t>(n));
      } else if (errno != EINTR) {
        return errno;
      }
    }
    return 0;
  }
  void complain(int error) const {
    log::error("stats: '{}' cannot be written: {}", path_, errno_text(error));
  }

  std::string path_;
  bool append_ = false;
  unsigned threshold_ = 95;  // percent; 0: no histograms
  Fd file_;
  Clock::time_point started_;
  const std::shared_ptr<SharedTally> shared_ = std::make_shared<SharedTally>();
};

}  // namespace

constinit const disk::FilterInfo stats_filter = {
    .name = "stats",
    .longname = "weft stats filter",
    .description = "Counts the operations, and writes a summary when the server ends",
    .config_help =
        "statsfile=FILE  (required) where the summary is written\n"
        "statsappend=BOOL  add to the file instead of replacing it (default off)\n"
        "statsthreshold=PERCENT  how much of the operations the histograms show (default 95; 0: no "
        "histograms)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Stats>(); },
};

}  // namespace weft::filters
