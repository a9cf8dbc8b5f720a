// SPDX-License-Identifier: BSD-3-Clause
// Filter: a layer between the server and a plugin. A filter is a Plugin made of the next one, and
// its Disk holds the next Disk; so a stack of them is a Plugin as well.
//
// A filter names only what it changes: everything else goes on to the next layer. State that the
// connections of an export share lives in the filter object, by PerExport (per_export.h); nothing
// is file-scope, so that a filter can be used twice.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "disk/disk.h"

namespace weft::disk {

class Filter : public Plugin {
 public:
  // Called once, before anything else. `name`: this filter's, for messages. `next_name`: the next
  // layer's.
  void attach(std::string name, std::unique_ptr<Plugin> next, std::string next_name);

  // True: the parameter is this filter's. False: the next layer is asked. Throws ConfigError when
  // the value is wrong.
  virtual bool take(std::string_view key, std::string_view value) = 0;
  // All parameters are known, and the layers below are complete. Throws ConfigError.
  virtual void complete() {}
  // After the layers below have started.
  virtual void begin(const Surroundings& surroundings) { (void)surroundings; }
  // This layer's own lines of `--explain`.
  [[nodiscard]] virtual std::vector<Explanation> explain_layer() const { return {}; }

  // ---- Plugin, passed on ----
  void config(std::string_view key, std::string_view value) final;
  std::string dump() override { return next_->dump(); }
  void serve_read_only() override { next_->serve_read_only(); }
  void config_complete() override;
  void start(const Surroundings& surroundings) final;
  [[nodiscard]] ThreadModel thread_model() const override;
  [[nodiscard]] uint32_t connections_max() const override;
  [[nodiscard]] bool answers_in_order() const override { return next_->answers_in_order(); }
  Task<Status> preconnect(Loop& loop, const Peer& peer, bool read_only) override;
  Result<std::shared_ptr<void>> admit(const Peer& client) override { return next_->admit(client); }
  Task<Result<std::string>> default_export(Loop& loop, bool read_only) override;
  Task<Result<std::unique_ptr<Disk>>> open(OpenRequest request) override = 0;
  Task<Result<std::vector<ExportEntry>>> list_exports(Loop& loop, bool read_only) override;
  // A filter that keeps what was acknowledged makes it durable first, then calls this.
  Task<Status> finish(Loop& loop) override;
  void stopping() override { next_->stopping(); }
  void abandon() override { next_->abandon(); }
  void resume() override { next_->resume(); }
  [[nodiscard]] std::vector<Explanation> explain() const final;

  [[nodiscard]] const std::string& name() const { return name_; }

 protected:
  [[nodiscard]] Plugin& next() const { return *next_; }
  // The next layer's disk, behind a waist.
  Task<Result<std::unique_ptr<Disk>>> open_next(OpenRequest request);

 private:
  std::string name_;
  std::string next_name_;
  std::unique_ptr<Plugin> next_;
};

// Whether a filter's disk lets reads pass. One that overrides read() says kIntercepted: nothing is
// lent past it, and no reader asks for holes on its own account.
enum class Reads : uint8_t { kForwarded, kIntercepted };

// The base of filters' disks: passes every call on. A layer that only forwards is not a coroutine.
class FilterDisk : public Disk {
 public:
  FilterDisk(std::unique_ptr<Disk> next, Reads reads) : next_(std::move(next)), reads_(reads) {
    capabilities_ = next_->capabilities();
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return next_->read(offset, into);
  }
  bool lend(Range range, Lease& lease) override {
    return reads_ == Reads::kForwarded && next_->lend(range, lease);
  }
  [[nodiscard]] bool may_have_holes() const override {
    return reads_ == Reads::kForwarded && next_->may_have_holes();
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return next_->write(offset, from, fua);
  }
  Task<Status> zero(Range range, ZeroFlags flags) override { return next_->zero(range, flags); }
  Task<Status> trim(Range range, bool fua) override { return next_->trim(range, fua); }
  Task<Status> cache(Range range) override { return next_->cache(range); }
  Task<Status> flush() override { return next_->flush(); }
  Task<Status> extents(Extents& into, bool one) override { return next_->extents(into, one); }
  ChangeOrder* order() override { return next_->order(); }
  [[nodiscard]] std::string identity() const override { return next_->identity(); }
  [[nodiscard]] std::string description() const override { return next_->description(); }
  void client_gone() override { next_->client_gone(); }
  Task<Status> close() override { return next_->close(); }

 protected:
  [[nodiscard]] Disk& next() { return *next_; }

 private:
  std::unique_ptr<Disk> next_;
  Reads reads_;
};

// A filter as the registry knows it.
struct FilterInfo {
  const char* name;
  const char* longname;
  const char* description;
  const char* config_help;  // as PluginInfo's; null: no parameters
  std::unique_ptr<Filter> (*make)();
};

// All filters of the program, in alphabetical order (filters/registry.cc).
std::span<const FilterInfo> filters();

// A filter of a stack: which, and the parameters that are for it alone.
struct Layer {
  const FilterInfo* info;
  std::vector<std::pair<std::string, std::string>> parameters;
};

// The stack of `layers` (the first is nearest to the client) over `plugin`. Parameters given to its
// config() are offered from the outermost to the innermost; those in `layers` have been taken.
// Throws ConfigError.
std::unique_ptr<Plugin> make_stack(std::span<const Layer> layers, std::unique_ptr<Plugin> plugin,
                                   const std::string& plugin_name);

}  // namespace weft::disk
