// SPDX-License-Identifier: BSD-3-Clause
// Disk: the one interface that plugins and filters implement.
//
// One Disk exists per connection and layer. It is opened, used and closed on its connection's loop;
// what the connections of a disk share lives in the plugin and says in its header how it is shared.
// Several requests of one connection may be in progress at once.
//
// What a caller may rely on, and an implementation must do: ranges lie within capabilities().size;
// lengths are not 0; a change (write, zero, trim) is called only when it is writable; buffers stay
// until the returned task has ended. The waist (waist.h), which stands between any two layers,
// checks all this and emulates what a layer lacks.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/extents.h"
#include "base/range.h"
#include "base/result.h"
#include "engine/loop.h"
#include "engine/task.h"

namespace weft::disk {

using engine::Loop;
using engine::Task;

class ChangeOrder;

// Whether a layer can do a thing: not at all, by something else that it can do, or itself.
enum class Support : uint8_t { kNone, kEmulate, kNative };

// NBD_INFO_BLOCK_SIZE. All in bytes.
struct BlockSize {
  uint32_t minimum = 1;          // a power of two, at most 64 KiB
  uint32_t preferred = 4096;     // a power of two, at least minimum and 512
  uint32_t maximum = 32u << 20;  // payload of a request
  friend bool operator==(const BlockSize&, const BlockSize&) = default;
};

// What a disk can do, fixed when it opens.
struct Capabilities {
  uint64_t size = 0;  // bytes, at most 2^63 - 1
  bool writable = false;
  bool rotational = false;
  // Points 1 and 2 of the promise hold over several connections (docs/architecture.md).
  bool multi_conn = false;
  Support flush = Support::kNone;      // kNone or kNative
  Support fua = Support::kNone;        // kEmulate: the change, then flush()
  Support trim = Support::kNone;       // kNone or kNative
  Support zero = Support::kNone;       // kEmulate: by write()
  Support fast_zero = Support::kNone;  // kNative: zero() obeys ZeroFlags::fast
  Support cache = Support::kNone;      // kEmulate: by read()
  Support extents = Support::kNone;    // kNone: all is reported as data
  BlockSize block_size;
};

struct ZeroFlags {
  bool fua = false;
  bool may_trim = false;  // the range may become a hole (no NBD_CMD_FLAG_NO_HOLE)
  bool fast = false;      // fail with ENOTSUP, changing nothing, if it is not faster than writing
};

// Bytes of a disk, lent instead of copied: what read() would have given, in order. Data pieces stay
// valid, and are given back, by destroying the lease on the thread that got it; what they hold may
// change while they are lent if somebody writes there. A hole reads as zeroes.
class Lease {
 public:
  struct Piece {
    const std::byte* data;  // null: a hole
    uint64_t length;        // bytes
  };
  Lease() = default;
  Lease(Lease&& other) noexcept { *this = std::move(other); }
  Lease& operator=(Lease&& other) noexcept {
    std::swap(pieces, other.pieces);
    std::swap(release, other.release);
    std::swap(owner, other.owner);
    std::swap(pins, other.pins);
    return *this;
  }
  ~Lease() { give_back(); }
  void give_back() {
    if (release) std::exchange(release, nullptr)(*this);
    pieces.clear();
    pins.clear();
  }

  std::vector<Piece> pieces;
  // For the disk that lends: called once, when the lease ends.
  void (*release)(Lease& lease) = nullptr;
  void* owner = nullptr;
  std::vector<void*> pins;
};

class Disk {
 public:
  virtual ~Disk() = default;

  [[nodiscard]] const Capabilities& capabilities() const { return capabilities_; }

  // Fills `into` with the bytes at `offset`.
  virtual Task<Status> read(uint64_t offset, MutableByteSpan into) = 0;

  // Lends the bytes of `range` without suspending. False, with an empty lease, when they are not
  // at hand or cannot be lent: then read() is called.
  virtual bool lend(Range range, Lease& lease) {
    (void)range, (void)lease;
    return false;
  }

  // Whether asking extents() before a large read may save reading zeroes. May be wrong.
  [[nodiscard]] virtual bool may_have_holes() const { return false; }

  // The caller of the following knows from capabilities() that they are there.
  virtual Task<Status> write(uint64_t offset, ByteSpan from, bool fua);
  virtual Task<Status> zero(Range range, ZeroFlags flags);
  virtual Task<Status> trim(Range range, bool fua);
  virtual Task<Status> cache(Range range);
  virtual Task<Status> flush();
  // Describes at least the first byte of `into`'s window. `one`: a single extent is enough.
  virtual Task<Status> extents(Extents& into, bool one);

  // The order of overlapping changes of the disk at the bottom, shared by all that leads to it
  // (change_order.h). Null: the disk has none (it is never written).
  [[nodiscard]] virtual ChangeOrder* order() { return nullptr; }

  // The last call. Nothing is in progress.
  virtual Task<Status> close() { return Status{}; }

 protected:
  Capabilities capabilities_;
};

struct ExportEntry {
  std::string name;
  std::string description;
};

struct OpenRequest {
  std::string name;  // the export's name; "" is the default export, as the plugin resolves it
  bool read_only = false;
  Loop& loop;  // the connection's; outlives the disk
};

// One line of `--explain`: which part decided what, and why.
struct Explanation {
  std::string topic;  // "multi-conn", "flush"
  std::string text;
};

// A configured source of disks. Made once at start; configuration is single-threaded and throws
// ConfigError; the rest may be called from any loop.
class Plugin {
 public:
  virtual ~Plugin() = default;

  // Called for each key=value of the command line, then config_complete() once.
  virtual void config(std::string_view key, std::string_view value) = 0;
  // Called before config_complete() when nothing will be opened writable (-r): a plugin that opens
  // or locks its storage in config_complete() does so for reading only.
  virtual void serve_read_only() {}
  virtual void config_complete() {}
  // After forking and changing user, before the first connection; opens what must be opened once.
  virtual void start(engine::BlockingPool& pool) { (void)pool; }

  // ENOENT in the result of open() means: no such export.
  virtual Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) = 0;
  virtual Task<Result<std::vector<ExportEntry>>> list_exports(Loop& loop, bool read_only);
  // Makes everything acknowledged durable, at the end of the program: all disks are closed.
  virtual Task<Status> finish(Loop& loop);
  // What a person should know of why the promise holds here (or not).
  [[nodiscard]] virtual std::vector<Explanation> explain() const { return {}; }
};

// A plugin as the registry knows it.
struct PluginInfo {
  const char* name;
  const char* longname;
  const char* description;
  const char* config_help;       // "size=SIZE  (required) ...", a line a parameter
  const char* magic_config_key;  // the key of a bare first argument, or null
  std::unique_ptr<Plugin> (*make)();
};

// All plugins of the program, in alphabetical order (plugins/registry.cc).
std::span<const PluginInfo> plugins();

}  // namespace weft::disk
