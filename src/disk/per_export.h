// SPDX-License-Identifier: BSD-3-Clause
// PerExport: what the connections of an export share in a filter.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "disk/disk.h"

namespace weft::disk {

// What tells the disks of a filter apart: the identity of the disk at the bottom, where it is
// known, so that two names of one disk have one state; else the export's name.
inline std::string export_key(const Disk& disk, const std::string& export_name) {
  const std::string identity = disk.identity();
  return identity.empty() ? "@" + export_name : "=" + identity;
}

// What tells storage apart: disks that do not know their identity may all be one, whatever their
// names. For state that is right, if not quick, when it is shared by too many.
inline std::string storage_key(const Disk& disk) {
  return disk.identity();
}

// Thread-safe. Each state is made when it is first asked for, and stays to the end.
template <typename T>
class PerExport {
 public:
  // `make`, which returns a std::shared_ptr<T>, is called with a lock held: it does not wait.
  template <typename F>
  std::shared_ptr<T> get(const std::string& key, F make) {
    const std::lock_guard lock(mutex_);
    std::shared_ptr<T>& state = states_[key];
    if (!state) state = make();
    return state;
  }

  // Whoever has the state keeps it; who asks next gets a new one.
  void forget(const std::string& key) {
    const std::lock_guard lock(mutex_);
    states_.erase(key);
  }

  [[nodiscard]] std::vector<std::shared_ptr<T>> all() const {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<T>> result;
    for (const auto& entry : states_) result.push_back(entry.second);
    return result;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::shared_ptr<T>> states_;
};

}  // namespace weft::disk
