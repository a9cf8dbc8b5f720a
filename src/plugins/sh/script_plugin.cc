// SPDX-License-Identifier: BSD-3-Clause
#include "plugins/sh/script_plugin.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/log.h"
#include "engine/blocking_pool.h"
#include "plugins/sh/script_disk.h"
#include "plugins/sh/script_output.h"

namespace weft::plugins {
namespace {

using disk::Loop;
using disk::Task;
using disk::ThreadModel;

constexpr int64_t kUnloadTimeMax_ms = 10'000;
constexpr int kKnownStatusMax = 8;

const char* word(bool flag) {
  return flag ? "true" : "false";
}

// Removes all of a folder, whatever it is.
void remove_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) log::warning("{}: the script's folder cannot be removed: {}", path, error.message());
}

}  // namespace

// After a fork there are two of us, of which one serves. The other sees by the folder whether that
// one got to its end.
void ScriptPlugin::end_script() {
  if (tmpdir_.empty() || ::access(tmpdir_.c_str(), F_OK) != 0) return;
  if (has_script()) call("unload", {});
  remove_folder(tmpdir_);
}

const std::string& ScriptPlugin::tmpdir() {
  if (!tmpdir_.empty()) return tmpdir_;
  const char* const base = std::getenv("TMPDIR");
  std::string path = fmt::format("{}/weftXXXXXX", base && *base ? base : "/tmp");
  if (::mkdtemp(path.data()) == nullptr) {
    throw ConfigError(
        fmt::format("{}: cannot make the script's folder {}: {}: set TMPDIR to a "
                    "folder that can be written",
                    plugin_name_, path, errno_text(errno)));
  }
  tmpdir_ = path;
  processes_.set_variable("tmpdir", tmpdir_);
  return tmpdir_;
}

std::string ScriptPlugin::name_of(std::string_view method) const {
  return fmt::format("{}: {}: {}", plugin_name_, script_name(method), method);
}

void ScriptPlugin::warn_once(std::atomic<bool>& said, const std::string& text) {
  if (!said.exchange(true)) log::warning("{}", text);
}

// ---- Calls ------------------------------------------------------------------------------------

void ScriptPlugin::ask_for_shutdown(std::string_view method) {
  if (!stop_ || asked_for_shutdown_.exchange(true)) return;
  log::info("{}: the script asks weft to end", name_of(method));
  stop_();
}

ScriptAnswer ScriptPlugin::judge(std::string_view method, ScriptEnd end) {
  ScriptAnswer answer;
  answer.out = std::move(end.out);
  answer.out_bytes = end.out_bytes;
  const auto failed = [&](int code, std::string text) {
    answer.code = ScriptCode::kError;
    answer.error = {code, "the script failed: the server's log says how"};
    answer.text = std::move(text);
  };
  if (end.abandoned) {
    answer.abandoned = true;
    failed(ESHUTDOWN, "ended, because weft ends");
    answer.error.text = "the server ends";
    return answer;
  }
  if (end.not_started) {
    const bool interpreter = end.not_started == ENOENT || end.not_started == EACCES;
    failed(EIO, fmt::format("cannot be run: {}{}", errno_text(end.not_started),
                            interpreter ? ": is the script still there and executable, and the "
                                          "interpreter that its first line names?"
                                        : ""));
    return answer;
  }
  const auto complain = [&](const std::string& how) {
    ScriptComplaint complaint = read_complaint(end.err);
    if (complaint.text.empty()) {
      complaint.text = complaint.code == EIO && end.err.empty()
                           ? how + " and printed no reason on its standard error output"
                           : errno_text(complaint.code);
    }
    failed(complaint.code, std::move(complaint.text));
  };
  if (WIFSIGNALED(end.wait_status)) {
    const int number = WTERMSIG(end.wait_status);
    complain(fmt::format("was killed by signal {} ({})", number, ::strsignal(number)));
    answer.text += end.err.empty() ? "" : fmt::format(" (killed by signal {})", number);
    return answer;
  }
  const int status = WEXITSTATUS(end.wait_status);
  const std::string how = fmt::format("ended with status {}", status);
  switch (status) {
    case 0:
      break;
    case 2:
      answer.code = ScriptCode::kMissing;
      break;
    case 3:
      answer.code = ScriptCode::kFalse;
      break;
    case 4:
      ask_for_shutdown(method);
      break;
    case 5:
      ask_for_shutdown(method);
      complain(how);
      break;
    case 6:
      answer.wish = ScriptWish::kDisconnect;
      failed(ESHUTDOWN, "disconnects the client");
      answer.error.text = "the script disconnects this client";
      break;
    case 7:
      answer.wish = ScriptWish::kRefuse;
      break;
    case 8:
      answer.wish = ScriptWish::kRefuse;
      complain(how);
      break;
    default:
      complain(how);
  }
  if (answer.code == ScriptCode::kOk && end.not_fed > 0) {
    failed(EIO, fmt::format("ended well, but did not read all of its input: {} bytes were left",
                            end.not_fed));
  }
  if (answer.code == ScriptCode::kOk && end.out_too_long && method != "pread") {
    failed(EIO, fmt::format("printed more than {} bytes", ScriptProcesses::kOutputMax));
  }
  return answer;
}

ScriptAnswer ScriptPlugin::call(std::string_view method, std::vector<std::string> arguments,
                                const ScriptInput& input, MutableByteSpan* into) {
  const ScriptPlace place = place_of(method);
  ScriptAnswer answer;
  switch (place.kind) {
    case ScriptPlace::kProgram:
      break;
    case ScriptPlace::kMissing:
      answer.code = ScriptCode::kMissing;
      return answer;
    case ScriptPlace::kTrue:
      return answer;
    case ScriptPlace::kNative:
      answer.out = "native";
      return answer;
  }
  if (log::verbose()) {
    std::string words;
    for (const std::string& argument : arguments) words += fmt::format(" '{}'", argument);
    log::debug("{}: {} {}{}", plugin_name_, place.path, method, words);
  }
  arguments.insert(arguments.begin(), std::string(method));
  const int64_t time_max_ms = method == "unload" ? kUnloadTimeMax_ms : 0;
  return judge(method, processes_.run(place.path, arguments, input, into, time_max_ms));
}

ScriptAnswer ScriptPlugin::ask(std::string_view method, std::vector<std::string> arguments,
                               const ScriptInput& input, MutableByteSpan* into, bool may_be_false) {
  ScriptAnswer answer = call(method, std::move(arguments), input, into);
  if (answer.code == ScriptCode::kFalse && !may_be_false) {
    answer.code = ScriptCode::kError;
    answer.error = {EIO, "the script failed: the server's log says how"};
    answer.text = "ended with status 3 (false), which is no answer to this method";
  }
  if (answer.code != ScriptCode::kError) return answer;
  // A script that could not be started because weft ends is no news.
  if (!answer.abandoned || method != "close") log::error("{}: {}", name_of(method), answer.text);
  return answer;
}

bool ScriptPlugin::configure(std::string_view method, std::vector<std::string> arguments,
                             std::string* out) {
  std::string words;
  for (const std::string& argument : arguments) words += (words.empty() ? " " : "=") + argument;
  ScriptAnswer answer = call(method, std::move(arguments));
  if (answer.code == ScriptCode::kFalse) {
    answer.text = "ended with status 3 (false), which is no answer to this method";
  }
  if (answer.code == ScriptCode::kError || answer.code == ScriptCode::kFalse) {
    throw ConfigError(fmt::format("{}{}: {}", name_of(method), words, answer.text));
  }
  if (out) *out = std::move(answer.out);
  return answer.code != ScriptCode::kMissing;
}

// ---- The life of the plugin -------------------------------------------------------------------

void ScriptPlugin::find_thread_model() {
  std::string out;
  if (configure("thread_model", {}, &out)) {
    if (const auto model = read_thread_model(out)) {
      model_ = *model;
    } else {
      log::warning("{}: '{}' is no thread model: serialize_all_requests is used",
                   name_of("thread_model"), without_newline(out));
    }
  }
  one_at_a_time_ = model_ <= ThreadModel::kSerializeAllRequests;
}

void ScriptPlugin::config_complete() {
  configure("config_complete", {});
  find_thread_model();
  configure("get_ready", {});
}

std::string ScriptPlugin::dump() {
  std::string text = fmt::format("max_known_status={}\n", kKnownStatusMax);
  if (!has_script()) return text;
  find_thread_model();
  std::string out;
  configure("dump_plugin", {}, &out);
  return text + out;
}

void ScriptPlugin::start(const disk::Surroundings& surroundings) {
  pool_ = &surroundings.pool;
  configure("after_fork", {});
  processes_.use_groups();
  stop_ = surroundings.stop;
}

std::vector<disk::Explanation> ScriptPlugin::explain() const {
  const char* const models[] = {"serialize_connections", "serialize_all_requests",
                                "serialize_requests", "parallel"};
  return {{"script", fmt::format("thread model {}; every request runs the script once",
                                 models[static_cast<int>(model_)])},
          {"visibility", "what the script's can_multi_conn says is taken for true"},
          {"durability",
           "a flush is the script's flush method; a failed one is remembered until weft ends, for "
           "all exports of the script"}};
}

// ---- Calls that concern no disk -----------------------------------------------------------------

Task<Status> ScriptPlugin::preconnect(Loop& loop, const disk::Peer&, bool read_only) {
  engine::Lane lane(*pool_, 1);
  const ScriptAnswer answer =
      co_await run(loop, lane, [&] { return ask("preconnect", {word(read_only)}); });
  if (answer.code == ScriptCode::kError) co_return std::unexpected(answer.error);
  co_return Status{};
}

Task<Result<std::string>> ScriptPlugin::default_export(Loop& loop, bool read_only) {
  engine::Lane lane(*pool_, 1);
  const ScriptAnswer answer =
      co_await run(loop, lane, [&] { return ask("default_export", {word(read_only), "false"}); });
  if (answer.code == ScriptCode::kError) co_return std::unexpected(answer.error);
  if (answer.code == ScriptCode::kMissing) co_return std::string();
  std::vector<disk::ExportEntry> exports = read_exports(answer.out);
  co_return exports.empty() ? std::string() : std::move(exports.front().name);
}

Task<Result<std::vector<disk::ExportEntry>>> ScriptPlugin::list_exports(Loop& loop,
                                                                        bool read_only) {
  using Exports = std::vector<disk::ExportEntry>;
  ScriptAnswer answer;
  {
    engine::Lane lane(*pool_, 1);
    answer =
        co_await run(loop, lane, [&] { return ask("list_exports", {word(read_only), "false"}); });
  }
  if (answer.code == ScriptCode::kError) co_return std::unexpected(answer.error);
  if (answer.code == ScriptCode::kOk) co_return read_exports(answer.out);
  const Result<std::string> name = co_await default_export(loop, read_only);
  if (!name) co_return std::unexpected(name.error());
  co_return Exports{{*name, ""}};
}

Task<Result<std::unique_ptr<disk::Disk>>> ScriptPlugin::open(disk::OpenRequest request) {
  return open_script_disk(*this, *pool_, std::move(request));
}

}  // namespace weft::plugins
