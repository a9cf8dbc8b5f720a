// SPDX-License-Identifier: BSD-3-Clause
// The multi-conn filter: many connections see one disk, whatever the disk below keeps for each.
#include <fmt/format.h>

#include <atomic>
#include <optional>

#include "base/log.h"
#include "base/parse.h"
#include "disk/per_export.h"
#include "filters/filters.h"
#include "filters/multi-conn/emulated_disk.h"
#include "filters/multi-conn/group.h"
#include "filters/multi-conn/tracked_disk.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

enum class Mode : uint8_t { kAuto, kEmulate, kPlugin, kDisable, kUnsafe };

constexpr const char* kNoFlushText =
    "multi-conn-mode=emulate needs a disk that can flush, and this one cannot: use "
    "multi-conn-mode=disable";

// What the connections of a disk share.
struct Shared {
  Shared(const std::string& name, Tracking tracking)
      : group(std::make_shared<Group>(name, tracking)) {}
  const std::shared_ptr<Group> group;
  const std::shared_ptr<ChangeCount> changes = std::make_shared<ChangeCount>();
  std::atomic<bool> warned{false};
};

class MultiConnFilter final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "multi-conn-mode") {
      mode_ = parse_mode(value);
    } else if (key == "multi-conn-track-dirty") {
      tracking_ = parse_tracking(value);
    } else if (key == "multi-conn-exportname" || key == "multi-conn-export-name") {
      by_name_ = parse_bool(key, value);
    } else {
      return false;
    }
    return true;
  }

  void begin(const disk::Surroundings& surroundings) override {
    one_connection_ = surroundings.one_connection;
    if (mode_ == Mode::kUnsafe) {
      log::warning(
          "multi-conn-mode=unsafe: clients are told that several connections see one disk, whether "
          "or not that is true of the disk: what one writes, another may overwrite or never see");
    }
    if (tracking_ == Tracking::kFast && (mode_ == Mode::kPlugin || mode_ == Mode::kUnsafe)) {
      log::warning(
          "multi-conn-track-dirty=fast drops flushes that a disk needs whose connections are not "
          "consistent with each other: use it with multi-conn-mode={} only if they are",
          mode_ == Mode::kPlugin ? "plugin" : "unsafe");
    }
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    engine::Loop& loop = request.loop;
    const std::string export_name = request.name;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    const std::shared_ptr<Shared> shared = share(**next, export_name);
    const disk::Capabilities& can = (*next)->capabilities();
    const auto [mode, reason] = resolve(can, *shared, export_name);
    if (mode == Mode::kEmulate) {
      if (!can_flush(can)) {
        (void)co_await (*next)->close();
        co_return fail(EOPNOTSUPP, kNoFlushText);
      }
      co_return make_emulated_disk(std::move(*next), shared->group, loop);
    }
    const Advertise advertise = mode == Mode::kUnsafe    ? Advertise::kOrdered
                                : mode == Mode::kDisable ? Advertise::kNo
                                                         : Advertise::kAsBelow;
    co_return make_tracked_disk(std::move(*next), shared->changes, tracking_, advertise, reason);
  }

  [[nodiscard]] std::vector<disk::Explanation> explain_layer() const override {
    return {{"mode", fmt::format("{}{}", mode_name(mode_),
                                 mode_ != Mode::kAuto ? ""
                                 : one_connection_    ? ": one client at a time, so disable"
                                                      : ": plugin over a disk whose connections "
                                                        "see each other's writes, else emulate")},
            {"tracking",
             tracking_ == Tracking::kConnection ? "connection: what needs no flush is not flushed"
             : tracking_ == Tracking::kFast ? "fast: flushed only if anything has changed, then all"
                                            : "off: every flush reaches every connection"}};
  }

 private:
  static Mode parse_mode(std::string_view value) {
    for (const Mode mode :
         {Mode::kAuto, Mode::kEmulate, Mode::kPlugin, Mode::kDisable, Mode::kUnsafe}) {
      if (value == mode_name(mode)) return mode;
    }
    throw ConfigError(fmt::format(
        "multi-conn-mode: '{}' is unknown: give auto, emulate, plugin, disable or unsafe", value));
  }

  static const char* mode_name(Mode mode) {
    switch (mode) {
      case Mode::kAuto:
        return "auto";
      case Mode::kEmulate:
        return "emulate";
      case Mode::kPlugin:
        return "plugin";
      case Mode::kDisable:
        return "disable";
      case Mode::kUnsafe:
        return "unsafe";
    }
    return "?";
  }

  static Tracking parse_tracking(std::string_view value) {
    if (value == "connection" || value == "conn") return Tracking::kConnection;
    if (value == "fast") return Tracking::kFast;
    if (value == "off") return Tracking::kOff;
    throw ConfigError(fmt::format(
        "multi-conn-track-dirty: '{}' is unknown: give connection, fast or off", value));
  }

  // A disk that names itself is told from others by that; any other may be one with all the rest,
  // unless the operator says that names tell them apart.
  std::shared_ptr<Shared> share(const disk::Disk& next, const std::string& export_name) {
    const bool known = !next.identity().empty();
    return shared_.get(
        known || by_name_ ? disk::export_key(next, export_name) : std::string(), [&] {
          return std::make_shared<Shared>(
              by_name_ ? fmt::format("multi-conn: export \"{}\"", export_name) : "multi-conn",
              tracking_);
        });
  }

  // A flush that is acknowledged and dropped publishes nothing.
  static bool can_flush(const disk::Capabilities& can) {
    return can.flush != Support::kNone && !can.flush_ignored;
  }

  struct Resolved {
    Mode mode;  // not kAuto
    const char* reason;
  };
  Resolved resolve(const disk::Capabilities& can, Shared& shared, const std::string& export_name) {
    if (mode_ == Mode::kPlugin && tracking_ == Tracking::kFast && !can.multi_conn &&
        !shared.warned.exchange(true)) {
      log::warning(
          "export \"{}\": the disk does not say that its connections are consistent with each "
          "other: multi-conn-track-dirty=fast with multi-conn-mode=plugin drops flushes that it "
          "needs",
          export_name);
    }
    if (mode_ == Mode::kDisable) return {mode_, "multi-conn-mode=disable"};
    if (mode_ == Mode::kUnsafe) return {mode_, "multi-conn-mode=unsafe says so, true or not"};
    if (mode_ != Mode::kAuto) return {mode_, nullptr};
    if (one_connection_) return {Mode::kDisable, "only one client may be connected at a time"};
    if (can.multi_conn) return {Mode::kPlugin, nullptr};
    if (can_flush(can)) return {Mode::kEmulate, nullptr};
    if (!shared.warned.exchange(true)) {
      log::warning(
          "export \"{}\": the disk cannot flush, so several connections cannot be made to see one "
          "disk: multi-conn-mode=auto means disable here, and multi-conn is not advertised",
          export_name);
    }
    return {Mode::kDisable,
            "the disk cannot flush, so nothing can make its connections see one disk"};
  }

  Mode mode_ = Mode::kAuto;
  Tracking tracking_ = Tracking::kConnection;
  bool by_name_ = false;
  bool one_connection_ = false;
  disk::PerExport<Shared> shared_;
};

}  // namespace

constinit const disk::FilterInfo multi_conn_filter = {
    .name = "multi-conn",
    .longname = "weft multi-conn filter",
    .description = "Many connections see one disk, whatever it keeps for each of them",
    .config_help =
        "multi-conn-mode=auto|emulate|plugin|disable|unsafe  (default auto)\n"
        "multi-conn-track-dirty=connection|fast|off  which flushes are needed (default "
        "connection)\n"
        "multi-conn-exportname=BOOL  exports of different names share nothing (default false)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<MultiConnFilter>(); },
};

}  // namespace weft::filters
