// SPDX-License-Identifier: BSD-3-Clause
// HostedPlugin: a plugin in a file as one of weft's.
//
// Its callbacks are called in nbdkit's order: load (library.h), config for every parameter,
// config_complete, thread_model, get_ready; after_fork in start(); preconnect, list_exports,
// default_export, open, get_size and every can_* once for a connection, its requests, close; at
// the end cleanup and unload. Those before start() are called by the only thread there is.
//
// What the plugin makes of an export's name is its own affair, so all that it serves counts as one
// disk (disk/one_disk.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "disk/disk.h"
#include "disk/one_disk.h"
#include "nbdkit/call.h"
#include "nbdkit/hosted_calls.h"
#include "nbdkit/library.h"

namespace weft::nbdkit {

class HostedPlugin final : public disk::Plugin {
 public:
  // `library` outlives the plugin.
  explicit HostedPlugin(Library& library);
  ~HostedPlugin() override;

  void config(std::string_view key, std::string_view value) override;
  std::string dump() override;
  void config_complete() override;
  void start(const disk::Surroundings& surroundings) override;
  [[nodiscard]] disk::ThreadModel own_thread_model() const override { return model_; }
  disk::Task<Status> preconnect(disk::Loop& loop, const disk::Peer& peer, bool read_only) override;
  disk::Task<Result<std::string>> default_export(disk::Loop& loop, bool read_only) override;
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override;
  disk::Task<Result<std::vector<disk::ExportEntry>>> list_exports(disk::Loop& loop,
                                                                  bool read_only) override;
  disk::Task<Status> finish(disk::Loop& loop) override;
  void stopping() override { Host::instance().wake(); }
  void abandon() override;
  void resume() override { Host::instance().resume(); }
  [[nodiscard]] std::vector<disk::Explanation> explain() const override;

  // ---- For the disks. From any thread. ----

  [[nodiscard]] const nbdkit_plugin& callbacks() const { return library_.calls(); }
  [[nodiscard]] CallsOfAll& calls() { return *calls_; }
  [[nodiscard]] disk::OneDisk& one_disk() { return one_disk_; }
  [[nodiscard]] const char* name() const { return library_.name(); }
  // The errno of a callback that has just failed on this thread.
  [[nodiscard]] int error_of(const CallScope& scope) const;
  // For what is only worth saying once.
  void warn_once(std::atomic<bool>& said, std::string_view method, std::string_view text) const;
  std::atomic<bool> said_no_extents{false};
  std::atomic<bool> said_no_flush{false};

 private:
  // Calls f() as the callback `method`, while weft starts: throws ConfigError when it gives -1.
  template <typename F>
  void configure(const char* method, F f);
  // `told_before`: Host::errors_told() before the call that failed.
  [[noreturn]] void give_up(uint64_t told_before, const std::string& text);
  void find_thread_model();
  [[nodiscard]] uint64_t next_number() const { return last_number_.load() + 1; }

  Library& library_;
  disk::ThreadModel model_;
  std::unique_ptr<CallsOfAll> calls_;  // from start() on
  disk::OneDisk one_disk_;
  std::atomic<uint64_t> last_number_{0};  // of the connections that were opened
};

}  // namespace weft::nbdkit
