// SPDX-License-Identifier: BSD-3-Clause
#include "cli/personality.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/result.h"
#include "cli/information.h"
#include "cli/options.h"
#include "cli/plugin_script.h"

namespace weft::cli {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::Optional;
using Words = std::vector<std::string>;

std::string chosen(std::string_view program, Words words = {}) {
  return choose_personality(program, words).name;
}

Options parse(const Words& words) {
  return parse_options(words, nbdkit_personality());
}

// "" for words that make sense.
std::string error_of(const Words& words, const Personality& personality = nbdkit_personality()) {
  try {
    (void)parse_options(words, personality);
    return "";
  } catch (const ConfigError& error) {
    return start_error_line(personality, personality.name, error);
  }
}

TEST(Personality, ByTheNameOfTheProgram) {
  for (const char* name : {"nbdkit", "/usr/sbin/nbdkit", "./nbdkit"}) {
    EXPECT_EQ(chosen(name), "nbdkit") << name;
  }
  for (const char* name : {"weft", "/usr/bin/weft", "nbdkit2", "xnbdkit", "nbdkit/weft", ""}) {
    EXPECT_EQ(chosen(name), "weft") << name;
  }
}

TEST(Personality, ByAs) {
  EXPECT_EQ(chosen("weft", {"--as=nbdkit"}), "nbdkit");
  EXPECT_EQ(chosen("weft", {"memory", "--as", "nbdkit"}), "nbdkit");
  EXPECT_EQ(chosen("/usr/bin/nbdkit", {"--as=weft", "memory"}), "weft");
  EXPECT_EQ(chosen("weft", {"--as=nbdkit", "--as=weft"}), "weft");
  EXPECT_EQ(chosen("weft", {"--", "--as=nbdkit"}), "weft");
  Words words = {"-f", "--as=nbdkit", "memory", "--as", "nbdkit", "1M", "--", "--as=weft"};
  (void)choose_personality("weft", words);
  EXPECT_THAT(words, ElementsAre("-f", "memory", "1M", "--", "--as=weft"));
  EXPECT_THROW(chosen("weft", {"--as=qemu"}), UsageError);
}

TEST(Personality, WeftsOwnOptionsAreUnknownToNbdkit) {
  for (const OptionSpec& spec : option_table()) {
    if (!spec.own) continue;
    for (const std::string_view name : spec.names) {
      EXPECT_THAT(error_of({fmt::format("--{}=1", name), "memory"}),
                  HasSubstr(fmt::format("unknown option '--{}'", name)));
    }
  }
}

// What nbdkit 1.46 has, and nothing else.
TEST(Personality, Lists) {
  std::string letters;
  for (const char c : std::string("46DPUVefginoprstuv")) letters += fmt::format("-{}\n", c);
  EXPECT_EQ(short_options_text(nbdkit_personality()), letters);
  std::istringstream names(
      "debug dump-config dump-plugin exit-with-parent export export-name exportname filter "
      "foreground group help ip-addr ipaddr ipv4-only ipv6-only keep-alive keepalive log "
      "mask-handshake name new-style newstyle no-fork no-mc no-meta-contexts no-sr "
      "no-structured-replies old-style oldstyle pid-file pidfile port print-uri print-url "
      "read-only readonly run selinux-label show-uri show-url single stdin swap threads time-out "
      "timeout tls tls-certificates tls-priority tls-psk tls-verify-peer unix user verbose version "
      "vsock");
  std::string list;
  for (std::string name; names >> name;) list += fmt::format("--{}\n", name);
  EXPECT_EQ(long_options_text(nbdkit_personality()), list);
  EXPECT_THAT(long_options_text(weft_personality()),
              AllOf(HasSubstr("--as\n"), HasSubstr("--shared\n"), HasSubstr("--name\n")));
  const std::string help = help_text(nbdkit_personality(), {}, nullptr, {});
  EXPECT_THAT(help, AllOf(HasSubstr("Usage: nbdkit "), HasSubstr("--keepalive"),
                          Not(HasSubstr("--shared")), Not(HasSubstr("--explain"))));
}

// Only nbdkit's options count for what an abbreviation means.
TEST(Personality, Abbreviations) {
  EXPECT_EQ(parse({"memory", "--exp", "x"}).export_name, "x");
  EXPECT_EQ(parse({"memory", "--dump-p"}).action, Action::kDumpPlugin);
  EXPECT_THAT(error_of({"memory", "--du"}), HasSubstr("ambiguous"));
  EXPECT_TRUE(parse({"memory", "--sw"}).swap);
  EXPECT_EQ(parse({"memory", "--na=x"}).program, "x");
  EXPECT_TRUE(parse({"memory", "--keep"}).server.keepalive);
  EXPECT_TRUE(parse({"memory", "--show"}).print_uri);
  EXPECT_EQ(parse({"memory", "--th=3"}).server.requests_max, 3u);
  EXPECT_THAT(error_of({"memory", "--t=3"}), HasSubstr("ambiguous"));
  EXPECT_THAT(error_of({"memory", "--tls-p=3"}),
              AllOf(HasSubstr("--tls-priority"), HasSubstr("--tls-psk")));
  EXPECT_THAT(error_of({"memory", "--no"}),
              AllOf(HasSubstr("--no-fork"), HasSubstr("--no-mc"), HasSubstr("--no-sr")));
}

TEST(Personality, Combinations) {
  for (const Words& words : std::vector<Words>{{"-p", "1", "-U", "/x"},
                                               {"-p", "1", "-U", "-"},
                                               {"-p", "1", "-s"},
                                               {"-U", "/x", "-s"},
                                               {"-s", "--run", "true"},
                                               {"-s", "--dump-plugin"},
                                               {"--vsock", "-U", "/x"},
                                               {"--vsock", "-s"}}) {
    Words line = words;
    line.push_back("memory");
    EXPECT_THAT(error_of(line),
                AllOf(testing::StartsWith("nbdkit: "), HasSubstr("cannot be combined")))
        << words[0];
  }
  for (const Words& words : std::vector<Words>{{"-U", "-", "-i", "localhost"},
                                               {"-s", "-i", "localhost"},
                                               {"--vsock", "-i", "localhost"},
                                               {"--vsock", "-p", "4294967295"},
                                               {"--vsock", "--run", "true"}}) {
    Words line = words;
    line.push_back("memory");
    EXPECT_EQ(error_of(line), "") << words[0] << ' ' << words[1];
  }
  // weft listens in several places.
  EXPECT_EQ(error_of({"-p", "1", "-U", "/x", "memory"}, weft_personality()), "");
}

TEST(Personality, Tls) {
  for (const char* word : {"--tls-certificates=/x", "--tls-psk=/x", "--tls-verify-peer",
                           "--tls-priority=NORMAL", "--tls=on", "--tls=require"}) {
    for (const Personality* who : {&weft_personality(), &nbdkit_personality()}) {
      EXPECT_THAT(error_of({word, "memory"}, *who), HasSubstr("no TLS")) << word;
      EXPECT_EQ(error_of({word, "--tls=off", "memory"}, *who), "") << word;
    }
  }
  EXPECT_THAT(error_of({"--tls=off", "--tls=on", "memory"}), HasSubstr("no TLS"));
}

TEST(Personality, HowMessagesBegin) {
  EXPECT_EQ(error_of({}).substr(0, 21), "nbdkit: no plugin was");
  EXPECT_THAT(error_of({"-t", "x", "memory"}), testing::StartsWith("nbdkit: error: -t"));
  EXPECT_THAT(error_of({"--log=x", "memory"}), testing::StartsWith("nbdkit: --log=x: "));
  EXPECT_THAT(error_of({"-t", "x", "memory"}, weft_personality()), testing::StartsWith("weft: -t"));
  EXPECT_EQ(parse({"memory"}).program, "nbdkit");
  EXPECT_EQ(parse({"memory"}).form, log::Form::kNbdkit);
  EXPECT_EQ(parse({"memory", "--name=my server"}).program, "my server");
  EXPECT_THAT(error_of({"memory", "--name="}), HasSubstr("empty"));
}

TEST(Personality, DumpConfigHasTheKeysOf146) {
  std::istringstream text(dump_config_text(nbdkit_personality(), {}));
  Words keys;
  for (std::string line; std::getline(text, line);) keys.push_back(line.substr(0, line.find('=')));
  EXPECT_THAT(
      keys, ElementsAre("binary", "bindir", "exit_with_parent", "filterdir", "host_cpu", "host_os",
                        "libdir", "mandir", "max_api_version", "name", "plugindir",
                        "root_tls_certificates_dir", "run_default_socket", "sbindir", "selinux",
                        "soext", "sysconfdir", "timeout_option", "tls", "version", "version_major",
                        "version_minor", "vsock_option", "zstd"));
}

TEST(ScriptLine, WhatStartsNbdkit) {
  EXPECT_THAT(parse_script_line("#!/usr/bin/nbdkit python"), Optional(ElementsAre("python")));
  EXPECT_THAT(parse_script_line("#! /usr/sbin/nbdkit \t perl \r"), Optional(ElementsAre("perl")));
  EXPECT_THAT(parse_script_line("#!/usr/bin/weft sh"), Optional(ElementsAre("sh")));
  // The kernel passes all that follows as one word.
  EXPECT_THAT(parse_script_line("#!/opt/nbdkit -f python"), Optional(ElementsAre("-f python")));
  EXPECT_THAT(parse_script_line("#!/usr/bin/env -S nbdkit -f 'a b' python"),
              Optional(ElementsAre("-f", "a b", "python")));
  EXPECT_THAT(parse_script_line("#!/usr/bin/env -Snbdkit python"), Optional(ElementsAre("python")));
  EXPECT_THAT(parse_script_line("#!/usr/bin/env nbdkit"), Optional(IsEmpty()));
  EXPECT_THAT(parse_script_line("#!/usr/bin/nbdkit"), Optional(IsEmpty()));
  for (const char* line : {"", "#", "#!", "#!/bin/sh", "#!/bin/sh nbdkit", "#!/usr/bin/env sh",
                           "#!/usr/bin/env -S", "#!/usr/bin/env -S sh nbdkit", "/usr/bin/nbdkit",
                           "#!/usr/bin/env nbdkit python", "#!/usr/bin/xnbdkit python"}) {
    EXPECT_EQ(parse_script_line(line), std::nullopt) << line;
  }
}

// A folder with scripts, removed at the end.
class Scripts : public testing::Test {
 protected:
  Scripts() { EXPECT_NE(::mkdtemp(folder_.data()), nullptr); }
  ~Scripts() override { (void)!std::system(("rm -r " + folder_).c_str()); }

  std::string add(const std::string& name, const std::string& text, mode_t mode = 0755) {
    const std::string path = folder_ + "/" + name;
    std::ofstream(path) << text;
    ::chmod(path.c_str(), mode);
    return path;
  }
  std::optional<Words> expand(const Words& words, size_t index) {
    return expand_script(words, index, folder_);
  }
  std::string error(const std::string& plugin) {
    try {
      (void)expand({plugin}, 0);
      return "";
    } catch (const ConfigError& error) {
      return error.what();
    }
  }

  std::string folder_ = "/tmp/weft-scripts-XXXXXX";
};

TEST_F(Scripts, TakeThePluginsPlace) {
  const std::string path = add("nbdkit-tape-plugin", "#!/usr/bin/nbdkit python\nx = 1\n");
  EXPECT_THAT(expand({"-f", "tape", "a=1", "--run", "true"}, 1),
              Optional(ElementsAre("python", path, "-f", "a=1", "--run", "true")));
  const std::string own = add("x.py", "#!/usr/bin/env -S nbdkit -v python\n", 0644);
  EXPECT_THAT(expand({own, "a=1"}, 0), Optional(ElementsAre("-v", "python", own, "a=1")));
}

TEST_F(Scripts, WhatIsNone) {
  add("nbdkit-tape-plugin", "#!/usr/bin/nbdkit python\n", 0644);  // not executable
  EXPECT_EQ(expand({"tape"}, 0), std::nullopt);
  EXPECT_EQ(expand({"nosuch"}, 0), std::nullopt);
  EXPECT_EQ(expand({folder_ + "/nosuch.so"}, 0), std::nullopt);
  EXPECT_EQ(expand({folder_ + "/"}, 0), std::nullopt);
  EXPECT_EQ(expand({add("x.so", "\177ELF")}, 0), std::nullopt);
  EXPECT_THAT(error(add("x.sh", "#!/bin/sh\n")), HasSubstr("no plugin file"));
  EXPECT_THAT(error(add("y.sh", "#!/usr/bin/env nbdkit\n")), HasSubstr("of which language"));
}

using ScriptsDeathTest = Scripts;

TEST_F(ScriptsDeathTest, AnotherExecutableTakesTheProgramsPlace) {
  add("nbdkit-tape-plugin", "#!/bin/sh\n[ \"$*\" = '-f a=1' ] || exit 8\nexit 7\n");
  EXPECT_EXIT((void)expand({"-f", "tape", "a=1"}, 1), testing::ExitedWithCode(7), "");
}

TEST_F(Scripts, ShortNames) {
  for (const char* name : {"a:b", "a;b", "a b", "a,b", "a\\b", "a=b", "a\nb", "a\177b"}) {
    EXPECT_THAT(error(name), HasSubstr("no name has such characters")) << name;
  }
  EXPECT_EQ(error("a-b_c"), "");
  EXPECT_EQ(error("./a b"), "");
}

}  // namespace
}  // namespace weft::cli
