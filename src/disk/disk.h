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
#include "disk/peer.h"
#include "engine/async_mutex.h"
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
  bool multi_conn_ordered = false;            // the operator has said so, whatever holds
  const char* multi_conn_layer = "the disk";  // what decided it, and why: static strings
  const char* multi_conn_reason = nullptr;    // null: as the plugin says
  Support flush = Support::kNone;             // kNone or kNative
  bool flush_ignored = false;                 // the operator wants flush() and FUA to do nothing
  Support fua = Support::kNone;               // kEmulate: the change, then flush()
  Support trim = Support::kNone;              // kNone or kNative
  Support zero = Support::kNone;              // kEmulate: by write()
  Support fast_zero = Support::kNone;         // kNative: zero() obeys ZeroFlags::fast
  Support cache = Support::kNone;             // kEmulate: by read()
  Support extents = Support::kNone;           // kNone: all is reported as data
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

  // The order of overlapping changes of the disk, shared by all that leads to it (change_order.h),
  // in the offsets of this layer. Null: the disk has none (it is never written).
  [[nodiscard]] virtual ChangeOrder* order() { return nullptr; }

  // Names the disk at the bottom among those of its plugin: with equal identities two connections
  // have one disk, with different ones they share nothing. Empty: the plugin does not know, and
  // the export's name is all there is to go by.
  [[nodiscard]] virtual std::string identity() const { return {}; }

  // What the disk is, for people (NBD_INFO_DESCRIPTION). Empty: there is nothing to say.
  [[nodiscard]] virtual std::string description() const { return {}; }

  // The client has left: what is in progress is finished, but answered to nobody. At most once,
  // before close().
  virtual void client_gone() {}

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
  std::string name;  // the export's name, as default_export() resolved it
  bool read_only = false;
  Loop& loop;                  // the connection's; outlives the disk
  const Peer* peer = nullptr;  // outlives the disk. Null: opened by a layer for its own use
};

// How many calls of a layer may run at once. Each allows more than the one before.
enum class ThreadModel : uint8_t {
  kSerializeConnections,  // one connection at a time, from its open() to its close()
  kSerializeAllRequests,  // one call at a time
  kSerializeRequests,     // one call of a connection at a time
  kParallel,
};

// What a layer is started into.
struct Surroundings {
  engine::BlockingPool& pool;
  // The server, or some layer, admits one client at a time: there is nobody to share with.
  bool one_connection = false;
  // Nobody is served: it is only asked what would be (--explain). Nothing is to be left behind.
  bool explaining = false;
  // Asks the server to end, as the first SIGTERM does. Thread-safe, at any time. Empty: there is
  // no server.
  std::function<void()> stop{};
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
  // Called for --dump-plugin after the last config(), in the place of config_complete(). Settles
  // own_thread_model(), and returns lines "key=value" of the layer's own.
  virtual std::string dump() { return {}; }
  // Called before config_complete() when nothing will be opened writable (-r): a plugin that opens
  // or locks its storage in config_complete() does so for reading only.
  virtual void serve_read_only() {}
  virtual void config_complete() {}
  // After forking and changing user, before the first connection; opens what must be opened once.
  virtual void start(const Surroundings& surroundings) { (void)surroundings; }

  // What this layer itself demands, and what holds for it and all below. Fixed from
  // config_complete() on. open_layer() (open_layer.h) sees to it.
  [[nodiscard]] virtual ThreadModel own_thread_model() const { return ThreadModel::kParallel; }
  [[nodiscard]] virtual ThreadModel thread_model() const { return own_thread_model(); }
  // How many clients may have a disk open at once, here and below. 0: any number.
  [[nodiscard]] virtual uint32_t connections_max() const {
    return thread_model() == ThreadModel::kSerializeConnections ? 1 : 0;
  }

  // Whether a client's requests are to be worked on one by one, so that replies come in the order
  // of the requests, here or below. (A serial thread model alone lets requests overtake others that
  // wait for an overlapping change.)
  [[nodiscard]] virtual bool answers_in_order() const { return false; }

  // A client has connected and nothing was said yet. A failure closes the connection.
  virtual Task<Status> preconnect(Loop& loop, const Peer& peer, bool read_only);
  // For a layer above that opens one disk for all its clients: a client takes the place here that
  // its own open() would have taken, and gives it back with the pointer (which may be null).
  virtual Result<std::shared_ptr<void>> admit(const Peer& client);
  // The name that a client means that gives none.
  virtual Task<Result<std::string>> default_export(Loop& loop, bool read_only);
  // Opens the disk of a connection. ENOENT: there is no such export. Called by open_layer().
  virtual Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) = 0;
  virtual Task<Result<std::vector<ExportEntry>>> list_exports(Loop& loop, bool read_only);
  // Makes everything acknowledged durable, at the end of the program: all disks are closed.
  virtual Task<Status> finish(Loop& loop);
  // The server has begun to end: it reads no more requests, and finishes those that it has read.
  // What a layer waits for on its own account it may cut short. From the main loop; does not block.
  virtual void stopping() {}
  // The program is about to give up what is still in progress: what a layer waits for outside of
  // weft it waits for no longer. From any thread; does not block.
  virtual void abandon() {}
  // All that was given up is over, and finish() follows: layers work as before.
  virtual void resume() {}
  // What a person should know of why the promise holds here (or not).
  [[nodiscard]] virtual std::vector<Explanation> explain() const { return {}; }

 private:
  friend class Serializer;
  engine::AsyncMutex serial_;  // for thread models that serialise more than one connection
};

// What is known of a plugin that was loaded from a file. Lives as long as the program.
struct PluginFile {
  std::string path;     // absolute
  std::string version;  // the plugin's own; empty: it has none
  int api_version = 0;
  uint64_t struct_size = 0;  // bytes of the struct that it was built with
  ThreadModel thread_model_max = ThreadModel::kParallel;
  bool errno_is_preserved = false;
  std::vector<std::string> fields;  // of the struct, those that are there: "longname", "pread"
};

// A plugin as the registry knows it, or as it was loaded from a file.
struct PluginInfo {
  const char* name;
  const char* longname;
  const char* description;
  const char* config_help;       // "size=SIZE  (required) ...", a line a parameter
  const char* magic_config_key;  // the key of a bare first argument, or null
  std::unique_ptr<Plugin> (*make)();
  const PluginFile* file = nullptr;  // null: it is built in
};

// All plugins of the program, in alphabetical order (plugins/registry.cc).
std::span<const PluginInfo> plugins();

}  // namespace weft::disk
