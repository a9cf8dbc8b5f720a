// SPDX-License-Identifier: BSD-3-Clause
// The log filter: writes down what passes, for a file or a script.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <utility>

#include "base/parse.h"
#include "engine/blocking_pool.h"
#include "filters/filters.h"
#include "filters/log/log_writer.h"

namespace weft::filters {
namespace {

using disk::Task;

constexpr auto kFinishTime = std::chrono::seconds(10);  // for scripts that are still to be run

// Where a connection logs to. All outlive it.
struct Sink {
  LogWriter& writer;
  engine::Lane& lane;
  disk::Loop& loop;

  // To be awaited when writer.full(): the caller goes on at the writer's speed.
  Task<Status> room() {
    co_await lane.run(loop, engine::BlockingReason::kWrite, engine::BlockingKind::kParallel,
                      [this] {
                        writer.wait_for_room();
                        return 0;
                      });
    co_return Status{};
  }
};

std::string range_text(Range range) {
  return fmt::format("offset={:#x} count={:#x}", range.offset, range.length);
}

// Holes are not offered to the readers above, whose questions for them would be logged as if
// clients had asked.
class LogDisk final : public disk::FilterDisk {
 public:
  LogDisk(std::unique_ptr<disk::Disk> next, Sink sink, uint64_t connection,
          const std::string& export_name)
      : FilterDisk(std::move(next), disk::Reads::kForwarded), sink_(sink), connection_(connection) {
    const disk::Capabilities& c = capabilities_;
    const auto number = [](auto value) { return static_cast<int>(value); };
    const auto yes = [](disk::Support support) { return support != disk::Support::kNone ? 1 : 0; };
    print("Connect",
          fmt::format("export={} tls=0 size={:#x} minsize={:#x} prefsize={:#x} maxsize={:#x} "
                      "write={} flush={} rotational={} trim={} zero={} fua={} extents={} cache={} "
                      "fast_zero={}",
                      quoted(export_name), c.size, c.block_size.minimum, c.block_size.preferred,
                      c.block_size.maximum, number(c.writable), yes(c.flush), number(c.rotational),
                      yes(c.trim), number(c.zero), number(c.fua), yes(c.extents), number(c.cache),
                      yes(c.fast_zero)));
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return logged(
        "Read", [&] { return range_text({offset, into.size()}); },
        [=, this] { return next().read(offset, into); });
  }
  bool lend(Range range, disk::Lease& lease) override {
    if (sink_.writer.full() || !next().lend(range, lease)) return false;
    const uint64_t id = ++last_id_;
    enter("Read", id, range_text(range));
    leave("Read", id, outcome(Status{}));
    return true;
  }
  [[nodiscard]] bool may_have_holes() const override { return false; }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return logged(
        "Write", [&] { return fmt::format("{} fua={:d}", range_text({offset, from.size()}), fua); },
        [=, this] { return next().write(offset, from, fua); });
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return logged(
        "Zero",
        [&] {
          return fmt::format("{} trim={:d} fua={:d} fast={:d}", range_text(range), flags.may_trim,
                             flags.fua, flags.fast);
        },
        [=, this] { return next().zero(range, flags); });
  }
  Task<Status> trim(Range range, bool fua) override {
    return logged(
        "Trim", [&] { return fmt::format("{} fua={:d}", range_text(range), fua); },
        [=, this] { return next().trim(range, fua); });
  }
  Task<Status> cache(Range range) override {
    return logged(
        "Cache", [&] { return range_text(range); }, [=, this] { return next().cache(range); });
  }
  Task<Status> flush() override {
    return logged("Flush", [] { return std::string(); }, [this] { return next().flush(); });
  }
  Task<Status> extents(Extents& into, bool one) override {
    if (sink_.writer.full()) co_await sink_.room();
    const uint64_t id = ++last_id_;
    enter("Extents", id, fmt::format("{} req_one={:d}", range_text(into.window()), one));
    const Status status = co_await next().extents(into, one);
    leave("Extents", id, status ? described(into) + " " + outcome(status) : outcome(status));
    co_return status;
  }
  Task<Status> close() override {
    print("Disconnect", fmt::format("transactions={}", last_id_));
    return next().close();
  }

 private:
  void print(const char* action, std::string parameters) {
    sink_.writer.write({RecordType::kPrint, action, connection_, 0, std::move(parameters)});
  }
  void enter(const char* action, uint64_t id, std::string parameters) {
    sink_.writer.write({RecordType::kEnter, action, connection_, id, std::move(parameters)});
  }
  void leave(const char* action, uint64_t id, std::string parameters) {
    sink_.writer.write({RecordType::kLeave, action, connection_, id, std::move(parameters)});
  }

  template <typename Parameters, typename F>
  Task<Status> logged(const char* action, Parameters parameters, F call) {
    if (sink_.writer.full()) return logged_later(action, parameters(), std::move(call));
    const uint64_t id = ++last_id_;
    enter(action, id, parameters());
    Task<Status> task = call();
    if (!task.ready()) return leave_later(action, id, std::move(task));
    const Status status = task.take();
    leave(action, id, outcome(status));
    return status;
  }
  template <typename F>
  Task<Status> logged_later(const char* action, std::string parameters, F call) {
    co_await sink_.room();
    const uint64_t id = ++last_id_;
    enter(action, id, std::move(parameters));
    const Status status = co_await call();
    leave(action, id, outcome(status));
    co_return status;
  }
  Task<Status> leave_later(const char* action, uint64_t id, Task<Status> task) {
    const Status status = co_await task;
    leave(action, id, outcome(status));
    co_return status;
  }

  Sink sink_;
  const uint64_t connection_;
  uint64_t last_id_ = 0;
};

class Log final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "logfile") {
      if (value.empty()) throw ConfigError("logfile: the name is empty: give the path of a file");
      path_ = value;
    } else if (key == "logscript") {
      script_ = value;
    } else if (key == "logappend") {
      append_ = parse_bool(key, value);
    } else {
      return false;
    }
    return true;
  }

  void complete() override {
    if (!path_.empty()) {
      file_ = Fd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666));
      if (!file_) {
        throw ConfigError(
            fmt::format("logfile: '{}' cannot be opened: {}: give a path that can be written",
                        path_, errno_text(errno)));
      }
    }
    if (!script_.empty() && ::access("/bin/bash", X_OK) != 0) {
      throw ConfigError("logscript: it needs /bin/bash, which is not there: install bash");
    }
  }

  void begin(const disk::Surroundings& surroundings) override {
    if (surroundings.explaining || (!file_ && script_.empty())) return;
    // What is no regular file cannot be emptied, and need not be.
    if (file_ && !append_) (void)!::ftruncate(file_.get(), 0);
    lane_ = std::make_unique<engine::Lane>(surroundings.pool);
    writer_ = std::make_unique<LogWriter>(std::move(file_), path_, script_);
    writer_->start();
    print("Ready", fmt::format("thread_model={}", static_cast<int>(thread_model())));
    print("Fork", "");
  }

  Task<Status> preconnect(disk::Loop& loop, const disk::Peer& peer, bool read_only) override {
    if (!writer_) co_return co_await next().preconnect(loop, peer, read_only);
    const uint64_t id = ++last_preconnect_;
    enter("Preconnect", id, fmt::format("readonly={:d}", read_only));
    const Status status = co_await next().preconnect(loop, peer, read_only);
    leave("Preconnect", id, outcome(status));
    co_return status;
  }

  Task<Result<std::vector<disk::ExportEntry>>> list_exports(disk::Loop& loop,
                                                            bool read_only) override {
    if (!writer_) co_return co_await next().list_exports(loop, read_only);
    const uint64_t id = ++last_list_;
    enter("ListExports", id, fmt::format("readonly={:d} tls=0", read_only));
    Result<std::vector<disk::ExportEntry>> list = co_await next().list_exports(loop, read_only);
    if (list) {
      std::string names;
      for (const disk::ExportEntry& entry : *list) {
        if (!names.empty()) names += ' ';
        names += quoted(entry.name);
      }
      leave("ListExports", id, fmt::format("exports=({}) return=0", names));
    } else {
      leave("ListExports", id, outcome(std::unexpected(list.error())));
    }
    co_return list;
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    const std::string name = request.name;
    disk::Loop& loop = request.loop;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    if (!writer_) {
      co_return std::make_unique<disk::FilterDisk>(std::move(*next), disk::Reads::kForwarded);
    }
    co_return std::make_unique<LogDisk>(std::move(*next), Sink{*writer_, *lane_, loop},
                                        ++last_connection_, name);
  }

  Task<Status> finish(disk::Loop& loop) override {
    const Status status = co_await next().finish(loop);
    if (writer_) {
      co_await lane_->run(loop, engine::BlockingReason::kWrite, engine::BlockingKind::kParallel,
                          [this] {
                            writer_->finish(kFinishTime);
                            return 0;
                          });
    }
    co_return status;
  }

 private:
  void print(const char* action, std::string parameters) {
    writer_->write({RecordType::kPrint, action, 0, 0, std::move(parameters)});
  }
  void enter(const char* action, uint64_t id, std::string parameters) {
    writer_->write({RecordType::kEnter, action, 0, id, std::move(parameters)});
  }
  void leave(const char* action, uint64_t id, std::string parameters) {
    writer_->write({RecordType::kLeave, action, 0, id, std::move(parameters)});
  }

  std::string path_;
  std::string script_;
  bool append_ = false;
  Fd file_;
  std::unique_ptr<engine::Lane> lane_;
  std::unique_ptr<LogWriter> writer_;  // null: there is nowhere to log to
  std::atomic<uint64_t> last_connection_{0};
  std::atomic<uint64_t> last_preconnect_{0};
  std::atomic<uint64_t> last_list_{0};
};

}  // namespace

constinit const disk::FilterInfo log_filter = {
    .name = "log",
    .longname = "weft log filter",
    .description = "Writes down the operations, to a file or by a script",
    .config_help =
        "logfile=FILE  where the log is written\n"
        "logappend=BOOL  add to the file instead of replacing it (default off)\n"
        "logscript=SCRIPT  what bash runs for every entry",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Log>(); },
};

}  // namespace weft::filters
