// SPDX-License-Identifier: BSD-3-Clause
// What the tests of hosted plugins share.
#pragma once

#include <dlfcn.h>

#include <functional>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "disk/disk.h"
#include "disk/open_layer.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"
#include "nbdkit/hosted_plugin.h"
#include "nbdkit/library.h"
#include "nbdkit/test_plugins/control.h"

namespace weft::nbdkit {

inline std::string test_plugin(const std::string& name) {
  return WEFT_TEST_PLUGINS "/" + name + ".so";
}

// The control of the plugin test_ram (or a variant of it), as a test begins with it.
inline test_control& control_of(const std::string& name) {
  void* const handle = ::dlopen(test_plugin(name).c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!handle) throw std::runtime_error(::dlerror());
  const auto get = reinterpret_cast<test_control* (*)()>(::dlsym(handle, "test_control_of_plugin"));
  test_control& control = *get();
  control = {};
  control.size = 1 << 20;
  control.thread_model = kAsDefault;
  for (int* answer : {&control.can_write, &control.can_flush, &control.can_trim, &control.can_zero,
                      &control.can_fast_zero, &control.can_fua, &control.can_multi_conn,
                      &control.can_cache, &control.can_extents}) {
    *answer = kAsDefault;
  }
  return control;
}

inline int calls_of(const test_control& control, test_method method) {
  return __atomic_load_n(&control.calls[method], __ATOMIC_SEQ_CST);
}

inline std::vector<int> events_of(const test_control& control) {
  return {control.event, control.event + control.events};
}

// A plugin that is ready to open disks, a pool, and a loop to use them on.
class Hosted {
 public:
  explicit Hosted(const std::string& path, const std::function<void(HostedPlugin&)>& configure = {},
                  engine::EngineKind kind = engine::EngineKind::kEpoll)
      : library(path, {}), loop(engine::Loop::create(kind, pool)), plugin(library) {
    if (configure) configure(plugin);
    plugin.config_complete();
    plugin.start({.pool = pool});
  }

  template <typename T>
  T run(disk::Task<T> task) {
    return loop->run_until_done(std::move(task));
  }
  Result<std::unique_ptr<disk::Disk>> open(bool read_only = false) {
    return run(
        disk::open_layer(plugin, "test", {.name = "", .read_only = read_only, .loop = *loop}));
  }
  // Opens, calls f(disk), closes.
  void with_disk(const std::function<void(disk::Disk&)>& f, bool read_only = false) {
    auto disk = open(read_only);
    if (!disk) throw std::runtime_error(disk.error().text ? disk.error().text : "cannot open");
    f(**disk);
    (void)run((*disk)->close());
  }

  engine::BlockingPool pool;
  Library library;
  std::unique_ptr<engine::Loop> loop;
  HostedPlugin plugin;
};

}  // namespace weft::nbdkit
