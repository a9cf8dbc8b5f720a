// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/hosted_disk.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <utility>

#include "base/log.h"
#include "disk/one_disk.h"
#include "nbdkit/collections.h"
#include "nbdkit/hosted_calls.h"
#include "nbdkit/hosted_plugin.h"

namespace weft::nbdkit {
namespace {

using disk::Capabilities;
using disk::Support;
using disk::Task;
using disk::ZeroFlags;

// A callback's count has 32 bits. Both are multiples of the largest minimum block size.
constexpr uint64_t kDataMax = 64 << 20;                          // bytes of one pread or pwrite
constexpr uint64_t kCountMax = (uint64_t{1} << 32) - (1 << 16);  // bytes of any other call
constexpr uint64_t kZeroPieceMax = 1 << 20;  // bytes of zeroes that are written at once
constexpr size_t kAlignment = 4096;          // for plugins with O_DIRECT
constexpr const char* kFailed = "the plugin failed: the server's log says how";

// Never written; costs no memory until it is read.
alignas(kAlignment) std::byte zeroes[kZeroPieceMax];

class HostedDisk final : public disk::Disk {
 public:
  HostedDisk(HostedPlugin& plugin, uint64_t number, const disk::OpenRequest& request)
      : plugin_(plugin),
        callbacks_(plugin.callbacks()),
        connection_(plugin.name(), number, request.peer),
        calls_(plugin.calls(), request.loop, connection_) {
    connection_.export_name = request.name;
  }

  Task<Status> open(bool read_only);

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return request(CallKind::kRead, "pread", into.size(), [this, offset, into](CallScope& scope) {
      return read_now(scope, offset, into);
    });
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return request(CallKind::kWrite, "pwrite", from.size(),
                   [this, offset, from, fua](CallScope& scope) {
                     return durably(scope, fua, "a write",
                                    [&](bool now) { return write_now(scope, offset, from, now); });
                   });
  }
  Task<Status> zero(Range range, ZeroFlags flags) override {
    return request(CallKind::kZero, "zero", range.length, [this, range, flags](CallScope& scope) {
      return durably(scope, flags.fua, "a zero",
                     [&](bool now) { return zero_now(scope, range, flags, now); });
    });
  }
  Task<Status> trim(Range range, bool fua) override {
    return request(CallKind::kTrim, "trim", range.length, [this, range, fua](CallScope& scope) {
      return durably(scope, fua, "a trim", [&](bool now) { return trim_now(scope, range, now); });
    });
  }
  Task<Status> cache(Range range) override {
    // A plugin that says so without having the callback has it all cached.
    if (callbacks_.cache == nullptr) return Status{};
    return request(CallKind::kCache, "cache", range.length, [this, range](CallScope& scope) {
      return in_pieces(range, kCountMax, [&](Range piece) {
        return judge(scope, callbacks_.cache(handle_, count(piece), piece.offset, 0));
      });
    });
  }
  Task<Status> flush() override {
    return request(CallKind::kFlush, "flush", 0,
                   [this](CallScope& scope) { return flush_now(scope); });
  }
  Task<Status> extents(Extents& into, bool one) override {
    return request(CallKind::kExtents, "extents", 0,
                   [this, &into, one](CallScope& scope) { return extents_now(scope, into, one); });
  }
  disk::ChangeOrder* order() override { return order_; }
  [[nodiscard]] std::string description() const override { return description_; }
  void client_gone() override { connection_.left(); }

  Task<Status> close() override {
    co_await end();
    plugin_.one_disk().leave();
    co_return Status{};
  }

 private:
  // A call for a client, as long as the plugin has not sent it away.
  template <typename F>
  Task<Status> request(CallKind kind, const char* method, uint64_t length, F f) {
    return calls_.run(kind, method, length, [this, kind, f](CallScope& scope) -> Status {
      if (connection_.disconnected()) return fail(ESHUTDOWN, "the plugin sends this client away");
      // Nobody waits for it any more; but what others have written may depend on a flush.
      const bool late = connection_.at_end() || Host::instance().abandoned();
      if (late && kind != CallKind::kFlush) return fail(ESHUTDOWN, "too late to begin");
      return f(scope);
    });
  }

  static uint32_t count(Range range) { return static_cast<uint32_t>(range.length); }

  // After a callback that returns 0 or -1.
  Status judge(CallScope& scope, int result) const {
    if (result != -1) return {};
    return fail(plugin_.error_of(scope), kFailed);
  }
  template <typename F>
  static Status in_pieces(Range range, uint64_t length_max, F f) {
    for (uint64_t offset = range.offset; offset < range.end();) {
      const uint64_t length = std::min(length_max, range.end() - offset);
      const Status done = f(Range{offset, length});
      if (!done) return done;
      offset += length;
    }
    return {};
  }
  // What only a defect of the plugin explains.
  std::unexpected<Error> complain(const char* method, const char* text,
                                  const std::string& detail) const {
    log::write(log::Level::kError, fmt::format("{}: {}: the plugin is broken", method, detail),
               connection_.subject());
    return fail(EIO, text);
  }

  Task<void> end();
  Status open_now(CallScope& scope, bool read_only);
  Status ask_capabilities(bool read_only);
  Status ask_block_size();
  int ask(const char* method, int (*callback)(void*), int missing, int most, Status& status);

  template <typename Change>
  Status durably(CallScope& scope, bool fua, const char* what, Change change);
  Status read_now(CallScope& scope, uint64_t offset, MutableByteSpan into) const;
  Status write_now(CallScope& scope, uint64_t offset, ByteSpan from, bool fua) const;
  Status zero_now(CallScope& scope, Range range, ZeroFlags flags, bool fua) const;
  Status trim_now(CallScope& scope, Range range, bool fua) const;
  Status flush_now(CallScope& scope);
  Status extents_now(CallScope& scope, Extents& into, bool one);

  HostedPlugin& plugin_;
  const nbdkit_plugin& callbacks_;
  Connection connection_;
  HostedCalls calls_;
  void* handle_ = nullptr;
  std::string description_;
  disk::ChangeOrder* order_ = nullptr;
  bool flush_for_fua_ = false;  // FUA is a flush after the change, on a disk without flushes
};

// ---- Opening and closing ------------------------------------------------------------------------

Task<Status> HostedDisk::open(bool read_only) {
  const Status opened = co_await calls_.run(
      CallKind::kOther, "open", 0,
      [this, read_only](CallScope& scope) { return open_now(scope, read_only); });
  if (!opened) co_await end();
  co_return opened;
}

// Closes what is open.
Task<void> HostedDisk::end() {
  if (handle_ != nullptr && callbacks_.close != nullptr) {
    co_await calls_.run(CallKind::kOther, "close", 0, [this](CallScope&) {
      callbacks_.close(handle_);
      return 0;
    });
  }
  handle_ = nullptr;
  co_await calls_.end();
}

Status HostedDisk::open_now(CallScope& scope, bool read_only) {
  const uint64_t told = Host::instance().errors_told();
  errno = 0;
  handle_ = callbacks_.open(read_only);
  if (handle_ == nullptr) {
    const int code = plugin_.error_of(scope);
    if (Host::instance().errors_told() != told) return fail(code, "the plugin refused to open it");
    return complain("open", "the plugin refused to open it", "it failed without a reason");
  }
  if (const Status asked = ask_capabilities(read_only); !asked) return asked;
  order_ = plugin_.one_disk().enter(capabilities_.block_size.minimum);
  if (order_) return {};
  return complain("block_size", "the plugin's minimum block size has changed",
                  fmt::format("the minimum block size, {}, is larger than that of the disks which "
                              "are open",
                              capabilities_.block_size.minimum));
}

// What a can_* callback answers, or `missing` without one; 0 once `status` is a failure. `most`:
// the largest answer that has a meaning, or 1 for yes, which any other number but -1 is as well.
int HostedDisk::ask(const char* method, int (*callback)(void*), int missing, int most,
                    Status& status) {
  if (!status) return 0;
  if (callback == nullptr) return missing;
  const CallScope scope(plugin_.name(), method, &connection_);
  errno = 0;
  const int answer = callback(handle_);
  if (answer == -1) {
    status = fail(plugin_.error_of(scope), kFailed);
    return 0;
  }
  if (most == 1) return answer != 0;
  if (answer >= 0 && answer <= most) return answer;
  status = complain(method, "the plugin's answer means nothing",
                    fmt::format("it returned {}, which means nothing", answer));
  return 0;
}

// In the order in which nbdkit asks.
Status HostedDisk::ask_capabilities(bool read_only) {
  Capabilities& can = capabilities_;
  const nbdkit_plugin& has = callbacks_;
  can.multi_conn_layer = "the plugin";
  {
    const CallScope scope(plugin_.name(), "get_size", &connection_);
    errno = 0;
    const int64_t size = has.get_size(handle_);
    if (size == -1) return fail(plugin_.error_of(scope), kFailed);
    if (size < 0) {
      return complain("get_size", "the plugin does not tell the disk's size",
                      fmt::format("it returned {}, which is no size", size));
    }
    can.size = static_cast<uint64_t>(size);
  }
  const bool has_write = has.pwrite || has._pwrite_v1;
  const bool has_flush = has.flush || has._flush_v1;
  const bool has_trim = has.trim || has._trim_v1;
  const bool has_zero = has.zero || has._zero_v1;

  Status status;
  const auto whether = [&](const char* method, int (*callback)(void*), bool missing) {
    return ask(method, callback, missing, 1, status) != 0;
  };
  // Callbacks that a plugin says are good for something, and that it has not.
  const auto there = [&](bool yes, bool callback, const char* method, const char* what) {
    if (!yes || callback) return yes;
    log::write(log::Level::kWarning,
               fmt::format("{}: it says yes, but there is no {} callback: the plugin is broken; it "
                           "counts as a no",
                           method, what),
               connection_.subject());
    return false;
  };
  constexpr auto native_if = [](bool yes) { return yes ? Support::kNative : Support::kNone; };

  can.writable = !read_only && there(whether("can_write", has.can_write, has_write), has_write,
                                     "can_write", "pwrite");
  if (can.writable) {
    // A plugin never says that zeroing cannot be had, only that it has no better way than writing.
    const bool zero = whether("can_zero", has.can_zero, has_zero) && has_zero;
    can.zero = zero ? Support::kNative : Support::kEmulate;
    // Where zeroes are written, that nothing is faster than writing is quickly said.
    // So it is for a callback that knows no flags.
    const bool obeys = zero && has.zero;
    const bool fast = whether("can_fast_zero", has.can_fast_zero, !obeys);
    if (fast) can.fast_zero = obeys ? Support::kNative : Support::kEmulate;
    can.trim =
        native_if(there(whether("can_trim", has.can_trim, has_trim), has_trim, "can_trim", "trim"));
  }
  const bool flush =
      there(whether("can_flush", has.can_flush, has_flush), has_flush, "can_flush", "flush");
  can.flush = native_if(flush);
  if (can.writable) {
    int fua = ask("can_fua", has.can_fua, flush ? NBDKIT_FUA_EMULATE : NBDKIT_FUA_NONE,
                  NBDKIT_FUA_NATIVE, status);
    // The callbacks of API 1 have no flags.
    if (has._api_version < 2) fua = std::min(fua, NBDKIT_FUA_EMULATE);
    if (fua == NBDKIT_FUA_EMULATE && !there(true, has_flush, "can_fua", "flush")) {
      fua = NBDKIT_FUA_NONE;
    }
    can.fua = static_cast<Support>(fua);
    if (can.fua == Support::kEmulate && !flush) {
      // Its flush works, although clients are not to have it.
      flush_for_fua_ = true;
      can.fua = Support::kNative;
    }
  }
  can.rotational = whether("is_rotational", has.is_rotational, false);
  can.multi_conn = whether("can_multi_conn", has.can_multi_conn, false);
  can.cache = static_cast<Support>(ask("can_cache", has.can_cache,
                                       has.cache ? NBDKIT_CACHE_NATIVE : NBDKIT_CACHE_NONE,
                                       NBDKIT_CACHE_NATIVE, status));
  can.extents = native_if(there(whether("can_extents", has.can_extents, has.extents != nullptr),
                                has.extents != nullptr, "can_extents", "extents"));
  if (status) status = ask_block_size();
  if (!status || has.export_description == nullptr) return status;
  const CallScope scope(plugin_.name(), "export_description", &connection_);
  if (const char* const text = has.export_description(handle_)) description_ = text;
  return status;
}

Status HostedDisk::ask_block_size() {
  if (callbacks_.block_size == nullptr) return {};
  const CallScope scope(plugin_.name(), "block_size", &connection_);
  uint32_t minimum = 0;
  uint32_t preferred = 0;
  uint32_t maximum = 0;
  errno = 0;
  if (callbacks_.block_size(handle_, &minimum, &preferred, &maximum) == -1) {
    return fail(plugin_.error_of(scope), kFailed);
  }
  if (minimum == 0 && preferred == 0 && maximum == 0) return {};
  const char* why = nullptr;
  if (!std::has_single_bit(minimum) || minimum > 64 << 10) {
    why = "the minimum must be a power of two, at most 64K";
  } else if (!std::has_single_bit(preferred) || preferred < std::max(minimum, 512u) ||
             preferred > 32 << 20) {
    why = "the preferred one must be a power of two from 512 (and the minimum) to 32M";
  } else if (maximum != UINT32_MAX && (maximum < preferred || maximum % minimum != 0)) {
    why = "the maximum must be a multiple of the minimum, at least the preferred one";
  }
  if (why) {
    return complain("block_size", "the plugin's block sizes mean nothing",
                    fmt::format("it returned {}, {}, {}: {}", minimum, preferred, maximum, why));
  }
  capabilities_.block_size = {minimum, preferred, std::min(maximum, disk::BlockSize{}.maximum)};
  return {};
}

// ---- Requests -----------------------------------------------------------------------------------

// Makes a change, and where it is to be durable sees to it, or marks the disk.
template <typename Change>
Status HostedDisk::durably(CallScope& scope, bool fua, const char* what, Change change) {
  if (!fua) return change(false);
  if (const Status failed = plugin_.one_disk().sync_status(); !failed) return failed;
  if (flush_for_fua_) {
    const Status changed = change(false);
    return changed ? flush_now(scope) : changed;
  }
  const Status changed = change(true);
  if (changed || changed.error().code != EIO) return changed;
  // Was it the change that failed, or its way to the storage? The second is for ever.
  if (change(false)) {
    plugin_.one_disk().sync_failed(plugin_.name(), fmt::format("{} with FUA", what),
                                   changed.error());
  }
  return changed;
}

Status HostedDisk::read_now(CallScope& scope, uint64_t offset, MutableByteSpan into) const {
  // A plugin that fills less than it was asked for must not send what was in the buffer before.
  std::memset(into.data(), 0, into.size());
  return in_pieces({offset, into.size()}, kDataMax, [&](Range piece) {
    std::byte* const buffer = into.data() + (piece.offset - offset);
    scope.set_error(0);
    errno = 0;
    return judge(scope, callbacks_.pread
                            ? callbacks_.pread(handle_, buffer, count(piece), piece.offset, 0)
                            : callbacks_._pread_v1(handle_, buffer, count(piece), piece.offset));
  });
}

Status HostedDisk::write_now(CallScope& scope, uint64_t offset, ByteSpan from, bool fua) const {
  return in_pieces({offset, from.size()}, kDataMax, [&](Range piece) {
    const std::byte* const buffer = from.data() + (piece.offset - offset);
    scope.set_error(0);
    errno = 0;
    return judge(scope, callbacks_.pwrite
                            ? callbacks_.pwrite(handle_, buffer, count(piece), piece.offset,
                                                fua ? NBDKIT_FLAG_FUA : 0)
                            : callbacks_._pwrite_v1(handle_, buffer, count(piece), piece.offset));
  });
}

Status HostedDisk::zero_now(CallScope& scope, Range range, ZeroFlags flags, bool fua) const {
  const uint32_t words = (fua ? NBDKIT_FLAG_FUA : 0) | (flags.may_trim ? NBDKIT_FLAG_MAY_TRIM : 0) |
                         (flags.fast ? NBDKIT_FLAG_FAST_ZERO : 0);
  const uint64_t block = capabilities_.block_size.minimum;
  const uint64_t piece_max = std::max(
      block, std::min<uint64_t>(capabilities_.block_size.maximum, kZeroPieceMax) & ~(block - 1));
  bool able = true;
  return in_pieces(range, kCountMax, [&](Range piece) {
    if (able) {
      scope.set_error(0);
      errno = 0;
      const int result =
          callbacks_.zero
              ? callbacks_.zero(handle_, count(piece), piece.offset, words)
              : callbacks_._zero_v1(handle_, count(piece), piece.offset, flags.may_trim);
      if (result != -1) return Status{};
      // Writing instead is right whatever the reason, so errno is believed here in any case.
      const int code = scope.error() ? scope.error() : errno;
      if (code != EOPNOTSUPP && code != ENOTSUP) return judge(scope, result);
      if (flags.fast) return Status(fail(ENOTSUP, "zeroing is not faster than writing here"));
      able = false;
    }
    return in_pieces(piece, piece_max, [&](Range part) {
      return write_now(scope, part.offset, ByteSpan(zeroes, part.length), fua);
    });
  });
}

Status HostedDisk::trim_now(CallScope& scope, Range range, bool fua) const {
  return in_pieces(range, kCountMax, [&](Range piece) {
    scope.set_error(0);
    errno = 0;
    return judge(scope, callbacks_.trim ? callbacks_.trim(handle_, count(piece), piece.offset,
                                                          fua ? NBDKIT_FLAG_FUA : 0)
                                        : callbacks_._trim_v1(handle_, count(piece), piece.offset));
  });
}

// One that has failed before is told of, but what can still be saved is.
Status HostedDisk::flush_now(CallScope& scope) {
  disk::OneDisk& one = plugin_.one_disk();
  scope.set_error(0);
  errno = 0;
  const Status flushed =
      judge(scope, callbacks_.flush ? callbacks_.flush(handle_, 0) : callbacks_._flush_v1(handle_));
  if (!flushed) {
    // A plugin that was told to end has not failed to flush.
    if (flushed.error().code != ESHUTDOWN) {
      one.sync_failed(plugin_.name(), "a flush", flushed.error());
    }
    return flushed;
  }
  return one.sync_status();
}

Status HostedDisk::extents_now(CallScope& scope, Extents& into, bool one) {
  const Range window = into.window();
  const uint64_t length = std::min(window.length, kCountMax);
  nbdkit_extents list;
  list.start = window.offset;
  list.end = window.offset + length;
  errno = 0;
  const int result = callbacks_.extents(handle_, static_cast<uint32_t>(length), window.offset,
                                        one ? NBDKIT_FLAG_REQ_ONE : 0, &list);
  if (result == -1) return judge(scope, result);
  uint64_t next = window.offset;
  for (const nbdkit_extents::Extent& extent : list.extents) {
    if (extent.offset != next) break;
    if (!into.append(extent.length, extent.type & (kExtentHole | kExtentZero))) break;
    next += extent.length;
  }
  if (!into.list().empty()) return {};
  plugin_.warn_once(plugin_.said_no_extents, "extents",
                    "it succeeded without adding an extent for the first byte that it was asked "
                    "for: the plugin is broken, and such requests fail");
  return fail(EIO, "the plugin gave no extents");
}

}  // namespace

Task<Result<std::unique_ptr<disk::Disk>>> open_hosted_disk(HostedPlugin& plugin, uint64_t number,
                                                           disk::OpenRequest request) {
  auto disk = std::make_unique<HostedDisk>(plugin, number, request);
  const Status opened = co_await disk->open(request.read_only);
  if (!opened) co_return std::unexpected(opened.error());
  co_return disk;
}

}  // namespace weft::nbdkit
