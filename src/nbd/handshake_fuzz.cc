// SPDX-License-Identifier: BSD-3-Clause
// Arbitrary bytes in arbitrary pieces to ServerHandshake, answered as the input says.
//
// Input: a byte of options, a byte of piece size, then the stream; or, when the options say so, a
// list of {option, length, data} that is framed with the magics, which are hard to guess.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "nbd/server_handshake.h"
#include "nbd/test_bytes.h"

using namespace weft;
using namespace weft::nbd;

namespace {

void check(bool holds) {
  if (!holds) std::abort();
}

void answer(ServerHandshake& handshake, unsigned choice) {
  const ListEntry list[] = {{"disk", "a disk"}, {"", ""}};
  if (std::holds_alternative<WantList>(handshake.event())) {
    if (choice % 4 == 0) {
      handshake.refuse_list(kRepErrPolicy, "no list");
    } else {
      handshake.answer_list(std::span(list).first(choice % 3));
    }
  } else if (const auto* want = std::get_if<WantExport>(&handshake.event())) {
    check(valid_string(want->name));
    if (choice % 4 == 0) {
      handshake.refuse_export(kRepErrUnknown, "no such export");
    } else {
      handshake.answer_export({.size = choice,
                               .transmission_flags = static_cast<uint16_t>(choice * 257),
                               .name = want->name,
                               .description = choice % 2 ? "a disk" : ""});
    }
  }
}

nbd::testing::Bytes framed(ByteSpan list) {
  nbd::testing::Bytes stream = nbd::testing::hex("00000003");
  while (list.size() >= 2) {
    const auto number = std::to_integer<uint32_t>(list[0]);
    const size_t length = std::min(list.size() - 2, std::to_integer<size_t>(list[1]));
    const auto option = nbd::testing::option(number % 16, list.subspan(2, length));
    stream.insert(stream.end(), option.begin(), option.end());
    list = list.subspan(2 + length);
  }
  return stream;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const unsigned bits = data[0];
  ServerHandshake handshake({.structured_replies = (bits & 1) != 0,
                             .meta_contexts = (bits & 2) != 0,
                             .extended_headers = (bits & 4) != 0,
                             .handshake_flags = static_cast<uint16_t>(3 ^ (bits >> 3 & 3)),
                             .option_count_max = 64});
  const size_t piece = size_t{data[1]} + 1;
  ByteSpan stream = std::as_bytes(std::span(data + 2, size - 2));
  nbd::testing::Bytes frames;
  if (bits & 0x40) stream = frames = framed(stream);
  unsigned steps = 0;
  bool export_name = false;
  while (!stream.empty()) {
    const ByteSpan part = stream.first(std::min(piece, stream.size()));
    const size_t used = handshake.consume(part);
    check(used <= part.size());
    const ServerEvent& event = handshake.event();
    check(!std::holds_alternative<std::monostate>(event) || used == part.size());
    check(!handshake.state_name().empty());
    if (std::holds_alternative<Established>(event) || std::holds_alternative<Closed>(event)) {
      check(handshake.consume(part) == 0);
      break;
    }
    if (const auto* want = std::get_if<WantExport>(&event)) {
      export_name = want->query == ExportQuery::kExportName;
    }
    answer(handshake, static_cast<unsigned>(used) + steps);
    if (++steps == 40 && (bits & 0x80)) handshake.begin_shutdown();
    stream = stream.subspan(used);
  }
  // Without the reply to EXPORT_NAME, which has no header, the output is whole option replies.
  std::vector<nbd::testing::Reply> replies;
  check(export_name || nbd::testing::split_replies(handshake.output(), replies));
  if (const auto* established = std::get_if<Established>(&handshake.event())) {
    const uint16_t flags = established->transmission_flags;
    check(flags & kHasFlags);
    check(((flags & kSendDf) != 0) == (established->mode != HeaderMode::kSimple));
    check(!(flags & kBlockStatusPayload) || established->allocation_context);
    check(!established->allocation_context || established->mode != HeaderMode::kSimple);
  }
  return 0;
}
