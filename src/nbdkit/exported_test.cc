// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/exported.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/log.h"
#include "nbdkit/call.h"

namespace weft::nbdkit {
namespace {

using namespace std::chrono_literals;
using std::chrono::steady_clock;
using testing::HasSubstr;

// A string from malloc(), freed.
std::string taken(char* string) {
  if (!string) return "(null)";
  std::string result(string);
  std::free(string);
  return result;
}

class Exported : public testing::Test {
 protected:
  Exported() {
    char name[] = "/tmp/weft-exported-XXXXXX";
    folder_ = ::mkdtemp(name);
    configure(log::Form::kNbdkit, true);
    Host::instance().set_plugin("curl");
  }
  ~Exported() override {
    log::configure({});
    (void)!::system(("rm -rf " + folder_).c_str());
  }

  void configure(log::Form form, bool verbose) {
    log::configure({.target = log::Target::kFile,
                    .path = path("log"),
                    .program = form == log::Form::kNbdkit ? "nbdkit" : "weft",
                    .form = form,
                    .verbose = verbose});
  }

  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string file(const std::string& name, std::string_view content) const {
    std::ofstream(path(name), std::ios::binary) << content;
    return path(name);
  }

  // The messages so far, but for debug ones, which go to stderr.
  [[nodiscard]] std::string log() const {
    std::ifstream in(path("log"));
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  std::string folder_;
};

TEST_F(Exported, AreFoundByPlugins) {
  // RTLD_DEFAULT is where a plugin's own look-up begins.
  for (const char* name : {"nbdkit_absolute_path",  "nbdkit_add_export",
                           "nbdkit_add_extent",     "nbdkit_debug",
                           "nbdkit_debug_hexdump",  "nbdkit_disconnect",
                           "nbdkit_error",          "nbdkit_export_name",
                           "nbdkit_exports_count",  "nbdkit_exports_free",
                           "nbdkit_exports_new",    "nbdkit_extents_count",
                           "nbdkit_extents_free",   "nbdkit_extents_new",
                           "nbdkit_get_export",     "nbdkit_get_extent",
                           "nbdkit_is_tls",         "nbdkit_nanosleep",
                           "nbdkit_parse_bool",     "nbdkit_parse_delay",
                           "nbdkit_parse_int",      "nbdkit_parse_int16_t",
                           "nbdkit_parse_int32_t",  "nbdkit_parse_int64_t",
                           "nbdkit_parse_int8_t",   "nbdkit_parse_probability",
                           "nbdkit_parse_size",     "nbdkit_parse_uint16_t",
                           "nbdkit_parse_uint32_t", "nbdkit_parse_uint64_t",
                           "nbdkit_parse_uint8_t",  "nbdkit_parse_unsigned",
                           "nbdkit_peer_gid",       "nbdkit_peer_name",
                           "nbdkit_peer_pid",       "nbdkit_peer_security_context",
                           "nbdkit_peer_tls_dn",    "nbdkit_peer_tls_issuer_dn",
                           "nbdkit_peer_uid",       "nbdkit_printf_intern",
                           "nbdkit_read_password",  "nbdkit_realpath",
                           "nbdkit_set_error",      "nbdkit_shutdown",
                           "nbdkit_stdio_safe",     "nbdkit_strdup_intern",
                           "nbdkit_strndup_intern", "nbdkit_use_default_export",
                           "nbdkit_vdebug",         "nbdkit_verror",
                           "nbdkit_vprintf_intern"}) {
    EXPECT_NE(::dlsym(RTLD_DEFAULT, name), nullptr) << name;
  }
}

TEST_F(Exported, ErrorsAreNamedByTheirConnection) {
  nbdkit_error("outside %d", 1);
  {
    const CallScope config("curl", "config", nullptr);
    nbdkit_error("in config");
    Connection connection("curl", 3, nullptr);
    const CallScope pread("curl", "pread", &connection);
    nbdkit_error("in pread");
    std::thread([] { nbdkit_error("in a thread of its own"); }).join();
  }
  EXPECT_EQ(log(),
            "nbdkit: error: outside 1\n"
            "nbdkit: error: in config\n"
            "nbdkit: curl[3]: error: in pread\n"
            "nbdkit: error: in a thread of its own\n");
}

TEST_F(Exported, ErrorsAreNamedByThePluginInWeftsOwnForm) {
  configure(log::Form::kWeft, false);
  nbdkit_error("outside");
  {
    const CallScope config("file", "config", nullptr);
    nbdkit_error("in config");
    Connection connection("file", 3, nullptr);
    const CallScope pread("file", "pread", &connection);
    nbdkit_error("in pread");
  }
  EXPECT_EQ(log(),
            "weft: error: curl: outside\n"
            "weft: error: file: in config\n"
            "weft: error: file[3]: in pread\n");
}

TEST_F(Exported, MessagesKnowAndKeepErrno) {
  errno = E2BIG;
  nbdkit_error("open %s: %m", "x");
  EXPECT_EQ(errno, E2BIG);
  testing::internal::CaptureStderr();
  nbdkit_debug("debug: %m %d", 5);
  EXPECT_EQ(errno, E2BIG);
  EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr("Argument list too long 5\n"));
  EXPECT_EQ(log(), "nbdkit: error: open x: Argument list too long\n");
}

TEST_F(Exported, MessagesMayBeLongOrHaveLines) {
  const std::string text(100000, 'x');
  nbdkit_error("%s", text.c_str());
  nbdkit_error("one\ntwo\n");
  nbdkit_error("%s", "");
  EXPECT_EQ(log(), "nbdkit: error: " + text +
                       "\nnbdkit: error: one\ntwo\n"
                       "nbdkit: error: \n");
}

TEST_F(Exported, DebugMessagesAreForThoseWhoAsk) {
  configure(log::Form::kNbdkit, false);
  testing::internal::CaptureStderr();
  nbdkit_debug("not asked for");
  nbdkit_debug_hexdump("abc", 3, nullptr, 0);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST_F(Exported, HexdumpsHaveRowsOf16) {
  testing::internal::CaptureStderr();
  nbdkit_debug_hexdump("123456781234567812345678\n", 25, "data: ", 0);
  nbdkit_debug_hexdump("abcd", 4, nullptr, 0x1e);
  nbdkit_debug_hexdump("", 0, "", 0);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "nbdkit: debug: data: 00000000: 31 32 33 34 35 36 37 38  31 32 33 34 35 36 37 38  "
            "|1234567812345678|\n"
            "nbdkit: debug: data: 00000010: 31 32 33 34 35 36 37 38  0a                       "
            "|12345678.       |\n"
            "nbdkit: debug: 00000010:                                            61 62  "
            "|              ab|\n"
            "nbdkit: debug: 00000020: 63 64                                             "
            "|cd              |\n");
}

TEST_F(Exported, ErrorsAreTheInnermostScopes) {
  nbdkit_set_error(EPERM);  // no scope: nothing to set, nothing to break
  const CallScope outer("curl", "pread", nullptr);
  {
    const CallScope inner("curl", "flush", nullptr);
    nbdkit_set_error(ENOSPC);
    EXPECT_EQ(inner.error(), ENOSPC);
    std::thread([] { nbdkit_set_error(EIO); }).join();
    EXPECT_EQ(inner.error(), ENOSPC);
  }
  EXPECT_EQ(outer.error(), 0);
}

TEST_F(Exported, InternedStringsLiveWithTheirConnection) {
  const char* const eternal = nbdkit_strdup_intern("hello");
  EXPECT_STREQ(eternal, "hello");
  EXPECT_STREQ(nbdkit_strndup_intern("hello", 3), "hel");
  EXPECT_STREQ(nbdkit_strndup_intern("hello", 30), "hello");
  EXPECT_STREQ(nbdkit_strndup_intern("hello", 0), "");
  const char open_end[] = {'a', 'b'};  // no NUL to find
  EXPECT_STREQ(nbdkit_strndup_intern(open_end, 2), "ab");
  errno = ENOENT;
  EXPECT_STREQ(nbdkit_printf_intern("x%d %m", 5), "x5 No such file or directory");
  {
    Connection connection("curl", 1, nullptr);
    const CallScope scope("curl", "open", &connection);
    const char* const inner = nbdkit_strdup_intern("hello");
    EXPECT_STREQ(inner, "hello");
    EXPECT_NE(inner, eternal);
    for (int i = 0; i < 10000; ++i) nbdkit_printf_intern("%d", i);
    EXPECT_STREQ(inner, "hello");
  }
  EXPECT_STREQ(eternal, "hello");
  errno = 0;
  EXPECT_EQ(nbdkit_strdup_intern(nullptr), nullptr);
  EXPECT_EQ(errno, EINVAL);
  EXPECT_EQ(nbdkit_strndup_intern(nullptr, 3), nullptr);
}

TEST_F(Exported, Paths) {
  const std::string here = taken(::get_current_dir_name());
  EXPECT_EQ(taken(nbdkit_absolute_path("a/b")), here + "/a/b");
  EXPECT_EQ(taken(nbdkit_absolute_path("/a/../b")), "/a/../b");
  EXPECT_EQ(nbdkit_absolute_path(""), nullptr);
  EXPECT_EQ(nbdkit_absolute_path(nullptr), nullptr);
  ASSERT_EQ(::symlink("log", path("link").c_str()), 0);
  EXPECT_EQ(taken(nbdkit_realpath(path("./link").c_str())), path("log"));
  EXPECT_EQ(nbdkit_realpath(""), nullptr);
  EXPECT_EQ(nbdkit_realpath(nullptr), nullptr);
  errno = 0;
  EXPECT_EQ(nbdkit_realpath(path("nothing").c_str()), nullptr);
  EXPECT_EQ(errno, ENOENT);
}

// "VALUE" as it would be read, "(null)" for a refusal.
std::string password_of(const std::string& value) {
  char* password = reinterpret_cast<char*>(1);
  const int result = nbdkit_read_password(value.c_str(), &password);
  EXPECT_EQ(result == 0, password != nullptr);
  return taken(password);
}

TEST_F(Exported, PasswordsFromFiles) {
  EXPECT_EQ(password_of("literal"), "literal");
  EXPECT_EQ(password_of(""), "");
  EXPECT_EQ(password_of("+" + file("two", "secret\nsecond\n")), "secret");
  EXPECT_EQ(password_of("+" + file("open", "no newline")), "no newline");
  EXPECT_EQ(password_of("+" + file("empty", "")), "");
  EXPECT_EQ(password_of("+" + file("blank", "\nsecond\n")), "");
  EXPECT_EQ(password_of("+" + file("cr", "cr\r\nx")), "cr\r");
  EXPECT_EQ(password_of("+" + file("nul", std::string_view("a\0b\n", 4))), "a");
  EXPECT_EQ(password_of("+" + file("big", std::string(60000, 'p') + "\n")),
            std::string(60000, 'p'));
  for (const std::string& wrong :
       {"+" + path("nothing"), std::string("+"), "+" + folder_, std::string("+/dev/zero")}) {
    EXPECT_EQ(password_of(wrong), "(null)") << wrong;
  }
}

TEST_F(Exported, PasswordsFromDescriptors) {
  const int fd = ::open(file("fd", "from fd\nmore\n").c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GT(fd, 2);
  EXPECT_EQ(password_of("-" + std::to_string(fd)), "from fd");
  EXPECT_EQ(::fcntl(fd, F_GETFD), -1);  // it is closed
  for (const char* wrong : {"-0", "-1", "-2", "-9999", "-x", "-5x", "--", "--5", "- 1"}) {
    EXPECT_EQ(password_of(wrong), "(null)") << wrong;
  }
  EXPECT_EQ(::fcntl(1, F_GETFD), 0);
  char* password = nullptr;
  EXPECT_EQ(nbdkit_read_password(nullptr, &password), -1);
}

// While it lives, stdin and stdout are the terminal, or whatever `fd` is.
class StandardStreams {
 public:
  explicit StandardStreams(int fd) : in_(::dup(0)), out_(::dup(1)) {
    std::fflush(stdout);
    ::dup2(fd, 0);
    ::dup2(fd, 1);
  }
  ~StandardStreams() {
    ::dup2(in_.get(), 0);
    ::dup2(out_.get(), 1);
  }

 private:
  Fd in_;
  Fd out_;
};

TEST_F(Exported, PasswordsFromTheTerminalAreNotShown) {
  const Fd master(::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC));
  if (!master || ::grantpt(master.get()) != 0 || ::unlockpt(master.get()) != 0) {
    GTEST_SKIP() << "no pseudo terminal can be made here: " << std::strerror(errno);
  }
  const Fd slave(::open(::ptsname(master.get()), O_RDWR | O_NOCTTY | O_CLOEXEC));
  ASSERT_TRUE(slave);
  std::string screen;
  const auto watch_until = [&](std::string_view wanted) {
    const auto end = steady_clock::now() + 20s;
    while (screen.find(wanted) == screen.npos && steady_clock::now() < end) {
      pollfd wait{master.get(), POLLIN, 0};
      char buffer[256];
      if (::poll(&wait, 1, 100) > 0) {
        const ssize_t got = ::read(master.get(), buffer, sizeof buffer);
        if (got > 0) screen.append(buffer, static_cast<size_t>(got));
      }
    }
    return screen.find(wanted) != screen.npos;
  };
  std::string password;
  {
    const StandardStreams streams(slave.get());
    std::thread asks([&] { password = password_of("-"); });
    EXPECT_TRUE(watch_until("password: "));
    EXPECT_EQ(::write(master.get(), "secret\n", 7), 7);
    asks.join();
    EXPECT_TRUE(watch_until("\n"));
  }
  EXPECT_EQ(password, "secret");
  EXPECT_EQ(screen.find("secret"), screen.npos) << screen;
  Host::instance().stdio_safe = false;
  {
    const StandardStreams streams(slave.get());
    EXPECT_EQ(password_of("-"), "(null)");
  }
  Host::instance().stdio_safe = true;
  {
    const Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    const StandardStreams streams(null.get());
    EXPECT_EQ(password_of("-"), "(null)");
  }
}

TEST_F(Exported, StdioSafe) {
  EXPECT_EQ(nbdkit_stdio_safe(), 1);
  Host::instance().stdio_safe = false;
  EXPECT_EQ(nbdkit_stdio_safe(), 0);
  Host::instance().stdio_safe = true;
}

TEST_F(Exported, PeersOfUnixSockets) {
  disk::Peer peer;
  peer.address.ss_family = AF_UNIX;
  peer.address_length = sizeof(sa_family_t);
  peer.credentials = ucred{.pid = 4711, .uid = 1000, .gid = 4294967294};
  peer.security_label = "unconfined";
  Connection connection("curl", 1, &peer);
  const CallScope scope("curl", "open", &connection);
  EXPECT_EQ(nbdkit_peer_pid(), 4711);
  EXPECT_EQ(nbdkit_peer_uid(), 1000);
  EXPECT_EQ(nbdkit_peer_gid(), 4294967294);
  EXPECT_EQ(taken(nbdkit_peer_security_context()), "unconfined");
  EXPECT_EQ(taken(nbdkit_peer_tls_dn()), "");
  EXPECT_EQ(taken(nbdkit_peer_tls_issuer_dn()), "");
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  EXPECT_EQ(nbdkit_peer_name(reinterpret_cast<sockaddr*>(&address), &length), 0);
  EXPECT_EQ(length, sizeof(sa_family_t));
  EXPECT_EQ(address.ss_family, AF_UNIX);
}

TEST_F(Exported, PeersOfTcp) {
  disk::Peer peer;
  auto* const in = reinterpret_cast<sockaddr_in*>(&peer.address);
  in->sin_family = AF_INET;
  in->sin_port = htons(40122);
  peer.address_length = sizeof *in;
  Connection connection("curl", 1, &peer);
  const CallScope scope("curl", "open", &connection);
  EXPECT_EQ(nbdkit_peer_pid(), -1);
  EXPECT_EQ(nbdkit_peer_uid(), -1);
  EXPECT_EQ(nbdkit_peer_gid(), -1);
  EXPECT_EQ(nbdkit_peer_security_context(), nullptr);
  sockaddr_storage address{};
  socklen_t length = 4;  // too short: cut off, and told how long it is
  EXPECT_EQ(nbdkit_peer_name(reinterpret_cast<sockaddr*>(&address), &length), 0);
  EXPECT_EQ(length, sizeof *in);
  EXPECT_EQ(std::memcmp(&address, in, 4), 0);
  EXPECT_EQ(reinterpret_cast<const char*>(&address)[4], 0);
}

TEST_F(Exported, ExportNameAndTls) {
  Connection connection("curl", 1, nullptr);
  const CallScope scope("curl", "open", &connection);
  EXPECT_STREQ(nbdkit_export_name(), "");
  connection.export_name = "disk";
  EXPECT_STREQ(nbdkit_export_name(), "disk");
  EXPECT_EQ(nbdkit_is_tls(), 0);
  connection.tls = true;
  EXPECT_EQ(nbdkit_is_tls(), 1);
  // weft's own connections have no client.
  EXPECT_EQ(nbdkit_peer_pid(), -1);
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  EXPECT_EQ(nbdkit_peer_name(reinterpret_cast<sockaddr*>(&address), &length), -1);
}

TEST_F(Exported, WithoutAConnectionThereIsNothingToSayOfIt) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  EXPECT_EQ(nbdkit_peer_name(reinterpret_cast<sockaddr*>(&address), &length), -1);
  EXPECT_EQ(nbdkit_peer_pid(), -1);
  EXPECT_EQ(nbdkit_peer_uid(), -1);
  EXPECT_EQ(nbdkit_peer_gid(), -1);
  EXPECT_EQ(nbdkit_peer_security_context(), nullptr);
  EXPECT_EQ(nbdkit_peer_tls_dn(), nullptr);
  EXPECT_EQ(nbdkit_peer_tls_issuer_dn(), nullptr);
  EXPECT_EQ(nbdkit_export_name(), nullptr);
  EXPECT_EQ(nbdkit_is_tls(), -1);
  nbdkit_disconnect(1);
  const std::string text = log();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 10) << text;
}

TEST_F(Exported, DisconnectReachesTheServerOnceItIsToBeNow) {
  int told = 0;
  disk::Peer peer;
  peer.disconnect = [&] { ++told; };
  Connection connection("curl", 1, &peer);
  const CallScope scope("curl", "pread", &connection);
  EXPECT_FALSE(connection.disconnected());
  nbdkit_disconnect(0);
  nbdkit_disconnect(0);
  EXPECT_TRUE(connection.disconnected());
  EXPECT_EQ(told, 0);
  nbdkit_disconnect(1);  // more than was asked for before
  EXPECT_EQ(told, 1);
}

}  // namespace
}  // namespace weft::nbdkit
