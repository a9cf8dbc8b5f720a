// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_disk.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "engine/blocking_pool.h"
#include "plugins/sh/script_output.h"
#include "plugins/sh/script_plugin.h"

namespace weft::plugins {
namespace {

using disk::Capabilities;
using disk::Support;
using disk::Task;
using disk::ZeroFlags;
using engine::Loop;

// As many requests of a connection run scripts at once as nbdkit has threads for one.
constexpr size_t kCallsMax = 16;
constexpr uint64_t kZeroPieceMax = 32 << 20;  // bytes of one write that stands for a zero

using Words = std::vector<std::string>;

std::string number(uint64_t value) {
  return fmt::format("{}", value);
}

// What a script printed, as part of one line of the log.
std::string shown(std::string_view text) {
  constexpr size_t kShownMax = 80;
  std::string result(text.substr(0, kShownMax));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  }
  return result + (text.size() > kShownMax ? "..." : "");
}

class ScriptDisk final : public disk::Disk {
 public:
  ScriptDisk(ScriptPlugin& plugin, engine::BlockingPool& pool, const disk::OpenRequest& request)
      : plugin_(plugin), loop_(request.loop), peer_(request.peer), lane_(pool, kCallsMax) {}

  // Opens the handle and asks for everything. False: failed, and the reason is in `why`; the handle
  // is closed again. On a thread of the pool.
  Status open(const std::string& name, bool read_only);
  [[nodiscard]] engine::Lane& lane() { return lane_; }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return call([this, offset, into] { return read_now(offset, into); });
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return call([this, offset, from, fua] {
      return durably(fua, "a write", [&](bool now) { return write_now(offset, {from, 0}, now); });
    });
  }
  Task<Status> zero(Range range, ZeroFlags flags) override {
    return call([this, range, flags] {
      return durably(flags.fua, "a zero", [&](bool now) { return zero_now(range, flags, now); });
    });
  }
  Task<Status> trim(Range range, bool fua) override {
    return call([this, range, fua] {
      return durably(fua, "a trim", [&](bool now) {
        const Words words = {handle_, number(range.length), number(range.offset), now ? "fua" : ""};
        const ScriptAnswer answer = ask("trim", words);
        return answer.code == ScriptCode::kError ? failure(answer) : Status{};
      });
    });
  }
  Task<Status> cache(Range range) override {
    return call([this, range] {
      const ScriptAnswer answer =
          ask("cache", {handle_, number(range.length), number(range.offset)});
      return answer.code == ScriptCode::kError ? failure(answer) : Status{};
    });
  }
  Task<Status> flush() override {
    return call([this] { return flush_now(); });
  }
  Task<Status> extents(Extents& into, bool one) override {
    return call([this, &into, one] { return extents_now(into, one); });
  }
  disk::ChangeOrder* order() override { return order_; }
  [[nodiscard]] std::string description() const override { return description_; }

  Task<Status> close() override {
    co_await plugin_.run(loop_, lane_, [this] {
      plugin_.ask("close", {handle_});
      return 0;
    });
    plugin_.one_disk().leave();
    co_return Status{};
  }

 private:
  template <typename F>
  Task<Status> call(F f) {
    return plugin_.run(loop_, lane_, [this, f] {
      if (disconnected_.load(std::memory_order_relaxed)) {
        return Status(fail(ESHUTDOWN, "the script has disconnected this client"));
      }
      return f();
    });
  }

  ScriptAnswer ask(std::string_view method, Words words, const ScriptInput& input = {},
                   MutableByteSpan* into = nullptr) {
    return heed(plugin_.ask(method, std::move(words), input, into));
  }
  ScriptAnswer heed(ScriptAnswer answer) {
    if (answer.wish != ScriptWish::kNothing && !disconnected_.exchange(true)) {
      log::info("{}: the script disconnects a client: its requests fail from now on",
                plugin_.name_of("exit status"));
    }
    if (answer.wish == ScriptWish::kDisconnect && peer_ && peer_->disconnect) peer_->disconnect();
    return answer;
  }
  static std::unexpected<Error> failure(const ScriptAnswer& answer) {
    return std::unexpected(answer.error);
  }
  // A failure that the log shall know of.
  std::unexpected<Error> complain(std::string_view method, int code, const char* text,
                                  const std::string& detail) const {
    log::error("{}: {}", plugin_.name_of(method), detail);
    return fail(code, text);
  }

  Status ask_capabilities(bool read_only);
  Result<bool> ask_whether(std::string_view method);
  Result<Support> ask_support(std::string_view method, Support missing);
  Result<std::string> ask_text(std::string_view method, bool& missing);

  template <typename Change>
  Status durably(bool fua, const char* what, Change change);
  Status read_now(uint64_t offset, MutableByteSpan into);
  Status write_now(uint64_t offset, const ScriptInput& input, bool fua);
  Status zero_now(Range range, ZeroFlags flags, bool fua);
  Status flush_now();
  Status extents_now(Extents& into, bool one);

  ScriptPlugin& plugin_;
  Loop& loop_;
  const disk::Peer* peer_;
  engine::Lane lane_;
  std::string handle_;
  std::string description_;
  disk::ChangeOrder* order_ = nullptr;
  bool flush_for_fua_ = false;  // FUA is a flush after the change, on a disk without flushes
  std::atomic<bool> disconnected_{false};
  std::atomic<bool> warned_of_flush_{false};
};

// ---- Opening ------------------------------------------------------------------------------------

Status ScriptDisk::open(const std::string& name, bool read_only) {
  ScriptAnswer opened = ask("open", {read_only ? "true" : "false", name, "false"});
  if (opened.code == ScriptCode::kError) return failure(opened);
  if (opened.code == ScriptCode::kOk) handle_ = without_newline(opened.out);
  Status asked = ask_capabilities(read_only);
  if (asked) {
    order_ = plugin_.one_disk().enter(capabilities_.block_size.minimum);
    if (order_) return asked;
    asked = complain("block_size", EIO, "the script's minimum block size has changed",
                     fmt::format("the minimum block size, {}, is larger than that of the disks "
                                 "which are open: say the largest one for all",
                                 capabilities_.block_size.minimum));
  }
  plugin_.ask("close", {handle_});
  return asked;
}

Result<bool> ScriptDisk::ask_whether(std::string_view method) {
  const ScriptAnswer answer = heed(plugin_.ask(method, {handle_}, {}, nullptr, true));
  if (answer.code == ScriptCode::kError) return failure(answer);
  return answer.code == ScriptCode::kOk;
}

Result<Support> ScriptDisk::ask_support(std::string_view method, Support missing) {
  const ScriptAnswer answer = ask(method, {handle_});
  if (answer.code == ScriptCode::kError) return failure(answer);
  if (answer.code == ScriptCode::kMissing) return missing;
  if (const auto support = read_support(answer.out)) return *support;
  return complain(method, EIO, "the script's answer cannot be read",
                  fmt::format("printed '{}': it must print none, emulate or native",
                              shown(without_newline(answer.out))));
}

Result<std::string> ScriptDisk::ask_text(std::string_view method, bool& missing) {
  ScriptAnswer answer = ask(method, {handle_});
  if (answer.code == ScriptCode::kError) return failure(answer);
  missing = answer.code == ScriptCode::kMissing;
  return std::string(without_newline(answer.out));
}

// In the order in which nbdkit asks.
Status ScriptDisk::ask_capabilities(bool read_only) {
  Capabilities& can = capabilities_;
  can.multi_conn_layer = "the script";
  bool missing = false;
  const Result<std::string> size_text = ask_text("get_size", missing);
  if (!size_text) return std::unexpected(size_text.error());
  if (missing) {
    return complain("get_size", EIO, "the script does not tell the disk's size",
                    "there is no such method, but it is required: it prints the disk's size");
  }
  const auto size = read_size(*size_text);
  if (!size) {
    return complain(
        "get_size", EIO, "the script's answer cannot be read",
        fmt::format("printed '{}': it must print a size, as in: echo 64M", shown(*size_text)));
  }
  can.size = *size;

  // Stops at the first that cannot be asked.
  Status status;
  const auto whether = [&](std::string_view method) {
    if (!status) return false;
    const Result<bool> answer = ask_whether(method);
    if (!answer) status = std::unexpected(answer.error());
    return answer && *answer;
  };
  const auto support = [&](std::string_view method, Support if_missing) {
    if (!status) return Support::kNone;
    const Result<Support> answer = ask_support(method, if_missing);
    if (!answer) status = std::unexpected(answer.error());
    return answer ? *answer : Support::kNone;
  };
  constexpr auto native_if = [](bool yes) { return yes ? Support::kNative : Support::kNone; };

  can.writable = !read_only && whether("can_write");
  if (can.writable) {
    const bool zero = whether("can_zero");
    can.zero = zero ? Support::kNative : Support::kEmulate;
    // Where zeroes are written there is nothing fast, which is quickly said.
    if (!zero) {
      can.fast_zero = Support::kEmulate;
    } else {
      can.fast_zero = native_if(whether("can_fast_zero"));
    }
    can.trim = native_if(whether("can_trim"));
  }
  can.flush = native_if(whether("can_flush"));
  if (can.writable) {
    const bool flushes = can.flush == Support::kNative;
    can.fua = support("can_fua", flushes ? Support::kEmulate : Support::kNone);
    if (can.fua == Support::kEmulate && !flushes) {
      // Its flush works, although clients are not to have it.
      flush_for_fua_ = true;
      can.fua = Support::kNative;
    }
  }
  can.rotational = whether("is_rotational");
  can.multi_conn = whether("can_multi_conn");
  can.cache = support("can_cache", Support::kNone);
  can.extents = native_if(whether("can_extents"));
  if (!status) return status;

  const Result<std::string> block_text = ask_text("block_size", missing);
  if (!block_text) return std::unexpected(block_text.error());
  if (!missing) {
    std::string why;
    const auto block_size = read_block_size(*block_text, why);
    if (!block_size) {
      return complain("block_size", EIO, "the script's answer cannot be read",
                      fmt::format("printed '{}': {}", shown(*block_text), why));
    }
    can.block_size = *block_size;
  }
  Result<std::string> description = ask_text("export_description", missing);
  if (!description) return std::unexpected(description.error());
  if (!missing) description_ = std::move(*description);
  return {};
}

// ---- Requests -----------------------------------------------------------------------------------

// Makes a change, and where it is to be durable sees to it, or marks the disk.
template <typename Change>
Status ScriptDisk::durably(bool fua, const char* what, Change change) {
  if (!fua) return change(false);
  if (const Status failed = plugin_.one_disk().sync_status(); !failed) return failed;
  if (flush_for_fua_) {
    const Status changed = change(false);
    return changed ? flush_now() : changed;
  }
  const Status changed = change(true);
  if (changed || changed.error().code != EIO) return changed;
  // Was it the change that failed, or its way to the storage? The second is for ever.
  if (change(false)) {
    plugin_.one_disk().sync_failed(plugin_.name_of("fua"), fmt::format("{} with FUA", what),
                                   changed.error());
  }
  return changed;
}

Status ScriptDisk::read_now(uint64_t offset, MutableByteSpan into) {
  const ScriptAnswer answer =
      ask("pread", {handle_, number(into.size()), number(offset)}, {}, &into);
  if (answer.code == ScriptCode::kError) return failure(answer);
  if (answer.code == ScriptCode::kMissing) {
    return complain("pread", EIO, "the script cannot read",
                    "there is no such method, but it is required: it prints the disk's bytes");
  }
  if (answer.out_bytes != into.size()) {
    return complain("pread", EIO, "the script gave another number of bytes than it was asked for",
                    fmt::format("printed {} bytes, but was asked for {} (at offset {})",
                                answer.out_bytes, into.size(), offset));
  }
  return {};
}

Status ScriptDisk::write_now(uint64_t offset, const ScriptInput& input, bool fua) {
  const uint64_t length = input.data.size() + input.zeroes;
  const ScriptAnswer answer =
      ask("pwrite", {handle_, number(length), number(offset), fua ? "fua" : ""}, input);
  if (answer.code == ScriptCode::kError) return failure(answer);
  if (answer.code == ScriptCode::kMissing) {
    return complain("pwrite", EIO, "the script cannot write",
                    "there is no such method, although can_write says that there is");
  }
  return {};
}

Status ScriptDisk::zero_now(Range range, ZeroFlags flags, bool fua) {
  std::string words;
  const auto add = [&words](bool flag, const char* word) {
    if (flag) words += (words.empty() ? "" : ",") + std::string(word);
  };
  add(fua, "fua");
  add(flags.may_trim, "may_trim");
  add(flags.fast, "fast");
  // Not being able to is an answer here, and no failure to be logged.
  ScriptAnswer answer =
      heed(plugin_.call("zero", {handle_, number(range.length), number(range.offset), words}));
  if (answer.code == ScriptCode::kOk) return {};
  if (answer.code == ScriptCode::kFalse) {
    return complain("zero", EIO, "the script failed: the server's log says how",
                    "ended with status 3 (false), which is no answer to this method");
  }
  if (answer.code == ScriptCode::kError && answer.error.code != EOPNOTSUPP) {
    log::error("{}: {}", plugin_.name_of("zero"), answer.text);
    return failure(answer);
  }
  if (flags.fast) return fail(EOPNOTSUPP, "zeroing is not faster than writing here");
  const uint64_t block = capabilities_.block_size.minimum;
  const uint64_t piece_max = std::max(
      block, std::min<uint64_t>(capabilities_.block_size.maximum, kZeroPieceMax) & ~(block - 1));
  for (uint64_t offset = range.offset; offset < range.end();) {
    const uint64_t length = std::min(piece_max, range.end() - offset);
    const Status written = write_now(offset, {{}, length}, fua);
    if (!written) return written;
    offset += length;
  }
  return {};
}

Status ScriptDisk::flush_now() {
  disk::OneDisk& one = plugin_.one_disk();
  // One that has failed before is told of below, but what can still be saved is.
  const ScriptAnswer answer = ask("flush", {handle_});
  if (answer.code == ScriptCode::kError) {
    // A script that was ended, or that sends the client away, has not failed to flush.
    if (!answer.abandoned) {
      one.sync_failed(plugin_.name_of("flush"), "a flush", answer.error);
    }
    return failure(answer);
  }
  if (answer.code == ScriptCode::kMissing) {
    plugin_.warn_once(warned_of_flush_,
                      fmt::format("{}: there is no such method, although can_flush says that there "
                                  "is: flushes do nothing",
                                  plugin_.name_of("flush")));
  }
  return one.sync_status();
}

Status ScriptDisk::extents_now(Extents& into, bool one) {
  const Range window = into.window();
  const ScriptAnswer answer =
      ask("extents", {handle_, number(window.length), number(window.offset), one ? "req_one" : ""});
  if (answer.code == ScriptCode::kError) return failure(answer);
  if (answer.code == ScriptCode::kMissing) {
    return complain("extents", EIO, "the script does not know its extents",
                    "there is no such method, although can_extents says that there is");
  }
  const Status read = read_extents(answer.out, into);
  if (!read) log::error("{}: {}", plugin_.name_of("extents"), read.error().text);
  return read;
}

}  // namespace

Task<Result<std::unique_ptr<disk::Disk>>> open_script_disk(ScriptPlugin& plugin,
                                                           engine::BlockingPool& pool,
                                                           disk::OpenRequest request) {
  auto disk = std::make_unique<ScriptDisk>(plugin, pool, request);
  const Status opened = co_await plugin.run(request.loop, disk->lane(), [&disk, &request] {
    return disk->open(request.name, request.read_only);
  });
  if (!opened) co_return std::unexpected(opened.error());
  co_return disk;
}

}  // namespace weft::plugins
