// SPDX-License-Identifier: BSD-3-Clause
// nbdbench from its command line to its report, against a server in this process and against
// nbdkit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "tools/bench_options.h"
#include "tools/bench_report.h"
#include "tools/bench_run.h"
#include "tools/bench_test_server.h"

namespace weft::tools {
namespace {

using testing::HasSubstr;

BenchOptions options_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "nbdbench");
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  return parse_bench_options(static_cast<int>(argv.size() - 1), argv.data()).value();
}

BenchReport bench(const std::string& socket, std::vector<std::string> arguments) {
  const std::atomic<bool> interrupted = false;
  arguments.push_back(socket);
  return run_bench(options_of(std::move(arguments)), interrupted);
}

std::string refusal(std::vector<std::string> arguments) {
  try {
    (void)options_of(std::move(arguments));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

std::string refusal(const TestServer& server, std::vector<std::string> arguments) {
  try {
    (void)bench(server.socket(), std::move(arguments));
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

uint64_t count_of(const BenchReport& report, OpKind kind) {
  return report.stats.kinds[static_cast<size_t>(kind)].latency.count();
}

constexpr char kAllKinds[] = "--mix=read=70,write=20,zero=5,trim=3,flush=1,cache=1";

TEST(Options, NothingIsOverwrittenWithoutConsent) {
  EXPECT_THAT(refusal({"--mix=write", "/s"}), HasSubstr("add --destructive"));
  EXPECT_THAT(refusal({"--mix=read=9,trim=1", "/s"}), HasSubstr("add --destructive"));
  EXPECT_THAT(refusal({"--fill", "/s"}), HasSubstr("add --destructive"));
  EXPECT_EQ(refusal({"--mix=read,cache,flush", "/s"}), "");
  EXPECT_EQ(refusal({"--mix=write", "--destructive", "/s"}), "");
}

TEST(Options, WhatIsWrongIsNamed) {
  EXPECT_THAT(refusal({}), HasSubstr("no target"));
  EXPECT_THAT(refusal({"/s", "/t"}), HasSubstr("'/t'"));
  EXPECT_THAT(refusal({"--dept=3", "--no-such", "/s"}), HasSubstr("--no-such"));
  EXPECT_THAT(refusal({"--depth", "0", "/s"}), HasSubstr("--depth"));
  EXPECT_THAT(refusal({"--block-size=0", "/s"}), HasSubstr("--block-size"));
  EXPECT_THAT(refusal({"--block-size=65m", "/s"}), HasSubstr("--block-size"));
  EXPECT_THAT(refusal({"--pattern=zigzag", "/s"}), HasSubstr("'zigzag'"));
  EXPECT_THAT(refusal({"--duration=0", "/s"}), HasSubstr("--duration"));
  EXPECT_THAT(refusal({"--rate=fast", "/s"}), HasSubstr("--rate"));
  EXPECT_THAT(refusal({"--fua=101", "/s"}), HasSubstr("--fua"));
  EXPECT_THAT(refusal({"--verify=maybe", "/s"}), HasSubstr("'maybe'"));
  EXPECT_THAT(refusal({"--verify", "/s"}), HasSubstr("nothing is written"));
  EXPECT_THAT(refusal({"--verify", "--fill", "--destructive", "--block-size=1000", "/s"}),
              HasSubstr("multiple of 16"));
  EXPECT_THAT(refusal({"--server-children", "/s"}), HasSubstr("--server-pid"));
  EXPECT_THAT(refusal({"/s", "--seed"}), HasSubstr("--seed: a value is missing"));
  EXPECT_THAT(refusal({"/s", "--fill=3"}), HasSubstr("--fill=3: "));
  EXPECT_THAT(refusal({"/s", "-q"}), HasSubstr("-q: unknown"));
}

TEST(Options, OperationsInsteadOfTime) {
  const BenchOptions options = options_of({"--operations=100", "/s"});
  EXPECT_EQ(options.duration_s, 0);
  EXPECT_EQ(options.warmup_s, 0);
  EXPECT_EQ(options_of({"--operations=100", "--duration=2", "/s"}).duration_s, 2);
}

// In every mode of replies, on one thread for each connection and on one for all.
class Modes : public testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(Modes, AllOperationsOfAMixEndAndAreVerified) {
  TestServer server;
  std::vector<std::string> arguments = {
      kAllKinds,         "--destructive",        "--connections=3", "--fill",
      "--verify",        "--operations=3000",    "--block-size=2k", "--fua=10",
      "--flush-every=7", std::get<1>(GetParam())};
  if (*std::get<0>(GetParam()) != '\0') arguments.emplace_back(std::get<0>(GetParam()));
  const BenchReport report = bench(server.socket(), arguments);
  EXPECT_THAT(report.failures, testing::IsEmpty());
  EXPECT_THAT(report.stats.verify.examples, testing::IsEmpty());
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.operations(), 3000u);
  EXPECT_GT(report.stats.verify.checked, 1000u);
  for (const OpKind kind : kOpKinds) EXPECT_GT(count_of(report, kind), 0u) << op_name(kind);
  const std::string_view headers = std::get<0>(GetParam());
  const nbd::HeaderMode wanted = headers == "--simple"     ? nbd::HeaderMode::kSimple
                                 : headers == "--extended" ? nbd::HeaderMode::kExtended
                                                           : nbd::HeaderMode::kStructured;
  EXPECT_EQ(report.negotiated.mode, wanted);
  server.stop();
  EXPECT_EQ(server.goodbyes(), 3);
}

INSTANTIATE_TEST_SUITE_P(All, Modes,
                         testing::Combine(testing::Values("", "--simple", "--extended"),
                                          testing::Values("--threads=1", "--threads=3")));

TEST(Bench, AServerWithoutStructuredRepliesIsUsedWithSimpleOnes) {
  TestServer server({.handshake = {.structured_replies = false}});
  const BenchReport report = bench(server.socket(), {"--operations=100"});
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.negotiated.mode, nbd::HeaderMode::kSimple);
}

TEST(Bench, LargeBlocksInBothDirections) {
  TestServer server({.size = 16 << 20});
  const BenchReport report =
      bench(server.socket(), {"--mix=read,write", "--destructive", "--verify", "--fill",
                              "--block-size=1m", "--depth=8", "--operations=200"});
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.operations(), 200u);
  EXPECT_GT(report.stats.verify.checked, 50u);
}

TEST(Bench, ConnectionsMayShareWhatTheyVerify) {
  TestServer server({.size = 64 << 10});
  const BenchReport report =
      bench(server.socket(), {"--mix=read=2,write=2,zero=1", "--destructive", "--verify=shared",
                              "--connections=4", "--depth=8", "--operations=4000"});
  EXPECT_THAT(report.stats.verify.examples, testing::IsEmpty());
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.operations(), 4000u);
}

TEST(Bench, TheWindowIsKept) {
  uint64_t first = UINT64_MAX;
  uint64_t end = 0;
  TestServer server({.on_request = [&](const nbd::Request& request) {
    if (request.type != nbd::kCmdFlush) {
      first = std::min(first, request.offset);
      end = std::max(end, request.offset + request.length);
    }
    return Fate::kServe;
  }});
  const BenchReport report =
      bench(server.socket(), {kAllKinds, "--destructive", "--fill", "--offset=64k", "--length=70k",
                              "--connections=2", "--operations=2000"});
  server.stop();
  EXPECT_TRUE(report.good());
  EXPECT_EQ(first, 64u << 10);
  EXPECT_EQ(end, (64u << 10) + (68u << 10));
  EXPECT_EQ(report.length, 68u << 10);
}

TEST(Bench, SequentialMeansAscending) {
  std::vector<uint64_t> offsets;
  TestServer server({.size = 40960, .on_request = [&](const nbd::Request& request) {
                       offsets.push_back(request.offset / 4096);
                       return Fate::kServe;
                     }});
  const BenchReport report =
      bench(server.socket(), {"--pattern=sequential", "--operations=12", "--depth=3"});
  server.stop();
  EXPECT_TRUE(report.good());
  EXPECT_EQ(offsets, (std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1}));
}

TEST(Bench, TheRateIsALimit) {
  TestServer server;
  const auto before = std::chrono::steady_clock::now();
  const BenchReport report =
      bench(server.socket(), {"--rate=1000", "--operations=100", "--connections=2", "--threads=1"});
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - before;
  EXPECT_TRUE(report.good());
  EXPECT_EQ(report.operations(), 100u);
  EXPECT_GT(took.count(), 0.09);
}

TEST(Bench, ATimedRunEndsByItself) {
  TestServer server;
  const BenchReport report =
      bench(server.socket(), {"--duration=200ms", "--warmup=50ms", "--connections=2"});
  EXPECT_TRUE(report.good());
  EXPECT_GE(report.seconds, 0.2);
  EXPECT_GT(report.operations(), 0u);
}

TEST(Bench, ErrorsAreCountedByKind) {
  int writes = 0;
  TestServer server({.on_request = [&](const nbd::Request& request) {
    return request.type == nbd::kCmdWrite && ++writes % 10 == 0 ? Fate::kFail : Fate::kServe;
  }});
  for (const char* headers : {"--simple", "--extended"}) {
    const BenchOptions options = options_of(
        {"--mix=write", "--destructive", "--operations=100", headers, "--verify", server.socket()});
    const std::atomic<bool> interrupted = false;
    const BenchReport report = run_bench(options, interrupted);
    EXPECT_FALSE(report.good());
    EXPECT_EQ(report.errors(), 10u);
    EXPECT_EQ(count_of(report, OpKind::kWrite), 90u);
    EXPECT_THAT(text_report(options, report), HasSubstr("write: 10 NBD_EIO"));
    const auto json = nlohmann::json::parse(json_report(options, report));
    EXPECT_EQ(json["kinds"]["write"]["errors"]["NBD_EIO"], 10);
    EXPECT_EQ(json["good"], false);
  }
}

// Lies among many requests are found, and named. A single one might be written over unread.
struct Lie {
  const char* name;
  uint16_t command;
  Fate fate;
  const char* found;
};
class Lies : public testing::TestWithParam<std::tuple<Lie, const char*>> {};

TEST_P(Lies, AreFound) {
  const auto& [lie, headers] = GetParam();
  int left = 400;
  TestServer server({.size = 64 << 10, .on_request = [&](const nbd::Request& request) {
                       // The last block has no block after it.
                       if (request.type != lie.command || request.offset >= 60 << 10) {
                         return Fate::kServe;
                       }
                       return --left % 20 == 0 ? lie.fate : Fate::kServe;
                     }});
  const BenchOptions options =
      options_of({"--mix=read=2,write=1,zero=1", "--destructive", "--fill", "--verify", "--depth=4",
                  "--operations=4000", headers, server.socket()});
  const std::atomic<bool> interrupted = false;
  const BenchReport report = run_bench(options, interrupted);
  EXPECT_GT(report.stats.verify.mismatches, 0u);
  EXPECT_FALSE(report.good());
  ASSERT_FALSE(report.stats.verify.examples.empty());
  EXPECT_THAT(report.stats.verify.examples[0], testing::ContainsRegex(lie.found));
  EXPECT_THAT(text_report(options, report), HasSubstr(report.stats.verify.examples[0]));
  EXPECT_GT(nlohmann::json::parse(json_report(options, report))["verify"]["mismatches"], 0);
}

INSTANTIATE_TEST_SUITE_P(
    All, Lies,
    testing::Combine(
        testing::Values(Lie{"FlippedBit", nbd::kCmdRead, Fate::kFlipBit, "byte 4095.*found bytes"},
                        Lie{"ForgottenWrite", nbd::kCmdWrite, Fate::kForget,
                            "expected generation .*found (zeroes|generation .*older)"},
                        Lie{"ForgottenZero", nbd::kCmdWriteZeroes, Fate::kForget,
                            "expected zeroes, found generation .*older"},
                        Lie{"MisplacedWrite", nbd::kCmdWrite, Fate::kElsewhere,
                            "expected .*found (the block of offset|zeroes|generation .*older)"}),
        testing::Values("--simple", "--extended")),
    [](const auto& param) {
      return std::string(std::get<0>(param.param).name) +
             (std::get<1>(param.param)[2] == 's' ? "Simple" : "Extended");
    });

// What ends a connection is a failure with its reason; the others go on.
struct Loss {
  const char* name;
  Fate fate;
  const char* reason;
};
class Losses : public testing::TestWithParam<Loss> {};

TEST_P(Losses, AreReported) {
  int left = 50;
  TestServer server({.on_request = [&](const nbd::Request&) {
    return --left == 0 ? GetParam().fate : Fate::kServe;
  }});
  const BenchReport report =
      bench(server.socket(), {"--mix=read", "--operations=400", "--connections=2", "--fill",
                              "--destructive", "--verify", "--length=64k", "--timeout=1s"});
  // The fill takes 16 requests; then each connection has 200 reads.
  EXPECT_FALSE(report.good());
  ASSERT_EQ(report.failures.size(), 1u);
  EXPECT_THAT(report.failures[0], HasSubstr(GetParam().reason));
  EXPECT_GE(report.operations(), 200u);
  EXPECT_LT(report.operations(), 400u);
}

INSTANTIATE_TEST_SUITE_P(
    All, Losses,
    testing::Values(Loss{"HangUp", Fate::kHangUp, "the server closed the connection"},
                    Loss{"Silence", Fate::kSilence, "does not answer (timeout)"},
                    Loss{"ShortRead", Fate::kShort, "protocol: 2048 bytes for a read of 4096"},
                    Loss{"WrongMagic", Fate::kWrongMagic, "protocol: a reply with the magic 0x0"}),
    [](const auto& param) { return std::string(param.param.name); });

TEST(Bench, WhatTheServerDoesNotOfferIsRefused) {
  TestServer plain({.flags = 0});
  EXPECT_THAT(refusal(plain, {"--mix=trim", "--destructive"}), HasSubstr("does not offer trim"));
  EXPECT_THAT(refusal(plain, {"--mix=zero", "--destructive"}), HasSubstr("does not offer zero"));
  EXPECT_THAT(refusal(plain, {"--mix=cache"}), HasSubstr("does not offer cache"));
  EXPECT_THAT(refusal(plain, {"--flush-every=3"}), HasSubstr("--flush-every"));
  EXPECT_THAT(refusal(plain, {"--fua=3"}), HasSubstr("--fua"));
  EXPECT_THAT(refusal(plain, {"--length=2m"}), HasSubstr("1048576 bytes"));
  EXPECT_THAT(refusal(plain, {"--offset=1m"}), HasSubstr("room for 0 blocks"));
  EXPECT_THAT(refusal(plain, {"--server-pid=2147483647"}), HasSubstr("no process"));
  TestServer read_only({.flags = nbd::kReadOnly});
  EXPECT_THAT(refusal(read_only, {"--mix=write", "--destructive"}), HasSubstr("read-only"));
  TestServer blocks({.block_sizes = {.min = 4096, .preferred = 4096, .payload_max = 65536}});
  EXPECT_THAT(refusal(blocks, {"--block-size=512"}), HasSubstr("multiples of 4096"));
  EXPECT_THAT(refusal(blocks, {"--block-size=128k"}), HasSubstr("65536 bytes at most"));
}

TEST(Bench, AServerThatIsNotThereIsNamed) {
  try {
    (void)bench("/tmp/nbdbench-test-no-such-socket", {});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("/tmp/nbdbench-test-no-such-socket"));
    EXPECT_THAT(error.what(), HasSubstr("cannot connect"));
  }
}

TEST(Bench, AProcessIsMeasured) {
  TestServer server;
  const BenchOptions options =
      options_of({"--operations=2000", "--server-children",
                  "--server-pid=" + std::to_string(::getpid()), server.socket()});
  const std::atomic<bool> interrupted = false;
  const BenchReport report = run_bench(options, interrupted);
  ASSERT_TRUE(report.server.has_value());
  EXPECT_GT(report.server->cpu_s, 0);
  EXPECT_GT(report.server->rss_bytes, 1u << 20);
  EXPECT_GE(report.server->rss_peak_bytes, report.server->rss_bytes);
  EXPECT_GE(report.server->threads, 2u);
  EXPECT_THAT(text_report(options, report), HasSubstr("server: "));
  const auto json = nlohmann::json::parse(json_report(options, report));
  EXPECT_GT(json["server"]["cpu_us_per_operation"], 0);
  EXPECT_EQ(json["operations"], 2000);
  EXPECT_EQ(json["kinds"]["read"]["operations"], 2000);
  EXPECT_GT(json["kinds"]["read"]["latency_us"]["p99_99"], 0);
}

// nbdkit as a separate process, when it is installed.
class Nbdkit : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists("/usr/bin/nbdkit")) GTEST_SKIP() << "nbdkit is not installed";
    char directory[] = "/tmp/nbdbench-test-XXXXXX";
    ASSERT_NE(::mkdtemp(directory), nullptr);
    directory_ = directory;
  }
  void TearDown() override {
    if (pid_ > 0) {
      ::kill(pid_, SIGTERM);
      ::waitpid(pid_, nullptr, 0);
    }
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }
  // Returns the socket.
  std::string start(std::vector<std::string> arguments) {
    const std::string socket = directory_ + "/s";
    arguments.insert(arguments.begin(), {"/usr/bin/nbdkit", "-f", "-U", socket});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    struct stat status;
    for (int i = 0; i < 1000 && ::stat(socket.c_str(), &status) != 0; i++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return socket;
  }

  std::string directory_;
  pid_t pid_ = -1;
};

TEST_F(Nbdkit, AMixOverSeveralConnectionsIsVerified) {
  const std::string socket = start({"memory", "16M"});
  for (const char* headers : {"--simple", "--extended"}) {
    const BenchReport report = bench(
        socket, {kAllKinds, "--destructive", "--fill", "--verify", "--connections=4",
                 "--operations=10000", "--fua=5", headers, "--server-pid=" + std::to_string(pid_)});
    EXPECT_THAT(report.failures, testing::IsEmpty());
    EXPECT_THAT(report.stats.verify.examples, testing::IsEmpty());
    EXPECT_TRUE(report.good());
    EXPECT_EQ(report.operations(), 10'000u);
    EXPECT_GT(report.server->cpu_s, 0);
  }
}

TEST_F(Nbdkit, InjectedErrorsAreCounted) {
  const std::string socket = start({"--log=null", "--filter=error", "memory", "1M",
                                    "error-pread=ENOSPC", "error-pread-rate=100%"});
  const BenchReport report = bench(socket, {"--operations=100"});
  EXPECT_EQ(report.errors(), 100u);
  EXPECT_EQ(report.operations(), 0u);
}

}  // namespace
}  // namespace weft::tools
