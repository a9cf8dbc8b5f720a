// SPDX-License-Identifier: BSD-3-Clause
#include "server/connection.h"

#include <fmt/format.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <variant>

#include "base/log.h"

namespace weft::server {
namespace {

constexpr size_t kHandshakeBuffer = 4096;
constexpr size_t kSecurityLabelMax = 1024;  // bytes; a longer one is none

disk::Peer make_peer(const net::Stream& stream, engine::Loop& loop,
                     const std::shared_ptr<Connection*>& connection) {
  disk::Peer peer;
  peer.name = stream.peer();
  peer.disconnect = [&loop, connection] {
    loop.call([connection] {
      if (*connection) (*connection)->disconnect();
    });
  };
  socklen_t length = sizeof peer.address;
  if (::getpeername(stream.fd(), reinterpret_cast<sockaddr*>(&peer.address), &length) == 0) {
    peer.address_length = length;
  }
  if (peer.address.ss_family == AF_UNIX) {
    ucred credentials{};
    socklen_t size = sizeof credentials;
    if (::getsockopt(stream.fd(), SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0) {
      peer.credentials = credentials;
    }
    char label[kSecurityLabelMax];
    size = sizeof label;
    if (::getsockopt(stream.fd(), SOL_SOCKET, SO_PEERSEC, label, &size) == 0) {
      peer.security_label.assign(label, ::strnlen(label, size));
    }
  }
  return peer;
}

}  // namespace

Connection::Connection(Shared& shared, LoopResources& resources, Fd in, Fd out)
    : shared_(shared),
      resources_(resources),
      loop_(resources.loop),
      stream_(resources.loop, std::move(in), std::move(out)),
      handshake_timer_(resources.loop),
      self_(std::make_shared<Connection*>(this)),
      peer_(make_peer(stream_, loop_, self_)) {
  stream_.tune(shared.config.keepalive);
}

Connection::~Connection() {
  *self_ = nullptr;
}

engine::Task<void> Connection::run() {
  log::debug("{}: connected", peer_.name);
  engine::Scope scope(loop_);
  if (shared_.config.handshake_timeout.count() > 0) scope.spawn(close_when_late());
  std::optional<std::vector<std::byte>> received;
  const Status admitted =
      co_await excused(shared_.plugin.preconnect(loop_, peer_, shared_.config.read_only));
  if (!admitted) {
    const Error& error = admitted.error();
    reason_ = fmt::format("refused: {}", error.text ? error.text : errno_text(error.code));
  } else if (shared_.config.oldstyle) {
    if (co_await negotiate_oldstyle()) received.emplace();
  } else {
    received = co_await negotiate();
  }
  handshake_timer_.cancel();
  co_await scope.join();

  if (received && !draining_) {
    const OpenExport& opened = *export_;
    const nbd::TransmissionRules rules{
        .size = opened.info.size,
        .transmission_flags = established_->transmission_flags,
        .mode = established_->mode,
        .allocation_context_selected = established_->allocation_context,
        .block_min = opened.info.block_sizes.min};
    log::debug("{}: serves export \"{}\", {} replies", peer_.name, opened.name,
               nbd::header_mode_name(rules.mode));
    transmission_ = std::make_unique<Transmission>(resources_, stream_, *opened.disk, rules,
                                                   shared_.budget, shared_.config.requests_max,
                                                   shared_.plugin.answers_in_order());
    {
      const std::vector<std::byte> bytes = std::move(*received);
      received.reset();
      co_await transmission_->run(bytes);
    }
    reason_ = transmission_->reason();
  }
  if (!reason_.empty()) {
    log::warning("{}: export \"{}\": connection closed: {}", peer_.name,
                 export_ ? export_->name : std::string("?"), reason_);
  }
  stream_.cancel();
  transmission_.reset();
  co_await close_export();
  log::debug("{}: disconnected", peer_.name);
}

void Connection::drain() {
  draining_ = true;
  if (transmission_) {
    transmission_->drain();
  } else {
    stream_.cancel();
  }
}

void Connection::disconnect() {
  constexpr const char* kReason = "the disk's plugin disconnects the client";
  if (transmission_) {
    transmission_->kill(kReason);
  } else {
    draining_ = true;
    reason_ = kReason;
    stream_.cancel();
  }
}

void Connection::give_up() {
  if (transmission_) transmission_->give_up();
}

void Connection::end() {
  if (transmission_) transmission_->kill("the server stops and its replies are not taken");
}

void Connection::check_progress(engine::Clock::time_point now) {
  if (transmission_) transmission_->check_progress(now);
}

// ---- Negotiation ------------------------------------------------------------------------------

engine::Task<void> Connection::close_when_late() {
  using engine::Clock;
  const auto timeout = shared_.config.handshake_timeout;
  late_at_ = Clock::now() + timeout;
  do {
    if (!co_await handshake_timer_.until(opening_ ? Clock::now() + timeout : late_at_)) co_return;
  } while (opening_ || Clock::now() < late_at_);
  reason_ = fmt::format("the negotiation was not finished within {} ms", timeout.count());
  stream_.cancel();
}

engine::Task<bool> Connection::send_all(ByteSpan bytes) {
  while (!bytes.empty()) {
    const iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
    const ssize_t n = stream_.send(&piece, 1);
    if (n > 0) {
      bytes = bytes.subspan(static_cast<size_t>(n));
    } else if (n != -EAGAIN || !co_await stream_.writable()) {
      co_return false;
    }
  }
  co_return true;
}

engine::Task<bool> Connection::negotiate_oldstyle() {
  Result<OpenExport> opened = co_await open(std::string());
  if (!opened) {
    reason_ = "the export cannot be opened: " + errno_text(opened.error().code);
    co_return false;
  }
  export_ = std::move(*opened);
  established_.emplace();
  established_->transmission_flags = static_cast<uint16_t>(
      export_->info.transmission_flags & ~(nbd::kSendDf | nbd::kBlockStatusPayload));
  co_return co_await send_all(nbd::oldstyle_greeting(export_->info));
}

engine::Task<std::optional<std::vector<std::byte>>> Connection::negotiate() {
  nbd::ServerHandshakeOptions options;
  options.structured_replies = shared_.config.structured_replies;
  options.meta_contexts = shared_.config.meta_contexts;
  options.handshake_flags = shared_.config.handshake_flags;
  nbd::ServerHandshake handshake(options);
  if (!co_await send_all(handshake.greeting())) co_return std::nullopt;
  for (;;) {
    if (!co_await stream_.readable()) co_return std::nullopt;
    const engine::Buffer buffer = resources_.buffers.get(kHandshakeBuffer);
    if (!buffer) co_return std::nullopt;
    for (;;) {
      const ssize_t n = stream_.receive({buffer.data(), kHandshakeBuffer});
      if (n == -EAGAIN) break;
      if (n <= 0) {
        log::debug("{}: left while {}", peer_.name, handshake.state_name());
        co_return std::nullopt;
      }
      ByteSpan input(buffer.data(), static_cast<size_t>(n));
      do {
        input = input.subspan(handshake.consume(input));
        if (!co_await answer(handshake)) co_return std::nullopt;
        if (established_) co_return std::vector<std::byte>(input.begin(), input.end());
      } while (!input.empty());
    }
  }
}

// Answers what is pending, and sends what there is to send. False: the connection ends.
engine::Task<bool> Connection::answer(nbd::ServerHandshake& handshake) {
  while (!std::holds_alternative<std::monostate>(handshake.event())) {
    const nbd::ServerEvent& event = handshake.event();
    if (const auto* closed = std::get_if<nbd::Closed>(&event)) {
      if (closed->cause != nbd::CloseCause::kAbort) reason_ = closed->reason;
      co_await send_all(handshake.output());
      co_return false;
    }
    if (const auto* established = std::get_if<nbd::Established>(&event)) {
      established_ = *established;
      co_return co_await send_all(handshake.output());
    }
    if (std::holds_alternative<nbd::WantList>(event)) {
      const Result<std::vector<disk::ExportEntry>> exports =
          co_await excused(shared_.plugin.list_exports(loop_, shared_.config.read_only));
      if (exports) {
        std::vector<nbd::ListEntry> entries;
        for (const disk::ExportEntry& entry : *exports) {
          if (nbd::valid_string(entry.name)) entries.push_back({entry.name, entry.description});
        }
        handshake.answer_list(entries);
      } else {
        handshake.refuse_list(nbd::kRepErrPlatform, errno_text(exports.error().code));
      }
    } else if (!co_await answer_export(handshake, std::get<nbd::WantExport>(event))) {
      co_return false;
    }
  }
  if (!co_await send_all(handshake.output())) co_return false;
  handshake.clear_output();
  co_return true;
}

engine::Task<bool> Connection::answer_export(nbd::ServerHandshake& handshake,
                                             const nbd::WantExport& want) {
  const std::string name = want.name;
  if (!export_ || export_->name != name) {
    co_await close_export();
    // Who asks for the contexts of an export asks for the export next: it fails once.
    const bool failed =
        refused_ && refused_->first == name && want.query != nbd::ExportQuery::kMetaContext;
    Result<OpenExport> opened =
        failed ? Result<OpenExport>(std::unexpected(refused_->second)) : co_await open(name);
    refused_.reset();
    if (!opened) {
      const Error& error = opened.error();
      if (want.query == nbd::ExportQuery::kMetaContext) refused_.emplace(name, error);
      if (error.code == ENOENT) {
        handshake.refuse_export(nbd::kRepErrUnknown,
                                fmt::format("there is no export named \"{}\"", name));
      } else {
        const std::string why = error.text ? error.text : errno_text(error.code);
        if (!failed) log::error("{}: export \"{}\" cannot be opened: {}", peer_.name, name, why);
        // Clients take "platform" for a request that this server does not know at all.
        handshake.refuse_export(
            error.code == EPERM || error.code == EACCES ? nbd::kRepErrPolicy : nbd::kRepErrUnknown,
            why);
      }
      co_return true;
    }
    export_ = std::move(*opened);
  }
  handshake.answer_export(export_->info);
  co_return true;
}

// What the disk takes is not held against the client.
template <typename T>
engine::Task<T> Connection::excused(engine::Task<T> task) {
  opening_ = true;
  const engine::Clock::time_point begin = engine::Clock::now();
  T result = co_await std::move(task);
  late_at_ += engine::Clock::now() - begin;
  opening_ = false;
  co_return result;
}

engine::Task<Result<OpenExport>> Connection::open(const std::string& name) {
  co_return co_await excused(open_export(shared_.config, shared_.plugin, name, &peer_, loop_));
}

engine::Task<void> Connection::close_export() {
  if (!export_) co_return;
  const Status closed = co_await export_->disk->close();
  if (!closed) {
    log::error("{}: export \"{}\": closing it failed: {}", peer_.name, export_->name,
               errno_text(closed.error().code));
  }
  export_.reset();
}

}  // namespace weft::server
