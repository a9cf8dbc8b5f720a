// SPDX-License-Identifier: BSD-3-Clause
// The error filter: lets operations fail at random, to test clients and the layers above.
//
// It only injects: an operation that it lets fail does not reach the layers below, and leaves no
// mark here. What a failed flush means for later ones is the affair of the layers above.
#include <unistd.h>

#include <array>
#include <cerrno>
#include <filesystem>
#include <random>
#include <utility>

#include "base/log.h"
#include "base/parse.h"
#include "engine/blocking_pool.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

enum class Operation : uint8_t { kPread, kPwrite, kTrim, kZero, kExtents, kCache, kFlush, kOpen };
constexpr std::array<std::string_view, 8> kNames = {"pread",   "pwrite", "trim",  "zero",
                                                    "extents", "cache",  "flush", "open"};
// error-rate= is for the operations that nbdkit's filter knows. The others fail only when they are
// named.
constexpr size_t kCommonOperations = 6;

struct ErrorName {
  std::string_view name;
  int code;
};
constexpr std::array kErrors = {
    ErrorName{"EPERM", EPERM},   ErrorName{"EIO", EIO},       ErrorName{"ENOMEM", ENOMEM},
    ErrorName{"EINVAL", EINVAL}, ErrorName{"ENOSPC", ENOSPC}, ErrorName{"ESHUTDOWN", ESHUTDOWN},
};

int parse_error(std::string_view key, std::string_view value) {
  for (const ErrorName& error : kErrors) {
    if (value == error.name) return error.code;
  }
  throw ConfigError(
      fmt::format("{}: '{}' is no error that can be injected: give EPERM, EIO, "
                  "ENOMEM, EINVAL, ENOSPC or ESHUTDOWN",
                  key, value));
}

std::string_view error_name(int code) {
  for (const ErrorName& error : kErrors) {
    if (code == error.code) return error.name;
  }
  return "an error";
}

std::string parse_path(std::string_view key, std::string_view value) {
  if (value.empty()) {
    throw ConfigError(fmt::format("{}: the name is empty: give the path of a file", key));
  }
  return std::filesystem::absolute(value);
}

struct Setting {
  int code = EIO;
  double rate = 0;
  std::string file;  // empty: at any time
};

// Fixed after configuration.
struct Settings {
  std::array<Setting, kNames.size()> of;
  [[nodiscard]] const Setting& operator[](Operation operation) const {
    return of[static_cast<size_t>(operation)];
  }
};

// Decides, for one connection, on its loop.
class Injector {
 public:
  // `settings` and `lane` outlive it.
  Injector(const Settings& settings, engine::Lane& lane, disk::Loop& loop)
      : settings_(settings), lane_(lane), loop_(loop), random_(std::random_device{}()) {}

  // What call() gives, or the error.
  template <typename F>
  auto run(Operation operation, F call) -> decltype(call()) {
    const Setting& setting = settings_[operation];
    if (setting.rate == 0 || !hits(setting.rate)) return call();
    if (setting.file.empty()) return inject(operation, setting);
    return run_unless_file(operation, setting, std::move(call));
  }

 private:
  bool hits(double rate) { return std::uniform_real_distribution(0.0, 1.0)(random_) < rate; }

  static std::unexpected<Error> inject(Operation operation, const Setting& setting) {
    log::info("error: injecting {} into {}", error_name(setting.code),
              kNames[static_cast<size_t>(operation)]);
    return fail(setting.code, "injected by the error filter");
  }

  template <typename F>
  auto run_unless_file(Operation operation, const Setting& setting, F call) -> decltype(call()) {
    const bool exists =
        co_await lane_.run(loop_, engine::BlockingReason::kMetadata, engine::BlockingKind::kShort,
                           [&setting] { return ::access(setting.file.c_str(), F_OK) == 0; });
    if (exists) co_return inject(operation, setting);
    co_return co_await call();
  }

  const Settings& settings_;
  engine::Lane& lane_;
  disk::Loop& loop_;
  std::minstd_rand random_;
};

class ErrorDisk final : public disk::FilterDisk {
 public:
  ErrorDisk(std::unique_ptr<disk::Disk> next, const Settings& settings, Injector injector)
      : FilterDisk(std::move(next),
                   settings[Operation::kPread].rate > 0 || settings[Operation::kExtents].rate > 0
                       ? disk::Reads::kIntercepted
                       : disk::Reads::kForwarded),
        injector_(std::move(injector)) {
    // Where the layer below emulates, it is asked by the operation's own name: it is a zero that
    // fails, not one of the writes that it becomes.
    disk::Capabilities& c = capabilities_;
    if (c.zero == Support::kEmulate) c.zero = Support::kNative;
    if (c.cache == Support::kEmulate) c.cache = Support::kNative;
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return injector_.run(Operation::kPread, [=, this] { return next().read(offset, into); });
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return injector_.run(Operation::kPwrite, [=, this] { return next().write(offset, from, fua); });
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return injector_.run(Operation::kZero, [=, this] { return next().zero(range, flags); });
  }
  Task<Status> trim(Range range, bool fua) override {
    return injector_.run(Operation::kTrim, [=, this] { return next().trim(range, fua); });
  }
  Task<Status> cache(Range range) override {
    return injector_.run(Operation::kCache, [=, this] { return next().cache(range); });
  }
  Task<Status> flush() override {
    return injector_.run(Operation::kFlush, [this] { return next().flush(); });
  }
  Task<Status> extents(Extents& into, bool one) override {
    return injector_.run(Operation::kExtents,
                         [this, &into, one] { return next().extents(into, one); });
  }

 private:
  Injector injector_;
};

class ErrorFilter final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "error") {
      for (Setting& setting : settings_.of) setting.code = parse_error(key, value);
    } else if (key == "error-rate") {
      const double rate = parse_probability(key, value);
      for (size_t i = 0; i < kCommonOperations; i++) settings_.of[i].rate = rate;
    } else if (key == "error-file") {
      for (Setting& setting : settings_.of) setting.file = parse_path(key, value);
    } else {
      return take_for_one(key, value);
    }
    return true;
  }

  void begin(const disk::Surroundings& surroundings) override {
    lane_ = std::make_unique<engine::Lane>(surroundings.pool);
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Injector injector(settings_, *lane_, request.loop);
    Result<std::unique_ptr<disk::Disk>> next =
        co_await injector.run(Operation::kOpen, [&] { return open_next(std::move(request)); });
    if (!next) co_return next;
    co_return std::make_unique<ErrorDisk>(std::move(*next), settings_, std::move(injector));
  }

  [[nodiscard]] std::vector<disk::Explanation> explain_layer() const override {
    return {{"flush",
             "a flush or FUA write that it lets fail has not reached the layers below, and later "
             "ones may succeed"}};
  }

 private:
  // error-NAME, error-NAME-rate, error-NAME-file
  bool take_for_one(std::string_view key, std::string_view value) {
    constexpr std::string_view kPrefix = "error-";
    if (!key.starts_with(kPrefix)) return false;
    const std::string_view rest = key.substr(kPrefix.size());
    for (size_t i = 0; i < kNames.size(); i++) {
      if (!rest.starts_with(kNames[i])) continue;
      const std::string_view what = rest.substr(kNames[i].size());
      if (what.empty()) {
        settings_.of[i].code = parse_error(key, value);
      } else if (what == "-rate") {
        settings_.of[i].rate = parse_probability(key, value);
      } else if (what == "-file") {
        settings_.of[i].file = parse_path(key, value);
      } else {
        return false;
      }
      return true;
    }
    return false;
  }

  Settings settings_;
  std::unique_ptr<engine::Lane> lane_;
};

}  // namespace

constinit const disk::FilterInfo error_filter = {
    .name = "error",
    .longname = "weft error filter",
    .description = "Lets operations fail at random",
    .config_help =
        "error=EPERM|EIO|ENOMEM|EINVAL|ENOSPC|ESHUTDOWN  the error (default EIO)\n"
        "error-rate=PROBABILITY  how often: 0..1, N% or N:M (default 0)\n"
        "error-file=PATH  only while this file exists\n"
        "error-OPERATION=, error-OPERATION-rate=, error-OPERATION-file=  the same for one of "
        "pread, "
        "pwrite, trim, zero, extents, cache, flush, open",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<ErrorFilter>(); },
};

}  // namespace weft::filters
