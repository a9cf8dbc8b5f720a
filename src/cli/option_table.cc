// SPDX-License-Identifier: BSD-3-Clause
// The table of all options, in the order of --help.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <filesystem>

#include "base/parse.h"
#include "base/result.h"
#include "cli/options.h"

namespace weft::cli {
namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;

std::string absolute(const std::string& name, const std::string& path) {
  if (path.empty()) throw ConfigError(fmt::format("{}: the path is empty; name a file", name));
  if (path.front() == '/') return path;
  std::error_code error;
  const std::filesystem::path here = std::filesystem::current_path(error);
  if (error) {
    throw ConfigError(
        fmt::format("{} {}: the current directory is gone ({}); write an absolute path", name, path,
                    error.message()));
  }
  return here / path;
}

// A time that is not 0 stays so.
milliseconds parse_milliseconds(const std::string& name, const std::string& value) {
  const auto exact = parse_delay(name, value);
  return std::chrono::ceil<milliseconds>(exact);
}

void set_debug_flag(Options& options, const std::string& name, const std::string& value) {
  const size_t equals = value.find('=');
  const size_t dot = value.find('.');
  if (equals == std::string::npos || dot == std::string::npos || dot == 0 || dot + 1 >= equals) {
    throw UsageError(
        fmt::format("{} {}: a debug flag is written NAME.FLAG=N, as in file.io=1", name, value));
  }
  options.debug_flags.push_back({value.substr(0, dot), value.substr(dot + 1, equals - dot - 1),
                                 parse_int(fmt::format("{} {}", name, value.substr(0, equals)),
                                           value.substr(equals + 1), INT_MIN, INT_MAX)});
}

void set_log(Options& options, const std::string& name, const std::string& value) {
  options.log_path.clear();
  if (value == "default") {
    options.log_target.reset();
  } else if (value == "stderr") {
    options.log_target = log::Target::kStderr;
  } else if (value == "syslog") {
    options.log_target = log::Target::kSyslog;
  } else if (value == "null") {
    options.log_target = log::Target::kNull;
  } else if (value.starts_with('/')) {
    options.log_target = log::Target::kFile;
    options.log_path = value;
  } else {
    throw UsageError(
        fmt::format("{}={}: choose stderr, syslog, null, default, or the absolute path of a file",
                    name, value));
  }
}

// The last --tls counts.
void set_tls(Options& options, const std::string& name, const std::string& value) {
  std::string word = value;
  std::ranges::transform(word, word.begin(), [](unsigned char c) { return std::tolower(c); });
  const bool demanded = word == "require" || word == "required" || word == "force";
  options.tls_off = !demanded && !parse_bool(name, value);
  if (!options.tls_off) options.tls_option = fmt::format("{}={}", name, value);
}

void need_tls(Options& options, const std::string& name, const std::string&) {
  options.tls_option = name;
}

void set_name(Options& options, const std::string& name, const std::string& value) {
  if (value.empty()) throw UsageError(fmt::format("{}: the name is empty; leave it out", name));
  options.program = value;
}

// --as is taken out of the words before they are read (personality.h), where it is written out.
void refuse_as(Options&, const std::string& name, const std::string& value) {
  throw UsageError(fmt::format("{}: write it out, as --as={}", name, value));
}

// FILTER[:KEY=VALUE,...]. A comma in a value is written twice.
void add_filter(Options& options, const std::string& name, const std::string& value) {
  const size_t colon = value.find(':');
  FilterWord filter;
  filter.name = value.substr(0, colon);
  if (filter.name.empty()) {
    throw ConfigError(fmt::format("{}={}: name a filter, as in {}=cow", name, value, name));
  }
  std::string parameter;
  const auto take = [&] {
    const size_t equals = parameter.find('=');
    if (equals == 0 || equals == std::string::npos) {
      throw ConfigError(fmt::format("{}={}: '{}' is no parameter: write {}={}:KEY=VALUE,KEY=VALUE",
                                    name, value, parameter, name, filter.name));
    }
    filter.parameters.emplace_back(parameter.substr(0, equals), parameter.substr(equals + 1));
    parameter.clear();
  };
  for (size_t i = colon; i != std::string::npos && ++i <= value.size();) {
    if (i == value.size() || (value[i] == ',' && value.substr(i, 2) != ",,")) {
      take();
    } else {
      parameter += value[i];
      if (value[i] == ',') i++;
    }
  }
  options.filters.push_back(std::move(filter));
}

void set_unix(Options& options, const std::string& name, const std::string& value) {
  options.private_socket = value == "-";
  options.unix_path.reset();
  if (!options.private_socket) options.unix_path = absolute(name, value);
}

void set_requests(Options& options, const std::string& name, const std::string& value) {
  options.server.requests_max = static_cast<uint32_t>(parse_unsigned(name, value, UINT32_MAX));
}

void set_shared(Options& options, const std::string& name, const std::string& value) {
  options.server.shared = static_cast<uint32_t>(parse_unsigned(name, value, UINT32_MAX));
}

void set_max_memory(Options& options, const std::string& name, const std::string& value) {
  // A request of the largest payload must fit.
  constexpr uint64_t kMinimum = 64 << 20;
  const uint64_t bytes = parse_size(name, value);
  if (bytes != 0 && bytes < kMinimum) {
    throw ConfigError(
        fmt::format("{}={}: a request alone may need 64M; give at least that", name, value));
  }
  options.server.max_memory = bytes;
}

void set_engine(Options& options, const std::string& name, const std::string& value) {
  if (value != "auto" && value != "io_uring" && value != "epoll") {
    throw ConfigError(fmt::format("{}={}: choose auto, io_uring or epoll", name, value));
  }
  options.engine = value;
}

#define WEFT_APPLY(statement)                              \
  [](Options& o, [[maybe_unused]] const std::string& name, \
     [[maybe_unused]] const std::string& value) { statement; }

std::vector<OptionSpec> make_table() {
  using net::AddressFamily;
  return {
      // Where to listen.
      {'U',
       {"unix"},
       "PATH|-",
       "listen on a Unix socket; - is a private one, removed at the end",
       set_unix},
      {'p',
       {"port"},
       "PORT",
       "listen on TCP, by port number or service name (default 10809)",
       WEFT_APPLY(o.port = value)},
      {'i',
       {"ipaddr", "ip-addr"},
       "ADDRESS",
       "the TCP address to listen on (default: all)",
       WEFT_APPLY(o.address = value)},
      {'4',
       {"ipv4-only"},
       nullptr,
       "listen on IPv4 addresses only",
       WEFT_APPLY(o.family = AddressFamily::kIpv4)},
      {'6',
       {"ipv6-only"},
       nullptr,
       "listen on IPv6 addresses only",
       WEFT_APPLY(o.family = AddressFamily::kIpv6)},
      {0,
       {"vsock"},
       nullptr,
       "listen on a vsock (-p: its port) instead of TCP",
       WEFT_APPLY(o.vsock = true)},
      {'s',
       {"single", "stdin"},
       nullptr,
       "serve one connection on stdin and stdout",
       WEFT_APPLY(o.single = true)},
      {0,
       {"selinux-label"},
       "LABEL",
       "SELinux label of the sockets",
       WEFT_APPLY(o.selinux_label = value)},

      // What clients get.
      {'r',
       {"readonly", "read-only"},
       nullptr,
       "clients may only read",
       WEFT_APPLY(o.server.read_only = true)},
      {0, {"shared"}, "N", "at most N connections at once (default 0: no limit)", set_shared, true},
      {'t',
       {"threads"},
       "N",
       "at most N requests of a connection at once (default 0: no limit)",
       set_requests},
      {0,
       {"max-memory"},
       "SIZE",
       "memory for requests in progress (default: a quarter of RAM)",
       set_max_memory,
       true},
      {0,
       {"timeout", "time-out"},
       "DELAY",
       "time for a client to agree on an export (default 10; 0: no limit)",
       WEFT_APPLY(o.server.handshake_timeout = parse_milliseconds(name, value))},
      {0,
       {"drain-timeout"},
       "DELAY",
       "at the end, wait so long for requests in progress (default 10)",
       WEFT_APPLY(o.server.drain_timeout = parse_milliseconds(name, value)),
       true},
      {0,
       {"keepalive", "keep-alive"},
       nullptr,
       "detect lost TCP clients (SO_KEEPALIVE)",
       WEFT_APPLY(o.server.keepalive = true)},
      {'n',
       {"newstyle", "new-style"},
       nullptr,
       "the newstyle protocol (default)",
       WEFT_APPLY(o.server.oldstyle = false)},
      {'o',
       {"oldstyle", "old-style"},
       nullptr,
       "the oldstyle protocol, for ancient clients",
       WEFT_APPLY(o.server.oldstyle = true)},
      {0,
       {"mask-handshake"},
       "MASK",
       "offer only these global handshake flags",
       WEFT_APPLY(o.server.handshake_flags =
                      static_cast<uint16_t>(parse_unsigned(name, value, UINT32_MAX) & 3))},
      {0,
       {"no-sr", "no-structured-replies"},
       nullptr,
       "refuse structured and extended replies",
       WEFT_APPLY(o.server.structured_replies = false)},
      {0,
       {"no-mc", "no-meta-contexts"},
       nullptr,
       "refuse metadata contexts (block status)",
       WEFT_APPLY(o.server.meta_contexts = false)},
      {0, {"tls"}, "off", "this build has no TLS: on and require are errors", set_tls},
      {0, {"tls-certificates"}, "DIR", "certificates of TLS, which this build has not", need_tls},
      {0, {"tls-psk"}, "FILE", "shared keys of TLS, which this build has not", need_tls},
      {0, {"tls-priority"}, "PRIORITY", "algorithms of TLS, which this build has not", need_tls},
      {0,
       {"tls-verify-peer"},
       nullptr,
       "ask clients for certificates; this build has no TLS",
       need_tls},
      {0,
       {"filter"},
       "FILTER[:KEY=VALUE,...]",
       "a layer before the plugin; repeatable, the first is nearest to clients",
       add_filter},

      // The process.
      {'f',
       {"foreground", "no-fork"},
       nullptr,
       "stay in the foreground",
       WEFT_APPLY(o.foreground = true)},
      {0,
       {"run"},
       "COMMAND",
       "serve while this shell command runs ($uri, $unixsocket, ...)",
       WEFT_APPLY(o.run = value)},
      {'e',
       {"exportname", "export", "export-name"},
       "NAME",
       "the export that the URIs of --run and --print-uri name",
       WEFT_APPLY(o.export_name = value)},
      {0,
       {"print-uri", "print-url", "show-uri", "show-url"},
       nullptr,
       "print the URI for clients on stdout",
       WEFT_APPLY(o.print_uri = true)},
      {'P',
       {"pidfile", "pid-file"},
       "FILE",
       "write the process id there once clients can connect",
       WEFT_APPLY(o.pidfile = absolute(name, value))},
      {'u', {"user"}, "USER", "change to this user once listening", WEFT_APPLY(o.user = value)},
      {'g', {"group"}, "GROUP", "change to this group once listening", WEFT_APPLY(o.group = value)},
      {0,
       {"exit-with-parent"},
       nullptr,
       "stop when the parent process ends; implies -f",
       WEFT_APPLY(o.exit_with_parent = true)},
      {0,
       {"swap"},
       nullptr,
       "lock all memory, for swapping to a disk served by weft",
       WEFT_APPLY(o.swap = true)},
      {0, {"engine"}, "ENGINE", "auto, io_uring or epoll (default auto)", set_engine, true},
      {0, {"log"}, "TARGET", "stderr, syslog, null, default or /path: where messages go", set_log},
      {0, {"name"}, "NAME", "the name with which messages begin", set_name},
      {0, {"as"}, "weft|nbdkit", "speak the command line of weft or of nbdkit", refuse_as, true},
      {'v', {"verbose"}, nullptr, "print debug messages on stderr", WEFT_APPLY(o.verbose = true)},
      {'D', {"debug"}, "NAME.FLAG=N", "set a debug flag of a plugin", set_debug_flag},

      // Information.
      {0,
       {"explain"},
       nullptr,
       "print what is promised for the export, and why",
       WEFT_APPLY(o.explain = true),
       true},
      {0,
       {"dump-plugin"},
       nullptr,
       "print what the plugin is, as key=value lines",
       WEFT_APPLY(o.dump_plugin = true)},
      {0,
       {"dump-config"},
       nullptr,
       "print what this weft is, as key=value lines",
       WEFT_APPLY(o.action = Action::kDumpConfig),
       false,
       true},
      {0,
       {"help"},
       nullptr,
       "print this, and with a plugin its parameters",
       WEFT_APPLY(o.help = true)},
      {'V', {"version"}, nullptr, "print the version", WEFT_APPLY(o.version = true)},
      {0,
       {"short-options"},
       nullptr,
       nullptr,
       WEFT_APPLY(o.action = Action::kShortOptions),
       false,
       true},
      {0,
       {"long-options"},
       nullptr,
       nullptr,
       WEFT_APPLY(o.action = Action::kLongOptions),
       false,
       true},
  };
}

#undef WEFT_APPLY

}  // namespace

std::span<const OptionSpec> option_table() {
  static const std::vector<OptionSpec> table = make_table();
  return table;
}

}  // namespace weft::cli
