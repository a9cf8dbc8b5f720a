// SPDX-License-Identifier: BSD-3-Clause
// run_conformance() against peers that are no servers at all: it ends, soon, and says why.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "check/subject.h"

namespace weft::check {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Listens, and gives each connection to `serve`, one after the other.
class Peer {
 public:
  explicit Peer(std::function<void(int fd)> serve) : serve_(std::move(serve)) {
    char name[] = "/tmp/weft-conformance-XXXXXX";
    directory_ = ::mkdtemp(name);
    listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, socket().c_str());
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 16), 0);
    thread_ = std::thread([this] { accept_all(); });
  }
  ~Peer() {
    stopping_ = true;
    thread_.join();
    ::unlink(socket().c_str());
    ::rmdir(directory_.c_str());
  }
  [[nodiscard]] std::string socket() const { return directory_ + "/socket"; }
  [[nodiscard]] const std::atomic<bool>& stopping() const { return stopping_; }
  std::atomic<int> connections = 0;

 private:
  void accept_all() {
    while (!stopping_) {
      pollfd one = {.fd = listener_.get(), .events = POLLIN, .revents = 0};
      if (::poll(&one, 1, 20) <= 0) continue;
      const Fd connection(::accept(listener_.get(), nullptr, nullptr));
      ++connections;
      serve_(connection.get());
    }
  }

  std::function<void(int)> serve_;
  std::string directory_;
  Fd listener_;
  std::atomic<bool> stopping_ = false;
  std::thread thread_;
};

class Nobody final : public Progress {
 public:
  void show(const std::string&) override {}
};

// The patience is for a machine that is busy; silent peers use it up.
Report report_on(const Peer& peer, std::string only = "",
                 milliseconds patience = milliseconds(2500)) {
  Options options;
  options.only = std::move(only);
  options.patience = patience;
  options.seed = 1;
  std::atomic<bool> interrupted = false;
  Nobody nobody;
  Report report;
  tools::Target target;
  target.socket = peer.socket();
  struct Run run{.options = options,
                 .target = target,
                 .interrupted = interrupted,
                 .progress = nobody,
                 .report = report};
  run_conformance(run);
  return report;
}

void say(int fd, ByteSpan bytes) {
  (void)::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
}

// Until the client leaves, or for a while.
void wait_for_client(int fd) {
  std::array<std::byte, 4096> buffer;
  pollfd one = {.fd = fd, .events = POLLIN, .revents = 0};
  while (::poll(&one, 1, 3000) > 0 && ::recv(fd, buffer.data(), buffer.size(), 0) > 0) {
  }
}

std::array<std::byte, 18> greeting(uint16_t flags) {
  std::array<std::byte, 18> bytes;
  std::byte* to = store_be<uint64_t>(bytes.data(), nbd::kMagic);
  to = store_be<uint64_t>(to, nbd::kOptionMagic);
  store_be<uint16_t>(to, flags);
  return bytes;
}

void expect_only(const Report& report, State state, std::string_view kind) {
  ASSERT_EQ(report.tests.size(), 1u);
  EXPECT_EQ(report.tests[0].name, "handshake.negotiation");
  EXPECT_EQ(report.tests[0].state, state) << report.tests[0].detail;
  if (kind.empty()) return;
  ASSERT_EQ(report.tests[0].findings.size(), 1u);
  EXPECT_EQ(report.tests[0].findings[0].kind, kind);
  EXPECT_THAT(report.tests[0].findings[0].replay,
              ::testing::HasSubstr("--only=handshake.negotiation"));
}

TEST(Conformance, NobodyListens) {
  Options options;
  options.patience = milliseconds(100);
  std::atomic<bool> interrupted = false;
  Nobody nobody;
  Report report;
  tools::Target target;
  target.socket = "/tmp/weft-nobody-listens-here";
  struct Run run{.options = options,
                 .target = target,
                 .interrupted = interrupted,
                 .progress = nobody,
                 .report = report};
  run_conformance(run);
  expect_only(report, State::kInconclusive, "");
}

TEST(Conformance, AServerThatClosesAtOnce) {
  const Peer peer([](int) {});
  expect_only(report_on(peer), State::kFailed, "disconnected");
}

TEST(Conformance, AServerThatSaysNothing) {
  const Peer peer(wait_for_client);
  const auto begin = steady_clock::now();
  expect_only(report_on(peer, "", milliseconds(100)), State::kFailed, "no-answer");
  EXPECT_LT(steady_clock::now() - begin, milliseconds(10000));
}

TEST(Conformance, AServerThatSpeaksAnotherProtocol) {
  const Peer peer([](int fd) {
    say(fd, bytes_of("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"));
    wait_for_client(fd);
  });
  expect_only(report_on(peer), State::kFailed, "wrong-magic");
}

TEST(Conformance, AServerWithoutFixedNewstyle) {
  const Peer peer([](int fd) {
    say(fd, greeting(0));
    wait_for_client(fd);
  });
  expect_only(report_on(peer), State::kFailed, "not-fixed-newstyle");
}

TEST(Conformance, AServerWithoutAnEndToItsReplies) {
  const Peer peer([](int fd) {
    say(fd, greeting(3));
    std::array<std::byte, 22> reply = {};
    std::byte* to = store_be<uint64_t>(reply.data(), nbd::kOptionReplyMagic);
    to = store_be<uint32_t>(to, nbd::kOptInfo);
    to = store_be<uint32_t>(to, nbd::kRepInfo);
    store_be<uint32_t>(to, 2);
    while (::send(fd, reply.data(), reply.size(), MSG_NOSIGNAL) > 0) {
    }
  });
  expect_only(report_on(peer), State::kInconclusive, "");
}

// A server of a few words: it greets, refuses all options but INFO, and knows EXPORT_NAME; then it
// answers no request. What is left of it is told as hangs, and the run ends.
TEST(Conformance, AServerThatHangsInTransmission) {
  const Peer peer([](int fd) {
    say(fd, greeting(3));
    std::array<std::byte, 4> flags;
    if (::recv(fd, flags.data(), flags.size(), MSG_WAITALL) != 4) return;
    std::array<std::byte, 16> header;
    while (::recv(fd, header.data(), header.size(), MSG_WAITALL) == 16) {
      const auto option = load_be<uint32_t>(header.data() + 8);
      std::vector<std::byte> data(load_be<uint32_t>(header.data() + 12) & 0xffff);
      if (!data.empty() && ::recv(fd, data.data(), data.size(), MSG_WAITALL) <= 0) return;
      if (option == nbd::kOptExportName) {
        std::array<std::byte, 10> size;
        store_be<uint16_t>(store_be<uint64_t>(size.data(), 1 << 20), nbd::kHasFlags);
        say(fd, size);
        return wait_for_client(fd);
      }
      std::array<std::byte, 20> reply;
      std::byte* to = store_be<uint64_t>(reply.data(), nbd::kOptionReplyMagic);
      to = store_be<uint32_t>(to, option);
      to = store_be<uint32_t>(to, nbd::kRepErrUnsup);
      store_be<uint32_t>(to, 0);
      say(fd, reply);
    }
  });
  const Report report = report_on(peer, "transmission.", milliseconds(400));
  ASSERT_GT(report.tests.size(), 10u);
  uint32_t failed = 0;
  for (const weft::check::Test& test : report.tests) {
    failed += test.state == State::kFailed;
    if (test.name == "transmission.cookies.simple") {
      ASSERT_EQ(test.state, State::kFailed);
      EXPECT_EQ(test.findings[0].kind, "no-answer");
      EXPECT_THAT(test.findings[0].story, ::testing::Contains(::testing::HasSubstr("25609513")));
    }
    if (test.name == "transmission.write.simple") {
      EXPECT_EQ(test.state, State::kSkipped);
      EXPECT_THAT(test.detail, ::testing::HasSubstr("--destroy"));
    }
  }
  EXPECT_GE(failed, 1u);
  EXPECT_LE(failed, 8u);
  EXPECT_TRUE(std::ranges::any_of(report.tests, [](const weft::check::Test& test) {
    return test.detail == "the server no longer answers" && test.state == State::kInconclusive;
  }));
}

}  // namespace
}  // namespace weft::check
