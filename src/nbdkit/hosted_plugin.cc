// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/hosted_plugin.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/fd.h"
#include "base/log.h"
#include "nbdkit/collections.h"
#include "nbdkit/hosted_disk.h"

namespace weft::nbdkit {
namespace {

using disk::Loop;
using disk::Task;
using disk::ThreadModel;

constexpr auto kCleanupTimeMax = std::chrono::seconds(60);
constexpr const char* kFailed = "the plugin failed: the server's log says how";
constexpr const char* kModels[] = {"serialize_connections", "serialize_all_requests",
                                   "serialize_requests", "parallel"};

// What f() prints on the standard output.
template <typename F>
std::string captured(F f) {
  std::fflush(stdout);
  const Fd file(::memfd_create("weft-dump", MFD_CLOEXEC));
  const Fd saved(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  if (!file || !saved || ::dup2(file.get(), STDOUT_FILENO) < 0) {
    throw ConfigError("the plugin's output cannot be read: " + errno_text(errno));
  }
  f();
  std::fflush(stdout);
  ::dup2(saved.get(), STDOUT_FILENO);
  std::string text;
  char buffer[4096];
  for (off_t offset = 0;;) {
    const ssize_t n = ::pread(file.get(), buffer, sizeof buffer, offset);
    if (n <= 0) return text;
    text.append(buffer, static_cast<size_t>(n));
    offset += n;
  }
}

}  // namespace

HostedPlugin::HostedPlugin(Library& library)
    : library_(library), model_(library.file().thread_model_max) {}

HostedPlugin::~HostedPlugin() {
  library_.unload();
}

int HostedPlugin::error_of(const CallScope& scope) const {
  const int number = errno;
  if (scope.error() != 0) return scope.error();
  if (callbacks().errno_is_preserved && number != 0) return number;
  return EIO;
}

void HostedPlugin::warn_once(std::atomic<bool>& said, std::string_view method,
                             std::string_view text) const {
  if (!said.exchange(true)) log::warning("{}: {}: {}", name(), method, text);
}

// ---- Configuration ------------------------------------------------------------------------------

// The plugin has said why it fails, with nbdkit_error().
template <typename F>
void HostedPlugin::configure(const char* method, F f) {
  const CallScope scope(name(), method, nullptr);
  const uint64_t told = Host::instance().errors_told();
  if (f() != -1) return;
  give_up(told, fmt::format("{} failed, and the plugin does not say why", method));
}

// Nothing is added to what the plugin said itself.
void HostedPlugin::give_up(uint64_t told_before, const std::string& text) {
  library_.give_up();
  const bool told = Host::instance().errors_told() != told_before;
  throw ConfigError(told ? std::string() : fmt::format("{}: {}", name(), text));
}

void HostedPlugin::config(std::string_view key, std::string_view value) {
  if (callbacks().config == nullptr) {
    library_.give_up();
    throw ConfigError(
        fmt::format("{}: there is no parameter '{}': the plugin takes none", name(), key));
  }
  Host& host = Host::instance();
  const char* const its_key = host.strings.add(key);
  const char* const its_value = host.strings.add(value);
  const CallScope scope(name(), "config", nullptr);
  const uint64_t told = host.errors_told();
  if (callbacks().config(its_key, its_value) != -1) return;
  // The value may be a secret.
  give_up(told, fmt::format("the parameter {}= is refused, and the plugin does not say why", key));
}

void HostedPlugin::find_thread_model() {
  if (callbacks().thread_model == nullptr) return;
  int model = 0;
  configure("thread_model", [&] { return model = callbacks().thread_model(); });
  if (model < 0 || model > NBDKIT_THREAD_MODEL_PARALLEL) {
    library_.give_up();
    throw ConfigError(
        fmt::format("{}: thread_model returned {}, which is no thread model: the plugin is broken",
                    name(), model));
  }
  model_ = std::min(model_, static_cast<ThreadModel>(model));
}

void HostedPlugin::config_complete() {
  if (callbacks().config_complete) configure("config_complete", callbacks().config_complete);
  find_thread_model();
  if (callbacks().get_ready) configure("get_ready", callbacks().get_ready);
  Host::instance().stdio_safe = false;
}

std::string HostedPlugin::dump() {
  find_thread_model();
  if (callbacks().dump_plugin == nullptr) return {};
  const CallScope scope(name(), "dump_plugin", nullptr);
  return captured(callbacks().dump_plugin);
}

void HostedPlugin::start(const disk::Surroundings& surroundings) {
  library_.claim();
  surroundings.pool.keep_threads();
  if (callbacks().after_fork) configure("after_fork", callbacks().after_fork);
  calls_ = std::make_unique<CallsOfAll>(name(), surroundings.pool,
                                        model_ <= ThreadModel::kSerializeAllRequests);
  Host::instance().start_serving(surroundings.stop);
}

std::vector<disk::Explanation> HostedPlugin::explain() const {
  return {{"plugin", fmt::format("{}, thread model {}", library_.file().path,
                                 kModels[static_cast<int>(model_)])},
          {"visibility", "what the plugin's can_multi_conn says is taken for true"},
          {"durability",
           "a flush is the plugin's flush callback; a failed one is remembered until weft ends, "
           "for all exports of the plugin"}};
}

// ---- Calls that concern no disk -----------------------------------------------------------------

Task<Status> HostedPlugin::preconnect(Loop& loop, const disk::Peer& peer, bool read_only) {
  if (callbacks().preconnect == nullptr) co_return Status{};
  Connection connection(name(), next_number(), &peer);
  HostedCalls calls(*calls_, loop, connection);
  const Status admitted =
      co_await calls.run(CallKind::kOther, "preconnect", 0, [&](CallScope& scope) -> Status {
        if (callbacks().preconnect(read_only) != -1) return {};
        return fail(error_of(scope), "the plugin refuses this client");
      });
  co_await calls.end();
  co_return admitted;
}

Task<Result<std::string>> HostedPlugin::default_export(Loop& loop, bool read_only) {
  if (callbacks().default_export == nullptr) co_return std::string();
  Connection connection(name(), next_number(), nullptr);
  HostedCalls calls(*calls_, loop, connection);
  Result<std::string> found = co_await calls.run(
      CallKind::kOther, "default_export", 0, [&](CallScope&) -> Result<std::string> {
        const char* const text = callbacks().default_export(read_only, 0);
        if (text == nullptr) return fail(ENOENT, "the plugin has no default export");
        return std::string(text);
      });
  co_await calls.end();
  co_return found;
}

Task<Result<std::vector<disk::ExportEntry>>> HostedPlugin::list_exports(Loop& loop,
                                                                        bool read_only) {
  nbdkit_exports list;
  if (callbacks().list_exports) {
    Connection connection(name(), next_number(), nullptr);
    HostedCalls calls(*calls_, loop, connection);
    const Status listed =
        co_await calls.run(CallKind::kOther, "list_exports", 0, [&](CallScope& scope) -> Status {
          if (callbacks().list_exports(read_only, 0, &list) != -1) return {};
          return fail(error_of(scope), kFailed);
        });
    co_await calls.end();
    if (!listed) co_return std::unexpected(listed.error());
  } else {
    list.use_default = true;
  }
  if (list.use_default) {
    Result<std::string> found = co_await default_export(loop, read_only);
    if (found) list.exports.insert(list.exports.begin(), {std::move(*found), ""});
  }
  co_return std::move(list.exports);
}

Task<Result<std::unique_ptr<disk::Disk>>> HostedPlugin::open(disk::OpenRequest request) {
  return open_hosted_disk(*this, ++last_number_, std::move(request));
}

// ---- The end ------------------------------------------------------------------------------------

// A cleanup that hangs must not keep the process from ending.
Task<Status> HostedPlugin::finish(Loop& loop) {
  if (callbacks().cleanup == nullptr) co_return Status{};
  engine::Scope scope(loop);
  engine::Timer timer(loop);
  scope.spawn([](engine::Timer& the_timer, HostedPlugin& self) -> Task<void> {
    if (!co_await the_timer.sleep(kCleanupTimeMax)) co_return;
    self.abandon();
    ::_exit(1);
  }(timer, *this));
  Connection connection(name(), 0, nullptr);
  HostedCalls calls(*calls_, loop, connection);
  co_await calls.run(CallKind::kOther, "cleanup", 0, [this](CallScope&) {
    callbacks().cleanup();
    return 0;
  });
  co_await calls.end();
  timer.cancel();
  co_await scope.join();
  co_return Status{};
}

void HostedPlugin::abandon() {
  Host::instance().abandon();
  if (calls_) calls_->abandon();
}

}  // namespace weft::nbdkit
