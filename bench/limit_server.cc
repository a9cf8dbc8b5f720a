// SPDX-License-Identifier: BSD-3-Clause
// limit_server SOCKET SIZE: what the sockets alone allow. An NBD server without storage, rules or
// safety, as the upper limit that real servers are compared with: a blocking thread for each
// connection receives all requests that are there, and one gathering send answers them, reads from
// one common buffer that writes are copied into. It understands NBD_OPT_EXPORT_NAME only
// (nbdbench --simple). Never serve anything with it.
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "nbd/constants.h"
#include "nbd/transmission.h"

namespace {

using namespace weft;  // NOLINT: a program of one file

constexpr size_t kBufferSize = size_t{4} << 20;  // of what is received: at least one write
constexpr size_t kDiskSize = size_t{64} << 20;   // a larger export sees it again and again
constexpr size_t kBatchMax = 512;                // two pieces for each reply: UIO_MAXIOV

std::byte disk[kDiskSize];

bool receive_all(int fd, std::byte* to, size_t size) {
  return size == 0 || ::recv(fd, to, size, MSG_WAITALL) == static_cast<ssize_t>(size);
}

bool negotiate(int fd, uint64_t size) {
  std::array<std::byte, 18> greeting;
  std::byte* to = store_be<uint64_t>(greeting.data(), nbd::kMagic);
  to = store_be<uint64_t>(to, nbd::kOptionMagic);
  store_be<uint16_t>(to, nbd::kFixedNewstyle | nbd::kNoZeroes);
  if (::send(fd, greeting.data(), greeting.size(), 0) < 0) return false;
  std::array<std::byte, 20> asked;  // client flags, magic, option, length
  if (!receive_all(fd, asked.data(), asked.size())) return false;
  if (load_be<uint32_t>(asked.data() + 12) != nbd::kOptExportName) return false;
  std::vector<std::byte> name(std::min(load_be<uint32_t>(asked.data() + 16), 4096u));
  if (!receive_all(fd, name.data(), name.size())) return false;
  std::array<std::byte, 10> told;
  store_be<uint16_t>(store_be<uint64_t>(told.data(), size),
                     nbd::kHasFlags | nbd::kSendFlush | nbd::kSendFua | nbd::kCanMultiConn);
  return ::send(fd, told.data(), told.size(), 0) > 0;
}

bool send_all(int fd, std::vector<iovec>& pieces) {
  size_t at = 0;
  while (at < pieces.size()) {
    msghdr message = {};
    message.msg_iov = &pieces[at];
    message.msg_iovlen = pieces.size() - at;
    const ssize_t sent = ::sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent <= 0) return false;
    for (auto left = static_cast<size_t>(sent); left != 0;) {
      iovec& piece = pieces[at];
      const size_t part = std::min(left, piece.iov_len);
      piece.iov_base = static_cast<std::byte*>(piece.iov_base) + part;
      piece.iov_len -= part;
      left -= part;
      if (piece.iov_len == 0) at++;
    }
  }
  return true;
}

void serve(int fd, uint64_t size) {
  std::vector<std::byte> buffer(kBufferSize);
  std::vector<std::byte> replies(kBatchMax * nbd::kSimpleReplySize);
  std::vector<iovec> pieces;
  pieces.reserve(2 * kBatchMax);
  size_t have = 0;
  if (!negotiate(fd, size)) return;
  for (;;) {
    const ssize_t got = ::recv(fd, buffer.data() + have, buffer.size() - have, 0);
    if (got <= 0) return;
    have += static_cast<size_t>(got);
    size_t at = 0;
    // A batch takes what fits into one send; the rest waits for the next round.
    bool full = true;
    while (full) {
      pieces.clear();
      std::byte* reply = replies.data();
      full = false;
      while (have - at >= nbd::kRequestSize) {
        if (pieces.size() + 2 > 2 * kBatchMax) {
          full = true;
          break;
        }
        nbd::Request request;
        if (!nbd::decode_request(&buffer[at], request) || request.type == nbd::kCmdDisc) return;
        if (request.length > kBufferSize - nbd::kRequestSize) return;
        std::byte* const data = disk + request.offset % (kDiskSize - request.length);
        size_t needed = nbd::kRequestSize;
        if (request.type == nbd::kCmdWrite) {
          needed += request.length;
          if (have - at < needed) break;
          std::memcpy(data, &buffer[at + nbd::kRequestSize], request.length);
        }
        at += needed;
        std::byte* const end = nbd::encode_simple_reply(reply, nbd::kOk, request.cookie);
        pieces.push_back({reply, nbd::kSimpleReplySize});
        if (request.type == nbd::kCmdRead) pieces.push_back({data, request.length});
        reply = end;
      }
      if (!send_all(fd, pieces)) return;
    }
    have -= at;
    std::memmove(buffer.data(), &buffer[at], have);
  }
}

}  // namespace

int main(int argc, char** argv) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (argc != 3 || std::strlen(argv[1]) >= sizeof address.sun_path) {
    std::fputs("usage: limit_server SOCKET SIZE (bytes)\n", stderr);
    return 1;
  }
  ::signal(SIGPIPE, SIG_IGN);
  const uint64_t size = std::strtoull(argv[2], nullptr, 0);
  std::strcpy(address.sun_path, argv[1]);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM, 0);
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener, 64) != 0) {
    std::perror("limit_server: cannot listen");
    return 1;
  }
  for (;;) {
    const int fd = ::accept(listener, nullptr, nullptr);
    if (fd < 0) continue;
    std::thread([fd, size] {
      serve(fd, size);
      ::close(fd);
    }).detach();
  }
}
