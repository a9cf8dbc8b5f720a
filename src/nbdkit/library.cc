// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/library.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/log.h"
#include "base/result.h"
#include "nbdkit/call.h"

namespace weft::nbdkit {
namespace {

constexpr uint64_t kStructSizeOldest = 176;  // bytes
constexpr int kApiVersionMax = 2;

bool is_name(std::string_view name) {
  constexpr auto is_alphanumeric = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  return !name.empty() && is_alphanumeric(name.front()) &&
         std::ranges::all_of(name, [&](char c) { return is_alphanumeric(c) || c == '-'; });
}

std::string absolute(const std::string& path) {
  char* const found = ::realpath(path.c_str(), nullptr);
  if (found == nullptr) {
    throw ConfigError(
        fmt::format("{}: the plugin cannot be loaded: {}: give the path of an nbdkit "
                    "plugin, or the name of one that is built in",
                    path, errno_text(errno)));
  }
  std::string result = found;
  std::free(found);
  return result;
}

// In the order in which they are listed for people.
struct Field {
  const char* name;
  size_t offset;
};
#define FIELD(name) {#name, offsetof(nbdkit_plugin, name)}
constexpr Field kFields[] = {
    FIELD(longname),
    FIELD(description),
    FIELD(load),
    FIELD(unload),
    FIELD(dump_plugin),
    FIELD(config),
    FIELD(config_complete),
    FIELD(config_help),
    FIELD(thread_model),
    FIELD(get_ready),
    FIELD(after_fork),
    FIELD(cleanup),
    FIELD(preconnect),
    FIELD(list_exports),
    FIELD(default_export),
    FIELD(open),
    FIELD(close),
    FIELD(export_description),
    FIELD(get_size),
    FIELD(block_size),
    FIELD(can_write),
    FIELD(can_flush),
    FIELD(is_rotational),
    FIELD(can_trim),
    FIELD(can_zero),
    FIELD(can_fast_zero),
    FIELD(can_extents),
    FIELD(can_fua),
    FIELD(can_multi_conn),
    FIELD(can_cache),
    FIELD(pread),
    FIELD(pwrite),
    FIELD(flush),
    FIELD(trim),
    FIELD(zero),
    FIELD(extents),
    FIELD(cache),
    FIELD(_pread_v1),
    FIELD(_pwrite_v1),
    FIELD(_flush_v1),
    FIELD(_trim_v1),
    FIELD(_zero_v1),
};
#undef FIELD

}  // namespace

Library::Library(const std::string& path, std::span<DebugFlag> flags) : path_(absolute(path)) {
  // Others find the plugin's symbols: the modules that an interpreter loads need those of the
  // interpreter. It is never closed.
  void* const handle = ::dlopen(path_.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    throw ConfigError(fmt::format("{}: the plugin cannot be loaded: {}", path_, ::dlerror()));
  }
  const auto init = reinterpret_cast<const nbdkit_plugin* (*)()>(::dlsym(handle, "plugin_init"));
  if (init == nullptr) {
    throw ConfigError(
        fmt::format("{}: this is no nbdkit plugin: it has no function plugin_init", path_));
  }
  const nbdkit_plugin* const theirs = init();
  if (theirs == nullptr) {
    throw ConfigError(
        fmt::format("{}: the plugin cannot be loaded: its plugin_init returned "
                    "nothing: its own messages may say why",
                    path_));
  }
  copy(*theirs);
  check();

  file_.path = path_;
  file_.version = calls_.version ? calls_.version : "";
  file_.api_version = calls_._api_version;
  file_.struct_size = calls_._struct_size;
  file_.thread_model_max = static_cast<disk::ThreadModel>(calls_._thread_model);
  file_.errno_is_preserved = calls_.errno_is_preserved != 0;
  for (const Field& field : kFields) {
    void* value;
    std::memcpy(&value, reinterpret_cast<const char*>(&calls_) + field.offset, sizeof value);
    if (value != nullptr) file_.fields.emplace_back(field.name);
  }

  void* const shared =
      ::mmap(nullptr, sizeof *owner_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw ConfigError("cannot share memory: " + errno_text(errno));
  owner_ = static_cast<int*>(shared);

  Host::instance().set_plugin(calls_.name);
  set_debug_flags(handle, flags);
  log::debug("{}: loaded {} (version {}, API {})", calls_.name, path_,
             calls_.version ? calls_.version : "unknown", calls_._api_version);
  if (calls_.load) {
    const CallScope scope(calls_.name, "load", nullptr);
    calls_.load();
  }
}

// What is only in their struct was added later, and may be left alone by who does not know it.
void Library::copy(const nbdkit_plugin& theirs) {
  uint64_t size;
  int api_version;
  std::memcpy(&size, reinterpret_cast<const char*>(&theirs) + offsetof(nbdkit_plugin, _struct_size),
              sizeof size);
  std::memcpy(&api_version,
              reinterpret_cast<const char*>(&theirs) + offsetof(nbdkit_plugin, _api_version),
              sizeof api_version);
  if (api_version < 0 || api_version > kApiVersionMax) {
    throw ConfigError(
        fmt::format("{}: the plugin was built for version {} of the plugin interface, of which "
                    "weft knows those up to {}: rebuild it with NBDKIT_API_VERSION {}",
                    path_, api_version, kApiVersionMax, kApiVersionMax));
  }
  if (size < kStructSizeOldest) {
    throw ConfigError(fmt::format(
        "{}: this is no nbdkit plugin, or a broken one: its struct nbdkit_plugin says that it has "
        "{} bytes, and there never was one of less than {}",
        path_, size, kStructSizeOldest));
  }
  std::memcpy(&calls_, &theirs, std::min<uint64_t>(size, sizeof calls_));
}

void Library::check() const {
  const auto refuse = [this](const std::string& why) {
    throw ConfigError(fmt::format("{}: the plugin cannot be used: {}", path_, why));
  };
  if (calls_.name == nullptr) refuse("it has no name");
  if (!is_name(calls_.name)) {
    refuse(fmt::format("its name '{}' is not made of letters, digits and '-'", calls_.name));
  }
  if (calls_.open == nullptr) refuse("it has no open callback");
  if (calls_.get_size == nullptr) refuse("it has no get_size callback");
  if (calls_.pread == nullptr && calls_._pread_v1 == nullptr) refuse("it has no pread callback");
  if (calls_._thread_model < NBDKIT_THREAD_MODEL_SERIALIZE_CONNECTIONS ||
      calls_._thread_model > NBDKIT_THREAD_MODEL_PARALLEL) {
    refuse(fmt::format("its thread model {} is not known", calls_._thread_model));
  }
}

void Library::set_debug_flags(void* handle, std::span<DebugFlag> flags) const {
  for (DebugFlag& flag : flags) {
    if (flag.name != calls_.name) continue;
    std::string symbol = fmt::format("{}_debug_{}", flag.name, flag.flag);
    for (char& c : symbol) {
      if (c == '.' || c == '-') c = '_';
    }
    int* const variable = static_cast<int*>(::dlsym(handle, symbol.c_str()));
    if (variable == nullptr) continue;
    *variable = flag.value;
    flag.used = true;
  }
}

void Library::claim() {
  __atomic_store_n(owner_, ::getpid(), __ATOMIC_RELEASE);
}

void Library::unload() {
  if (unloaded_) return;
  unloaded_ = true;
  const int owner = __atomic_load_n(owner_, __ATOMIC_ACQUIRE);
  if (calls_.unload == nullptr || (owner != 0 && owner != ::getpid())) return;
  const CallScope scope(calls_.name, "unload", nullptr);
  calls_.unload();
}

}  // namespace weft::nbdkit
