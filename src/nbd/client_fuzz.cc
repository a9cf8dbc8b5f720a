// SPDX-License-Identifier: BSD-3-Clause
// Arbitrary bytes in arbitrary pieces to ClientHandshake; or, when the first byte says so, a list
// of {type, length, data} that is framed as replies to what the client asked last.
#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "nbd/client_handshake.h"

using namespace weft;
using namespace weft::nbd;

namespace {
void check(bool holds) {
  if (!holds) std::abort();
}

// The option that ends the client's output; 0: none.
uint32_t asked(ByteSpan output) {
  uint32_t number = 0;
  while (output.size() >= 16) {
    if (load_be<uint64_t>(output.data()) != kOptionMagic) {
      output = output.subspan(4);  // the client flags
      continue;
    }
    number = load_be<uint32_t>(output.data() + 8);
    const size_t length = load_be<uint32_t>(output.data() + 12);
    check(length <= output.size() - 16);
    output = output.subspan(16 + length);
  }
  return number;
}

// Takes one {type, length, data} and feeds it as a reply.
void feed_reply(ClientHandshake& client, ByteSpan& list) {
  const auto choice = std::to_integer<uint32_t>(list[0]);
  const size_t length = std::min(list.size() - 2, std::to_integer<size_t>(list[1]));
  std::vector<std::byte> reply(20 + length);
  std::byte* to = store_be<uint64_t>(reply.data(), kOptionReplyMagic);
  to = store_be<uint32_t>(to, asked(client.output()));
  to = store_be<uint32_t>(to, choice & 0x80 ? kRepErrorBit + choice % 16 : choice % 8);
  to = store_be<uint32_t>(to, static_cast<uint32_t>(length));
  std::ranges::copy(list.subspan(2, length), to);
  const size_t used = client.consume(reply);
  check(used == reply.size() || client.status() != ClientHandshake::Status::kNegotiating);
  list = list.subspan(2 + length);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const unsigned bits = data[0];
  ClientConfig config = {.export_name = "disk",
                         .goal = static_cast<ClientGoal>(bits & 3),
                         .want_structured = (bits & 4) != 0,
                         .want_extended = (bits & 8) != 0,
                         .no_zeroes = (bits & 16) != 0,
                         .infos = {kInfoName, kInfoDescription, kInfoBlockSize},
                         .list_count_max = 10};
  if (bits & 32) config.contexts = {kBaseAllocation};
  ClientHandshake client(config);
  ByteSpan stream = std::as_bytes(std::span(data + 2, size - 2));
  if (bits & 64) {  // past the greeting at once, which is hard to guess
    constexpr uint8_t greeting[] = {'N', 'B', 'D', 'M', 'A', 'G', 'I', 'C', 'I',
                                    'H', 'A', 'V', 'E', 'O', 'P', 'T', 0,   3};
    check(client.consume(std::as_bytes(std::span(greeting))) == sizeof greeting);
  }
  if ((bits & 192) == 192) {
    while (stream.size() >= 2 && client.status() == ClientHandshake::Status::kNegotiating) {
      feed_reply(client, stream);
    }
  }
  const size_t piece = size_t{data[1]} + 1;
  while (!stream.empty() && client.status() == ClientHandshake::Status::kNegotiating) {
    const ByteSpan part = stream.first(std::min(piece, stream.size()));
    const size_t used = client.consume(part);
    check(used <= part.size());
    check(used == part.size() || client.status() != ClientHandshake::Status::kNegotiating);
    check(!client.state_name().empty());
    stream = stream.subspan(used);
  }
  if (client.status() == ClientHandshake::Status::kFailed) check(!client.error().empty());
  if (client.status() == ClientHandshake::Status::kDone) {
    const ClientResult& result = client.result();
    check(result.exports.size() <= 10);
    if (result.block_sizes) check(result.block_sizes->min != 0);
  }
  return 0;
}
