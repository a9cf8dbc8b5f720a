// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_options.h"

#include <fmt/format.h>
#include <getopt.h>

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/parse.h"
#include "base/result.h"

namespace weft::tools {
namespace {

constexpr char kHelp[] = R"(nbdbench: puts load on an NBD server and measures it

Usage: nbdbench [OPTION]... TARGET
TARGET: nbd://HOST[:PORT]/[EXPORT], nbd+unix:///[EXPORT]?socket=PATH, or the path of a Unix socket

What is done:
  --mix=KIND=SHARE,...      kinds: read write zero trim cache flush; default: read=1
  --destructive             allow a mix that changes data; needed for write, zero, trim and --fill
  --fua=PERCENT             of the changing operations carry FUA
  --flush-every=N           a flush after every N changing operations of a connection
  --block-size=SIZE         bytes of each operation; default: 4k
  --pattern=random          or sequential
  --offset=SIZE             where the used part of the export begins; default: 0
  --length=SIZE             how long it is; default: to the export's end
  --fill                    write the used part once before the measurement
  --seed=N                  decides every random choice; default: 1
How much:
  --connections=N           default: 1
  --depth=N                 requests in flight on each connection; default: 32
  --threads=N               default: one for each connection, at most 64
  --duration=TIME           default: 10 (seconds; or 500ms, ...)
  --operations=N            stop after N operations of all connections together
  --rate=N                  operations per second, all connections together; latency counts from
                            the time an operation should have begun
  --warmup=TIME             work for so long before measuring; default: 0.5, with --operations 0
Checks:
  --verify                  check every read against what was written; each connection works on
                            a part of its own
  --verify=shared           the same with one part for all connections
  --timeout=TIME            give up a connection that shows no sign of life for so long; default: 30
Protocol:
  --simple                  simple replies and NBD_OPT_EXPORT_NAME
  --extended                extended headers where the server has them
  (otherwise: structured replies where the server has them)
Report:
  --server-pid=PID          also CPU time per operation and memory of this process
  --server-children         and of its descendants
  --json                    one JSON object instead of text
  --no-progress             no line of progress on a terminal
  --help, --version

Sizes: 4k, 1m, 10g (powers of 1024). Exit code: 0 when all went well; 1 when an operation failed, a
read was wrong, a connection was lost, or nothing could be started. nbdbench(1) says more.
)";

enum Opt : int {
  kMix = 256,
  kDestructive,
  kFua,
  kFlushEvery,
  kBlockSize,
  kPattern,
  kOffset,
  kLength,
  kFill,
  kSeed,
  kConnections,
  kDepth,
  kThreads,
  kDuration,
  kOperations,
  kRate,
  kWarmup,
  kVerify,
  kTimeout,
  kSimple,
  kExtended,
  kServerPid,
  kServerChildren,
  kJson,
  kNoProgress,
};

constexpr std::array kOptions = {
    option{"mix", required_argument, nullptr, kMix},
    option{"destructive", no_argument, nullptr, kDestructive},
    option{"fua", required_argument, nullptr, kFua},
    option{"flush-every", required_argument, nullptr, kFlushEvery},
    option{"block-size", required_argument, nullptr, kBlockSize},
    option{"pattern", required_argument, nullptr, kPattern},
    option{"offset", required_argument, nullptr, kOffset},
    option{"length", required_argument, nullptr, kLength},
    option{"fill", no_argument, nullptr, kFill},
    option{"seed", required_argument, nullptr, kSeed},
    option{"connections", required_argument, nullptr, kConnections},
    option{"depth", required_argument, nullptr, kDepth},
    option{"threads", required_argument, nullptr, kThreads},
    option{"duration", required_argument, nullptr, kDuration},
    option{"operations", required_argument, nullptr, kOperations},
    option{"rate", required_argument, nullptr, kRate},
    option{"warmup", required_argument, nullptr, kWarmup},
    option{"verify", optional_argument, nullptr, kVerify},
    option{"timeout", required_argument, nullptr, kTimeout},
    option{"simple", no_argument, nullptr, kSimple},
    option{"extended", no_argument, nullptr, kExtended},
    option{"server-pid", required_argument, nullptr, kServerPid},
    option{"server-children", no_argument, nullptr, kServerChildren},
    option{"json", no_argument, nullptr, kJson},
    option{"no-progress", no_argument, nullptr, kNoProgress},
    option{"help", no_argument, nullptr, 'h'},
    option{"version", no_argument, nullptr, 'V'},
    option{nullptr, 0, nullptr, 0},
};

constexpr uint32_t kBlockSizeMax = nbd::kPayloadAcceptedMax;
constexpr uint32_t kDepthMax = 65536;
constexpr uint32_t kConnectionsMax = 100'000;

uint64_t number(std::string_view what, uint64_t min, uint64_t max) {
  const uint64_t value = parse_unsigned(what, optarg, max);
  if (value < min) {
    throw ConfigError(
        fmt::format("{}: '{}' is less than {}: give a larger number", what, optarg, min));
  }
  return value;
}

double seconds(std::string_view what, bool zero_allowed) {
  const double value = std::chrono::duration<double>(parse_delay(what, optarg)).count();
  if (value == 0 && !zero_allowed) {
    throw ConfigError(fmt::format("{}: '{}' is no time at all: give more", what, optarg));
  }
  return value;
}

double rate() {
  char* end = nullptr;
  const double value = std::strtod(optarg, &end);
  if (end == optarg || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw ConfigError(fmt::format(
        "--rate: '{}' is no number above 0: give operations per second, as in 10000", optarg));
  }
  return value;
}

[[noreturn]] void unknown_choice(std::string_view what, std::string_view choices) {
  throw ConfigError(fmt::format("{}: '{}' is unknown: give {}", what, optarg, choices));
}

// What was given, where that differs from the value it has.
struct Given {
  bool duration = false;
  bool warmup = false;
};

void apply(int opt, BenchOptions& options, Given& given) {
  switch (opt) {
    case kMix:
      options.mix = parse_mix(optarg);
      break;
    case kDestructive:
      options.destructive = true;
      break;
    case kFua:
      options.fua_percent = static_cast<uint32_t>(number("--fua", 0, 100));
      break;
    case kFlushEvery:
      options.flush_every = static_cast<uint32_t>(number("--flush-every", 1, UINT32_MAX));
      break;
    case kBlockSize: {
      const uint64_t size = parse_size("--block-size", optarg);
      if (size == 0 || size > kBlockSizeMax) {
        throw ConfigError(fmt::format("--block-size: '{}' is not from 1 to 64m", optarg));
      }
      options.block_size = static_cast<uint32_t>(size);
      break;
    }
    case kPattern:
      options.random = std::string_view(optarg) == "random";
      if (!options.random && std::string_view(optarg) != "sequential") {
        unknown_choice("--pattern", "random or sequential");
      }
      break;
    case kOffset:
      options.offset = parse_size("--offset", optarg);
      break;
    case kLength:
      options.length = parse_size("--length", optarg);
      break;
    case kFill:
      options.fill = true;
      break;
    case kSeed:
      options.seed = parse_unsigned("--seed", optarg);
      break;
    case kConnections:
      options.connections = static_cast<uint32_t>(number("--connections", 1, kConnectionsMax));
      break;
    case kDepth:
      options.depth = static_cast<uint32_t>(number("--depth", 1, kDepthMax));
      break;
    case kThreads:
      options.threads = static_cast<uint32_t>(number("--threads", 1, 1024));
      break;
    case kDuration:
      options.duration_s = seconds("--duration", false);
      given.duration = true;
      break;
    case kOperations:
      options.operations = number("--operations", 1, UINT64_MAX);
      break;
    case kRate:
      options.rate = rate();
      break;
    case kWarmup:
      options.warmup_s = seconds("--warmup", true);
      given.warmup = true;
      break;
    case kVerify:
      options.verify = Verify::kOwn;
      if (optarg == nullptr || std::string_view(optarg) == "own") break;
      if (std::string_view(optarg) != "shared") unknown_choice("--verify", "own or shared");
      options.verify = Verify::kShared;
      break;
    case kTimeout:
      options.timeout_s = seconds("--timeout", false);
      break;
    case kSimple:
      options.headers = nbd::HeaderMode::kSimple;
      break;
    case kExtended:
      options.headers = nbd::HeaderMode::kExtended;
      break;
    case kServerPid:
      options.server_pid = static_cast<pid_t>(number("--server-pid", 1, INT32_MAX));
      break;
    case kServerChildren:
      options.server_children = true;
      break;
    case kJson:
      options.json = true;
      break;
    case kNoProgress:
      options.progress = false;
      break;
    default:
      break;
  }
}

void check(BenchOptions& options, const Given& given) {
  if (options.operations != 0) {
    if (!given.duration) options.duration_s = 0;
    if (!given.warmup) options.warmup_s = 0;
  }
  const bool writes = options.mix.changes_data() || options.fill;
  if (writes && !options.destructive) {
    throw ConfigError(
        fmt::format("{} overwrites data of the export: add --destructive if that is "
                    "what you want",
                    options.mix.changes_data() ? "this --mix" : "--fill"));
  }
  if (options.verify != Verify::kOff) {
    if (options.block_size % 16 != 0) {
      throw ConfigError(
          fmt::format("--verify: a --block-size of {} has no room for tags: give a multiple of 16",
                      options.block_size));
    }
    if (!writes) {
      throw ConfigError(
          "--verify: nothing is written, so nothing can be checked: add --fill, or "
          "write to --mix");
    }
  }
  if (options.server_children && !options.server_pid) {
    throw ConfigError("--server-children: of which process? Add --server-pid");
  }
  if (options.threads > options.connections) options.threads = options.connections;
  if (options.threads == 0) options.threads = std::min(options.connections, kThreadsMax);
}

}  // namespace

std::optional<BenchOptions> parse_bench_options(int argc, char** argv) {
  BenchOptions options;
  options.mix.weights[static_cast<size_t>(OpKind::kRead)] = 1;
  Given given;
  optind = 0;  // begin anew, also when called again
  opterr = 0;
  for (;;) {
    const int opt = ::getopt_long(argc, argv, ":hV", kOptions.data(), nullptr);
    if (opt == -1) break;
    if (opt == ':') {
      throw ConfigError(
          fmt::format("{}: a value is missing: see nbdbench --help", argv[optind - 1]));
    }
    if (opt == '?') {
      // A long option is behind us; of a short one getopt tells the letter.
      const bool letter = optopt > 0 && optopt < kMix;
      const std::string text =
          letter ? std::string{'-', static_cast<char>(optopt)} : argv[optind - 1];
      throw ConfigError(
          fmt::format("{}: unknown, ambiguous, or takes no value: see nbdbench --help", text));
    }
    if (opt == 'h') {
      std::fputs(kHelp, stdout);
      return {};
    }
    if (opt == 'V') {
      std::puts("nbdbench " WEFT_VERSION);
      return {};
    }
    apply(opt, options, given);
  }
  if (optind == argc) {
    throw ConfigError(
        "no target: give the URI or the Unix socket of a server; see nbdbench --help");
  }
  if (optind + 1 != argc) {
    throw ConfigError(fmt::format("'{}': one target is enough", argv[optind + 1]));
  }
  options.target = parse_target(argv[optind]);
  check(options, given);
  return options;
}

}  // namespace weft::tools
