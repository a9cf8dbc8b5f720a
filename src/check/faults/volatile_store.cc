// SPDX-License-Identifier: BSD-3-Clause
#include "check/faults/volatile_store.h"

#include <algorithm>
#include <random>

namespace weft::check {

namespace {

// Versions kept of one sector: enough for chance, without memory that grows with each rewrite.
constexpr size_t kVersionsMax = 16;

}  // namespace

VolatileStore::VolatileStore(uint64_t size, uint32_t sector) : size_(size), sector_(sector) {}

VolatileStore::Content VolatileStore::copy(const Content& from) const {
  if (!from) return nullptr;
  auto made = std::make_unique_for_overwrite<std::byte[]>(sector_);
  std::memcpy(made.get(), from.get(), sector_);
  return made;
}

void VolatileStore::read(uint64_t offset, MutableByteSpan into) const {
  std::ranges::fill(into, std::byte{0});
  const Range range{offset, into.size()};
  for (auto at = sectors_.lower_bound(offset / sector_);
       at != sectors_.end() && at->first * sector_ < range.end(); ++at) {
    const Content& content = at->second.newest();
    if (!content) continue;
    const uint64_t begin = at->first * sector_;
    const uint64_t from = std::max(begin, range.offset);
    const uint64_t to = std::min(begin + sector_, range.end());
    std::memcpy(into.data() + (from - offset), content.get() + (from - begin), to - from);
  }
}

// Old versions are forgotten, but never one that a running sync would make stable.
void VolatileStore::forget_versions(Sector& sector) const {
  auto& versions = sector.versions;
  if (versions.size() <= kVersionsMax) return;
  for (size_t i = 0; i + 1 < versions.size(); ++i) {
    const bool wanted = std::ranges::any_of(running_, [&](const auto& entry) {
      const uint64_t last = entry.second.last;
      return versions[i].number <= last && last < versions[i + 1].number;
    });
    if (wanted) continue;
    versions.erase(versions.begin() + static_cast<ptrdiff_t>(i));
    return;
  }
}

VolatileStore::Version& VolatileStore::add_version(Sector& sector) {
  if (sector.versions.empty()) ++volatile_sectors_;
  forget_versions(sector);
  return sector.versions.emplace_back(Version{.number = ++last_version_, .content = nullptr});
}

void VolatileStore::write(uint64_t offset, ByteSpan data) {
  uint64_t at = offset;
  const uint64_t end = offset + data.size();
  while (at < end) {
    const uint64_t number = at / sector_;
    const uint64_t inside = at % sector_;
    const uint64_t length = std::min<uint64_t>(sector_ - inside, end - at);
    Sector& sector = sectors_[number];
    Content content = copy(sector.newest());
    if (!content) content = std::make_unique<std::byte[]>(sector_);  // zeroes
    std::memcpy(content.get() + inside, data.data() + (at - offset), length);
    add_version(sector).content = std::move(content);
    at += length;
  }
}

void VolatileStore::zero(Range range) {
  uint64_t at = range.offset;
  while (at < range.end()) {
    const uint64_t inside = at % sector_;
    const uint64_t length = std::min<uint64_t>(sector_ - inside, range.end() - at);
    Sector& sector = sectors_[at / sector_];
    Content content;
    if (length < sector_) {
      content = copy(sector.newest());
      if (content) std::memset(content.get() + inside, 0, length);
    }
    add_version(sector).content = std::move(content);
    at += length;
  }
}

VolatileStore::Sync VolatileStore::begin_sync(Range range) {
  const uint64_t first = range.offset / sector_;
  const uint64_t end = (range.end() + sector_ - 1) / sector_;
  running_.emplace(++last_sync_, Running{last_version_, {first, end - first}});
  return last_sync_;
}

template <typename F>
void VolatileStore::for_covered(const Running& running, const F& each) {
  const auto end = sectors_.lower_bound(running.sectors.end());
  for (auto at = sectors_.lower_bound(running.sectors.offset); at != end; ++at) {
    if (!at->second.versions.empty()) each(at->second);
  }
}

void VolatileStore::end_sync(Sync sync) {
  const auto found = running_.find(sync);
  if (found == running_.end()) return;  // a cut has ended it
  const Running running = found->second;
  running_.erase(found);
  for_covered(running, [&](Sector& sector) {
    auto& versions = sector.versions;
    // The newest version that is covered and not doomed, if there is one.
    size_t covered = versions.size();
    while (covered > 0 &&
           (versions[covered - 1].number > running.last || versions[covered - 1].doomed)) {
      --covered;
    }
    if (covered == 0) return;
    sector.stable = std::move(versions[covered - 1].content);
    versions.erase(versions.begin(), versions.begin() + static_cast<ptrdiff_t>(covered));
    if (versions.empty()) --volatile_sectors_;
  });
}

void VolatileStore::fail_sync(Sync sync) {
  const auto found = running_.find(sync);
  if (found == running_.end()) return;
  const Running running = found->second;
  running_.erase(found);
  for_covered(running, [&](Sector& sector) {
    for (Version& version : sector.versions) {
      if (version.number <= running.last) version.doomed = true;
    }
  });
}

void VolatileStore::abandon_sync(Sync sync) {
  running_.erase(sync);
}

template <typename F>
uint64_t VolatileStore::lose(const F& choose) {
  running_.clear();
  uint64_t lost = 0;
  for (auto& [number, sector] : sectors_) {
    if (sector.versions.empty()) continue;
    const size_t kept = choose(sector.versions);  // 0: the stable one; else a version, from 1
    if (kept < sector.versions.size()) ++lost;
    if (kept > 0) sector.stable = std::move(sector.versions[kept - 1].content);
    sector.versions.clear();
  }
  volatile_sectors_ = 0;
  return lost;
}

uint64_t VolatileStore::lose_all() {
  return lose([](const std::vector<Version>&) { return size_t{0}; });
}

uint64_t VolatileStore::lose_some(uint64_t seed) {
  std::mt19937_64 random(seed);
  return lose([&](const std::vector<Version>& versions) {
    std::vector<size_t> candidates = {0};
    for (size_t i = 0; i < versions.size(); ++i) {
      if (!versions[i].doomed) candidates.push_back(i + 1);
    }
    return candidates[random() % candidates.size()];
  });
}

void VolatileStore::wipe() {
  running_.clear();
  sectors_.clear();
  volatile_sectors_ = 0;
}

uint64_t VolatileStore::next_data(uint64_t offset) const {
  for (auto at = sectors_.lower_bound(offset / sector_); at != sectors_.end(); ++at) {
    if (at->second.newest()) return std::max(offset, at->first * sector_);
  }
  return size_;
}

uint64_t VolatileStore::next_hole(uint64_t offset) const {
  uint64_t number = offset / sector_;
  for (auto at = sectors_.lower_bound(number);
       at != sectors_.end() && at->first == number && at->second.newest(); ++at) {
    ++number;
  }
  return std::min(size_, std::max(offset, number * sector_));
}

}  // namespace weft::check
