// SPDX-License-Identifier: BSD-3-Clause
#include "cli/options.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/parse.h"
#include "base/result.h"

namespace weft::cli {
namespace {

struct Candidate {
  const OptionSpec* spec;
  std::string_view name;
};

// The options of a personality, and how a word names one.
class Vocabulary {
 public:
  explicit Vocabulary(const Personality& personality) : personality_(personality) {}

  [[nodiscard]] const OptionSpec& find_long(const std::string& prefix) const {
    for (const OptionSpec& spec : option_table()) {
      if (has_option(personality_, spec) &&
          std::ranges::find(spec.names, prefix) != spec.names.end()) {
        return spec;
      }
    }
    std::vector<Candidate> found = candidates_of(prefix, false);
    if (found.empty()) found = candidates_of(prefix, true);
    if (found.empty()) throw_unknown("--" + prefix);
    const auto other = [&](const Candidate& c) { return c.spec != found.front().spec; };
    if (std::ranges::none_of(found, other)) return *found.front().spec;

    std::ranges::sort(found, {}, &Candidate::name);
    std::string list;
    for (const Candidate& candidate : found) {
      if (!list.empty()) list += ", ";
      list += fmt::format("--{}", candidate.name);
    }
    throw UsageError(fmt::format("option '--{}' is ambiguous; write out one of {}", prefix, list),
                     true);
  }

  [[nodiscard]] const OptionSpec& find_short(char letter) const {
    for (const OptionSpec& spec : option_table()) {
      if (has_option(personality_, spec) && spec.letter == letter) return spec;
    }
    throw_unknown(fmt::format("-{}", letter));
  }

 private:
  [[nodiscard]] std::vector<Candidate> candidates_of(std::string_view prefix, bool own) const {
    std::vector<Candidate> found;
    for (const OptionSpec& spec : option_table()) {
      if (spec.own != own || !has_option(personality_, spec)) continue;
      for (const std::string_view name : spec.names) {
        if (name.starts_with(prefix)) found.push_back({&spec, name});
      }
    }
    return found;
  }

  [[noreturn]] void throw_unknown(const std::string& option) const {
    throw UsageError(fmt::format("unknown option '{}'; '{} --help' lists the options", option,
                                 personality_.name),
                     true);
  }

  const Personality& personality_;
};

// The words of a command line, taken from left to right.
class Parser {
 public:
  Parser(std::span<const std::string> arguments, const Personality& personality)
      : arguments_(arguments), vocabulary_(personality) {
    options_.program = personality.name;
    options_.form = personality.form;
  }

  Options parse() {
    std::vector<std::string> words;
    bool options_end = false;
    while (!stopped_ && next_ < arguments_.size()) {
      const std::string& word = arguments_[next_++];
      if (options_end || word.size() < 2 || word[0] != '-') {
        if (words.empty()) options_.plugin_index = next_ - 1;
        words.push_back(word);
      } else if (word == "--") {
        options_end = true;
      } else if (word[1] == '-') {
        parse_long(word.substr(2));
      } else {
        parse_bundle(word);
      }
    }
    if (!words.empty()) {
      options_.plugin = words.front();
      options_.arguments.assign(words.begin() + 1, words.end());
    }
    return std::move(options_);
  }

 private:
  void parse_long(const std::string& word) {
    const size_t equals = word.find('=');
    const std::string prefix = word.substr(0, equals);
    const OptionSpec& spec = vocabulary_.find_long(prefix);
    const std::string name = fmt::format("--{}", prefix);
    if (spec.argument == nullptr) {
      if (equals != std::string::npos) {
        throw UsageError(fmt::format("option '{}' takes no argument; write it without '{}'", name,
                                     word.substr(equals)),
                         true);
      }
      apply(spec, name, "");
    } else if (equals != std::string::npos) {
      apply(spec, name, word.substr(equals + 1));
    } else {
      apply(spec, name, next_word(spec, name));
    }
  }

  void parse_bundle(const std::string& word) {
    for (size_t i = 1; i < word.size() && !stopped_; ++i) {
      const OptionSpec& spec = vocabulary_.find_short(word[i]);
      const std::string name = fmt::format("-{}", word[i]);
      if (spec.argument == nullptr) {
        apply(spec, name, "");
        continue;
      }
      const std::string rest = word.substr(i + 1);
      apply(spec, name, rest.empty() ? next_word(spec, name) : rest);
      return;
    }
  }

  const std::string& next_word(const OptionSpec& spec, const std::string& name) {
    if (next_ < arguments_.size()) return arguments_[next_++];
    throw UsageError(fmt::format("option '{}' needs an argument: {} {}", name, name, spec.argument),
                     true);
  }

  void apply(const OptionSpec& spec, const std::string& name, const std::string& value) {
    spec.apply(options_, name, value);
    stopped_ = spec.immediate;
  }

  std::span<const std::string> arguments_;
  Vocabulary vocabulary_;
  size_t next_ = 0;
  bool stopped_ = false;
  Options options_;
};

[[noreturn]] void throw_conflict(std::string_view one, std::string_view other,
                                 std::string_view reason) {
  throw UsageError(
      fmt::format("{} and {} cannot be combined: {}; leave one of them out", one, other, reason));
}

void check_single(const Options& options, const Personality& personality) {
  if (!options.single) return;
  constexpr const char* kReason = "-s serves one connection on stdin and stdout";
  if (options.port) throw_conflict("-s", "-p", kReason);
  // nbdkit has no use for the address then.
  if (options.address && !personality.nbdkit) throw_conflict("-s", "-i", kReason);
  if (options.unix_path || options.private_socket) throw_conflict("-s", "-U", kReason);
  if (options.vsock) throw_conflict("-s", "--vsock", kReason);
  if (options.run) throw_conflict("-s", "--run", kReason);
  if (options.plugin == "sh" && !options.arguments.empty() &&
      (options.arguments[0] == "-" || options.arguments[0] == "script=-")) {
    throw_conflict("-s", "sh -", "both would read from standard input");
  }
  if (options.dump_plugin) throw_conflict("-s", "--dump-plugin", kReason);
  if (options.print_uri) throw_conflict("-s", "--print-uri", kReason);
  if (options.server.shared > 1) throw_conflict("-s", "--shared", kReason);
}

void check_listeners(const Options& options, const Personality& personality) {
  const bool unix_socket = options.unix_path || options.private_socket;
  if (personality.nbdkit) {
    constexpr const char* kReason = "nbdkit listens in one place (weft in several)";
    if (options.port && unix_socket) throw_conflict("-p", "-U", kReason);
    if (options.vsock && unix_socket) throw_conflict("--vsock", "-U", kReason);
  } else {
    if (options.vsock && options.address) {
      throw_conflict("--vsock", "-i", "a vsock has no address, only a port");
    }
    if (options.address && !options.port && unix_socket) {
      throw UsageError(
          "-i names an address for TCP, but only -U says where to listen; add -p PORT "
          "to listen on both, or leave -i out");
    }
  }
  if (options.vsock && options.port) {
    (void)parse_unsigned("-p (with --vsock)", *options.port, UINT32_MAX);
  }
}

void check_tls(const Options& options) {
  if (options.tls_option.empty() || options.tls_off) return;
  throw ConfigError(
      fmt::format("{}: this build of weft has no TLS; leave the option out, or say --tls=off",
                  options.tls_option));
}

Action action_of(const Options& options) {
  if (options.action != Action::kServe) return options.action;
  if (options.help) return Action::kHelp;
  if (options.version) return Action::kVersion;
  if (options.dump_plugin) return Action::kDumpPlugin;
  if (options.explain) return Action::kExplain;
  return Action::kServe;
}

bool needs_plugin(Action action) {
  return action == Action::kServe || action == Action::kDumpPlugin || action == Action::kExplain;
}

}  // namespace

Options parse_options(std::span<const std::string> arguments, const Personality& personality) {
  Options options = Parser(arguments, personality).parse();
  options.action = action_of(options);
  check_listeners(options, personality);
  check_single(options, personality);
  if (needs_plugin(options.action) && options.plugin.empty()) {
    throw UsageError(
        fmt::format("no plugin was named; say what to serve, as in '{0} file disk.img' "
                    "(see '{0} --help')",
                    personality.name));
  }
  check_tls(options);
  if (options.single) options.server.shared = 1;
  return options;
}

void settle_listeners(Options& options, bool inherited) {
  if (inherited) {
    constexpr const char* kReason = "the service manager passed the listening sockets";
    const auto refuse = [&](bool given, std::string_view option) {
      if (given) throw_conflict(option, "socket activation", kReason);
    };
    refuse(options.address.has_value(), "-i");
    refuse(options.port.has_value(), "-p");
    refuse(options.single, "-s");
    refuse(options.unix_path || options.private_socket, "-U");
    refuse(options.run.has_value(), "--run");
    refuse(options.vsock, "--vsock");
    return;
  }
  if (options.single) return;
  const bool unix_socket = options.unix_path || options.private_socket;
  if (options.vsock) {
    if (!options.port) options.port = "10809";
  } else if (!options.port && !unix_socket) {
    if (options.run && !options.address) {
      options.private_socket = true;
    } else {
      options.port = "10809";
    }
  }
}

bool runs_in_background(const Options& options, bool inherited) {
  return !inherited && !options.foreground && !options.run && !options.single &&
         !options.exit_with_parent;
}

}  // namespace weft::cli
