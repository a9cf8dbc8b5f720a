// SPDX-License-Identifier: BSD-3-Clause
// The C functions that plugins import from the program that loads them. The plugin's header says
// what they do: nbdkit-plugin(3). They are defined in exported_*.cc; this header declares, beside
// those of nbdkit-plugin.h, those that a build of ours may not find there: of later releases, of
// filters, and two that plugins import though no header for plugins has them.
//
// All of them may be called from any thread. Where the answer depends on a connection, it is that
// of the thread's CallScope (call.h); without one they fail with a message.
#pragma once

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <cstddef>
#include <cstdint>

extern "C" {

// In releases before 1.34, 1.36, 1.40 and 1.46 they are not in the header.
void nbdkit_disconnect(int force);
int nbdkit_parse_probability(const char* what, const char* str, double* r);
char* nbdkit_peer_security_context(void);
int nbdkit_parse_delay(const char* what, const char* str, unsigned* sec, unsigned* nsec);
char* nbdkit_peer_tls_dn(void);
char* nbdkit_peer_tls_issuer_dn(void);
void nbdkit_debug_hexdump(const void* buf, size_t len, const char* prefix, uint64_t start);

// In the header for filters only, which cannot be included together with that for plugins. The
// library that plugins are linked with uses the first two.
struct nbdkit_export {
  char* name;
  char* description;  // null: it has none
};
struct nbdkit_extent {
  uint64_t offset;
  uint64_t length;
  uint32_t type;
};
void nbdkit_exports_free(struct nbdkit_exports* exports);
void nbdkit_extents_free(struct nbdkit_extents* extents);
struct nbdkit_exports* nbdkit_exports_new(void);
size_t nbdkit_exports_count(const struct nbdkit_exports* exports);
// `index` < count. The strings live until the list changes.
const struct nbdkit_export nbdkit_get_export(const struct nbdkit_exports* exports, size_t index);
// Null: `start` and `end` (bytes) are no range of a disk.
struct nbdkit_extents* nbdkit_extents_new(uint64_t start, uint64_t end);
size_t nbdkit_extents_count(const struct nbdkit_extents* extents);
struct nbdkit_extent nbdkit_get_extent(const struct nbdkit_extents* extents, size_t index);

}  // extern "C"
