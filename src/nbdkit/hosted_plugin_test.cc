// SPDX-License-Identifier: BSD-3-Clause
// Loading plugins, and their life.
#include "nbdkit/hosted_plugin.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "nbdkit/hosted_testing.h"
#include "nbdkit/load.h"

namespace weft::nbdkit {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string refusal_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "(it was not refused)";
}

// ---- Structs of all releases --------------------------------------------------------------------

struct Sized {
  const char* name;
  uint64_t size;
  int api;
};

class EverySize : public testing::TestWithParam<Sized> {};

TEST_P(EverySize, IsLoadedAndServes) {
  Hosted hosted(test_plugin(GetParam().name));
  const disk::PluginFile& file = hosted.library.file();
  EXPECT_EQ(file.struct_size, GetParam().size);
  EXPECT_EQ(file.api_version, GetParam().api);
  EXPECT_EQ(file.thread_model_max, disk::ThreadModel::kParallel);
  const bool old = GetParam().api == 1;
  EXPECT_THAT(file.fields, Contains(old ? "_pread_v1" : "pread"));
  EXPECT_THAT(file.fields, Not(Contains("can_write")));

  hosted.with_disk([&](disk::Disk& disk) {
    const disk::Capabilities& can = disk.capabilities();
    EXPECT_EQ(can.size, 1u << 20);
    EXPECT_TRUE(can.writable);
    EXPECT_FALSE(can.multi_conn);
    EXPECT_EQ(can.flush, disk::Support::kNative);
    EXPECT_EQ(can.fua, disk::Support::kEmulate);
    EXPECT_EQ(can.trim, disk::Support::kNative);
    EXPECT_EQ(can.zero, disk::Support::kEmulate);
    EXPECT_EQ(can.fast_zero, disk::Support::kEmulate);
    EXPECT_EQ(can.cache, disk::Support::kNone);
    EXPECT_EQ(can.extents, disk::Support::kNone);
    const std::vector<std::byte> data(8192, std::byte{7});
    std::vector<std::byte> read(16384, std::byte{1});
    ASSERT_TRUE(hosted.run(disk.write(4096, data, true)));
    ASSERT_TRUE(hosted.run(disk.zero({8192, 100}, {})));
    ASSERT_TRUE(hosted.run(disk.trim({4096, 100}, false)));
    ASSERT_TRUE(hosted.run(disk.flush()));
    ASSERT_TRUE(hosted.run(disk.read(0, read)));
    EXPECT_EQ(read[4095], std::byte{0});
    EXPECT_EQ(read[4096], std::byte{0});
    EXPECT_EQ(read[4196], std::byte{7});
    EXPECT_EQ(read[8192], std::byte{0});
    EXPECT_EQ(read[8292], std::byte{7});
    EXPECT_EQ(read[12288], std::byte{0});
  });
}

INSTANTIATE_TEST_SUITE_P(
    Structs, EverySize,
    testing::Values(Sized{"test_sized_176", 176, 1}, Sized{"test_sized_200", 200, 1},
                    Sized{"test_sized_264", 264, 2}, Sized{"test_sized_288", 288, 2},
                    Sized{"test_sized_336", 336, 2}, Sized{"test_sized_384", 384, 2},
                    Sized{"test_sized_384v1", 384, 1}, Sized{"test_sized_440", 440, 2}),
    [](const auto& info) { return std::string(info.param.name); });

// ---- What is refused ----------------------------------------------------------------------------

TEST(Library, RefusesWhatIsNoPlugin) {
  const auto refusal = [](const std::string& path) {
    return refusal_of([&] { Library library(path, {}); });
  };
  EXPECT_THAT(refusal("/nonexistent/x.so"), HasSubstr("/nonexistent/x.so: the plugin cannot be "));
  EXPECT_THAT(refusal("/etc/passwd"), HasSubstr("cannot be loaded"));
  EXPECT_THAT(refusal(test_plugin("test_broken_init")), HasSubstr("no function plugin_init"));
  EXPECT_THAT(refusal(test_plugin("test_broken_null")), HasSubstr("returned nothing"));
  EXPECT_THAT(refusal(test_plugin("test_broken_api")), HasSubstr("version 3"));
  EXPECT_THAT(refusal(test_plugin("test_broken_size")), HasSubstr("16 bytes"));
  EXPECT_THAT(refusal(test_plugin("test_broken_nameless")), HasSubstr("no name"));
  EXPECT_THAT(refusal(test_plugin("test_broken_name")), HasSubstr("'two words'"));
  EXPECT_THAT(refusal(test_plugin("test_broken_open")), HasSubstr("no open"));
  EXPECT_THAT(refusal(test_plugin("test_broken_get_size")), HasSubstr("no get_size"));
  EXPECT_THAT(refusal(test_plugin("test_broken_pread")), HasSubstr("no pread"));
  EXPECT_THAT(refusal(test_plugin("test_broken_model")), HasSubstr("thread model 9"));
}

TEST(Load, OnePluginIsHostedAndMadeOnce) {
  ASSERT_TRUE(can_host());
  control_of("test_ram");
  std::array<DebugFlag, 2> flags{{{"test-ram", "loud", 3}, {"test-ram", "missing", 1}}};
  const disk::PluginInfo& info = load_plugin(test_plugin("test_ram"), flags);
  EXPECT_STREQ(info.name, "test-ram");
  EXPECT_STREQ(info.longname, "test plugin");
  EXPECT_STREQ(info.magic_config_key, "magic");
  EXPECT_EQ(info.file->version, "1.2.3");
  EXPECT_EQ(info.file->path.front(), '/');
  EXPECT_THAT(refusal_of([] { load_plugin(test_plugin("test_sized_384"), {}); }),
              HasSubstr("test-ram, is loaded already"));
  const std::unique_ptr<disk::Plugin> plugin = info.make();
  EXPECT_THAT(refusal_of([&] { (void)info.make(); }), HasSubstr("once in a process"));
  unload_plugin();
}

TEST(Load, DebugFlagsAreSetBeforeThePluginIsLoaded) {
  control_of("test_ram");
  void* const handle = ::dlopen(test_plugin("test_ram").c_str(), RTLD_NOW);
  const auto at_load = reinterpret_cast<int (*)()>(::dlsym(handle, "test_flag_at_load"));
  std::array<DebugFlag, 3> flags{
      {{"test-ram", "loud", 42}, {"test-ram", "missing", 1}, {"other", "loud", 2}}};
  const Library library(test_plugin("test_ram"), flags);
  EXPECT_EQ(at_load(), 42);
  EXPECT_TRUE(flags[0].used);
  EXPECT_FALSE(flags[1].used);
  EXPECT_FALSE(flags[2].used);
}

// ---- A plugin's life ----------------------------------------------------------------------------

TEST(HostedPlugin, IsCalledInNbdkitsOrder) {
  test_control& control = control_of("test_ram");
  {
    Hosted hosted(test_plugin("test_ram"), [](HostedPlugin& plugin) {
      plugin.config("one", "1");
      plugin.config("two", "");
    });
    disk::Peer peer;
    ASSERT_TRUE(hosted.run(hosted.plugin.preconnect(*hosted.loop, peer, false)));
    hosted.with_disk([&](disk::Disk& disk) { ASSERT_TRUE(hosted.run(disk.flush())); });
    ASSERT_TRUE(hosted.run(hosted.plugin.finish(*hosted.loop)));
  }
  EXPECT_STREQ(control.last_key, "two");
  EXPECT_STREQ(control.last_value, "");
  EXPECT_THAT(events_of(control),
              ElementsAre(kLoad, kConfig, kConfig, kConfigComplete, kThreadModel, kGetReady,
                          kAfterFork, kPreconnect, kOpen, kGetSize, kCanAnything, kCanAnything,
                          kCanAnything, kCanAnything, kCanAnything, kCanAnything, kCanAnything,
                          kCanAnything, kCanAnything, kFlush, kClose, kCleanup, kUnload));
}

TEST(HostedPlugin, AReadOnlyDiskIsNotAskedHowItIsWritten) {
  test_control& control = control_of("test_ram");
  Hosted hosted(test_plugin("test_ram"));
  hosted.with_disk(
      [&](disk::Disk& disk) {
        EXPECT_FALSE(disk.capabilities().writable);
        EXPECT_EQ(disk.capabilities().trim, disk::Support::kNone);
      },
      true);
  EXPECT_EQ(control.calls[kCanAnything], 4);  // flush, multi_conn, cache, extents
}

TEST(HostedPlugin, FailuresOfTheConfigurationNameThePluginAndTheCall) {
  test_control& control = control_of("test_ram");
  // With EOPNOTSUPP without a message of its own.
  const auto fails = [&](test_method method, int how = EOPNOTSUPP) {
    control.fail[method] = how;
    const std::string text = refusal_of([] {
      Hosted hosted(test_plugin("test_ram"),
                    [](HostedPlugin& plugin) { plugin.config("key", "secret"); });
    });
    control.fail[method] = 0;
    return text;
  };
  EXPECT_THAT(fails(kConfig), testing::AllOf(HasSubstr("test-ram: the parameter key= is refused"),
                                             Not(HasSubstr("secret"))));
  EXPECT_THAT(fails(kConfigComplete), HasSubstr("test-ram: config_complete failed"));
  EXPECT_THAT(fails(kGetReady), HasSubstr("test-ram: get_ready failed"));
  EXPECT_THAT(fails(kAfterFork), HasSubstr("test-ram: after_fork failed"));
  // To what a plugin says nothing is added.
  testing::internal::CaptureStderr();
  EXPECT_EQ(fails(kConfig, EINVAL), "");
  EXPECT_EQ(fails(kAfterFork, EINVAL), "");
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("fails as it was told to"));
  control.thread_model = 4;
  EXPECT_THAT(refusal_of([] { Hosted hosted(test_plugin("test_ram")); }),
              HasSubstr("thread_model returned 4"));
  EXPECT_THAT(refusal_of([] {
                Hosted hosted(test_plugin("test_sized_384"),
                              [](HostedPlugin& plugin) { plugin.config("size", "1"); });
              }),
              HasSubstr("test-sized: there is no parameter 'size'"));
}

TEST(HostedPlugin, StringsOfTheConfigurationStay) {
  control_of("test_ram");
  Library library(test_plugin("test_ram"), {});
  HostedPlugin plugin(library);
  std::string key = "key";
  std::string value = "value";
  plugin.config(key, value);
  key.assign("one");
  value.assign("other");
  EXPECT_STREQ(control_of("test_ram").last_key, "");  // a fresh control, and no crash on the way
}

TEST(HostedPlugin, ThreadModelIsTheSmallerOfTwo) {
  test_control& control = control_of("test_ram");
  for (const int model : {0, 1, 2, 3}) {
    control.thread_model = model;
    Hosted hosted(test_plugin("test_ram"));
    EXPECT_EQ(static_cast<int>(hosted.plugin.own_thread_model()), model);
    EXPECT_EQ(hosted.plugin.connections_max(), model == 0 ? 1u : 0u);
  }
}

TEST(HostedPlugin, DumpGivesWhatThePluginPrints) {
  test_control& control = control_of("test_ram");
  control.thread_model = 1;
  Library library(test_plugin("test_ram"), {});
  HostedPlugin plugin(library);
  EXPECT_EQ(plugin.dump(), "test_dumped=yes\n");
  EXPECT_EQ(plugin.own_thread_model(), disk::ThreadModel::kSerializeAllRequests);
  EXPECT_EQ(control.calls[kConfigComplete], 0);
}

TEST(HostedPlugin, ListsExports) {
  test_control& control = control_of("test_ram");
  Hosted hosted(test_plugin("test_ram"));
  const auto list = hosted.run(hosted.plugin.list_exports(*hosted.loop, false));
  ASSERT_TRUE(list);
  ASSERT_EQ(list->size(), 2u);
  EXPECT_EQ((*list)[0].name, "usual");
  EXPECT_EQ((*list)[1].name, "other");
  EXPECT_EQ((*list)[1].description, "described");
  EXPECT_EQ(hosted.run(hosted.plugin.default_export(*hosted.loop, false)).value(), "usual");
  control.fail[kDefaultExport] = EIO;
  EXPECT_FALSE(hosted.run(hosted.plugin.default_export(*hosted.loop, false)));
  control.fail[kListExports] = EPERM;
  const auto refused = hosted.run(hosted.plugin.list_exports(*hosted.loop, false));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EPERM);
}

TEST(HostedPlugin, WithoutTheCallbacksThereIsOneNamelessExport) {
  Hosted hosted(test_plugin("test_sized_176"));
  EXPECT_EQ(hosted.run(hosted.plugin.default_export(*hosted.loop, false)).value(), "");
  const auto list = hosted.run(hosted.plugin.list_exports(*hosted.loop, false));
  ASSERT_TRUE(list);
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ((*list)[0].name, "");
}

TEST(HostedPlugin, PreconnectMayRefuse) {
  test_control& control = control_of("test_ram");
  Hosted hosted(test_plugin("test_ram"));
  disk::Peer peer;
  control.fail[kPreconnect] = EACCES;
  const Status refused = hosted.run(hosted.plugin.preconnect(*hosted.loop, peer, false));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, EACCES);
}

}  // namespace
}  // namespace weft::nbdkit
