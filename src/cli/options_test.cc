// SPDX-License-Identifier: BSD-3-Clause
#include "cli/options.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/information.h"

namespace weft::cli {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using Words = std::vector<std::string>;

Options parse(const Words& words) {
  return parse_options(words);
}

std::string error_of(const Words& words) {
  try {
    (void)parse_options(words);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Options, Nothing) {
  const Options options = parse({"memory", "1M"});
  EXPECT_EQ(options.action, Action::kServe);
  EXPECT_EQ(options.plugin, "memory");
  EXPECT_THAT(options.arguments, ElementsAre("1M"));
  EXPECT_FALSE(options.foreground);
  EXPECT_EQ(options.server.handshake_timeout, milliseconds(10'000));
  EXPECT_EQ(options.engine, "auto");
}

TEST(Options, EveryOrderOfOptionsAndWords) {
  // Three options and two words that keep their order; all interleavings give the same.
  const std::vector<Words> pieces = {
      {"-r"}, {"-p", "10810"}, {"--engine=epoll"}, {"memory"}, {"1M"}};
  std::vector<size_t> order = {0, 1, 2, 3, 4};
  int count = 0;
  do {
    if (std::ranges::find(order, 3u) > std::ranges::find(order, 4u)) continue;
    Words words;
    for (const size_t i : order) words.insert(words.end(), pieces[i].begin(), pieces[i].end());
    const Options options = parse(words);
    EXPECT_TRUE(options.server.read_only);
    EXPECT_EQ(options.port, "10810");
    EXPECT_EQ(options.engine, "epoll");
    EXPECT_EQ(options.plugin, "memory");
    EXPECT_THAT(options.arguments, ElementsAre("1M"));
    ++count;
  } while (std::ranges::next_permutation(order).found);
  EXPECT_EQ(count, 60);
}

TEST(Options, DoubleDashEndsOptions) {
  const Options options = parse({"-f", "--", "memory", "-r", "--"});
  EXPECT_TRUE(options.foreground);
  EXPECT_FALSE(options.server.read_only);
  EXPECT_EQ(options.plugin, "memory");
  EXPECT_THAT(options.arguments, ElementsAre("-r", "--"));
}

TEST(Options, DashIsAWordAndArgumentsMayLookLikeOptions) {
  EXPECT_THAT(parse({"data", "-", ""}).arguments, ElementsAre("-", ""));
  EXPECT_TRUE(parse({"memory", "-U", "-"}).private_socket);
  EXPECT_EQ(parse({"memory", "--run", "--"}).run, "--");
  EXPECT_EQ(parse({"memory", "-e", "-r"}).export_name, "-r");
  EXPECT_FALSE(parse({"memory", "-e", "-r"}).server.read_only);
}

TEST(Options, BundlesOfShortOptions) {
  const Options options = parse({"-frvp10810", "memory"});
  EXPECT_TRUE(options.foreground && options.server.read_only && options.verbose);
  EXPECT_EQ(options.port, "10810");
  EXPECT_EQ(parse({"-fp", "1", "memory"}).port, "1");
  // Unlike behind a long option, '=' is a part of the argument.
  EXPECT_THAT(*parse({"-U=x", "memory"}).unix_path, EndsWith("/=x"));
  EXPECT_THAT(error_of({"-fZ", "memory"}), HasSubstr("'-Z'"));
  EXPECT_THAT(error_of({"memory", "-fp"}), AllOf(HasSubstr("'-p'"), HasSubstr("PORT")));
}

TEST(Options, ArgumentsOfLongOptions) {
  EXPECT_EQ(parse({"--port=1", "memory"}).port, "1");
  EXPECT_EQ(parse({"--port", "1", "memory"}).port, "1");
  EXPECT_EQ(parse({"--export=", "memory"}).export_name, "");
  EXPECT_EQ(parse({"--run=a=b c", "memory"}).run, "a=b c");
  EXPECT_THAT(error_of({"--readonly=1", "memory"}), HasSubstr("takes no argument"));
  EXPECT_THAT(error_of({"memory", "--port"}), HasSubstr("needs an argument"));
}

// What getopt_long would say of every prefix of every name, computed from the table, and the
// parser.
TEST(Options, EveryAbbreviation) {
  std::map<std::string, std::set<const OptionSpec*>> nbdkit;
  std::map<std::string, std::set<const OptionSpec*>> own;
  std::map<std::string, const OptionSpec*> exact;
  for (const OptionSpec& spec : option_table()) {
    for (const std::string_view name : spec.names) {
      EXPECT_TRUE(exact.emplace(name, &spec).second) << name << " is there twice";
      for (size_t size = 1; size <= name.size(); ++size) {
        (spec.own ? own : nbdkit)[std::string(name.substr(0, size))].insert(&spec);
      }
    }
  }
  std::set<std::string> prefixes;
  for (const auto& [prefix, specs] : nbdkit) prefixes.insert(prefix);
  for (const auto& [prefix, specs] : own) prefixes.insert(prefix);
  for (const std::string& prefix : prefixes) {
    const auto& specs = nbdkit.contains(prefix) ? nbdkit[prefix] : own[prefix];
    const bool ambiguous = !exact.contains(prefix) && specs.size() > 1;
    // `=` makes an option without argument fail after it was recognised, and a bad value likewise.
    const std::string error = error_of({"--" + prefix + "=", "memory"});
    EXPECT_EQ(error.find("is ambiguous") != std::string::npos, ambiguous)
        << prefix << ": " << error;
    EXPECT_EQ(error.find("unknown option"), std::string::npos) << prefix;
  }
}

TEST(Options, AbbreviationsOfNbdkitKeepTheirMeaning) {
  EXPECT_EQ(parse({"--exp", "x", "memory"}).export_name, "x");
  EXPECT_EQ(parse({"--expl", "memory"}).action, Action::kExplain);
  EXPECT_TRUE(parse({"--fo", "memory"}).foreground);
  EXPECT_TRUE(parse({"--read", "memory"}).server.read_only);
  EXPECT_EQ(parse({"--sha=2", "memory"}).server.shared, 2u);
  EXPECT_EQ(parse({"--vers", "memory"}).action, Action::kVersion);
}

TEST(Options, AmbiguityNamesTheCandidates) {
  const std::string error = error_of({"--ex", "memory"});
  EXPECT_THAT(error, AllOf(HasSubstr("'--ex' is ambiguous"), HasSubstr("--exit-with-parent"),
                           HasSubstr("--export"), HasSubstr("--export-name")));
  EXPECT_THAT(error_of({"--nonsense", "memory"}), HasSubstr("unknown option '--nonsense'"));
}

TEST(Options, EveryAlias) {
  for (const char* word : {"-r", "--readonly", "--read-only"}) {
    EXPECT_TRUE(parse({word, "memory"}).server.read_only) << word;
  }
  for (const char* word : {"-f", "--foreground", "--no-fork"}) {
    EXPECT_TRUE(parse({word, "memory"}).foreground) << word;
  }
  for (const char* word : {"-s", "--single", "--stdin"}) {
    EXPECT_TRUE(parse({word, "memory"}).single) << word;
  }
  for (const char* word : {"-e", "--exportname", "--export", "--export-name"}) {
    EXPECT_EQ(parse({word, "x", "memory"}).export_name, "x") << word;
  }
  for (const char* word : {"-P", "--pidfile", "--pid-file"}) {
    EXPECT_EQ(parse({word, "/x", "memory"}).pidfile, "/x") << word;
  }
  for (const char* word : {"-i", "--ipaddr", "--ip-addr"}) {
    EXPECT_EQ(parse({word, "::1", "memory"}).address, "::1") << word;
  }
  for (const char* word : {"-o", "--oldstyle", "--old-style"}) {
    EXPECT_TRUE(parse({word, "memory"}).server.oldstyle) << word;
    EXPECT_FALSE(parse({word, "memory", "-n"}).server.oldstyle) << word;
  }
  for (const char* word : {"--no-sr", "--no-structured-replies"}) {
    EXPECT_FALSE(parse({word, "memory"}).server.structured_replies) << word;
  }
  for (const char* word : {"--no-mc", "--no-meta-contexts"}) {
    EXPECT_FALSE(parse({word, "memory"}).server.meta_contexts) << word;
  }
  for (const char* word : {"--print-uri", "--print-url", "--show-uri", "--show-url"}) {
    EXPECT_TRUE(parse({word, "memory"}).print_uri) << word;
  }
  for (const char* word : {"--keepalive", "--keep-alive"}) {
    EXPECT_TRUE(parse({word, "memory"}).server.keepalive) << word;
  }
  EXPECT_EQ(parse({"--time-out=1", "memory"}).server.handshake_timeout, milliseconds(1000));
}

TEST(Options, Values) {
  EXPECT_EQ(parse({"-t", "0x10", "memory"}).server.requests_max, 16u);
  EXPECT_EQ(parse({"--max-memory=64M", "memory"}).server.max_memory, 64u << 20);
  EXPECT_EQ(parse({"--timeout=100ms", "memory"}).server.handshake_timeout, milliseconds(100));
  EXPECT_EQ(parse({"--timeout=0", "memory"}).server.handshake_timeout, milliseconds(0));
  // Not 0, which would mean: no limit.
  EXPECT_EQ(parse({"--timeout=1us", "memory"}).server.handshake_timeout, milliseconds(1));
  EXPECT_EQ(parse({"--drain-timeout=2", "memory"}).server.drain_timeout, milliseconds(2000));
  EXPECT_EQ(parse({"--mask-handshake=0", "memory"}).server.handshake_flags, 0);
  EXPECT_EQ(parse({"--mask-handshake=0xff", "memory"}).server.handshake_flags, 3);
  EXPECT_EQ(parse({"-4", "-6", "memory"}).family, net::AddressFamily::kIpv6);
  EXPECT_EQ(parse({"-6", "-4", "memory"}).family, net::AddressFamily::kIpv4);
  EXPECT_EQ(parse({"-U", "/a", "-U", "-", "memory"}).unix_path, std::nullopt);
  for (const char* word : {"off", "0", "false", "no", "OFF"}) {
    EXPECT_EQ(error_of({fmt::format("--tls={}", word), "memory"}), "");
  }
}

TEST(Options, PathsBecomeAbsolute) {
  char here[4096];
  ASSERT_NE(::getcwd(here, sizeof here), nullptr);
  EXPECT_EQ(parse({"-U", "sock", "memory"}).unix_path, fmt::format("{}/sock", here));
  EXPECT_EQ(parse({"-P", "a/pid", "memory"}).pidfile, fmt::format("{}/a/pid", here));
}

TEST(Options, WrongValuesNameOptionAndValue) {
  const std::vector<std::pair<Words, std::string>> cases = {
      {{"-t", "x"}, "x"},
      {{"-t", "-1"}, "-1"},
      {{"--shared=4294967296"}, "4294967296"},
      {{"--max-memory=1.5M"}, "1.5M"},
      {{"--max-memory=67108863"}, "67108863"},
      {{"--timeout=soon"}, "soon"},
      {{"--engine=kqueue"}, "kqueue"},
      {{"--log=file"}, "file"},
      {{"--log="}, "--log"},
      {{"--mask-handshake=-1"}, "-1"},
      {{"-D", "nonsense"}, "nonsense"},
      {{"-D", "a.b=x"}, "a.b"},
      {{"-D", ".b=1"}, ".b=1"},
      {{"--vsock", "-p", "99999999999"}, "99999999999"},
      {{"-U", ""}, "-U"},
      {{"-P", ""}, "-P"},
      {{"--tls=on"}, "no TLS"},
      {{"--tls=require"}, "no TLS"},
      {{"--tls=maybe"}, "maybe"},
      {{"--tls-psk=x"}, "no TLS"},
      {{"--tls-verify-peer"}, "no TLS"},
      {{"--filter=cow:size"}, "KEY=VALUE"},
  };
  for (auto [words, text] : cases) {
    const std::string option = words[0].substr(0, words[0].find('='));
    words.emplace_back("memory");
    const std::string error = error_of(words);
    EXPECT_THAT(error, HasSubstr(text));
    EXPECT_NE(error.find(option == "--vsock" ? "-p" : option), std::string::npos) << error;
    EXPECT_EQ(error.find('\n'), std::string::npos) << error;
  }
}

TEST(Options, Combinations) {
  for (const Words& other : std::vector<Words>{{"-p", "1"},
                                               {"-U", "x"},
                                               {"-U", "-"},
                                               {"-i", "::1"},
                                               {"--vsock"},
                                               {"--run", "true"},
                                               {"--dump-plugin"},
                                               {"--shared", "2"},
                                               {"--print-uri"}}) {
    Words words = {"-s", "memory"};
    words.insert(words.end(), other.begin(), other.end());
    EXPECT_THAT(error_of(words), AllOf(HasSubstr("-s and "), HasSubstr(other[0])));
  }
  EXPECT_THAT(error_of({"-s", "sh", "-"}), HasSubstr("-s and sh -"));
  EXPECT_EQ(error_of({"-s", "sh", "./script", "-"}), "");
  EXPECT_THAT(error_of({"--vsock", "-i", "::1", "memory"}), HasSubstr("--vsock and -i"));
  EXPECT_THAT(error_of({"-U", "x", "-i", "::1", "memory"}), HasSubstr("-p PORT"));
  EXPECT_EQ(error_of({"-U", "x", "-i", "::1", "-p", "1", "memory"}), "");
  EXPECT_EQ(error_of({"-U", "x", "-p", "1", "memory"}), "");
  EXPECT_EQ(error_of({"-U", "x", "--vsock", "memory"}), "");
}

TEST(Options, Actions) {
  EXPECT_EQ(parse({"--help"}).action, Action::kHelp);
  EXPECT_EQ(parse({"--version"}).action, Action::kVersion);
  EXPECT_EQ(parse({"-V", "--help"}).action, Action::kHelp);
  EXPECT_EQ(parse({"--dump-plugin", "memory"}).action, Action::kDumpPlugin);
  EXPECT_EQ(parse({"--explain", "memory"}).action, Action::kExplain);
  for (const Words& words :
       std::vector<Words>{{}, {"-f"}, {"--dump-plugin"}, {"--explain"}, {"--"}}) {
    EXPECT_THAT(error_of(words), HasSubstr("no plugin"));
  }
  // These end the parsing where they stand.
  EXPECT_EQ(parse({"--dump-config", "--nonsense", "-s", "-p"}).action, Action::kDumpConfig);
  EXPECT_EQ(parse({"--long-options", "--nonsense"}).action, Action::kLongOptions);
  EXPECT_EQ(parse({"--short-options", "--nonsense"}).action, Action::kShortOptions);
  EXPECT_THAT(error_of({"--nonsense", "--dump-config"}), HasSubstr("--nonsense"));
  EXPECT_THAT(error_of({"--help", "--nonsense"}), HasSubstr("--nonsense"));
}

TEST(Listeners, Defaults) {
  Options options = parse({"memory"});
  settle_listeners(options, false);
  EXPECT_EQ(options.port, "10809");

  options = parse({"memory", "-U", "/x"});
  settle_listeners(options, false);
  EXPECT_EQ(options.port, std::nullopt);

  options = parse({"memory", "--run", "true"});
  settle_listeners(options, false);
  EXPECT_TRUE(options.private_socket);
  EXPECT_EQ(options.port, std::nullopt);

  options = parse({"memory", "--run", "true", "-p", "0"});
  settle_listeners(options, false);
  EXPECT_FALSE(options.private_socket);

  options = parse({"memory", "--vsock", "-U", "/x"});
  settle_listeners(options, false);
  EXPECT_EQ(options.port, "10809");

  options = parse({"memory", "-s"});
  settle_listeners(options, false);
  EXPECT_EQ(options.port, std::nullopt);
}

TEST(Listeners, SocketActivationStandsAlone) {
  Options options = parse({"memory"});
  settle_listeners(options, true);
  EXPECT_EQ(options.port, std::nullopt);
  for (const Words& words : std::vector<Words>{{"memory", "-i", "::1"},
                                               {"memory", "-p", "1"},
                                               {"memory", "-s"},
                                               {"memory", "-U", "-"},
                                               {"memory", "--run", "true"},
                                               {"memory", "--vsock"}}) {
    Options conflicting = parse(words);
    EXPECT_THROW(settle_listeners(conflicting, true), ConfigError) << words[1];
  }
}

TEST(Listeners, Background) {
  EXPECT_TRUE(runs_in_background(parse({"memory"}), false));
  EXPECT_FALSE(runs_in_background(parse({"memory"}), true));
  for (const Words& words : std::vector<Words>{{"memory", "-f"},
                                               {"memory", "--run", "true"},
                                               {"memory", "-s"},
                                               {"memory", "--exit-with-parent"}}) {
    EXPECT_FALSE(runs_in_background(parse(words), false)) << words[1];
  }
}

TEST(Texts, OptionsAreListed) {
  EXPECT_THAT(short_options_text(weft_personality()), HasSubstr("-4\n-6\n-D\n"));
  const std::string list = long_options_text(weft_personality());
  for (const char* name : {"--dump-config", "--no-fork", "--time-out", "--explain", "--tls"}) {
    EXPECT_THAT(list, HasSubstr(fmt::format("{}\n", name)));
  }
  EXPECT_EQ(list.find("--long-options"), std::string::npos);
  const std::string help = help_text(weft_personality(), {}, nullptr, {});
  for (const OptionSpec& spec : option_table()) {
    if (spec.help == nullptr) continue;
    EXPECT_THAT(help, HasSubstr(fmt::format("--{}", spec.names.front())));
  }
  std::istringstream lines(help);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100u) << line;
}

TEST(Texts, ManualNamesEveryOption) {
  std::ifstream file(WEFT_MANUAL);
  std::stringstream text;
  text << file.rdbuf();
  const std::string manual = text.str();
  ASSERT_FALSE(manual.empty());
  for (const OptionSpec& spec : option_table()) {
    for (const std::string_view name : spec.names) {
      EXPECT_NE(manual.find(fmt::format("**--{}", name)), std::string::npos) << name;
    }
    if (spec.letter != 0) {
      EXPECT_NE(manual.find(fmt::format("**-{}**", spec.letter)), std::string::npos) << spec.letter;
    }
  }
}

}  // namespace
}  // namespace weft::cli
