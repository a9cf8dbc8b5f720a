// SPDX-License-Identifier: BSD-3-Clause
// The connection that the calling thread works for: who is at its other end, and what was agreed.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "nbdkit/call.h"
#include "nbdkit/exported.h"

namespace {

using weft::disk::Peer;
using weft::log::Level;
using weft::nbdkit::CallScope;
using weft::nbdkit::Connection;
using weft::nbdkit::say;

// Null, with a message that names `function`: there is none.
Connection* connection_for(const char* function) {
  const CallScope* scope = CallScope::current();
  if (scope && scope->connection()) return scope->connection();
  say(Level::kError, fmt::format("{}: this thread works for no connection", function));
  errno = ENOTCONN;
  return nullptr;
}

// Null, with a message: there is none, or the server itself is the client.
const Peer* peer_for(const char* function) {
  const Connection* connection = connection_for(function);
  if (!connection) return nullptr;
  if (connection->peer()) return connection->peer();
  say(Level::kError, fmt::format("{}: there is no client at the other end", function));
  errno = ENOTCONN;
  return nullptr;
}

const ucred* credentials_for(const char* function) {
  const Peer* peer = peer_for(function);
  if (!peer) return nullptr;
  if (peer->credentials) return &*peer->credentials;
  say(Level::kError,
      fmt::format("{}: the client is not connected by a Unix domain socket", function));
  errno = ENOTSUP;
  return nullptr;
}

}  // namespace

// As getpeername(2): what does not fit is cut off, and the length is the whole one.
int nbdkit_peer_name(sockaddr* addr, socklen_t* addrlen) {
  const Peer* peer = peer_for("nbdkit_peer_name");
  if (!peer) return -1;
  if (peer->address_length == 0) {
    say(Level::kError, "nbdkit_peer_name: the client is not connected by a socket");
    errno = ENOTSOCK;
    return -1;
  }
  std::memcpy(addr, &peer->address, std::min(*addrlen, peer->address_length));
  *addrlen = peer->address_length;
  return 0;
}

int64_t nbdkit_peer_pid(void) {
  const ucred* credentials = credentials_for("nbdkit_peer_pid");
  return credentials ? int64_t{credentials->pid} : -1;
}

int64_t nbdkit_peer_uid(void) {
  const ucred* credentials = credentials_for("nbdkit_peer_uid");
  return credentials ? int64_t{credentials->uid} : -1;
}

int64_t nbdkit_peer_gid(void) {
  const ucred* credentials = credentials_for("nbdkit_peer_gid");
  return credentials ? int64_t{credentials->gid} : -1;
}

char* nbdkit_peer_security_context(void) {
  const Peer* peer = peer_for("nbdkit_peer_security_context");
  if (!peer) return nullptr;
  if (peer->security_label.empty()) {
    say(Level::kError, "nbdkit_peer_security_context: the client has no security label");
    errno = ENOTSUP;
    return nullptr;
  }
  return ::strdup(peer->security_label.c_str());
}

// A connection without TLS has no certificate, and that is no failure.
char* nbdkit_peer_tls_dn(void) {
  return connection_for("nbdkit_peer_tls_dn") ? ::strdup("") : nullptr;
}

char* nbdkit_peer_tls_issuer_dn(void) {
  return connection_for("nbdkit_peer_tls_issuer_dn") ? ::strdup("") : nullptr;
}

const char* nbdkit_export_name(void) {
  const Connection* connection = connection_for("nbdkit_export_name");
  return connection ? connection->export_name.c_str() : nullptr;
}

int nbdkit_is_tls(void) {
  const Connection* connection = connection_for("nbdkit_is_tls");
  return connection ? (connection->tls ? 1 : 0) : -1;
}
