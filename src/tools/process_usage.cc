// SPDX-License-Identifier: BSD-3-Clause
#include "tools/process_usage.h"

#include <fmt/format.h>
#include <time.h>

#include <charconv>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

namespace weft::tools {
namespace {

uint64_t clock_ns(clockid_t clock) {
  timespec time = {};
  ::clock_gettime(clock, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(time.tv_nsec);
}

std::optional<ProcessUsage> usage_of_one(pid_t pid) {
  clockid_t clock = 0;
  if (::clock_getcpuclockid(pid, &clock) != 0) return {};
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  if (!status) return {};
  ProcessUsage usage;
  usage.cpu_ns = clock_ns(clock);
  std::string key;
  uint64_t value = 0;
  for (std::string line; std::getline(status, line);) {
    const size_t colon = line.find(':');
    if (colon == line.npos) continue;
    key = line.substr(0, colon);
    const size_t digit = line.find_first_not_of(" \t", colon + 1);
    if (digit == line.npos) continue;
    if (std::from_chars(line.data() + digit, line.data() + line.size(), value).ec != std::errc{}) {
      continue;
    }
    if (key == "VmRSS") usage.rss_bytes = value * 1024;
    if (key == "VmHWM") usage.rss_peak_bytes = value * 1024;
    if (key == "Threads") usage.threads = value;
  }
  return usage;
}

// The parent of each process.
std::multimap<pid_t, pid_t> all_children() {
  std::multimap<pid_t, pid_t> result;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc{}) continue;
    std::ifstream file(entry.path() / "stat");
    std::string stat;
    std::getline(file, stat);
    // pid (name) state parent ...; the name may hold anything.
    const size_t close = stat.rfind(')');
    if (close == stat.npos || close + 4 > stat.size()) continue;
    pid_t parent = 0;
    std::from_chars(stat.data() + close + 4, stat.data() + stat.size(), parent);
    result.emplace(parent, pid);
  }
  return result;
}

}  // namespace

std::optional<ProcessUsage> process_usage(pid_t pid, bool children) {
  auto total = usage_of_one(pid);
  if (!total || !children) return total;
  const auto family = all_children();
  std::vector<pid_t> left = {pid};
  while (!left.empty()) {
    const pid_t parent = left.back();
    left.pop_back();
    const auto [first, last] = family.equal_range(parent);
    for (auto at = first; at != last; ++at) {
      left.push_back(at->second);
      const auto usage = usage_of_one(at->second);
      if (!usage) continue;
      total->cpu_ns += usage->cpu_ns;
      total->rss_bytes += usage->rss_bytes;
      total->rss_peak_bytes += usage->rss_peak_bytes;
      total->threads += usage->threads;
    }
  }
  return total;
}

uint64_t own_cpu_ns() {
  return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

}  // namespace weft::tools
