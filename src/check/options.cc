// SPDX-License-Identifier: BSD-3-Clause
#include "check/options.h"

#include <fmt/format.h>
#include <getopt.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <random>
#include <string_view>
#include <utility>

#include "base/parse.h"
#include "base/result.h"

namespace weft::check {
namespace {

constexpr char kHelp[] = R"(nbdcheck: does this NBD server keep its promise?

Usage: nbdcheck [OPTION]... URI
       nbdcheck [OPTION]... -- COMMAND...
URI: nbd://HOST[:PORT]/[EXPORT], nbd+unix:///[EXPORT]?socket=PATH, or the path of a Unix socket
COMMAND starts a server that stays in the foreground; {socket} in it becomes the path of the Unix
socket to listen on, {disk} that of a disk which nbdcheck provides and may harm.

What is tested (default: --consistency; several may be given):
  --consistency         is what one connection wrote seen by the others, and when?
  --reconnect           connections cut with requests in flight, requests sent again
  --conformance         bad and unusual input, every command and flag, both reply formats
  --all                 the three above; with a COMMAND that has {disk}, all seven
 With a COMMAND that has {disk} (needs FUSE):
  --power-cut           the disk loses its power: does what was flushed survive?
  --kill                the same with kill -9 of the server only
  --fail-flush          the disk fails a sync: is everybody told, and for how long?
  --fail-io             the disk fails reads and writes
Where, and how long:
  --destroy             the export's content may be destroyed; without it nothing is written, and
                        only --conformance can run. Not needed with {disk}
  --range=OFFSET:LENGTH use only these bytes of the export
  --blocks=N            how many blocks the load works on; default: 16
  --block-size=SIZE     default: 4k
  --duration=TIME       of each test; default: 10 (seconds; or 500ms ...)
  --connections=N       default: 4
  --depth=N             requests in flight on each; default: 4
  --kinds=KIND,...      only these operations in the load: read write zero trim cache flush status
  --seed=N              decides every random choice; default: a new one each time
  --timeout=TIME        a request without a reply for so long is a hang; default: 10
  --disk-size=SIZE      of {disk}; default: 64m
  --export=NAME         with a COMMAND: the export to test; default: the default export
Report:
  --json=FILE           write the report as JSON; - is the standard output
  --json-histories      with every operation in it
  --junit=FILE          write it as JUnit XML, a test case for each test
  --html=FILE           write a page with a timeline, to be opened in a browser
  --accept=NAME         a failure of this test, or a finding of this kind, is only warned of;
                        may be given several times
  --only=NAME           only tests whose names begin so
  --verbose, -v         also list what passed
  --quiet, -q           no progress
  --help, --version

Exit status: 0 the promise is kept; 1 it is broken; 2 could not tell; 3 wrong usage, or no
connection. nbdcheck(1) says what each test means and what to do next.
)";

enum Opt : int {
  kConsistency = 256,
  kReconnect,
  kConformance,
  kAll,
  kPowerCut,
  kKill,
  kFailFlush,
  kFailIo,
  kDestroy,
  kRange,
  kBlocks,
  kBlockSize,
  kDuration,
  kConnections,
  kDepth,
  kLoadKinds,
  kSeed,
  kTimeout,
  kDiskSize,
  kExport,
  kJson,
  kJsonHistories,
  kJunit,
  kHtml,
  kAccept,
  kOnly,
  kHelpOption,
  kVersion,
};

constexpr option kLongOptions[] = {
    {"consistency", no_argument, nullptr, kConsistency},
    {"reconnect", no_argument, nullptr, kReconnect},
    {"conformance", no_argument, nullptr, kConformance},
    {"all", no_argument, nullptr, kAll},
    {"power-cut", no_argument, nullptr, kPowerCut},
    {"kill", no_argument, nullptr, kKill},
    {"fail-flush", no_argument, nullptr, kFailFlush},
    {"fail-io", no_argument, nullptr, kFailIo},
    {"destroy", no_argument, nullptr, kDestroy},
    {"range", required_argument, nullptr, kRange},
    {"blocks", required_argument, nullptr, kBlocks},
    {"block-size", required_argument, nullptr, kBlockSize},
    {"duration", required_argument, nullptr, kDuration},
    {"connections", required_argument, nullptr, kConnections},
    {"depth", required_argument, nullptr, kDepth},
    {"kinds", required_argument, nullptr, kLoadKinds},
    {"seed", required_argument, nullptr, kSeed},
    {"timeout", required_argument, nullptr, kTimeout},
    {"disk-size", required_argument, nullptr, kDiskSize},
    {"export", required_argument, nullptr, kExport},
    {"json", required_argument, nullptr, kJson},
    {"json-histories", no_argument, nullptr, kJsonHistories},
    {"junit", required_argument, nullptr, kJunit},
    {"html", required_argument, nullptr, kHtml},
    {"accept", required_argument, nullptr, kAccept},
    {"only", required_argument, nullptr, kOnly},
    {"verbose", no_argument, nullptr, 'v'},
    {"quiet", no_argument, nullptr, 'q'},
    {"help", no_argument, nullptr, kHelpOption},
    {"version", no_argument, nullptr, kVersion},
    {},
};

uint32_t parse_count(const char* name, std::string_view text, uint32_t min, uint32_t max) {
  const uint64_t value = parse_unsigned(name, text, max);
  if (value < min)
    throw ConfigError(fmt::format("{}: {} is too small: at least {}", name, text, min));
  return static_cast<uint32_t>(value);
}

std::chrono::milliseconds parse_time(const char* name, std::string_view text) {
  const auto time = std::chrono::ceil<std::chrono::milliseconds>(parse_delay(name, text));
  if (time.count() <= 0 || time > std::chrono::hours(24)) {
    throw ConfigError(
        fmt::format("{}: {} must be more than nothing and at most a day", name, text));
  }
  return time;
}

Range parse_range(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) {
    throw ConfigError(
        fmt::format("--range: '{}' is no range: give OFFSET:LENGTH, as in 1m:64k", text));
  }
  const Range range{parse_size("--range", text.substr(0, colon)),
                    parse_size("--range", text.substr(colon + 1))};
  if (range.empty()) throw ConfigError("--range: a length of 0 leaves nothing to test");
  return range;
}

std::set<Kind> parse_kinds(std::string_view text) {
  constexpr std::array kAll = {Kind::kRead,  Kind::kWrite, Kind::kZero,  Kind::kTrim,
                               Kind::kCache, Kind::kFlush, Kind::kStatus};
  std::set<Kind> kinds;
  while (true) {
    const size_t comma = text.find(',');
    const std::string_view name = text.substr(0, comma);
    const auto kind = std::ranges::find(kAll, name, kind_name);
    if (kind == kAll.end()) {
      throw ConfigError(fmt::format(
          "--kinds: '{}' is none of read, write, zero, trim, cache, flush, status", name));
    }
    kinds.insert(*kind);
    if (comma == std::string_view::npos) return kinds;
    text.remove_prefix(comma + 1);
  }
}

std::string quoted(std::string_view word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+./:,@%{}";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string_view::npos) {
    return std::string(word);
  }
  std::string text = "'";
  for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return text + "'";
}

// The option as one word, for replays. Those have a seed of their own, and overwrite no report.
std::string replayed(int code, const char* value) {
  if (code == kSeed || (code >= kJson && code <= kHtml)) return {};
  const auto* const known = std::ranges::find(kLongOptions, code, &option::val);
  std::string word = fmt::format("--{}", known->name);
  if (known->has_arg == required_argument) word += fmt::format("={}", value);
  return quoted(word);
}

bool mentions(const std::vector<std::string>& command, std::string_view what) {
  return std::ranges::any_of(
      command, [&](const std::string& word) { return word.find(what) != std::string::npos; });
}

void take_mode(Modes& modes, int code, bool& all) {
  switch (code) {
    case kConsistency:
      modes.consistency = true;
      break;
    case kReconnect:
      modes.reconnect = true;
      break;
    case kConformance:
      modes.conformance = true;
      break;
    case kPowerCut:
      modes.power_cut = true;
      break;
    case kKill:
      modes.kill = true;
      break;
    case kFailFlush:
      modes.fail_flush = true;
      break;
    case kFailIo:
      modes.fail_io = true;
      break;
    default:
      all = true;
      break;
  }
}

void take_value(Options& options, int code, const char* value) {
  switch (code) {
    case kRange:
      options.range = parse_range(value);
      break;
    case kBlocks:
      options.blocks = parse_count("--blocks", value, 1, 4096);
      break;
    case kBlockSize: {
      const uint64_t size = parse_size("--block-size", value);
      if (!std::has_single_bit(size) || size < 512 || size > (1 << 20)) {
        throw ConfigError(
            fmt::format("--block-size: {} is no power of two from 512 to 1m: try 4k", value));
      }
      options.block_size = static_cast<uint32_t>(size);
      break;
    }
    case kDuration:
      options.duration = parse_time("--duration", value);
      break;
    case kConnections:
      options.connections = parse_count("--connections", value, 1, 256);
      break;
    case kDepth:
      options.depth = parse_count("--depth", value, 1, 256);
      break;
    case kLoadKinds:
      options.kinds = parse_kinds(value);
      break;
    case kSeed:
      options.seed = parse_unsigned("--seed", value, UINT64_MAX);
      if (options.seed == 0) throw ConfigError("--seed: 0 is no seed: give 1 or more");
      break;
    case kTimeout:
      options.patience = parse_time("--timeout", value);
      break;
    case kDiskSize:
      options.disk_size = parse_size("--disk-size", value);
      if (options.disk_size < (1 << 20) || options.disk_size > (1ull << 30) ||
          options.disk_size % 4096 != 0) {
        throw ConfigError(
            fmt::format("--disk-size: {} will not do: give a multiple of 4k from 1m to 1g", value));
      }
      break;
    case kExport:
      options.export_name = value;
      break;
    case kJson:
      options.json = value;
      break;
    case kJunit:
      options.junit = value;
      break;
    case kHtml:
      options.html = value;
      break;
    case kAccept:
      options.accepted.insert(value);
      break;
    default:
      options.only = value;
      break;
  }
}

// What is asked for must be possible with the server that was given.
void settle(Options& options, bool all) {
  Modes& modes = options.modes;
  const bool disk = mentions(options.command, "{disk}");
  if (all) {
    modes.consistency = modes.reconnect = modes.conformance = true;
    if (disk) modes.power_cut = modes.kill = modes.fail_flush = modes.fail_io = true;
  }
  if (!modes.consistency && !modes.reconnect && !modes.conformance && !modes.need_command()) {
    modes.consistency = true;
  }
  if (modes.need_command() && !disk) {
    throw ConfigError(
        "--power-cut, --kill, --fail-flush and --fail-io need a disk that can be harmed: give the "
        "server's command, as in: nbdcheck --power-cut -- nbdkit -f -U {socket} file {disk}");
  }
  if (!options.command.empty()) {
    if (options.target) {
      throw ConfigError("a URI and a command after --: give one of them");
    }
    if (!mentions(options.command, "{socket}")) {
      throw ConfigError("the command after -- has no {socket}: where shall its server listen?");
    }
    if (disk) return;
  } else if (!options.target) {
    throw ConfigError(
        "no server: give its URI, or after -- the command that starts it (try --help)");
  }
  if ((modes.consistency || modes.reconnect) && !options.destroy) {
    throw ConfigError(
        "the test writes to the export, whose content is lost then: add --destroy if it may be "
        "(--range=OFFSET:LENGTH confines it), or test with --conformance, which then only reads; a "
        "command with {disk} gets a disk of nbdcheck's own");
  }
}

}  // namespace

std::string Options::replay(uint64_t with_seed, const std::vector<std::string>& instead) const {
  std::string line = fmt::format("nbdcheck --seed={}", with_seed);
  for (const std::string& word : instead) line += " " + word;
  for (const std::string& word : words) {
    // Ours come first, and the last of an option counts.
    const bool replaced = std::ranges::any_of(instead, [&](const std::string& other) {
      const size_t equals = other.find('=');
      return equals != std::string::npos && word.starts_with(other.substr(0, equals + 1));
    });
    if (!replaced) line += " " + word;
  }
  return line;
}

std::optional<Options> parse_options(int argc, char** argv) {
  Options options;
  // What stands behind "--" is the server's.
  int own = 1;
  while (own < argc && std::string_view(argv[own]) != "--") own++;
  for (int i = own + 1; i < argc; i++) options.command.emplace_back(argv[i]);
  if (own < argc && options.command.empty()) {
    throw ConfigError("nothing after --: the command that starts the server belongs there");
  }

  bool all = false;
  bool seed_given = false;
  opterr = 0;
  optind = 1;
  for (int code; (code = ::getopt_long(own, argv, "vq", kLongOptions, nullptr)) != -1;) {
    if (code == kHelpOption) {
      std::fputs(kHelp, stdout);
      return std::nullopt;
    }
    if (code == kVersion) {
      fmt::print("nbdcheck {}\n", WEFT_VERSION);
      return std::nullopt;
    }
    if (code == '?') {
      throw ConfigError(fmt::format(
          "{}: unknown option, or a value is missing: see nbdcheck --help", argv[optind - 1]));
    }
    if (std::string word = replayed(code, ::optarg); !word.empty()) {
      options.words.push_back(std::move(word));
    }
    if (code >= kConsistency && code <= kFailIo) {
      take_mode(options.modes, code, all);
    } else if (code == kDestroy) {
      options.destroy = true;
    } else if (code == kJsonHistories) {
      options.json_histories = true;
    } else if (code == 'v') {
      options.verbose = true;
    } else if (code == 'q') {
      options.quiet = true;
    } else {
      seed_given |= code == kSeed;
      take_value(options, code, ::optarg);
    }
  }
  if (own - optind > 1) {
    throw ConfigError(
        fmt::format("two servers, '{}' and '{}': give one", argv[optind], argv[optind + 1]));
  }
  if (optind < own) {
    options.target = tools::parse_target(argv[optind]);
    options.words.push_back(quoted(argv[optind]));
  }
  if (!options.command.empty()) options.words.emplace_back("--");
  for (const std::string& word : options.command) options.words.push_back(quoted(word));
  if (!seed_given) options.seed = std::random_device()() | 1;
  settle(options, all);
  return options;
}

}  // namespace weft::check
