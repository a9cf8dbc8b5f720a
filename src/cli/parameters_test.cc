// SPDX-License-Identifier: BSD-3-Clause
#include "cli/parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/information.h"

namespace weft::cli {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Knows the key `size`, and refuses every other.
class Recorder final : public disk::Plugin {
 public:
  void config(std::string_view key, std::string_view value) override {
    if (key != "size") throw ConfigError("recorder has no parameter '" + std::string(key) + "'");
    values.emplace_back(value);
  }
  disk::Task<Result<std::unique_ptr<disk::Disk>>> open(disk::OpenRequest) override {
    return Result<std::unique_ptr<disk::Disk>>(fail(ENOENT));
  }
  std::vector<std::string> values;
};

std::unique_ptr<disk::Plugin> make_recorder() {
  return std::make_unique<Recorder>();
}

constexpr disk::PluginInfo kWithMagic{"recorder",  "a recorder", "It records.",
                                      "size=SIZE", "size",       &make_recorder};
constexpr disk::PluginInfo kWithout{"plain", "no magic", "", "", nullptr, &make_recorder};

std::vector<Parameter> parse(const disk::PluginInfo& info, const std::vector<std::string>& words) {
  return parse_parameters(info, words);
}

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(Parameters, KeysAndValues) {
  EXPECT_THAT(parse(kWithMagic, {"a=b", "a.B-c_9=", "x==y"}),
              ElementsAre(Parameter{"a", "b"}, Parameter{"a.B-c_9", ""}, Parameter{"x", "=y"}));
}

TEST(Parameters, BareWordsGoToTheMagicKey) {
  EXPECT_THAT(parse(kWithMagic, {"1M", "=3", "1=2", "/a/b=c", "", "a b=c"}),
              ElementsAre(Parameter{"size", "1M", true}, Parameter{"size", "=3", true},
                          Parameter{"size", "1=2", true}, Parameter{"size", "/a/b=c", true},
                          Parameter{"size", "", true}, Parameter{"size", "a b=c", true}));
}

TEST(Parameters, WithoutMagicOnlyTheFirstMayBeBare) {
  EXPECT_THAT(parse(kWithout, {"x.sh", "a=b"}),
              ElementsAre(Parameter{"script", "x.sh", true}, Parameter{"a", "b"}));
  EXPECT_THAT(error_of([] { parse(kWithout, {"a=b", "x.sh"}); }),
              AllOf(HasSubstr("'x.sh'"), HasSubstr("plain")));
}

TEST(Parameters, UnknownPlugin) {
  const disk::PluginInfo all[] = {kWithout, kWithMagic};
  EXPECT_STREQ(find_plugin(all, "recorder").name, "recorder");
  EXPECT_THAT(error_of([&] { find_plugin(all, "nosuch"); }),
              AllOf(HasSubstr("'nosuch'"), HasSubstr("plain, recorder")));
  EXPECT_THAT(error_of([&] { find_plugin(all, "x", "y is missing"); }), HasSubstr("y is missing"));
}

TEST(Parameters, ThePluginGetsThemInOrder) {
  const std::vector<std::string> words = {"size=1", "2"};
  const auto plugin = make_plugin(kWithMagic, {}, words);
  EXPECT_THAT(static_cast<Recorder&>(*plugin).values, ElementsAre("1", "2"));
}

TEST(Parameters, ErrorsOfThePlugin) {
  const std::vector<std::string> unknown = {"bogus=1"};
  EXPECT_EQ(error_of([&] { make_plugin(kWithMagic, {}, unknown); }),
            "recorder has no parameter 'bogus'");
  // A key that the user never wrote is traced to the word.
  const std::vector<std::string> bare = {"word"};
  EXPECT_THAT(error_of([&] { make_plugin(kWithout, {}, bare); }),
              HasSubstr("'word' stands for script"));
}

// A file of parameters, removed at the end.
class ParameterFile {
 public:
  explicit ParameterFile(const std::string& text) {
    const int fd = ::mkstemp(path_.data());
    EXPECT_EQ(::write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
    ::close(fd);
  }
  ~ParameterFile() { ::unlink(path_.c_str()); }
  [[nodiscard]] std::string word() const { return "@" + path_; }

 private:
  std::string path_ = "/tmp/weft-parameters-XXXXXX";
};

TEST(ParameterFiles, EachLineIsAWord) {
  const ParameterFile inner("c=3");
  const ParameterFile file("# comment\n\na=1 2 \n  b=#2\r\n \t# more\n" + inner.word() + "\nd=\n");
  const std::vector<std::string> words = {"x=0", file.word(), "@", "e=@" + file.word()};
  EXPECT_THAT(read_parameter_files(kWithout, words),
              ElementsAre("x=0", "a=1 2 ", "b=#2", "c=3", "d=", "@", "e=@" + file.word()));
}

TEST(ParameterFiles, WhatIsNoSuchFile) {
  const auto read = [](const disk::PluginInfo& info, const std::string& word) {
    return read_parameter_files(info, std::vector<std::string>{word});
  };
  EXPECT_THAT(error_of([&] { read(kWithout, "@/nonexistent/x"); }),
              AllOf(HasSubstr("@/nonexistent/x"), HasSubstr("No such file")));
  // A value of the magic key.
  EXPECT_THAT(read(kWithMagic, "@0x100 1"), ElementsAre("@0x100 1"));
  EXPECT_THAT(error_of([&] { read(kWithMagic, "@/tmp"); }), HasSubstr("directory"));
  const ParameterFile binary(std::string("a=1\0b", 5));
  EXPECT_THAT(error_of([&] { read(kWithout, binary.word()); }), HasSubstr("no text"));
  const ParameterFile large(std::string((1 << 20) + 1, 'a'));
  EXPECT_THAT(error_of([&] { read(kWithout, large.word()); }), HasSubstr("larger"));
  const ParameterFile looped("");
  std::ofstream(looped.word().substr(1)) << looped.word();
  EXPECT_THAT(error_of([&] { read(kWithout, looped.word()); }), HasSubstr("deep"));
}

TEST(Information, OfAPlugin) {
  const disk::PluginInfo all[] = {kWithMagic};
  EXPECT_THAT(help_text(weft_personality(), {all, {}}, &kWithMagic, {}),
              AllOf(HasSubstr("a recorder"), HasSubstr("It records."), HasSubstr("  size=SIZE\n")));
  EXPECT_THAT(version_text(weft_personality(), &kWithMagic, {}), HasSubstr("\nrecorder "));
  EXPECT_THAT(dump_plugin_text(weft_personality(), kWithMagic, *kWithMagic.make()),
              AllOf(HasSubstr("name=recorder\n"), HasSubstr("magic_config_key=size\n")));
  EXPECT_THAT(dump_config_text(weft_personality(), {all, {}}),
              AllOf(HasSubstr("name=weft\n"), HasSubstr("plugins=recorder\n"),
                    HasSubstr("run_default_socket=Unix\n"), HasSubstr("engine=")));
}

}  // namespace
}  // namespace weft::cli
