// SPDX-License-Identifier: BSD-3-Clause
// VolatileStore: the sectors of a disk that has a volatile cache, in memory. No I/O, no time, no
// threads: the caller says when a sync begins and when it ends, and calls one function at a time.
//
// Each sector has one stable content and, newer than that, the versions that were written since. A
// read sees the newest. A sync that began after a version was written and has ended makes it (or a
// newer one that it also covers) stable. A failed sync dooms what it covered: doomed versions are
// read like others, but no sync makes them stable and no cut keeps them. A sector that is written
// again has a version that is not doomed. A cut of the power ends all syncs that run.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "base/range.h"

namespace weft::check {

class VolatileStore {
 public:
  // `size` and `sector` in bytes, sector divides size. All zeroes, stable.
  VolatileStore(uint64_t size, uint32_t sector);

  [[nodiscard]] uint64_t size() const { return size_; }

  // Ranges lie within the disk; they need not begin or end at sectors, but what is written of a
  // sector makes a version of the whole of it.
  void read(uint64_t offset, MutableByteSpan into) const;
  void write(uint64_t offset, ByteSpan data);
  void zero(Range range);

  // A sync that runs. Each is ended once, by one of the three below or by a cut.
  using Sync = uint64_t;  // its name
  [[nodiscard]] Sync begin_sync(Range range);
  void end_sync(Sync sync);
  void fail_sync(Sync sync);     // dooms what it covers
  void abandon_sync(Sync sync);  // changes nothing

  // The power is gone and comes back. Each returns how many sectors read differently from before,
  // or could (a version that was lost may have been of the same bytes).
  uint64_t lose_all();
  // Each sector keeps, by chance, its stable content or any version that is not doomed.
  uint64_t lose_some(uint64_t seed);

  // All zeroes, stable, as in the beginning.
  void wipe();

  [[nodiscard]] uint64_t volatile_sectors() const { return volatile_sectors_; }

  // The first byte at or after `offset` that is data (written and not zeroed since; by sectors) or
  // that is none. size() when there is none.
  [[nodiscard]] uint64_t next_data(uint64_t offset) const;
  [[nodiscard]] uint64_t next_hole(uint64_t offset) const;

 private:
  using Content = std::unique_ptr<std::byte[]>;  // one sector; null: zeroes
  struct Version {
    uint64_t number = 0;  // ascending over the whole disk
    bool doomed = false;
    Content content;
  };
  struct Sector {
    Content stable;
    std::vector<Version> versions;  // ascending; empty: nothing volatile

    [[nodiscard]] const Content& newest() const {
      return versions.empty() ? stable : versions.back().content;
    }
  };
  struct Running {
    uint64_t last = 0;  // versions up to this one are covered
    Range sectors;      // numbers of sectors
  };

  [[nodiscard]] Content copy(const Content& from) const;
  Version& add_version(Sector& sector);
  void forget_versions(Sector& sector) const;
  template <typename F>
  void for_covered(const Running& running, const F& each);
  template <typename F>
  uint64_t lose(const F& choose);

  const uint64_t size_;
  const uint32_t sector_;
  std::map<uint64_t, Sector> sectors_;  // by number; one that is missing is zeroes, stable
  std::map<Sync, Running> running_;
  uint64_t last_version_ = 0;
  Sync last_sync_ = 0;
  uint64_t volatile_sectors_ = 0;
};

}  // namespace weft::check
