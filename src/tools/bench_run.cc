// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_run.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "base/result.h"
#include "tools/bench_round.h"
#include "tools/process_usage.h"

namespace weft::tools {
namespace {

constexpr uint64_t kTickNs = 50'000'000;  // how often the leading thread looks

uint64_t to_ns(double seconds) {
  return static_cast<uint64_t>(seconds * 1e9);
}

void sleep_until(uint64_t end_ns) {
  const uint64_t now = now_ns();
  if (now < end_ns) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(std::min(end_ns - now, kTickNs)));
  }
}

class Bench {
 public:
  Bench(const BenchOptions& options, const std::atomic<bool>& interrupted)
      : options_(options), interrupted_(interrupted) {}

  BenchReport run() {
    if (options_.server_pid && !process_usage(*options_.server_pid, false)) {
      throw ConfigError(fmt::format("--server-pid: there is no process {}", *options_.server_pid));
    }
    connect();
    if (options_.fill) fill();
    if (report_.failures.empty()) measure();
    report_.length = block_count_ * options_.block_size;
    return std::move(report_);
  }

 private:
  void connect();
  void check_export(const nbd::ClientResult& negotiated);
  [[nodiscard]] std::vector<Workload> workloads() const;
  void fill();
  void measure();
  // The clients that have something to do, begun.
  std::vector<BenchClient*> begin(const std::vector<Workload>& workloads,
                                  const std::atomic<Phase>& phase);
  void collect_failures();
  std::optional<ProcessUsage> server_usage() const {
    if (!options_.server_pid) return {};
    return process_usage(*options_.server_pid, options_.server_children);
  }

  const BenchOptions& options_;
  const std::atomic<bool>& interrupted_;
  BenchReport report_;
  uint64_t block_count_ = 0;
  std::unique_ptr<BlockTable> table_;
  Clients clients_;  // go before the table
};

void Bench::connect() {
  if (options_.connections > 500) {
    // As many descriptors as we may have; what is missing is found when connecting.
    rlimit limit = {};
    ::getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
  nbd::ClientConfig config;
  if (options_.headers == nbd::HeaderMode::kSimple) {
    config.goal = nbd::ClientGoal::kExportName;
    config.want_structured = false;
  }
  config.want_extended = options_.headers == nbd::HeaderMode::kExtended;
  const auto timeout = std::chrono::milliseconds(static_cast<int64_t>(options_.timeout_s * 1e3));
  for (uint32_t i = 0; i < options_.connections && !interrupted_; i++) {
    Dialled dialled = dial(options_.target, config, timeout);
    if (i == 0) {
      check_export(dialled.result);
      report_.negotiated = dialled.result;
      if (options_.verify != Verify::kOff) table_ = std::make_unique<BlockTable>(block_count_);
    } else if (dialled.result.size != report_.negotiated.size) {
      throw ConfigError(
          "the connections are told different sizes of the export: is it being "
          "resized?");
    }
    clients_.push_back(
        std::make_unique<BenchClient>(std::move(dialled), table_.get(), options_.seed));
  }
}

void Bench::check_export(const nbd::ClientResult& negotiated) {
  const uint16_t flags = negotiated.transmission_flags;
  const auto need = [&](bool wanted, uint16_t flag, std::string_view what, std::string_view mend) {
    if (wanted && (flags & flag) == 0) {
      throw ConfigError(fmt::format("the server does not offer {} on this export: {}", what, mend));
    }
  };
  const bool writes = options_.mix.changes_data() || options_.fill;
  if (writes && (flags & nbd::kReadOnly)) {
    throw ConfigError(
        "the export is read-only: leave write, zero and trim out of --mix, and --fill");
  }
  constexpr std::string_view kMend = "leave it out of --mix";
  need(options_.mix.weight(OpKind::kZero) != 0, nbd::kSendWriteZeroes, "zero", kMend);
  need(options_.mix.weight(OpKind::kTrim) != 0, nbd::kSendTrim, "trim", kMend);
  need(options_.mix.weight(OpKind::kCache) != 0, nbd::kSendCache, "cache", kMend);
  need(options_.mix.weight(OpKind::kFlush) != 0, nbd::kSendFlush, "flush", kMend);
  need(options_.flush_every != 0, nbd::kSendFlush, "flush", "leave out --flush-every");
  need(options_.fua_percent != 0, nbd::kSendFua, "FUA", "leave out --fua");

  const uint32_t block_size = options_.block_size;
  if (negotiated.block_sizes) {
    const nbd::BlockSizes& sizes = *negotiated.block_sizes;
    if (block_size % sizes.min != 0 || options_.offset % sizes.min != 0) {
      throw ConfigError(fmt::format(
          "--block-size and --offset: the server wants multiples of {} bytes", sizes.min));
    }
    if (block_size > sizes.payload_max) {
      throw ConfigError(
          fmt::format("--block-size: the server allows {} bytes at most", sizes.payload_max));
    }
  }
  const uint64_t size = negotiated.size;
  if (options_.offset > size || options_.length.value_or(0) > size - options_.offset) {
    throw ConfigError(fmt::format(
        "--offset and --length: they reach beyond the export, which has {} bytes", size));
  }
  block_count_ = options_.length.value_or(size - options_.offset) / block_size;
  const uint64_t parts = options_.verify == Verify::kOwn ? options_.connections : 1;
  if (block_count_ < parts) {
    throw ConfigError(fmt::format(
        "there is room for {} blocks of {} bytes, but {} are needed: use a smaller --block-size",
        block_count_, block_size, parts));
  }
}

std::vector<Workload> Bench::workloads() const {
  const uint64_t count = clients_.size();
  std::vector<Workload> result;
  for (uint64_t i = 0; i < count; i++) {
    // Parts of nearly the same size: block_count * i / count without overflow.
    const uint64_t first = block_count_ / count * i + std::min(i, block_count_ % count);
    const uint64_t length = block_count_ / count + (i < block_count_ % count ? 1 : 0);
    Workload workload = {.mix = options_.mix,
                         .fua_percent = options_.fua_percent,
                         .flush_every = options_.flush_every,
                         .random = options_.random,
                         .block_size = options_.block_size,
                         .depth = options_.depth,
                         .offset = options_.offset,
                         .block_count = block_count_,
                         .block_start = first % block_count_,
                         .seed = options_.seed + i * 0x9e3779b97f4a7c15};
    if (options_.verify == Verify::kOwn) {
      workload.block_first = first;
      workload.block_count = length;
      workload.block_start = 0;
    }
    if (options_.operations != 0) {
      workload.operations = options_.operations / count + (i < options_.operations % count ? 1 : 0);
    }
    if (options_.rate != 0) {
      workload.interval_ns = 1e9 * static_cast<double>(count) / options_.rate;
    }
    result.push_back(workload);
  }
  return result;
}

std::vector<BenchClient*> Bench::begin(const std::vector<Workload>& workloads,
                                       const std::atomic<Phase>& phase) {
  std::vector<BenchClient*> begun;
  const bool limited = std::ranges::any_of(
      workloads, [](const Workload& workload) { return workload.operations != 0; });
  for (size_t i = 0; i < clients_.size(); i++) {
    // With a limit, a share of 0 operations is nothing to do.
    if (limited && workloads[i].operations == 0) continue;
    clients_[i]->begin(workloads[i], phase);
    begun.push_back(clients_[i].get());
  }
  return begun;
}

void Bench::fill() {
  std::vector<Workload> parts = workloads();
  const uint64_t count = parts.size();
  for (uint64_t i = 0; i < count; i++) {
    Workload& part = parts[i];
    part.mix = {};
    part.mix.weights[static_cast<size_t>(OpKind::kWrite)] = 1;
    part.fua_percent = 0;
    part.flush_every = 0;
    part.interval_ns = 0;
    part.random = false;
    part.block_first = block_count_ / count * i + std::min(i, block_count_ % count);
    part.block_count = block_count_ / count + (i < block_count_ % count ? 1 : 0);
    part.block_start = 0;
    part.operations = part.block_count;
    if (part.block_count == 0) part.block_count = 1;  // never used
  }
  std::atomic<Phase> phase = Phase::kMeasure;
  const auto begun = begin(parts, phase);
  {
    Round round(begun, options_.threads);
    Watchdog watchdog(clients_, to_ns(options_.timeout_s));
    Progress progress(clients_, options_.block_size, options_.progress);
    while (!round.over()) {
      sleep_until(now_ns() + kTickNs / 10);
      if (interrupted_) phase = Phase::kStop;
      watchdog.look();
      progress.look("filling");
    }
  }
  collect_failures();
  ClientStats stats;
  for (const BenchClient* client : begun) stats.merge(client->stats());
  const uint64_t errors = stats.kinds[static_cast<size_t>(OpKind::kWrite)].error_count();
  if (errors != 0) report_.failures.push_back(fmt::format("--fill: {} writes failed", errors));
}

void Bench::measure() {
  std::atomic<Phase> phase = options_.warmup_s > 0 ? Phase::kWarmup : Phase::kMeasure;
  uint64_t start = now_ns();
  uint64_t own_before = own_cpu_ns();
  auto server_before = server_usage();
  const auto begun = begin(workloads(), phase);
  std::optional<ProcessUsage> server_after;
  uint64_t own_after = 0;
  uint64_t end = 0;
  {
    Round round(begun, options_.threads);
    Watchdog watchdog(clients_, to_ns(options_.timeout_s));
    Progress progress(clients_, options_.block_size, options_.progress);
    const auto wait = [&](double seconds, std::string_view what) {
      const uint64_t until = seconds == 0 ? UINT64_MAX : now_ns() + to_ns(seconds);
      while (!round.over() && !interrupted_ && now_ns() < until) {
        sleep_until(until);
        watchdog.look();
        progress.look(what);
      }
    };
    if (options_.warmup_s > 0) {
      wait(options_.warmup_s, "warming up");
      server_before = server_usage();
      own_before = own_cpu_ns();
      start = now_ns();
      phase = Phase::kMeasure;
    }
    wait(options_.duration_s, "measuring");
    phase = Phase::kStop;
    end = round.over() ? round.ended_ns() : now_ns();
    own_after = own_cpu_ns();
    server_after = server_usage();
    while (!round.over()) {
      sleep_until(now_ns() + kTickNs / 50);
      watchdog.look();
    }
    // Operations that are counted to a number were waited for.
    if (options_.operations != 0) end = std::max(end, round.ended_ns());
  }
  report_.seconds = static_cast<double>(end - std::min(start, end)) / 1e9;
  report_.client_cpu_s = static_cast<double>(own_after - own_before) / 1e9;
  for (const BenchClient* client : begun) report_.stats.merge(client->stats());
  collect_failures();
  if (server_before && server_after) {
    report_.server = {
        .cpu_s = static_cast<double>(server_after->cpu_ns - server_before->cpu_ns) / 1e9,
        .rss_bytes = server_after->rss_bytes,
        .rss_peak_bytes = server_after->rss_peak_bytes,
        .threads = server_after->threads};
  } else if (options_.server_pid) {
    report_.failures.push_back(
        fmt::format("--server-pid: process {} has ended", *options_.server_pid));
  }
}

void Bench::collect_failures() {
  for (size_t i = 0; i < clients_.size(); i++) {
    if (clients_[i]->failed()) {
      report_.failures.push_back(fmt::format("connection {}: {}", i + 1, clients_[i]->failure()));
    }
  }
}

}  // namespace

uint64_t BenchReport::operations() const {
  uint64_t sum = 0;
  for (const KindStats& kind : stats.kinds) sum += kind.latency.count();
  return sum;
}

uint64_t BenchReport::errors() const {
  uint64_t sum = 0;
  for (const KindStats& kind : stats.kinds) sum += kind.error_count();
  return sum;
}

bool BenchReport::good() const {
  return errors() == 0 && failures.empty() && stats.verify.mismatches == 0;
}

BenchReport run_bench(const BenchOptions& options, const std::atomic<bool>& interrupted) {
  return Bench(options, interrupted).run();
}

}  // namespace weft::tools
