// SPDX-License-Identifier: BSD-3-Clause
// ScriptPlugin: a plugin whose methods are programs, as nbdkit's sh and eval plugins have them.
// Each call runs one, with the method's name and its arguments as words; the exit status and what
// is printed are the answer. sh and eval differ in which program a method has.
//
// A script is stateless and may or may not care for the export's name, so to weft all that it
// serves is one disk: one order of changes, and one mark of a failed flush.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "disk/disk.h"
#include "disk/one_disk.h"
#include "engine/async_mutex.h"
#include "engine/blocking_pool.h"
#include "plugins/sh/script_process.h"

namespace weft::plugins {

enum class ScriptCode : uint8_t { kOk, kError, kMissing, kFalse };

// What a script wants beside its answer (exit status 4 and above).
// kRefuse: every later request of this client fails. kDisconnect: it is sent away at once.
enum class ScriptWish : uint8_t { kNothing, kRefuse, kDisconnect };

struct ScriptAnswer {
  ScriptCode code = ScriptCode::kOk;
  ScriptWish wish = ScriptWish::kNothing;
  bool abandoned = false;  // weft ends, and has ended the script
  Error error;             // for kError
  std::string text;        // for kError: for the log or the person who starts weft
  std::string out;         // without `into`
  uint64_t out_bytes = 0;
};

// Where a method is found.
struct ScriptPlace {
  enum Kind : uint8_t { kProgram, kMissing, kTrue, kNative } kind = kMissing;
  std::string path;  // for kProgram
};

class ScriptPlugin : public disk::Plugin {
 public:
  explicit ScriptPlugin(std::string plugin_name) : plugin_name_(std::move(plugin_name)) {}

  void config_complete() override;
  std::string dump() override;
  void start(const disk::Surroundings& surroundings) override;
  [[nodiscard]] disk::ThreadModel own_thread_model() const override { return model_; }
  disk::Task<Status> preconnect(disk::Loop& loop, const disk::Peer& peer, bool read_only) override;
  disk::Task<Result<std::string>> default_export(disk::Loop& loop, bool read_only) override;
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override;
  disk::Task<Result<std::vector<disk::ExportEntry>>> list_exports(disk::Loop& loop,
                                                                  bool read_only) override;
  void abandon() override { processes_.abandon(); }
  void resume() override { processes_.resume(); }
  [[nodiscard]] std::vector<disk::Explanation> explain() const override;

  // ---- For the disks. From any thread; blocking. ----

  // Runs a method. A failure is not logged.
  ScriptAnswer call(std::string_view method, std::vector<std::string> arguments,
                    const ScriptInput& input = {}, MutableByteSpan* into = nullptr);
  // The same, and a failure, or an answer that the method cannot give, is logged. kFalse only if
  // `may_be_false`.
  ScriptAnswer ask(std::string_view method, std::vector<std::string> arguments,
                   const ScriptInput& input = {}, MutableByteSpan* into = nullptr,
                   bool may_be_false = false);
  // How a line of the log about a method begins.
  [[nodiscard]] std::string name_of(std::string_view method) const;

  // Runs `f` on a thread of the pool, alone where the thread model says so.
  template <typename F>
  auto run(disk::Loop& loop, engine::Lane& lane, F f) -> disk::Task<std::invoke_result_t<F&>> {
    engine::AsyncMutex::Guard guard;
    if (one_at_a_time_) guard = co_await mutex_.lock(loop);
    co_return co_await lane.run(loop, engine::BlockingReason::kPlugin,
                                engine::BlockingKind::kParallel, std::move(f));
  }

  [[nodiscard]] disk::OneDisk& one_disk() { return one_disk_; }
  // Warns once of what is only worth saying once.
  void warn_once(std::atomic<bool>& said, const std::string& text);

 protected:
  [[nodiscard]] virtual ScriptPlace place_of(std::string_view method) const = 0;
  // True once the plugin has something to call.
  [[nodiscard]] virtual bool has_script() const = 0;
  [[nodiscard]] virtual std::string script_name(std::string_view method) const = 0;

  // To be called by the destructor: the script's unload, and the end of its folder.
  void end_script();
  // The folder of the script's own, made when it is first asked for.
  const std::string& tmpdir();
  // Calls a method while weft starts: throws ConfigError on failure. False: there is no such
  // method. `out`: what it printed.
  bool configure(std::string_view method, std::vector<std::string> arguments,
                 std::string* out = nullptr);
  [[nodiscard]] ScriptProcesses& processes() { return processes_; }

 private:
  void find_thread_model();
  void ask_for_shutdown(std::string_view method);
  ScriptAnswer judge(std::string_view method, ScriptEnd end);

  const std::string plugin_name_;
  ScriptProcesses processes_;
  std::string tmpdir_;
  std::function<void()> stop_;  // asks the server to end; set once it runs, before its threads
  disk::ThreadModel model_ = disk::ThreadModel::kSerializeAllRequests;
  bool one_at_a_time_ = true;
  engine::BlockingPool* pool_ = nullptr;
  engine::AsyncMutex mutex_;  // calls, where only one may run at a time
  disk::OneDisk one_disk_;
  std::atomic<bool> asked_for_shutdown_{false};
};

}  // namespace weft::plugins
