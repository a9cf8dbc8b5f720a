// SPDX-License-Identifier: BSD-3-Clause
// The nozero filter: takes away or changes what zeroing a range does.
//
// What is asked of a zero that has to be fast is told to the waist above by
// capabilities_.fast_zero: with kEmulate it says that there is such a thing and lets every one of
// them fail.
#include <cerrno>

#include "filters/choice.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

enum class Mode : uint8_t { kNone, kEmulate, kNoTrim, kPlugin };
enum class FastMode : uint8_t { kNone, kSlow, kIgnore, kDefault };

constexpr Choice<Mode> kModes[] = {{"none", Mode::kNone},
                                   {"emulate", Mode::kEmulate},
                                   {"notrim", Mode::kNoTrim},
                                   {"plugin", Mode::kPlugin}};
constexpr Choice<FastMode> kFastModes[] = {{"none", FastMode::kNone},
                                           {"slow", FastMode::kSlow},
                                           {"ignore", FastMode::kIgnore},
                                           {"default", FastMode::kDefault}};

class NoZeroDisk final : public disk::FilterDisk {
 public:
  NoZeroDisk(std::unique_ptr<disk::Disk> below, Mode mode, FastMode fast_mode)
      : FilterDisk(std::move(below), disk::Reads::kForwarded), mode_(mode), fast_mode_(fast_mode) {
    disk::Capabilities& c = capabilities_;
    if (mode == Mode::kNone) c.zero = Support::kNone;
    if (mode == Mode::kEmulate) c.zero = Support::kEmulate;
    switch (fast_mode) {
      case FastMode::kNone:
        c.fast_zero = Support::kNone;
        break;
      case FastMode::kSlow:
        c.fast_zero = Support::kEmulate;
        break;
      case FastMode::kIgnore:
        c.fast_zero = Support::kNative;
        break;
      case FastMode::kDefault:
        if (mode == Mode::kEmulate) c.fast_zero = Support::kEmulate;
        break;
    }
  }

  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    if (mode_ == Mode::kNoTrim) flags.may_trim = false;
    if (fast_mode_ == FastMode::kIgnore) flags.fast = false;
    return next().zero(range, flags);
  }

 private:
  const Mode mode_;
  const FastMode fast_mode_;
};

class NoZero final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "zeromode") {
      mode_ = choose(name(), key, value, kModes);
    } else if (key == "fastzeromode") {
      fast_mode_ = choose(name(), key, value, kFastModes);
    } else {
      return false;
    }
    return true;
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    const disk::Capabilities& below = (*next)->capabilities();
    if (below.writable && below.zero == Support::kNone &&
        (mode_ == Mode::kNoTrim || mode_ == Mode::kPlugin)) {
      (void)co_await (*next)->close();
      co_return fail(EOPNOTSUPP, mode_ == Mode::kNoTrim
                                     ? "zeromode=notrim needs a disk that can zero"
                                     : "zeromode=plugin needs a disk that can zero");
    }
    co_return std::make_unique<NoZeroDisk>(std::move(*next), mode_, fast_mode_);
  }

 private:
  Mode mode_ = Mode::kNone;
  FastMode fast_mode_ = FastMode::kDefault;
};

}  // namespace

constinit const disk::FilterInfo nozero_filter = {
    .name = "nozero",
    .longname = "weft nozero filter",
    .description = "Takes away or changes what zeroing a range does",
    .config_help =
        "zeromode=none|emulate|notrim|plugin\n"
        "                      what becomes of it (default: none)\n"
        "fastzeromode=none|slow|ignore|default\n"
        "                      what becomes of one that must be fast",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<NoZero>(); },
};

}  // namespace weft::filters
