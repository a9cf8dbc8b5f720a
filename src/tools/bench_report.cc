// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace weft::tools {
namespace {

struct Percentile {
  const char* title;
  const char* key;
  double part;
};
constexpr std::array kPercentiles = {
    Percentile{"p50", "p50", 0.5},          Percentile{"p90", "p90", 0.9},
    Percentile{"p99", "p99", 0.99},         Percentile{"p99.9", "p99_9", 0.999},
    Percentile{"p99.99", "p99_99", 0.9999},
};

double us(uint64_t ns) {
  return static_cast<double>(ns) / 1e3;
}

double per_second(double amount, double seconds) {
  return seconds > 0 ? amount / seconds : 0;
}

double us_per_operation(double cpu_s, uint64_t operations) {
  return operations == 0 ? 0 : cpu_s * 1e6 / static_cast<double>(operations);
}

std::string_view error_title(size_t index) {
  const uint32_t error = kCountedErrors[index];
  return error == nbd::kOk ? "other errors" : nbd::error_name(error);
}

bool multi_conn(const BenchReport& report) {
  return report.negotiated.transmission_flags & nbd::kCanMultiConn;
}

std::string size_text(uint64_t bytes) {
  constexpr std::string_view kUnits = "kMGTPE";
  size_t unit = 0;
  auto value = static_cast<double>(bytes);
  if (bytes < 1024) return fmt::format("{} B", bytes);
  for (value /= 1024; value >= 1024; value /= 1024) unit++;
  return fmt::format("{:.4g} {}iB", value, kUnits[unit] == 'k' ? 'K' : kUnits[unit]);
}

// An amount that goes with every operation, but for a flush.
double bytes_of(const BenchOptions& options, OpKind kind, uint64_t operations) {
  return kind == OpKind::kFlush ? 0 : static_cast<double>(operations) * options.block_size;
}

std::string work_text(const BenchOptions& options) {
  std::string text = fmt::format("{} {}, {} blocks, {} connection{}, depth {}",
                                 options.random ? "random" : "sequential", options.mix.text(),
                                 size_text(options.block_size), options.connections,
                                 options.connections == 1 ? "" : "s", options.depth);
  if (options.fua_percent != 0) text += fmt::format(", {} % FUA", options.fua_percent);
  if (options.flush_every != 0) text += fmt::format(", flush every {}", options.flush_every);
  if (options.rate != 0) text += fmt::format(", {} operations/s wanted", options.rate);
  return text;
}

std::string kind_line(const BenchOptions& options, const BenchReport& report, OpKind kind) {
  const KindStats& stats = report.stats.kinds[static_cast<size_t>(kind)];
  const uint64_t count = stats.latency.count();
  std::string line = fmt::format("{:<6} {:>11} {:>10.0f} {:>9.1f} {:>10.1f}", op_name(kind), count,
                                 per_second(static_cast<double>(count), report.seconds),
                                 per_second(bytes_of(options, kind, count), report.seconds) / 1e6,
                                 stats.latency.mean() / 1e3);
  for (const Percentile& p : kPercentiles) {
    line += fmt::format(" {:>9.1f}", us(stats.latency.percentile(p.part)));
  }
  return line + fmt::format(" {:>9.1f}\n", us(stats.latency.max()));
}

nlohmann::ordered_json latency_json(const Histogram& latency) {
  nlohmann::ordered_json result = {{"min", us(latency.min())}, {"mean", latency.mean() / 1e3}};
  for (const Percentile& p : kPercentiles) result[p.key] = us(latency.percentile(p.part));
  result["max"] = us(latency.max());
  return result;
}

}  // namespace

std::string text_report(const BenchOptions& options, const BenchReport& report) {
  std::string text = fmt::format(
      "{}: {} of {}, {} replies, multi-conn {}\n{}; measured {:.2f} s\n", options.target.uri(),
      size_text(report.length), size_text(report.negotiated.size),
      nbd::header_mode_name(report.negotiated.mode), multi_conn(report) ? "offered" : "not offered",
      work_text(options), report.seconds);
  text +=
      fmt::format("{:<6} {:>11} {:>10} {:>9} {:>10}", "", "operations", "IOPS", "MB/s", "mean us");
  for (const Percentile& p : kPercentiles) text += fmt::format(" {:>9}", p.title);
  text += fmt::format(" {:>9}\n", "max");
  for (const OpKind kind : kOpKinds) {
    const KindStats& stats = report.stats.kinds[static_cast<size_t>(kind)];
    if (stats.latency.count() + stats.error_count() != 0) text += kind_line(options, report, kind);
  }
  const uint64_t operations = report.operations();
  text += fmt::format("total  {:>11} {:>10.0f}\n", operations,
                      per_second(static_cast<double>(operations), report.seconds));
  text += fmt::format("client: {:.2f} us of CPU per operation\n",
                      us_per_operation(report.client_cpu_s, operations));
  if (report.server) {
    text += fmt::format(
        "server: {:.2f} us of CPU per operation, {} in memory ({} at most), "
        "{} threads\n",
        us_per_operation(report.server->cpu_s, operations), size_text(report.server->rss_bytes),
        size_text(report.server->rss_peak_bytes), report.server->threads);
  }
  if (options.verify != Verify::kOff) {
    const VerifyStats& verify = report.stats.verify;
    text += fmt::format("verify: {} reads right, {} wrong, {} not known (never written, trimmed)\n",
                        verify.checked - verify.mismatches, verify.mismatches, verify.unchecked);
    for (const std::string& example : verify.examples) text += fmt::format("  {}\n", example);
  }
  text += fmt::format("errors: {}\n", report.errors());
  for (const OpKind kind : kOpKinds) {
    const KindStats& stats = report.stats.kinds[static_cast<size_t>(kind)];
    for (size_t i = 0; i < stats.errors.size(); i++) {
      if (stats.errors[i] == 0) continue;
      text += fmt::format("  {}: {} {}\n", op_name(kind), stats.errors[i], error_title(i));
    }
  }
  for (const std::string& failure : report.failures) text += fmt::format("failed: {}\n", failure);
  return text;
}

std::string json_report(const BenchOptions& options, const BenchReport& report) {
  using Json = nlohmann::ordered_json;
  const uint64_t operations = report.operations();
  Json json;
  json["target"] = options.target.uri();
  json["export"] = {{"size", report.negotiated.size},
                    {"read_only", (report.negotiated.transmission_flags & nbd::kReadOnly) != 0},
                    {"multi_conn", multi_conn(report)},
                    {"headers", nbd::header_mode_name(report.negotiated.mode)}};
  json["workload"] = {{"mix", options.mix.text()},
                      {"pattern", options.random ? "random" : "sequential"},
                      {"block_size", options.block_size},
                      {"connections", options.connections},
                      {"depth", options.depth},
                      {"threads", options.threads},
                      {"offset", options.offset},
                      {"length", report.length},
                      {"fua_percent", options.fua_percent},
                      {"flush_every", options.flush_every},
                      {"rate", options.rate},
                      {"seed", options.seed}};
  json["seconds"] = report.seconds;
  json["operations"] = operations;
  json["iops"] = per_second(static_cast<double>(operations), report.seconds);
  json["errors"] = report.errors();
  json["good"] = report.good();
  json["kinds"] = Json::object();
  for (const OpKind kind : kOpKinds) {
    const KindStats& stats = report.stats.kinds[static_cast<size_t>(kind)];
    const uint64_t count = stats.latency.count();
    if (count + stats.error_count() == 0) continue;
    Json errors = Json::object();
    for (size_t i = 0; i < stats.errors.size(); i++) {
      if (stats.errors[i] != 0) errors[std::string(error_title(i))] = stats.errors[i];
    }
    json["kinds"][std::string(op_name(kind))] = {
        {"operations", count},
        {"iops", per_second(static_cast<double>(count), report.seconds)},
        {"bytes_per_second", per_second(bytes_of(options, kind, count), report.seconds)},
        {"latency_us", latency_json(stats.latency)},
        {"errors", errors}};
  }
  json["client"] = {{"cpu_us_per_operation", us_per_operation(report.client_cpu_s, operations)}};
  if (report.server) {
    json["server"] = {{"pid", *options.server_pid},
                      {"cpu_us_per_operation", us_per_operation(report.server->cpu_s, operations)},
                      {"rss_bytes", report.server->rss_bytes},
                      {"rss_peak_bytes", report.server->rss_peak_bytes},
                      {"threads", report.server->threads}};
  }
  if (options.verify != Verify::kOff) {
    const VerifyStats& verify = report.stats.verify;
    json["verify"] = {{"checked", verify.checked},
                      {"unchecked", verify.unchecked},
                      {"mismatches", verify.mismatches},
                      {"examples", verify.examples}};
  }
  json["failures"] = report.failures;
  return json.dump(2) + "\n";
}

}  // namespace weft::tools
