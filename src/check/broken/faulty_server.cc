// SPDX-License-Identifier: BSD-3-Clause
// faulty-server: a small NBD server for tests that is right, until it is told to be wrong.
#include <fmt/format.h>
#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "base/parse.h"
#include "base/result.h"
#include "check/broken/connection.h"
#include "check/broken/disk.h"
#include "check/broken/faults.h"
#include "check/broken/store.h"
#include "net/listen.h"

namespace weft::check::broken {
namespace {

constexpr char kHelp[] = R"(usage: faulty-server --socket PATH [options]

An NBD server for tests, on a Unix socket. It keeps every promise, but those of the faults it is
told to have.

  --socket PATH           where to listen; must not exist
  --size BYTES            of the disk, in memory (16M)
  --file PATH             the disk is this file instead
  --fault NAME[:CHANCE]   have this fault, so often (0.05, 5% or 1:20); may be repeated
  --list-faults           what faults there are
  --delay USEC            the longest random wait at each step of a request (200)
  --seed N                of all that is random (1)
  --workers N             requests of a connection that run at once (4)
  --block BYTES           what copies and read-modify-writes are made of (4096)
  --no-multi-conn         do not advertise NBD_FLAG_CAN_MULTI_CONN
)";

struct Options {
  std::string socket;
  std::string file;
  uint64_t size = 16 << 20;
  std::vector<std::string> faults;
  uint64_t delay_us = 200;
  uint64_t seed = 1;
  uint64_t workers = 4;
  uint64_t block = 4096;
  bool multi_conn = true;
};

void list_faults() {
  fmt::print("{:<17} {:<6} {:<12} {}\n", "fault", "chance", "found by", "what it does");
  for (const FaultInfo& fault : fault_table()) {
    fmt::print("{:<17} {:<6} {:<12} {}\n", fault.name, fault.probability, fault.mode, fault.text);
  }
}

// Nothing: help was asked for.
std::optional<Options> parse(int argc, char** argv) {
  static constexpr option kLong[] = {
      {"socket", required_argument, nullptr, 's'},  {"file", required_argument, nullptr, 'f'},
      {"size", required_argument, nullptr, 'z'},    {"fault", required_argument, nullptr, 'x'},
      {"delay", required_argument, nullptr, 'd'},   {"seed", required_argument, nullptr, 'e'},
      {"workers", required_argument, nullptr, 'w'}, {"block", required_argument, nullptr, 'b'},
      {"no-multi-conn", no_argument, nullptr, 'm'}, {"list-faults", no_argument, nullptr, 'l'},
      {"help", no_argument, nullptr, 'h'},          {nullptr, 0, nullptr, 0}};
  Options options;
  for (int letter = 0; (letter = ::getopt_long(argc, argv, "", kLong, nullptr)) != -1;) {
    switch (letter) {
      case 's':
        options.socket = optarg;
        break;
      case 'f':
        options.file = optarg;
        break;
      case 'z':
        options.size = parse_size("--size", optarg);
        break;
      case 'x':
        options.faults.emplace_back(optarg);
        break;
      case 'd':
        options.delay_us = parse_unsigned("--delay", optarg, 1'000'000);
        break;
      case 'e':
        options.seed = parse_unsigned("--seed", optarg);
        break;
      case 'w':
        options.workers = parse_unsigned("--workers", optarg, 64);
        break;
      case 'b':
        options.block = parse_size("--block", optarg);
        break;
      case 'm':
        options.multi_conn = false;
        break;
      case 'l':
        list_faults();
        return std::nullopt;
      case 'h':
        fmt::print("{}", kHelp);
        return std::nullopt;
      default:
        throw ConfigError("unknown option: see --help");
    }
  }
  if (optind < argc)
    throw ConfigError(fmt::format("'{}' is not an option: see --help", argv[optind]));
  if (options.socket.empty()) throw ConfigError("--socket is missing: say where to listen");
  if (options.workers == 0) throw ConfigError("--workers: 0 would do nothing: give at least 1");
  if (options.block == 0 || (options.block & (options.block - 1)) != 0) {
    throw ConfigError("--block: not a power of two: give one, as in 4096");
  }
  return options;
}

int run(const Options& options) {
  // Before any thread: all of them leave these to sigwait.
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGTERM);
  ::sigaddset(&signals, SIGINT);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  Dice dice(options.seed, std::chrono::microseconds(options.delay_us));
  for (const std::string& fault : options.faults) dice.add(fault);
  const auto store = options.file.empty() ? std::make_unique<Store>(options.size)
                                          : std::make_unique<Store>(options.file);
  Disk disk(*store, dice, options.block);
  Connection::Settings settings = {
      .size = store->size(),
      .transmission_flags = static_cast<uint16_t>(
          nbd::kSendFlush | nbd::kSendFua | nbd::kSendTrim | nbd::kSendWriteZeroes |
          nbd::kSendFastZero | nbd::kSendCache | (options.multi_conn ? nbd::kCanMultiConn : 0)),
      .workers = static_cast<uint32_t>(options.workers)};

  const net::ListeningSocket listener = net::listen_unix(options.socket);
  std::list<Connection> connections;
  std::jthread acceptor([&](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      connections.remove_if([](const Connection& connection) { return connection.finished(); });
      pollfd poll = {.fd = listener.fd.get(), .events = POLLIN, .revents = 0};
      if (::poll(&poll, 1, 100) < 1) continue;
      Fd fd(::accept4(listener.fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!fd) continue;
      connections.emplace_back(std::move(fd), settings, disk, dice);
      ++settings.number;
    }
  });
  int signal = 0;
  ::sigwait(&signals, &signal);
  acceptor.request_stop();
  acceptor.join();
  ::unlink(options.socket.c_str());
  return 0;  // the connections are cut
}

}  // namespace
}  // namespace weft::check::broken

int main(int argc, char** argv) {
  using namespace weft::check::broken;
  try {
    const std::optional<Options> options = parse(argc, argv);
    return options ? run(*options) : 0;
  } catch (const weft::ConfigError& error) {
    fmt::print(stderr, "faulty-server: {}\n", error.what());
    return 1;
  }
}
