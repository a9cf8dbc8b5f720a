// SPDX-License-Identifier: BSD-3-Clause
#include "server/test_client.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <stdexcept>

#include "base/result.h"

namespace weft::server {

namespace {

const std::byte* at(const std::string& text, size_t offset) {
  return reinterpret_cast<const std::byte*>(text.data()) + offset;
}

void set_nonblocking(int fd) {
  if (fd >= 0) ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK);
}

}  // namespace

TestClient::TestClient(Fd in, Fd out) : in_(std::move(in)), out_(std::move(out)) {
  ::signal(SIGPIPE, SIG_IGN);
  set_nonblocking(in_.get());
  set_nonblocking(out_.get());
}

// ---- Bytes ------------------------------------------------------------------------------------

void TestClient::wait(short events_out, bool input) {
  pollfd fds[2] = {{out_fd(), events_out, 0}, {in_.get(), short(input ? POLLIN : 0), 0}};
  const auto patience = std::chrono::milliseconds(kPatience);
  if (::poll(fds, 2, static_cast<int>(patience.count())) == 0) {
    throw std::runtime_error("the server does not answer");
  }
}

bool TestClient::take_input() {
  bool any = false;
  char buffer[65536];
  while (!ended_) {
    const ssize_t n = ::read(in_.get(), buffer, sizeof buffer);
    if (n > 0) {
      inbox_.append(buffer, static_cast<size_t>(n));
      any = true;
    } else if (n == 0 || errno == ECONNRESET) {
      ended_ = true;
    } else {
      if (errno != EAGAIN) throw std::runtime_error("receiving: " + errno_text(errno));
      break;
    }
  }
  return any;
}

void TestClient::send_bytes(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(out_fd(), bytes.data(), bytes.size());
    if (n > 0) {
      bytes.remove_prefix(static_cast<size_t>(n));
    } else if (errno == EAGAIN) {
      // A server may rightly not take more before its replies are taken.
      take_input();
      wait(POLLOUT, !ended_);
    } else if (errno == EPIPE || errno == ECONNRESET) {
      return;  // whoever receives will notice
    } else {
      throw std::runtime_error("sending: " + errno_text(errno));
    }
  }
}

size_t TestClient::send_some(std::string_view bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = ::write(out_fd(), bytes.data() + sent, bytes.size() - sent);
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    pollfd entry{out_fd(), POLLOUT, 0};
    if (errno != EAGAIN || ::poll(&entry, 1, 100) == 0) break;
  }
  return sent;
}

void TestClient::need(size_t count) {
  while (inbox_.size() - read_ < count) {
    if (!take_input()) {
      if (ended_) throw std::runtime_error("the server has closed the connection");
      wait(0, true);
    }
  }
}

std::string TestClient::receive_bytes(size_t count) {
  need(count);
  read_ += count;
  return inbox_.substr(read_ - count, count);
}

bool TestClient::something_to_receive() {
  take_input();
  return ended_ || unread() > 0;
}

bool TestClient::closed_by_server() {
  while (!ended_) {
    if (!take_input() && !ended_) wait(0, true);
  }
  return true;
}

void TestClient::shutdown_output() {
  if (out_) {
    out_.reset();
  } else {
    ::shutdown(in_.get(), SHUT_WR);
  }
}

void TestClient::close() {
  in_.reset();
  out_.reset();
}

// ---- The protocol -----------------------------------------------------------------------------

void TestClient::negotiate(nbd::ClientConfig config) {
  nbd::ClientHandshake handshake(std::move(config));
  using Status = nbd::ClientHandshake::Status;
  while (handshake.status() == Status::kNegotiating) {
    need(1);
    const ByteSpan input = bytes_of(inbox_).subspan(read_);
    read_ += handshake.consume(input);
    const std::string output(text_of(handshake.output()));
    handshake.clear_output();
    send_bytes(output);
  }
  if (handshake.status() == Status::kFailed) throw std::runtime_error(handshake.error());
  session = handshake.result();
}

std::string TestClient::encode(nbd::Request request, std::string_view payload, uint64_t* cookie) {
  request.cookie = next_cookie_++;
  if (cookie) *cookie = request.cookie;
  const bool extended = session.mode == nbd::HeaderMode::kExtended;
  if (extended && request.type == nbd::kCmdWrite) request.flags |= nbd::kFlagPayloadLen;
  std::string bytes(nbd::request_size(session.mode), '\0');
  auto* to = reinterpret_cast<std::byte*>(bytes.data());
  if (extended) {
    nbd::encode_extended_request(to, request);
  } else {
    nbd::encode_request(to, request);
  }
  if (request.type != nbd::kCmdDisc) pending_[request.cookie] = request;
  return bytes.append(payload);
}

uint64_t TestClient::send(nbd::Request request, std::string_view payload) {
  uint64_t cookie;
  const std::string bytes = encode(request, {}, &cookie);
  send_bytes(bytes);
  send_bytes(payload);
  return cookie;
}

Answer TestClient::receive() {
  if (!kept_.empty()) {
    Answer answer = std::move(kept_.begin()->second);
    kept_.erase(kept_.begin());
    return answer;
  }
  Answer answer;
  while (!take_part(answer)) {
  }
  return answer;
}

Answer TestClient::receive(uint64_t cookie) {
  for (;;) {
    if (const auto kept = kept_.find(cookie); kept != kept_.end()) {
      Answer answer = std::move(kept->second);
      kept_.erase(kept);
      return answer;
    }
    Answer answer;
    if (take_part(answer)) kept_[answer.cookie] = std::move(answer);
  }
}

// Takes a simple reply or a chunk. True: `finished` is complete.
bool TestClient::take_part(Answer& finished) {
  const auto violation = [](const char* what) -> std::runtime_error {
    return std::runtime_error(std::string("the server broke the protocol: ") + what);
  };
  const auto request_of = [&](uint64_t cookie) -> const nbd::Request& {
    const auto found = pending_.find(cookie);
    if (found == pending_.end()) throw violation("a reply to nothing");
    return found->second;
  };
  if (read_ > 1 << 20) {
    inbox_.erase(0, read_);
    read_ = 0;
  }
  need(nbd::kSimpleReplySize);
  if (nbd::reply_kind(at(inbox_, read_)) == nbd::ReplyKind::kSimple) {
    nbd::SimpleReply reply;
    if (!nbd::decode_simple_reply(at(inbox_, read_), reply)) throw violation("magic");
    read_ += nbd::kSimpleReplySize;
    const nbd::Request& request = request_of(reply.cookie);
    finished = Answer{};
    finished.cookie = reply.cookie;
    finished.error = reply.error;
    if (request.type == nbd::kCmdRead) {
      if (session.mode != nbd::HeaderMode::kSimple) throw violation("a simple reply to READ");
      if (reply.error == nbd::kOk) finished.data = receive_bytes(request.length);
    }
    if (session.mode == nbd::HeaderMode::kExtended) throw violation("a simple reply");
    pending_.erase(reply.cookie);
    return true;
  }
  const size_t head = nbd::chunk_header_size(session.mode);
  need(head);
  nbd::ReplyChunk chunk;
  const bool understood = session.mode == nbd::HeaderMode::kExtended
                              ? nbd::decode_extended_chunk(at(inbox_, read_), chunk)
                              : nbd::decode_structured_chunk(at(inbox_, read_), chunk);
  if (!understood || session.mode == nbd::HeaderMode::kSimple) throw violation("chunk magic");
  read_ += head;
  const nbd::Request request = request_of(chunk.cookie);
  if (session.mode == nbd::HeaderMode::kExtended && chunk.offset != request.offset) {
    throw violation("the offset of an extended reply");
  }
  const std::string payload = receive_bytes(chunk.length);
  Answer& answer = partial_[chunk.cookie];
  answer.cookie = chunk.cookie;
  answer.chunk_types.push_back(chunk.type);
  if (request.type == nbd::kCmdRead) answer.data.resize(request.length);
  switch (chunk.type) {
    case nbd::kChunkNone:
      if (!payload.empty()) throw violation("NONE with a payload");
      break;
    case nbd::kChunkOffsetData: {
      uint64_t offset;
      ByteSpan data;
      if (!nbd::decode_offset_data(bytes_of(payload), offset, data)) throw violation("DATA");
      answer.data.replace(offset - request.offset, data.size(), text_of(data));
      break;
    }
    case nbd::kChunkOffsetHole: {
      nbd::OffsetHole hole;
      if (!nbd::decode_offset_hole(bytes_of(payload), hole)) throw violation("HOLE");
      answer.data.replace(hole.offset - request.offset, hole.length, hole.length, '\0');
      break;
    }
    case nbd::kChunkBlockStatus:
    case nbd::kChunkBlockStatusExt: {
      nbd::BlockStatus status;
      if (!nbd::decode_block_status(chunk.type, bytes_of(payload), status)) {
        throw violation("BLOCK_STATUS");
      }
      answer.extents = status.extents;
      break;
    }
    default: {
      nbd::ErrorChunk error;
      if (!nbd::decode_error(chunk.type, bytes_of(payload), error)) throw violation("ERROR");
      answer.error = error.error;
      answer.text = error.text;
    }
  }
  if (!(chunk.flags & nbd::kReplyDone)) return false;
  if (answer.error != nbd::kOk) answer.data.clear();
  finished = std::move(answer);
  partial_.erase(chunk.cookie);
  pending_.erase(chunk.cookie);
  return true;
}

}  // namespace weft::server
