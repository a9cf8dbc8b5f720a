// SPDX-License-Identifier: BSD-3-Clause
// The table of plugins, and the parameters of the small ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/result.h"
#include "disk/disk.h"
#include "engine/blocking_pool.h"
#include "plugins/testing.h"

namespace weft::plugins {
namespace {

using disk::Loop;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

std::string refusal(std::string_view plugin, const Parameters& parameters) {
  try {
    (void)make_plugin(plugin, parameters);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(accepted)";
}

// All that a plugin's default export holds.
std::string content(std::string_view name, const Parameters& parameters) {
  engine::BlockingPool pool;
  const auto loop = Loop::create(engine::EngineKind::kEpoll, pool);
  const auto plugin = make_plugin(name, parameters);
  auto disk = loop->run_until_done(plugin->open({"", true, *loop}));
  if (!disk) return "(cannot be opened)";
  std::string text((*disk)->capabilities().size, '?');
  if (!text.empty()) {
    EXPECT_TRUE(loop->run_until_done(
        (*disk)->read(0, std::as_writable_bytes(std::span(text.data(), text.size())))));
  }
  EXPECT_TRUE(loop->run_until_done((*disk)->close()));
  return text;
}

TEST(Plugins, TheTableIsInOrderAndComplete) {
  const auto all = disk::plugins();
  EXPECT_TRUE(std::ranges::is_sorted(
      all, [](std::string_view a, std::string_view b) { return a < b; }, &disk::PluginInfo::name));
  for (const disk::PluginInfo& info : all) {
    EXPECT_TRUE(info.longname && info.description && info.config_help) << info.name;
    const auto plugin = info.make();
    ASSERT_TRUE(plugin) << info.name;
    EXPECT_THAT(refusal(info.name, {{"no-such-parameter", "1"}}),
                AllOf(HasSubstr("no-such-parameter"), Not(HasSubstr("\n"))));
  }
}

TEST(Plugins, WhatIsMissingOrWrongIsNamed) {
  EXPECT_THAT(refusal("memory", {}), HasSubstr("weft memory 1g"));
  EXPECT_THAT(refusal("memory", {{"size", "1x"}}), HasSubstr("size: '1x'"));
  EXPECT_THAT(refusal("memory", {{"size", "1"}, {"allocator", "zstd"}}), HasSubstr("'zstd'"));
  EXPECT_THAT(refusal("memory", {{"size", "1"}, {"allocator", "malloc,mlock=true"}}),
              HasSubstr("--swap"));
  EXPECT_THAT(refusal("pattern", {}), HasSubstr("no size"));
  EXPECT_THAT(refusal("data", {}), HasSubstr("nothing to serve"));
  EXPECT_THAT(refusal("data", {{"raw", "x"}, {"base64", "eA=="}}), HasSubstr("give one"));
  EXPECT_THAT(refusal("data", {{"base64", "?"}}), HasSubstr("base64: character 1"));
}

TEST(Plugins, WhatTheyHold) {
  using namespace std::string_literals;
  EXPECT_EQ(content("null", {}), "");
  EXPECT_EQ(content("null", {{"size", "3"}}), "\0\0\0"s);
  EXPECT_EQ(content("memory", {{"size", "2b"}}), "\0\0"s);
  EXPECT_EQ(content("memory", {{"size", "9223372036854775807"}, {"size", "1"}}), "\0"s);
  EXPECT_EQ(content("pattern", {{"size", "18"}}), "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08\0\0"s);
  EXPECT_EQ(content("data", {{"raw", "hello"}}), "hello");
  EXPECT_EQ(content("data", {{"raw", "hello"}, {"size", "7"}}), "hello\0\0"s);
  EXPECT_EQ(content("data", {{"raw", "hello"}, {"size", "2"}}), "he");
  EXPECT_EQ(content("data", {{"data", "1 @100 2"}, {"size", "2"}}), "\x01\0"s);
  EXPECT_EQ(content("data", {{"base64", "aGVsbG8="}}), "hello");
  EXPECT_EQ(content("data", {{"raw", ""}}), "");
}

TEST(Plugins, ExplainThemselves) {
  for (const auto& plugin :
       {make_plugin("memory", {{"size", "1"}}), make_plugin("null", {}),
        make_plugin("pattern", {{"size", "1"}}), make_plugin("data", {{"raw", "x"}})}) {
    EXPECT_GE(plugin->explain().size(), 2u);
  }
}

}  // namespace
}  // namespace weft::plugins
