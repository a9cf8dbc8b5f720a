// SPDX-License-Identifier: BSD-3-Clause
// The extentlist filter: answers for extents come from a list in a file.
//
// The list is what the operator says, so nothing is read by it: a hole of the list that holds data
// below is read as data. What is written is data from then on, for all connections.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/parse.h"
#include "disk/per_export.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

constexpr uint64_t kWrittenUnit = 64 << 10;  // bytes: what is written is remembered in these
constexpr size_t kStepsMax = 1 << 16;        // pieces looked at in one call
constexpr uint32_t kGap = kExtentHole | kExtentZero;

// A part of the disk of one kind. In a list: ascending, without overlaps, gaps are holes.
struct Entry {
  Range range;
  uint32_t flags;
  uint64_t line;
};

// What was written since the start, rounded out. Thread-safe.
class Written {
 public:
  void add(Range range) {
    const Range whole = range.rounded_out(kWrittenUnit);
    uint64_t begin = whole.offset;
    uint64_t end = whole.end();
    const std::lock_guard lock(mutex_);
    auto next = ranges_.upper_bound(begin);
    if (next != ranges_.begin() && std::prev(next)->second >= begin) {
      --next;
      if (next->second >= end) return;
    }
    while (next != ranges_.end() && next->first <= end) {
      begin = std::min(begin, next->first);
      end = std::max(end, next->second);
      next = ranges_.erase(next);
    }
    ranges_.emplace(begin, end);
  }

  // Whether `offset` was written, and up to where that holds.
  [[nodiscard]] std::pair<bool, uint64_t> at(uint64_t offset) const {
    const std::lock_guard lock(mutex_);
    const auto next = ranges_.upper_bound(offset);
    if (next != ranges_.begin() && std::prev(next)->second > offset) {
      return {true, std::prev(next)->second};
    }
    return {false, next == ranges_.end() ? UINT64_MAX : next->first};
  }

 private:
  mutable std::mutex mutex_;
  std::map<uint64_t, uint64_t> ranges_;  // begin, end
};

class ExtentlistDisk final : public disk::FilterDisk {
 public:
  // `list` outlives the disk.
  ExtentlistDisk(std::unique_ptr<disk::Disk> next, const std::vector<Entry>& list,
                 std::shared_ptr<Written> written)
      : FilterDisk(std::move(next), disk::Reads::kForwarded),
        list_(list),
        written_(std::move(written)) {
    capabilities_.extents = disk::Support::kNative;
  }

  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    // Before it is: data that is called so too early harms nobody.
    written_->add({offset, from.size()});
    return next().write(offset, from, fua);
  }

  Task<Status> extents(Extents& into, bool) override {
    const uint64_t end = into.window().end();
    for (size_t step = 0; step < kStepsMax && into.end() < end; step++) {
      const uint64_t offset = into.end();
      auto [data, until] = written_->at(offset);
      uint32_t flags = kExtentData;
      if (!data) {
        const auto [listed, listed_end] = listed_at(offset);
        flags = listed;
        until = std::min(until, listed_end);
      }
      if (!into.append(std::min(until, end) - offset, flags)) break;
    }
    return Status{};
  }

  // A reader is not to trust the list.
  [[nodiscard]] bool may_have_holes() const override { return false; }

 private:
  // The kind of `offset`, and up to where it has it.
  [[nodiscard]] std::pair<uint32_t, uint64_t> listed_at(uint64_t offset) const {
    const auto next =
        std::ranges::upper_bound(list_, offset, {}, [](const Entry& e) { return e.range.offset; });
    if (next != list_.begin() && std::prev(next)->range.end() > offset) {
      return {std::prev(next)->flags, std::prev(next)->range.end()};
    }
    return {kGap, next == list_.end() ? UINT64_MAX : next->range.offset};
  }

  const std::vector<Entry>& list_;
  const std::shared_ptr<Written> written_;
};

class Extentlist final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key != "extentlist") return false;
    path_ = value;
    return true;
  }

  void complete() override {
    if (path_.empty()) {
      throw ConfigError("extentlist: there is no list: name its file, as in extentlist=FILE");
    }
    std::ifstream file(path_);
    if (!file) {
      throw ConfigError(fmt::format("extentlist: {} cannot be opened: {}; name a file to be read",
                                    path_, errno_text(errno)));
    }
    uint64_t number = 0;
    for (std::string line; std::getline(file, line);) take_line(line, ++number);
    if (file.bad()) {
      throw ConfigError(
          fmt::format("extentlist: {} cannot be read: {}; name a file", path_, errno_text(errno)));
    }
    std::ranges::sort(list_, {}, [](const Entry& e) { return e.range.offset; });
    const auto clash = std::ranges::adjacent_find(
        list_, [](const Entry& a, const Entry& b) { return a.range.overlaps(b.range); });
    if (clash == list_.end()) return;
    const Entry& other = *std::next(clash);
    throw ConfigError(
        fmt::format("extentlist: {}:{}: the extent overlaps that of line {}: keep one", path_,
                    std::max(clash->line, other.line), std::min(clash->line, other.line)));
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    const std::string name = request.name;
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    std::shared_ptr<Written> written =
        written_.get(disk::export_key(**next, name), [] { return std::make_shared<Written>(); });
    co_return std::make_unique<ExtentlistDisk>(std::move(*next), list_, std::move(written));
  }

 private:
  [[noreturn]] void refuse(uint64_t line, const std::string& why) const {
    throw ConfigError(fmt::format("extentlist: {}:{}: {}", path_, line, why));
  }

  void take_line(const std::string& line, uint64_t number) {
    std::istringstream words(line);
    std::string offset, length, type, more;
    words >> offset >> length >> type >> more;
    if (offset.empty()) return;
    if (length.empty() || !more.empty()) {
      refuse(number, "a line is OFFSET LENGTH [TYPE], as in: 1m 64k hole,zero");
    }
    Entry entry{.range = {}, .flags = flags_of(type, number), .line = number};
    const std::string place = fmt::format("extentlist: {}:{}", path_, number);
    entry.range = {parse_size(place, offset), parse_size(place, length)};
    if (entry.range.length > INT64_MAX - entry.range.offset) {
      refuse(number, "the extent ends beyond the largest disk: give a smaller length");
    }
    if (entry.range.length > 0) list_.push_back(entry);
  }

  [[nodiscard]] uint32_t flags_of(const std::string& type, uint64_t line) const {
    if (type.empty()) return kExtentData;
    uint32_t number = 0;
    const auto [end, error] = std::from_chars(type.data(), type.data() + type.size(), number);
    if (error == std::errc() && end == type.data() + type.size() && number <= kGap) return number;
    uint32_t flags = 0;
    std::istringstream words(type);
    for (std::string word; std::getline(words, word, ',');) {
      if (word == "hole") {
        flags |= kExtentHole;
      } else if (word == "zero") {
        flags |= kExtentZero;
      } else {
        refuse(line, fmt::format("'{}' is no type: give hole, zero, hole,zero or a number from 0 "
                                 "to 3",
                                 type));
      }
    }
    return flags;
  }

  std::string path_;
  std::vector<Entry> list_;
  disk::PerExport<Written> written_;
};

}  // namespace

constinit const disk::FilterInfo extentlist_filter = {
    .name = "extentlist",
    .longname = "weft extentlist filter",
    .description = "Takes the disk's extents from a list",
    .config_help = "extentlist=FILE  (required) lines of OFFSET LENGTH [hole,zero]",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Extentlist>(); },
};

}  // namespace weft::filters
