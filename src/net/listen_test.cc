// SPDX-License-Identifier: BSD-3-Clause
#include "net/listen.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>

#include "base/result.h"

namespace weft::net {
namespace {

using ::testing::HasSubstr;

class TemporaryDirectory {
 public:
  TemporaryDirectory() { EXPECT_NE(::mkdtemp(name_), nullptr); }
  ~TemporaryDirectory() { (void)!std::system(fmt::format("rm -rf {}", name_).c_str()); }
  [[nodiscard]] std::string file(const char* name) const {
    return fmt::format("{}/{}", name_, name);
  }

 private:
  char name_[32] = "/tmp/listen-testXXXXXX";
};

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

bool can_connect_unix(const std::string& path) {
  const Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  return ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

bool can_connect_tcp4(uint16_t port) {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return ::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
}

TEST(ListenUnix, AcceptsClientsAndIsNonBlockingAndCloseOnExec) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("socket");
  const ListeningSocket listening = listen_unix(path);
  EXPECT_EQ(listening.description, path);
  EXPECT_TRUE(can_connect_unix(path));
  EXPECT_NE(::fcntl(listening.fd.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(listening.fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_EQ(bound_address(listening.fd.get()).path, path);
}

TEST(ListenUnix, NamedSocketStaysBehind) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("socket");
  {
    const ListeningSocket listening = listen_unix(path);
  }
  struct stat status{};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  // ... and is then in the way, with the mend in the message.
  EXPECT_THAT(error_of([&] { listen_unix(path); }), HasSubstr("rm '" + path + "'"));
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
}

TEST(ListenUnix, NamesWhatIsInTheWay) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("socket");
  const ListeningSocket listening = listen_unix(path);
  EXPECT_THAT(error_of([&] { listen_unix(path); }), HasSubstr("another server listens there"));

  const std::string file = directory.file("file");
  std::ofstream(file) << "x";
  EXPECT_THAT(error_of([&] { listen_unix(file); }), HasSubstr("not a socket"));
  const std::string missing = directory.file("none") + "/socket";
  EXPECT_THAT(error_of([&] { listen_unix(missing); }), HasSubstr("No such file or directory"));
}

TEST(ListenUnix, LengthOfThePath) {
  const TemporaryDirectory directory;
  std::string path = directory.file("");
  path += std::string(107 - path.size(), 'x');
  {
    const ListeningSocket listening = listen_unix(path);
  }
  EXPECT_THAT(error_of([&] { listen_unix(path + "x"); }), HasSubstr("the system allows 107"));
  EXPECT_THAT(error_of([&] { listen_unix(""); }), HasSubstr("empty"));
}

TEST(ListenTcp, FreePortIsTheSameOnAllAddresses) {
  const auto sockets = listen_tcp("", "0", AddressFamily::kAny);
  ASSERT_FALSE(sockets.empty());
  const BoundAddress first = bound_address(sockets[0].fd.get());
  EXPECT_NE(first.port, 0u);
  bool ipv4 = false;
  for (const auto& socket : sockets) {
    const BoundAddress bound = bound_address(socket.fd.get());
    EXPECT_EQ(bound.kind, BoundAddress::Kind::kTcp);
    EXPECT_EQ(bound.port, first.port);
    EXPECT_EQ(bound.host, "");
    EXPECT_THAT(socket.description, HasSubstr(fmt::format(":{}", first.port)));
    ipv4 |= !bound.ipv6;
  }
  EXPECT_TRUE(ipv4);
  EXPECT_TRUE(can_connect_tcp4(static_cast<uint16_t>(first.port)));
}

TEST(ListenTcp, OneFamilyOnly) {
  const auto sockets = listen_tcp("", "0", AddressFamily::kIpv4);
  ASSERT_EQ(sockets.size(), 1u);
  EXPECT_FALSE(bound_address(sockets[0].fd.get()).ipv6);
  EXPECT_THAT(sockets[0].description, HasSubstr("0.0.0.0:"));
}

TEST(ListenTcp, OneAddressOnly) {
  const auto sockets = listen_tcp("127.0.0.1", "0", AddressFamily::kAny);
  ASSERT_EQ(sockets.size(), 1u);
  EXPECT_EQ(bound_address(sockets[0].fd.get()).host, "127.0.0.1");
}

TEST(ListenTcp, Errors) {
  const auto taken = listen_tcp("127.0.0.1", "0", AddressFamily::kIpv4);
  const std::string port = fmt::format("{}", bound_address(taken[0].fd.get()).port);
  const std::string text = error_of([&] { listen_tcp("127.0.0.1", port, AddressFamily::kIpv4); });
  EXPECT_THAT(text, HasSubstr("127.0.0.1:" + port));
  EXPECT_THAT(text, HasSubstr("Address already in use"));
  // A part of the addresses is not enough.
  EXPECT_NE(error_of([&] { listen_tcp("", port, AddressFamily::kAny); }), "");
  EXPECT_THAT(error_of([] { listen_tcp("", "no-such-service", AddressFamily::kAny); }),
              HasSubstr("'no-such-service'"));
  EXPECT_THAT(error_of([] { listen_tcp("", "65536", AddressFamily::kAny); }), HasSubstr("65536"));
  EXPECT_THAT(error_of([] { listen_tcp("999.1.1.1", "0", AddressFamily::kAny); }),
              HasSubstr("999.1.1.1"));
  EXPECT_NE(error_of([] { listen_tcp("127.0.0.1", "0", AddressFamily::kIpv6); }), "");
}

// Runs `body` in a child where descriptors 3 and on are `fds`; returns its exit status.
int with_inherited(const std::vector<int>& fds, const std::function<bool()>& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::vector<int> high;
    for (const int fd : fds) high.push_back(::fcntl(fd, F_DUPFD, 100));
    for (size_t i = 0; i < high.size(); ++i) ::dup2(high[i], 3 + static_cast<int>(i));
    ::setenv("LISTEN_PID", fmt::format("{}", ::getpid()).c_str(), 1);
    ::setenv("LISTEN_FDS", fmt::format("{}", fds.size()).c_str(), 1);
    ::_exit(body() ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(InheritedSockets, TakesThemAndClearsTheEnvironment) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("socket");
  const ListeningSocket first = listen_unix(path);
  const auto second = listen_tcp("127.0.0.1", "0", AddressFamily::kIpv4);
  EXPECT_EQ(0, with_inherited({first.fd.get(), second[0].fd.get()}, [&] {
              const auto sockets = inherited_sockets();
              return sockets.size() == 2 && sockets[0].fd.get() == 3 &&
                     sockets[0].description == path &&
                     sockets[1].description == second[0].description &&
                     (::fcntl(3, F_GETFD) & FD_CLOEXEC) != 0 &&
                     (::fcntl(4, F_GETFL) & O_NONBLOCK) != 0 &&
                     std::getenv("LISTEN_PID") == nullptr && std::getenv("LISTEN_FDS") == nullptr &&
                     inherited_sockets().empty();
            }));
}

TEST(InheritedSockets, RefusesWhatIsNotListening) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  EXPECT_EQ(0, with_inherited({ends[0]}, [] {
              return error_of([] { inherited_sockets(); }).find("descriptor 3") !=
                     std::string::npos;
            }));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(InheritedSockets, RulesOfTheVariables) {
  for (const char* count : {"0", "17", "", "x", "1x", "-1"}) {
    EXPECT_EQ(0, with_inherited({},
                                [&] {
                                  ::setenv("LISTEN_FDS", count, 1);
                                  return error_of([] { inherited_sockets(); }).find("LISTEN_FDS") !=
                                         std::string::npos;
                                }))
        << count;
  }
  EXPECT_EQ(0, with_inherited({}, [&] {  // meant for another process
              ::setenv("LISTEN_PID", "1", 1);
              ::setenv("LISTEN_FDS", "1", 1);
              return inherited_sockets().empty() && std::getenv("LISTEN_FDS") == nullptr;
            }));
  EXPECT_EQ(0, with_inherited({}, [&] {
              ::unsetenv("LISTEN_PID");
              return inherited_sockets().empty();
            }));
}

}  // namespace
}  // namespace weft::net
