// SPDX-License-Identifier: BSD-3-Clause
// The delay filter: makes operations take longer. A delayed operation waits for a timer of its
// connection's loop, side by side with all others; no thread waits.
#include <array>
#include <cerrno>
#include <map>
#include <mutex>
#include <utility>

#include "base/parse.h"
#include "filters/filters.h"

namespace weft::filters {
namespace {

using disk::Support;
using disk::Task;

struct Delays {
  using Time = engine::Clock::duration;
  Time read{}, write{}, zero{}, trim{}, extents{}, cache{}, flush{}, open{}, close{};
  bool fast_zero = true;  // false: a fast zero is refused at once
};

// The delays in progress: they end early when weft gives up what is still in progress. Thread-safe.
class Sleepers {
 public:
  // False: given up before its time.
  Task<bool> sleep(disk::Loop& loop, Delays::Time delay) {
    engine::Timer timer(loop);
    {
      const std::lock_guard lock(mutex_);
      if (abandoned_) co_return false;
      timers_.emplace(&timer, &loop);
    }
    const bool slept = co_await timer.sleep(delay);
    const std::lock_guard lock(mutex_);
    timers_.erase(&timer);
    co_return slept;
  }

  void resume() {
    const std::lock_guard lock(mutex_);
    abandoned_ = false;
  }
  void abandon() {
    const std::lock_guard lock(mutex_);
    abandoned_ = true;
    for (const auto& [timer, loop] : timers_) {
      loop->call([this, timer] {
        const std::lock_guard relock(mutex_);
        if (timers_.contains(timer)) timer->cancel();  // it goes on this thread alone
      });
    }
  }

 private:
  std::mutex mutex_;
  bool abandoned_ = false;
  std::map<engine::Timer*, disk::Loop*> timers_;
};

class DelayDisk final : public disk::FilterDisk {
 public:
  // Both references outlive the disk.
  DelayDisk(std::unique_ptr<disk::Disk> next, disk::Loop& loop, const Delays& delays,
            Sleepers& sleepers)
      : FilterDisk(std::move(next),
                   delays.read.count() > 0 ? disk::Reads::kIntercepted : disk::Reads::kForwarded),
        loop_(loop),
        delays_(delays),
        sleepers_(sleepers) {
    disk::Capabilities& c = capabilities_;
    // Where the layer below emulates, it is asked by the operation's own name: a zero is delayed
    // once, as a zero, not as the many writes that it becomes.
    if (c.zero == Support::kEmulate) c.zero = Support::kNative;
    if (c.cache == Support::kEmulate) c.cache = Support::kNative;
    // Offered, and refused above.
    if (!delays.fast_zero && c.fast_zero == Support::kNative) c.fast_zero = Support::kEmulate;
  }

  Task<Status> read(uint64_t offset, MutableByteSpan into) override {
    return after(delays_.read, [=, this] { return next().read(offset, into); });
  }
  Task<Status> write(uint64_t offset, ByteSpan from, bool fua) override {
    return after(delays_.write, [=, this] { return next().write(offset, from, fua); });
  }
  Task<Status> zero(Range range, disk::ZeroFlags flags) override {
    return after(delays_.zero, [=, this] { return next().zero(range, flags); });
  }
  Task<Status> trim(Range range, bool fua) override {
    return after(delays_.trim, [=, this] { return next().trim(range, fua); });
  }
  Task<Status> cache(Range range) override {
    return after(delays_.cache, [=, this] { return next().cache(range); });
  }
  Task<Status> flush() override {
    return after(delays_.flush, [this] { return next().flush(); });
  }
  Task<Status> extents(Extents& into, bool one) override {
    return after(delays_.extents, [this, &into, one] { return next().extents(into, one); });
  }
  Task<Status> close() override {
    if (delays_.close.count() == 0) return next().close();
    return close_later();
  }

 private:
  template <typename F>
  Task<Status> after(Delays::Time delay, F call) {
    if (delay.count() == 0) return call();
    return later(delay, std::move(call));
  }
  template <typename F>
  Task<Status> later(Delays::Time delay, F call) {
    if (!co_await sleepers_.sleep(loop_, delay)) {
      co_return fail(ESHUTDOWN, "the server stops before the delay is over");
    }
    co_return co_await call();
  }
  Task<Status> close_later() {
    (void)co_await sleepers_.sleep(loop_, delays_.close);
    co_return co_await next().close();
  }

  disk::Loop& loop_;
  const Delays& delays_;
  Sleepers& sleepers_;
};

struct Parameter {
  std::string_view name;
  Delays::Time Delays::* time;
};

constexpr std::array kParameters = {
    Parameter{"rdelay", &Delays::read},       Parameter{"delay-read", &Delays::read},
    Parameter{"delay-write", &Delays::write}, Parameter{"delay-zero", &Delays::zero},
    Parameter{"delay-trim", &Delays::trim},   Parameter{"delay-extents", &Delays::extents},
    Parameter{"delay-cache", &Delays::cache}, Parameter{"delay-flush", &Delays::flush},
    Parameter{"delay-open", &Delays::open},   Parameter{"delay-close", &Delays::close},
};

class Delay final : public disk::Filter {
 public:
  bool take(std::string_view key, std::string_view value) override {
    if (key == "wdelay") {
      delays_.write = delays_.zero = delays_.trim = parse_delay(key, value);
      return true;
    }
    if (key == "delay-fast-zero") {
      delays_.fast_zero = parse_bool(key, value);
      return true;
    }
    for (const Parameter& parameter : kParameters) {
      if (key != parameter.name) continue;
      delays_.*parameter.time = parse_delay(key, value);
      return true;
    }
    return false;
  }

  Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest request) override {
    disk::Loop& loop = request.loop;
    if (delays_.open.count() > 0 && !co_await sleepers_.sleep(loop, delays_.open)) {
      co_return fail(ESHUTDOWN, "the server stops before the delay is over");
    }
    Result<std::unique_ptr<disk::Disk>> next = co_await open_next(std::move(request));
    if (!next) co_return next;
    co_return std::make_unique<DelayDisk>(std::move(*next), loop, delays_, sleepers_);
  }

  void abandon() override {
    sleepers_.abandon();
    next().abandon();
  }
  void resume() override {
    sleepers_.resume();
    next().resume();
  }

 private:
  Delays delays_;
  Sleepers sleepers_;
};

}  // namespace

constinit const disk::FilterInfo delay_filter = {
    .name = "delay",
    .longname = "weft delay filter",
    .description = "Makes operations take longer",
    .config_help =
        "rdelay=TIME, delay-read=TIME  delay of reads\n"
        "wdelay=TIME  delay of writes, zeroes and trims\n"
        "delay-write=TIME  delay of writes\n"
        "delay-zero=TIME  delay of zeroes\n"
        "delay-trim=TIME  delay of trims\n"
        "delay-extents=TIME  delay of block status\n"
        "delay-cache=TIME  delay of cache requests\n"
        "delay-flush=TIME  delay of flushes\n"
        "delay-open=TIME  delay of a client's arrival\n"
        "delay-close=TIME  delay of a client's end\n"
        "delay-fast-zero=BOOL  whether fast zeroes are delayed, or refused at once (default on)",
    .make = [] -> std::unique_ptr<disk::Filter> { return std::make_unique<Delay>(); },
};

}  // namespace weft::filters
