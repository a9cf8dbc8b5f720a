// SPDX-License-Identifier: BSD-3-Clause
#include "check/load/load.h"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cassert>
#include <exception>
#include <unordered_map>
#include <utility>

#include "base/extents.h"
#include "check/load/generator.h"

namespace weft::check {
namespace {

constexpr uint64_t kMillisecond = 1'000'000;  // ns
constexpr int kPollMax = 50;                  // ms; then the clock and `interrupted` are looked at

// A, B, ... Z, A1, ...: with a number behind it when it was dialled again.
std::string connection_name(uint32_t index, uint32_t times) {
  std::string name(1, static_cast<char>('A' + index % 26));
  if (index >= 26) name += fmt::format("{}", index / 26);
  if (times > 1) name += fmt::format("'{}", times);
  return name;
}

uint16_t command_of(Kind kind) {
  switch (kind) {
    case Kind::kRead:
      return nbd::kCmdRead;
    case Kind::kWrite:
      return nbd::kCmdWrite;
    case Kind::kZero:
      return nbd::kCmdWriteZeroes;
    case Kind::kTrim:
      return nbd::kCmdTrim;
    case Kind::kCache:
      return nbd::kCmdCache;
    case Kind::kFlush:
      return nbd::kCmdFlush;
    case Kind::kStatus:
      return nbd::kCmdBlockStatus;
  }
  return nbd::kCmdRead;
}

}  // namespace

class Load::Impl final : public Candidates {
 public:
  Impl(LoadOptions options, Layout layout, Dialler dial, const std::atomic<bool>* interrupted)
      : options_(options),
        layout_(std::move(layout)),
        dial_(std::move(dial)),
        interrupted_(interrupted),
        writers_(layout_.cells()) {
    history_.cells = layout_.places();
    for (uint32_t i = 0; i < std::max(options_.connections, 1u); i++) {
      if (i == 0) {
        slots_.push_back({});
        slots_[0].client = std::make_unique<Client>(dial_());
      } else {
        try {
          auto client = std::make_unique<Client>(dial_());
          slots_.push_back({});
          slots_[i].client = std::move(client);
        } catch (const std::exception& error) {
          refusal_ = error.what();
          break;
        }
      }
      slots_[i].random.emplace(options_.seed * 1'000'003 + i);
      name(i);
    }
    generator_.emplace(layout_, Offered::of(slots_[0].client->negotiated()), options_.weights,
                       options_.fua_percent, options_.depth * static_cast<uint32_t>(slots_.size()));
  }

  Stop prepare() {
    const uint32_t in_block = layout_.cells_per_block();
    uint32_t cell = 0;
    const Stop stop = drive([&] {
      Slot& slot = slots_[0];
      while (cell < layout_.cells() && slot.client->in_flight() < options_.depth) {
        submit(0, {.kind = Kind::kWrite, .cell = cell, .cells = in_block});
        cell += in_block;
      }
      return cell < layout_.cells();
    });
    if (stop != Stop::kDone) return stop;
    return offered(Kind::kFlush) ? alone(0, {}) : Stop::kDone;
  }

  Stop run(const std::function<bool()>* cut) {
    const uint64_t end = now_ns() + static_cast<uint64_t>(options_.limit.count()) * kMillisecond;
    uint64_t issued = 0;
    uint64_t until_cut = options_.cut_every;
    return drive(
        [&] {
          if (now_ns() >= end) return false;
          for (uint32_t i = 0; i < slots_.size(); i++) {
            Slot& slot = slots_[i];
            while (issued < options_.operations && !slot.client->lost() &&
                   slot.client->in_flight() < options_.depth) {
              submit(i, generator_->next(*slot.random));
              issued++;
              if (until_cut > 0 && --until_cut == 0) {
                until_cut = options_.cut_every;
                if (!cut_and_send_again(static_cast<uint32_t>(slot.random->below(slots_.size())))) {
                  return false;
                }
              }
            }
          }
          return issued < options_.operations;
        },
        cut);
  }

  Stop run_overlaps(uint32_t count) {
    if (!offered(Kind::kFlush)) return Stop::kDone;
    const uint64_t end = now_ns() + static_cast<uint64_t>(options_.limit.count()) * kMillisecond;
    tools::Random& random = *slots_[0].random;
    const auto any = [&] { return static_cast<uint32_t>(random.below(slots_.size())); };
    const uint32_t in_block = layout_.cells_per_block();
    uint32_t cell = 0;
    int step = 0;
    return drive([&] {
      const bool idle =
          std::ranges::all_of(slots_, [](const Slot& slot) { return slot.pending.empty(); });
      if (!idle) return true;
      switch (step++ % 3) {
        case 0: {
          if (count-- == 0 || now_ns() >= end) return false;
          cell = static_cast<uint32_t>(random.below(layout_.blocks())) * in_block;
          const uint32_t writer = any();
          for (uint64_t i = 1 + random.below(3); i > 0; i--) {
            start(writer, {.kind = Kind::kWrite,
                           .cell = cell + static_cast<uint32_t>(random.below(in_block)),
                           .cells = 1});
          }
          submit(any(), {});
          break;
        }
        case 1:
          submit(any(), {});
          break;
        default:
          submit(any(), {.kind = Kind::kRead, .cell = cell, .cells = in_block});
          submit(any(), {.kind = Kind::kRead, .cell = cell, .cells = in_block});
          break;
      }
      return true;
    });
  }

  Stop read_all(bool flush_first) {
    if (flush_first && offered(Kind::kFlush)) {
      if (const Stop stop = alone(0, {}); stop != Stop::kDone) return stop;
    }
    const uint32_t in_block = layout_.cells_per_block();
    std::vector<uint32_t> next(slots_.size());
    return drive([&] {
      bool more = false;
      for (uint32_t i = 0; i < slots_.size(); i++) {
        while (next[i] < layout_.cells() && !slots_[i].client->lost() &&
               slots_[i].client->in_flight() < options_.depth) {
          submit(i, {.kind = Kind::kRead, .cell = next[i], .cells = in_block});
          next[i] += in_block;
        }
        more |= next[i] < layout_.cells() && !slots_[i].client->lost();
      }
      return more;
    });
  }

  uint32_t start(uint32_t connection, const Wish& wish) {
    if (changes(wish.kind)) generator_->note(wish);
    return submit(connection, wish);
  }

  bool wait_for(uint32_t operation, std::chrono::milliseconds limit) {
    const uint64_t end = now_ns() + static_cast<uint64_t>(limit.count()) * kMillisecond;
    const uint32_t number = history_.operations[operation].connection;
    while (!history_.operations[operation].replied()) {
      const auto slot = std::ranges::find(slots_, number, &Slot::number);
      if (slot == slots_.end() || slot->client->lost()) return true;
      if (interrupted() || now_ns() >= end) return false;
      step(end);
    }
    return true;
  }

  bool redial(uint32_t connection, bool reset) {
    Slot& slot = slots_[connection];
    const uint64_t now = now_ns();
    slot.client->cut(reset);
    for (const auto& [cookie, operation] : slot.pending) abandoned_.push_back({operation, now});
    slot.pending.clear();
    try {
      slot.client = std::make_unique<Client>(dial_());
    } catch (const std::exception& error) {
      failure_ = error.what();
      return false;
    }
    name(connection);
    return true;
  }

  bool part(uint32_t connection, std::chrono::milliseconds limit,
            std::vector<uint32_t>& unanswered) {
    Slot& slot = slots_[connection];
    slot.client->disconnect();
    const uint64_t end = now_ns() + static_cast<uint64_t>(limit.count()) * kMillisecond;
    while (!slot.client->lost() && now_ns() < end) step(end);
    if (!slot.client->lost()) {
      failure_ = "the server did not close the connection after NBD_CMD_DISC";
      return false;
    }
    for (const auto& [cookie, operation] : slot.pending) unanswered.push_back(operation);
    std::ranges::sort(unanswered);
    return redial(connection, false);
  }

  void drain_lost(std::chrono::milliseconds limit) {
    const uint64_t end = now_ns() + static_cast<uint64_t>(limit.count()) * kMillisecond;
    while (now_ns() < end &&
           std::ranges::any_of(slots_, [](const Slot& slot) { return !slot.client->lost(); })) {
      step(end);
    }
  }

  bool reconnect_all() {
    history_.restarts_ns.push_back(now_ns());
    for (uint32_t i = 0; i < slots_.size(); i++) {
      if (!redial(i, false)) return false;
    }
    failure_.clear();
    return true;
  }

  std::vector<Tag> candidates(uint32_t cell) override {
    std::vector<Tag> tags = writers_[cell];
    tags.push_back(kZeroTag);
    return tags;
  }

  struct Slot {
    std::unique_ptr<Client> client;
    std::optional<tools::Random> random;
    uint32_t number = 0;  // in the history
    uint32_t dialled = 0;
    std::unordered_map<uint64_t, uint32_t> pending;  // cookie -> operation
  };

  const LoadOptions options_;
  const Layout layout_;
  const Dialler dial_;
  const std::atomic<bool>* const interrupted_;
  const uint64_t salt_ = now_ns();
  std::vector<Slot> slots_;
  std::optional<Generator> generator_;
  History history_;
  std::vector<std::vector<Tag>> writers_;  // by cell
  std::vector<Abandoned> abandoned_;
  std::map<std::string, uint64_t> errors_;
  std::string failure_;
  std::string refusal_;
  uint64_t finished_ = 0;

 private:
  [[nodiscard]] bool interrupted() const {
    return interrupted_ && interrupted_->load(std::memory_order_relaxed);
  }
  [[nodiscard]] bool offered(Kind kind) const {
    return Offered::of(slots_[0].client->negotiated()).has(kind);
  }

  void name(uint32_t index) {
    Slot& slot = slots_[index];
    slot.number = static_cast<uint32_t>(history_.connection_names.size());
    history_.connection_names.push_back(connection_name(index, ++slot.dialled));
  }

  uint32_t submit(uint32_t index, const Wish& wish) {
    Slot& slot = slots_[index];
    const auto number = static_cast<uint32_t>(history_.operations.size());
    Operation operation{.connection = slot.number,
                        .cell = wish.cell,
                        .cells = wish.cells,
                        .kind = wish.kind,
                        .fua = wish.fua};
    nbd::Request request{.type = command_of(wish.kind)};
    if (wish.fua) request.flags |= nbd::kFlagFua;
    if (wish.kind == Kind::kZero && slot.random->below(2)) request.flags |= nbd::kFlagNoHole;
    payload_.clear();
    if (wish.cells > 0) {
      const Range range = layout_.range(wish.cell, wish.cells);
      request.offset = range.offset;
      request.length = range.length;
      if (wish.kind == Kind::kWrite) {
        operation.tag = ++last_tag_;
        payload_.resize(range.length);
        fill(operation.tag, salt_, range.offset, payload_);
        for (uint32_t cell = wish.cell; cell < wish.cell + wish.cells; cell++) {
          writers_[cell].push_back(operation.tag);
        }
      }
    }
    operation.send_ns = now_ns();
    history_.operations.push_back(operation);
    if (!slot.client->lost()) slot.pending.emplace(slot.client->submit(request, payload_), number);
    return number;
  }

  // Does what `issue` asks for until it says that there is no more, and everything has its reply.
  Stop drive(const std::function<bool()>& issue, const std::function<bool()>* cut = nullptr) {
    const auto patience = static_cast<uint64_t>(options_.patience.count()) * kMillisecond;
    for (;;) {
      if (cut && (*cut)()) return Stop::kDone;
      const bool more = !stopping_ && issue();
      if (!failure_.empty()) return violated_ ? Stop::kViolation : Stop::kLost;
      const bool idle =
          std::ranges::all_of(slots_, [](const Slot& slot) { return slot.pending.empty(); });
      if (interrupted()) stopping_ = true;
      if (idle && !more) return stopping_ ? Stop::kInterrupted : Stop::kDone;
      const uint64_t before = finished_;
      step(now_ns() + uint64_t{kPollMax} * kMillisecond);
      if (!look_for_losses()) return violated_ ? Stop::kViolation : Stop::kLost;
      if (finished_ == before && !oldest_is_younger_than(patience)) return Stop::kHang;
    }
  }

  Stop alone(uint32_t connection, const Wish& wish) {
    bool sent = false;
    return drive([&] {
      if (!std::exchange(sent, true)) submit(connection, wish);
      return false;
    });
  }

  bool look_for_losses() {
    for (const Slot& slot : slots_) {
      if (!slot.client->lost()) continue;
      const std::string& name = history_.connection_names[slot.number];
      violated_ = slot.client->violated();
      const std::string& why = slot.client->failure();
      failure_ = fmt::format("connection {}: {}", name,
                             why.empty() ? "the server closed it" : why.c_str());
      if (!slot.pending.empty() && !violated_) {
        failure_ += fmt::format(", with {} requests in flight", slot.pending.size());
      }
      return false;
    }
    return true;
  }

  // A server that answers one after the other is slow, not stuck: what counts is since when nothing
  // has been answered.
  bool oldest_is_younger_than(uint64_t patience) {
    const uint64_t now = now_ns();
    if (now - last_reply_ns_ < patience) return true;
    for (const Slot& slot : slots_) {
      for (const auto& [cookie, number] : slot.pending) {
        const Operation& operation = history_.operations[number];
        if (now - operation.send_ns < patience) continue;
        failure_ = fmt::format("connection {}: no reply to a {} for {:.1f} s",
                               history_.connection_names[slot.number], kind_name(operation.kind),
                               static_cast<double>(now - operation.send_ns) / 1e9);
        return false;
      }
    }
    return true;
  }

  bool cut_and_send_again(uint32_t index) {
    std::vector<Wish> lost;
    for (const auto& [cookie, number] : slots_[index].pending) {
      const Operation& operation = history_.operations[number];
      if (changes(operation.kind)) {
        lost.push_back({Kind::kWrite, operation.cell, operation.cells, operation.fua});
      }
    }
    if (!redial(index, slots_[index].random->below(2) == 0)) return false;
    for (const Wish& wish : lost) start(static_cast<uint32_t>((index + 1) % slots_.size()), wish);
    return true;
  }

  void step(uint64_t end_ns) {
    polled_.clear();
    for (const Slot& slot : slots_) {
      const auto events = static_cast<short>(POLLIN | (slot.client->wants_to_send() ? POLLOUT : 0));
      polled_.push_back({.fd = slot.client->fd(), .events = events, .revents = 0});
    }
    const uint64_t now = now_ns();
    const auto left = end_ns > now ? static_cast<int>((end_ns - now) / kMillisecond) + 1 : 0;
    if (::poll(polled_.data(), polled_.size(), std::min(left, kPollMax)) <= 0) return;
    for (size_t i = 0; i < slots_.size(); i++) {
      if (polled_[i].revents == 0) continue;
      if (polled_[i].revents & POLLOUT) slots_[i].client->send();
      replies_.clear();
      slots_[i].client->receive(replies_);
      for (const Reply& reply : replies_) take(slots_[i], reply);
    }
  }

  void take(Slot& slot, const Reply& reply) {
    const auto at = slot.pending.find(reply.cookie);
    if (at == slot.pending.end()) return;
    Operation& operation = history_.operations[at->second];
    slot.pending.erase(at);
    operation.reply_ns = last_reply_ns_ = reply.time_ns;
    operation.error = reply.error;
    finished_++;
    if (reply.error != nbd::kOk) {
      errors_[fmt::format("{}: {}{}{}", kind_name(operation.kind), nbd::error_name(reply.error),
                          reply.text.empty() ? "" : ": ", reply.text)]++;
      return;
    }
    operation.seen = static_cast<uint32_t>(history_.observations.size());
    if (operation.kind == Kind::kRead) observe_data(operation, reply);
    if (operation.kind == Kind::kStatus) observe_zeroes(operation, reply);
    operation.seen_count = static_cast<uint32_t>(history_.observations.size()) - operation.seen;
  }

  void observe_data(const Operation& operation, const Reply& reply) {
    const uint64_t begin = layout_.range(operation.cell).offset;
    for (uint32_t cell = operation.cell; cell < operation.cell_end(); cell++) {
      const Range range = layout_.range(cell);
      recognise(cell, salt_, range.offset,
                ByteSpan(reply.data).subspan(range.offset - begin, range.length), *this,
                history_.observations);
    }
  }

  void observe_zeroes(const Operation& operation, const Reply& reply) {
    uint64_t at = layout_.range(operation.cell).offset;
    uint32_t cell = operation.cell;
    uint64_t zero_from = kNever;  // the beginning of the zeroes that end at `at`
    for (const nbd::StatusExtent& extent : reply.extents) {
      if (!(extent.flags & kExtentZero)) {
        zero_from = kNever;
      } else if (zero_from == kNever) {
        zero_from = at;
      }
      at += extent.length;
      for (; cell < operation.cell_end() && layout_.range(cell).end() <= at; cell++) {
        if (zero_from <= layout_.range(cell).offset) {
          history_.observations.push_back({cell, kZeroTag, Part::kWhole});
        }
      }
    }
  }

  Tag last_tag_ = 0;
  uint64_t last_reply_ns_ = 0;
  bool stopping_ = false;
  bool violated_ = false;
  std::vector<std::byte> payload_;
  std::vector<pollfd> polled_;
  std::vector<Reply> replies_;
};

Load::Load(LoadOptions options, Layout layout, Dialler dial, const std::atomic<bool>* interrupted)
    : impl_(std::make_unique<Impl>(options, std::move(layout), std::move(dial), interrupted)) {}

Load::~Load() {
  for (Impl::Slot& slot : impl_->slots_) slot.client->disconnect();
}

Stop Load::prepare() {
  return impl_->prepare();
}
Stop Load::run() {
  return impl_->run(nullptr);
}
Stop Load::run_until(const std::function<bool()>& cut) {
  return impl_->run(&cut);
}
Stop Load::run_overlaps(uint32_t count) {
  return impl_->run_overlaps(count);
}
Stop Load::read_all(bool flush_first) {
  return impl_->read_all(flush_first);
}
uint32_t Load::perform(uint32_t connection, const Wish& wish) {
  const uint32_t operation = start(connection, wish);
  (void)wait_for(operation, impl_->options_.patience);
  return operation;
}
uint32_t Load::start(uint32_t connection, const Wish& wish) {
  return impl_->start(connection, wish);
}
bool Load::wait_for(uint32_t operation, std::chrono::milliseconds limit) {
  return impl_->wait_for(operation, limit);
}
bool Load::redial(uint32_t connection, bool reset) {
  return impl_->redial(connection, reset);
}
bool Load::part(uint32_t connection, std::chrono::milliseconds limit,
                std::vector<uint32_t>& unanswered) {
  return impl_->part(connection, limit, unanswered);
}
void Load::drain_lost(std::chrono::milliseconds limit) {
  impl_->drain_lost(limit);
}
bool Load::reconnect_all() {
  return impl_->reconnect_all();
}
uint32_t Load::connections() const {
  return static_cast<uint32_t>(impl_->slots_.size());
}
const std::string& Load::refusal() const {
  return impl_->refusal_;
}
bool Load::lost(uint32_t connection) const {
  return impl_->slots_[connection].client->lost();
}
const nbd::ClientResult& Load::negotiated(uint32_t connection) const {
  return impl_->slots_[connection].client->negotiated();
}
const std::string& Load::failure() const {
  return impl_->failure_;
}
const std::map<std::string, uint64_t>& Load::errors() const {
  return impl_->errors_;
}
const std::vector<Load::Abandoned>& Load::abandoned() const {
  return impl_->abandoned_;
}
const History& Load::history() const {
  return impl_->history_;
}
const Layout& Load::layout() const {
  return impl_->layout_;
}
uint64_t Load::finished() const {
  return impl_->finished_;
}

}  // namespace weft::check
