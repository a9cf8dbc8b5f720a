// SPDX-License-Identifier: BSD-3-Clause
// The limit filter: admits so many clients at once.
//
// A client counts while it has a disk open, however many it has; who has connected and opened
// nothing yet does not. So of two that negotiate at the same time for the last place, the first to
// open gets it.
#include <algorithm>
#include <cerrno>
#include <limits>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/parse.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Task;

constexpr const char* kTooMany =
    "too many clients are connected: the limit filter admits no more (limit=N)";

// Thread-safe.
class Clients {
 public:
  explicit Clients(uint32_t max) : max_(max) {}

  [[nodiscard]] bool full() const {
    const std::lock_guard lock(mutex_);
    return disks_.size() >= max_;
  }
  [[nodiscard]] bool add(const disk::Peer* client) {
    const std::lock_guard lock(mutex_);
    if (const auto found = disks_.find(client); found != disks_.end()) {
      found->second++;
      return true;
    }
    if (disks_.size() >= max_) return false;
    disks_.emplace(client, 1);
    return true;
  }
  void remove(const disk::Peer* client) {
    const std::lock_guard lock(mutex_);
    const auto found = disks_.find(client);
    if (--found->second == 0) disks_.erase(found);
  }

 private:
  mutable std::mutex mutex_;
  const size_t max_;
  std::unordered_map<const disk::Peer*, uint32_t> disks_;  // open ones, of each client
};

// A client's claim to be here; given back when it goes.
class Place {
 public:
  Place(Clients& clients, const disk::Peer* client)
      : clients_(clients.add(client) ? &clients : nullptr), client_(client) {}
  Place(Place&& other) noexcept
      : clients_(std::exchange(other.clients_, nullptr)), client_(other.client_) {}
  Place& operator=(Place&&) = delete;
  ~Place() {
    if (clients_) clients_->remove(client_);
  }
  [[nodiscard]] explicit operator bool() const { return clients_ != nullptr; }

 private:
  Clients* clients_;
  const disk::Peer* client_;
};

class LimitedDisk final : public disk::FilterDisk {
 public:
  LimitedDisk(std::unique_ptr<disk::Disk> below, Place place)
      : FilterDisk(std::move(below), disk::Reads::kForwarded), place_(std::move(place)) {}

 private:
  const Place place_;
};

class Limit final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key != "limit") return false;
    limit_ =
        static_cast<uint32_t>(parse_unsigned("limit", value, std::numeric_limits<uint32_t>::max()));
    return true;
  }
  void complete() override {
    if (limit_ != 0) clients_ = std::make_unique<Clients>(limit_);
  }
  [[nodiscard]] uint32_t connections_max() const override {
    const uint32_t others = Filter::connections_max();
    if (limit_ == 0 || others == 0) return std::max(limit_, others);
    return std::min(limit_, others);
  }

  Task<Status> preconnect(engine::Loop& loop, const disk::Peer& peer, bool read_only) override {
    if (clients_ && clients_->full()) return fail(EPERM, kTooMany);
    return next().preconnect(loop, peer, read_only);
  }

  Result<std::shared_ptr<void>> admit(const disk::Peer& client) override {
    Result<std::shared_ptr<void>> below = next().admit(client);
    if (!below || !clients_) return below;
    Place place(*clients_, &client);
    if (!place) return fail(EPERM, kTooMany);
    return std::make_shared<std::pair<Place, std::shared_ptr<void>>>(std::move(place),
                                                                     std::move(*below));
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    // A layer above that opens a disk for its own use is no client.
    if (!clients_ || !request.peer) co_return co_await open_next(std::move(request));
    Place place(*clients_, request.peer);
    if (!place) co_return fail(EPERM, kTooMany);
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<LimitedDisk>(std::move(*next), std::move(place));
  }

 private:
  uint32_t limit_ = 1;
  std::unique_ptr<Clients> clients_;  // null: any number may come
};

}  // namespace

constinit const disk::FilterInfo limit_filter = {
    .name = "limit",
    .longname = "weft limit filter",
    .description = "Admits so many clients at once",
    .config_help = "limit=N   how many; 0 is any number (default: 1)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Limit>(); },
};

}  // namespace weft::filters
