// SPDX-License-Identifier: BSD-3-Clause
#include "tools/bench_test_server.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <variant>

namespace weft::tools {
namespace {

bool send_all(int fd, ByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(sent));
  }
  return true;
}

bool receive_all(int fd, MutableByteSpan bytes) {
  while (!bytes.empty()) {
    const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), 0);
    if (got <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(got));
  }
  return true;
}

void append_chunk(std::vector<std::byte>& reply, nbd::HeaderMode mode, nbd::ReplyChunk chunk,
                  ByteSpan payload) {
  chunk.length = payload.size();
  const size_t at = reply.size();
  reply.resize(at + nbd::chunk_header_size(mode) + payload.size());
  std::byte* const to = nbd::encode_chunk(reply.data() + at, mode, chunk);
  std::copy(payload.begin(), payload.end(), to);
}

}  // namespace

TestServer::TestServer() : TestServer(Options()) {}

TestServer::TestServer(Options options) : options_(std::move(options)), disk_(options_.size) {
  char directory[] = "/tmp/nbdbench-test-XXXXXX";
  if (::mkdtemp(directory) == nullptr) throw std::runtime_error("no directory in /tmp");
  directory_ = directory;
  socket_ = directory_ + "/socket";
  listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, socket_.data(), socket_.size());
  if (::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(listener_.get(), 64) != 0) {
    throw std::runtime_error("cannot listen");
  }
  acceptor_ = std::jthread([this] { accept_all(); });
}

TestServer::~TestServer() {
  stop();
  ::unlink(socket_.c_str());
  ::rmdir(directory_.c_str());
}

void TestServer::stop() {
  ::shutdown(listener_.get(), SHUT_RDWR);  // accept() ends
  if (acceptor_.joinable()) acceptor_.join();
  connections_.clear();
}

void TestServer::accept_all() {
  for (;;) {
    const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    connections_.emplace_back([this, fd] {
      const Fd owner(fd);
      serve(fd);
    });
  }
}

bool TestServer::negotiate(int fd, nbd::HeaderMode& mode) {
  nbd::ServerHandshake handshake(options_.handshake);
  if (!send_all(fd, handshake.greeting())) return false;
  std::byte byte;
  for (;;) {
    // One byte at a time: what follows the handshake is not to be read here.
    if (!receive_all(fd, {&byte, 1})) return false;
    if (handshake.consume({&byte, 1}) != 1) return false;
    if (std::holds_alternative<nbd::WantList>(handshake.event())) handshake.answer_list({});
    if (std::holds_alternative<nbd::WantExport>(handshake.event())) {
      handshake.answer_export({.size = options_.size,
                               .transmission_flags = options_.flags,
                               .block_sizes = options_.block_sizes});
    }
    if (!send_all(fd, handshake.output())) return false;
    handshake.clear_output();
    if (const auto* established = std::get_if<nbd::Established>(&handshake.event())) {
      mode = established->mode;
      return true;
    }
    if (std::holds_alternative<nbd::Closed>(handshake.event())) return false;
  }
}

void TestServer::serve(int fd) {
  nbd::HeaderMode mode = nbd::HeaderMode::kSimple;
  if (!negotiate(fd, mode)) return;
  std::array<std::byte, nbd::kExtendedRequestSize> header;
  std::vector<std::byte> data;
  bool silent = false;
  for (;;) {
    if (!receive_all(fd, std::span(header).first(nbd::request_size(mode)))) return;
    nbd::Request request;
    const bool right = mode == nbd::HeaderMode::kExtended
                           ? nbd::decode_extended_request(header.data(), request)
                           : nbd::decode_request(header.data(), request);
    if (!right) return;
    if (request.type == nbd::kCmdDisc) {
      goodbyes_++;
      return;
    }
    if (request.type == nbd::kCmdWrite) {
      data.resize(request.length);
      if (!receive_all(fd, data)) return;
    }
    Fate fate = Fate::kServe;
    {
      const std::scoped_lock guard(lock_);
      fate = options_.on_request(request);
      if (!Range{request.offset, request.length}.within(disk_.size())) fate = Fate::kFail;
      const auto to = disk_.begin() + static_cast<ptrdiff_t>(request.offset);
      const auto length = static_cast<ptrdiff_t>(request.length);
      if (fate == Fate::kServe && request.type == nbd::kCmdWrite) {
        std::copy(data.begin(), data.end(), to);
      } else if (fate == Fate::kElsewhere) {
        std::copy(data.begin(), data.end(), to + length);
      } else if (fate == Fate::kServe &&
                 (request.type == nbd::kCmdWriteZeroes || request.type == nbd::kCmdTrim)) {
        std::fill_n(to, length, std::byte{0});
      }
    }
    if (fate == Fate::kHangUp) return;
    silent = silent || fate == Fate::kSilence;
    if (!silent && !answer(fd, mode, request, fate)) return;
  }
}

bool TestServer::answer(int fd, nbd::HeaderMode mode, const nbd::Request& request, Fate fate) {
  if (fate == Fate::kWrongMagic) return send_all(fd, std::array<std::byte, 64>{});
  if (request.type == nbd::kCmdRead && fate != Fate::kFail) {
    return answer_read(fd, mode, request, fate);
  }
  std::vector<std::byte> reply;
  // Structured connections may answer all but reads simply: do so for flushes.
  const bool simple = mode == nbd::HeaderMode::kSimple ||
                      (mode == nbd::HeaderMode::kStructured && request.type == nbd::kCmdFlush);
  const uint32_t error = fate == Fate::kFail ? nbd::kEio : nbd::kOk;
  if (simple) {
    reply.resize(nbd::kSimpleReplySize);
    nbd::encode_simple_reply(reply.data(), error, request.cookie);
  } else if (error == nbd::kOk) {
    append_chunk(reply, mode, {.flags = nbd::kReplyDone, .cookie = request.cookie}, {});
  } else {
    std::array<std::byte, nbd::kErrorSizeMin + 4> payload;
    nbd::encode_error(payload.data(), error, "text");
    append_chunk(reply, mode,
                 {.flags = nbd::kReplyDone, .type = nbd::kChunkError, .cookie = request.cookie},
                 payload);
  }
  return send_all(fd, reply);
}

// Structured: the second half first, as a hole when it is zeroes, and an empty chunk at the end.
bool TestServer::answer_read(int fd, nbd::HeaderMode mode, const nbd::Request& request, Fate fate) {
  std::vector<std::byte> data(request.length);
  {
    const std::scoped_lock guard(lock_);
    std::copy_n(disk_.begin() + static_cast<ptrdiff_t>(request.offset), data.size(), data.begin());
  }
  if (fate == Fate::kFlipBit) data.back() ^= std::byte{4};
  std::vector<std::byte> reply;
  if (mode == nbd::HeaderMode::kSimple) {
    reply.resize(nbd::kSimpleReplySize);
    nbd::encode_simple_reply(reply.data(), nbd::kOk, request.cookie);
    reply.insert(reply.end(), data.begin(), data.end());
    return send_all(fd, reply);
  }
  const size_t half = data.size() / 2;
  const auto chunk = [&](uint16_t type, ByteSpan payload) {
    append_chunk(reply, mode, {.type = type, .cookie = request.cookie}, payload);
  };
  const auto data_chunk = [&](size_t begin, size_t end) {
    std::vector<std::byte> payload(nbd::kOffsetDataPrefixSize);
    nbd::encode_offset_data(payload.data(), request.offset + begin);
    payload.insert(payload.end(), data.data() + begin, data.data() + end);
    chunk(nbd::kChunkOffsetData, payload);
  };
  if (std::all_of(data.begin() + static_cast<ptrdiff_t>(half), data.end(),
                  [](std::byte byte) { return byte == std::byte{0}; })) {
    std::array<std::byte, nbd::kOffsetHoleSize> payload;
    nbd::encode_offset_hole(payload.data(), request.offset + half,
                            static_cast<uint32_t>(data.size() - half));
    chunk(nbd::kChunkOffsetHole, payload);
  } else {
    data_chunk(half, data.size());
  }
  if (fate != Fate::kShort) data_chunk(0, half);
  append_chunk(reply, mode, {.flags = nbd::kReplyDone, .cookie = request.cookie}, {});
  return send_all(fd, reply);
}

}  // namespace weft::tools
