// SPDX-License-Identifier: BSD-3-Clause
// Options: what a command line says, as one value. Nothing beyond this folder knows the words.
//
// The grammar is nbdkit's, which is getopt_long(3)'s: options stand before or after the plugin, up
// to `--`; long options may be abbreviated as long as only one is meant (`--read` is --readonly,
// --read-only and so -r); short ones may be bundled (`-fvU sock`); an argument follows as the next
// word or behind `=`, or directly behind a short option. weft's own options never take an
// abbreviation away from those of nbdkit: `--exp` stays --export.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/log.h"
#include "cli/personality.h"
#include "net/listen.h"
#include "server/server.h"

namespace weft::cli {

enum class Action {
  kServe,
  kHelp,
  kVersion,
  kDumpConfig,
  kDumpPlugin,
  kExplain,
  kShortOptions,
  kLongOptions,
};

// -D NAME.FLAG=N.
struct DebugFlag {
  std::string name;
  std::string flag;
  int64_t value = 0;
};

// --filter=NAME:KEY=VALUE,...
struct FilterWord {
  std::string name;
  std::vector<std::pair<std::string, std::string>> parameters;
  friend bool operator==(const FilterWord&, const FilterWord&) = default;
};

struct Options {
  Action action = Action::kServe;

  // How messages begin: with the personality's name or --name, in its form.
  std::string program = "weft";
  log::Form form = log::Form::kWeft;

  std::string plugin;                  // its name; empty when none was given
  size_t plugin_index = 0;             // where on the command line it stands, if it does
  std::vector<std::string> arguments;  // what followed it, options taken out (see parameters.h)
  std::vector<FilterWord> filters;     // the first is nearest to the client

  // What the server does with clients.
  server::Config server;
  std::string engine = "auto";
  std::string export_name;  // for URIs and --explain

  // Where it listens.
  std::optional<std::string> unix_path;  // absolute
  bool private_socket = false;           // -U -
  std::optional<std::string> address;
  std::optional<std::string> port;
  net::AddressFamily family = net::AddressFamily::kAny;
  bool vsock = false;
  bool single = false;  // one connection on stdin and stdout
  std::string selinux_label;

  // The process.
  bool foreground = false;  // -f alone: see runs_in_background()
  bool exit_with_parent = false;
  bool swap = false;
  bool print_uri = false;
  std::optional<std::string> run;
  std::optional<std::string> pidfile;  // absolute
  std::optional<std::string> user;
  std::optional<std::string> group;

  // Messages. Without a target: stderr, and syslog once the server is in the background.
  bool verbose = false;
  std::optional<log::Target> log_target;
  std::string log_path;
  std::vector<DebugFlag> debug_flags;

  // TLS, which this build has not: what asks for it, as it was written, and that none is wanted.
  std::string tls_option;
  bool tls_off = false;

  bool help = false;     // what `action` is made from, in this order of precedence;
  bool version = false;  // the rest of the line is still checked
  bool dump_plugin = false;
  bool explain = false;
};

// `arguments` without the program's name. Throws ConfigError for a word, a value or a combination
// that is wrong. --dump-config, --short-options and --long-options end the parsing where they
// stand.
Options parse_options(std::span<const std::string> arguments,
                      const Personality& personality = weft_personality());

// The combinations that depend on whether a service manager passed listening sockets. Throws
// ConfigError; otherwise settles where the server listens: after it, exactly what is set is used.
void settle_listeners(Options& options, bool inherited);

[[nodiscard]] bool runs_in_background(const Options& options, bool inherited);

// An entry of the table from which parsing, --help, --short-options and --long-options are made.
struct OptionSpec {
  char letter;                          // 0: none
  std::vector<std::string_view> names;  // without the dashes, the one to show first
  const char* argument;                 // how --help calls it; null: takes none
  const char* help;                     // one line; null: hidden
  // `name` is the option as the user wrote it, for messages.
  void (*apply)(Options& options, const std::string& name, const std::string& value);
  bool own = false;        // weft's, not nbdkit's
  bool immediate = false;  // ends the parsing
};

std::span<const OptionSpec> option_table();

// Whether `personality` has the option.
inline bool has_option(const Personality& personality, const OptionSpec& spec) {
  return !(spec.own && personality.nbdkit);
}

}  // namespace weft::cli
