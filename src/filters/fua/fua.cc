// SPDX-License-Identifier: BSD-3-Clause
// The fua filter: changes how forced unit access (FUA) and flushes are done, or drops them.
//
// kForce: every change goes down with FUA, so that what was acknowledged is durable and a flush has
// nothing to do. Only when a change has failed is there more to know: the disk below may have
// marked itself because a sync failed, and from then on flushes go down to hear that.
#include <atomic>
#include <cerrno>
#include <memory>
#include <string>

#include "base/log.h"
#include "base/parse.h"
#include "disk/per_export.h"
#include "filters/choice.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

enum class Mode : uint8_t { kNone, kEmulate, kNative, kForce, kDiscard, kPass };

constexpr Choice<Mode> kModes[] = {{"none", Mode::kNone},       {"emulate", Mode::kEmulate},
                                   {"native", Mode::kNative},   {"force", Mode::kForce},
                                   {"discard", Mode::kDiscard}, {"pass", Mode::kPass}};

// What the connections of an export share.
struct State {
  std::atomic<bool> change_failed{false};
};

class FuaDisk final : public disk::FilterDisk {
 public:
  FuaDisk(std::unique_ptr<disk::Disk> below, Mode mode, bool flush_on_close,
          std::shared_ptr<State> state)
      : FilterDisk(std::move(below), disk::Reads::kForwarded),
        mode_(mode),
        flush_on_close_(flush_on_close),
        state_(std::move(state)) {
    disk::Capabilities& c = capabilities_;
    const Support if_writable = c.writable ? Support::kNative : Support::kNone;
    switch (mode) {
      case Mode::kNone:
        c.fua = Support::kNone;
        break;
      case Mode::kEmulate:
        c.fua = c.writable ? Support::kEmulate : Support::kNone;
        break;
      case Mode::kNative:
        c.fua = if_writable;
        break;
      case Mode::kForce:
        c.fua = if_writable;
        c.flush = Support::kNative;
        // Emulated zeroes are one call of the next layer, which needs one flush for all of it.
        if (c.zero == Support::kEmulate) c.zero = Support::kNative;
        break;
      case Mode::kDiscard:
        c.fua = if_writable;
        c.flush = Support::kNative;
        c.flush_ignored = true;
        if (c.multi_conn_ordered) break;
        c.multi_conn = false;
        c.multi_conn_layer = "the fua filter";
        c.multi_conn_reason = "fuamode=discard: flushes are dropped, so that none covers anything";
        break;
      case Mode::kPass:
        break;
    }
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    changed_ = true;
    return noted(next().write(offset, from, passed_on(fua)));
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    changed_ = true;
    flags.fua = passed_on(flags.fua);
    return noted(next().zero(range, flags));
  }
  Task<Status> trim(Range range, bool fua) override {
    changed_ = true;
    return noted(next().trim(range, passed_on(fua)));
  }
  Task<Status> flush() override {
    if (mode_ == Mode::kDiscard) return Status{};
    if (mode_ == Mode::kForce) {
      if (!can_flush()) return Status{};
      // Over a disk that keeps something for each connection, a flush makes this one forget it.
      const bool durable = !state_->change_failed.load(std::memory_order_acquire);
      if (durable && next().capabilities().multi_conn) return Status{};
    }
    return next().flush();
  }
  Task<Status> close() override {
    if (!flush_on_close_ || !changed_ || !can_flush()) return next().close();
    return flush_and_close();
  }

 private:
  [[nodiscard]] bool can_flush() { return next().capabilities().flush != Support::kNone; }
  [[nodiscard]] bool passed_on(bool fua) const {
    return mode_ == Mode::kForce || (fua && mode_ != Mode::kDiscard);
  }

  void note(const Status& status) {
    if (!status && status.error().code != ENOTSUP) {  // a fast zero that changed nothing
      state_->change_failed.store(true, std::memory_order_release);
    }
  }
  Task<Status> noted(Task<Status> change) {
    if (mode_ != Mode::kForce) return change;
    if (!change.ready()) return note_at_end(std::move(change));
    const Status status = change.take();
    note(status);
    return status;
  }
  Task<Status> note_at_end(Task<Status> change) {
    const Status status = co_await change;
    note(status);
    co_return status;
  }
  Task<Status> flush_and_close() {
    const Status flushed = co_await next().flush();
    const Status closed = co_await next().close();
    co_return flushed ? closed : flushed;
  }

  const Mode mode_;
  const bool flush_on_close_;
  const std::shared_ptr<State> state_;
  bool changed_ = false;  // something went down through this disk
};

class Fua final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "fuamode" || key == "fua-mode") {
      mode_ = choose(name(), key, value, kModes);
    } else if (key == "flush-on-close") {
      flush_on_close_ = parse_bool(key, value);
    } else {
      return false;
    }
    return true;
  }

  void begin(const disk::Surroundings&) override {
    if (mode_ != Mode::kDiscard) return;
    log::warning(
        "fua: fuamode=discard is unsafe: flushes and FUA are acknowledged and dropped; after a "
        "crash data is lost that a client was told is durable");
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    const std::string export_name = request.name;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    if (const Status possible = check((*next)->capabilities()); !possible) {
      (void)co_await (*next)->close();
      co_return std::unexpected(possible.error());
    }
    std::shared_ptr<State> state = states_.get(disk::export_key(**next, export_name),
                                               [] { return std::make_shared<State>(); });
    co_return std::make_unique<FuaDisk>(std::move(*next), mode_, flush_on_close_, std::move(state));
  }

  [[nodiscard]] std::vector<disk::Explanation> explain_layer() const override {
    std::vector<disk::Explanation> lines;
    switch (mode_) {
      case Mode::kForce:
        lines.push_back({"flush", "every change is sent down with FUA; a flush has nothing to do"});
        break;
      case Mode::kDiscard:
        lines.push_back({"flush", "UNSAFE: flushes and FUA are acknowledged and dropped"});
        break;
      default:
        break;
    }
    if (flush_on_close_) lines.push_back({"close", "a connection that ends is flushed first"});
    return lines;
  }

 private:
  // Whether the mode can be had over a disk that can do `below`.
  [[nodiscard]] Status check(const disk::Capabilities& below) const {
    if (!below.writable) return {};  // there is nothing to force
    if (mode_ == Mode::kEmulate && below.flush == Support::kNone) {
      return fail(EOPNOTSUPP, "fuamode=emulate needs a disk that can flush");
    }
    if (below.fua == Support::kNone) {
      if (mode_ == Mode::kNative) {
        return fail(EOPNOTSUPP, "fuamode=native needs a disk that can do FUA, or flush");
      }
      if (mode_ == Mode::kForce) {
        return fail(EOPNOTSUPP, "fuamode=force needs a disk that can do FUA, or flush");
      }
    }
    return {};
  }

  Mode mode_ = Mode::kNone;
  bool flush_on_close_ = false;
  disk::PerExport<State> states_;
};

}  // namespace

constinit const disk::FilterInfo fua_filter = {
    .name = "fua",
    .longname = "weft fua filter",
    .description = "Changes how forced unit access and flushes are done, or drops them",
    .config_help =
        "fuamode=none|emulate|native|force|discard|pass\n"
        "                      how FUA is done (default: none)\n"
        "flush-on-close=BOOL   flush when a connection ends (default: off)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Fua>(); },
};

}  // namespace weft::filters
