// SPDX-License-Identifier: BSD-3-Clause
// For tests: a ServerHandshake with a caller that answers its events.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "nbd/server_handshake.h"
#include "nbd/test_bytes.h"

namespace weft::nbd::testing {

using Types = std::vector<uint32_t>;

inline const Bytes kFixed = hex("00000003");  // fixed newstyle, no zeroes

inline ExportInfo disk() {
  return {.size = 0x0000000012345678,
          .transmission_flags = kReadOnly | kSendFlush,
          .name = "canonical",
          .description = "a disk",
          .block_sizes = {512, 4096, 1 << 25}};
}

// A handshake with its caller: knows the exports "disk" and "", and answers events.
struct Server {
  explicit Server(const ServerHandshakeOptions& options = {}) : handshake(options) {}

  // Gives all the bytes, answering what is asked, until they are used or it is over.
  void send(ByteSpan bytes) {
    for (;;) {
      bytes = bytes.subspan(handshake.consume(bytes));
      if (std::holds_alternative<WantList>(handshake.event())) {
        handshake.answer_list(std::vector<ListEntry>{{"disk", "a disk"}, {"", ""}});
      } else if (const auto* want = std::get_if<WantExport>(&handshake.event())) {
        asked.push_back(*want);
        if (want->name == "disk" || want->name.empty()) {
          handshake.answer_export(disk());
        } else {
          handshake.refuse_export(kRepErrUnknown, "no such export");
        }
      } else {
        left = bytes.size();
        return;
      }
    }
  }

  // Sends one option and returns the types of the replies to it.
  std::vector<uint32_t> ask(uint32_t number, ByteSpan data = {}) {
    handshake.clear_output();
    send(option(number, data));
    std::vector<uint32_t> types;
    EXPECT_TRUE(split_replies(handshake.output(), replies));
    for (const Reply& reply : replies) {
      EXPECT_EQ(reply.option, number);
      types.push_back(reply.type);
    }
    return types;
  }

  [[nodiscard]] std::string text() const {  // of the last reply
    return replies.empty() ? "" : std::string(text_of(replies.back().data));
  }
  [[nodiscard]] const Closed* closed() const { return std::get_if<Closed>(&handshake.event()); }
  [[nodiscard]] const Established* established() const {
    return std::get_if<Established>(&handshake.event());
  }
  [[nodiscard]] Bytes output() const {
    return {handshake.output().begin(), handshake.output().end()};
  }

  ServerHandshake handshake;
  std::vector<WantExport> asked;
  std::vector<Reply> replies;
  size_t left = 0;
};

// As Server, after the client flags.
struct Negotiating : Server {
  explicit Negotiating(const ServerHandshakeOptions& options = {}) : Server(options) {
    send(kFixed);
  }
};

}  // namespace weft::nbd::testing
