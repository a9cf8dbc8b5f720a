// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "check/conformance/talk.h"

namespace weft::check::conformance {
namespace {

constexpr size_t kReplyHeaderSize = 20;
constexpr uint32_t kReplyDataMax = 1u << 20;  // far above any legal reply
constexpr size_t kRepliesMax = 100'000;       // to one option: exports in a list

// The length of the sequence that begins here, 0 if none does.
size_t utf8_sequence(ByteSpan bytes) {
  const auto at = [&](size_t i) { return static_cast<unsigned>(bytes[i]); };
  const unsigned first = at(0);
  const size_t length = first < 0x80             ? 1
                        : (first & 0xe0) == 0xc0 ? 2
                        : (first & 0xf0) == 0xe0 ? 3
                        : (first & 0xf8) == 0xf0 ? 4
                                                 : 0;
  if (length == 0 || length > bytes.size()) return 0;
  unsigned code = length == 1 ? first : first & (0x7fu >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((at(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (at(i) & 0x3f);
  }
  constexpr std::array<unsigned, 5> kLeast = {0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return code < kLeast[length] || code > 0x10ffff || surrogate ? 0 : length;
}

}  // namespace

std::string string_fault(ByteSpan bytes) {
  if (bytes.size() > nbd::kStringLengthMax) {
    return fmt::format("a string of {} bytes; 4096 is the most", bytes.size());
  }
  if (std::ranges::find(bytes, std::byte{0}) != bytes.end()) return "a string with a NUL in it";
  while (!bytes.empty()) {
    const size_t length = utf8_sequence(bytes);
    if (length == 0) return "a string that is no UTF-8";
    bytes = bytes.subspan(length);
  }
  return "";
}

Got Talk::send(ByteSpan bytes, std::string_view what) {
  story_->add(fmt::format("sent {} ({} bytes: {})", what, bytes.size(), hex(bytes)));
  const Got got = raw_.send(bytes);
  if (got == Got::kEnd) story_->add("the server has closed the connection");
  if (got == Got::kSilence) story_->add("the server takes no more bytes");
  return got;
}

Got Talk::receive(MutableByteSpan into) {
  const Got got = raw_.receive(into);
  if (got == Got::kEnd) story_->add("the server closed the connection");
  if (got == Got::kSilence) {
    story_->add(fmt::format("nothing came for {} ms", raw_.limit().count()));
  }
  return got;
}

Got Talk::wait_for_end() {
  return wait_for_end(raw_.limit());
}

Got Talk::wait_for_end(std::chrono::milliseconds limit) {
  const Got got = raw_.wait_for_end(limit);
  story_->add(got == Got::kEnd       ? "the server closed the connection"
              : got == Got::kSilence ? fmt::format("nothing came for {} ms", limit.count())
                                     : "the server sent something");
  return got;
}

void Talk::lost(Got got, State state, const std::string& waited_for) {
  if (got == Got::kEnd) {
    breach(state, "disconnected", "the server closed the connection",
           fmt::format("{}; the connection stays open", waited_for));
  }
  breach(state, "no-answer", fmt::format("the server was silent for {} ms", raw_.limit().count()),
         waited_for);
}

uint16_t Talk::greeting() {
  std::array<std::byte, 18> bytes;
  const Got got = receive(bytes);
  if (got != Got::kAll) lost(got, State::kFailed, "the greeting of the fixed newstyle handshake");
  story_->add(fmt::format("received the greeting ({})", hex(bytes)));
  if (load_be<uint64_t>(bytes.data()) != nbd::kMagic) {
    broken("wrong-magic", "the greeting does not begin with NBDMAGIC", "4e42444d41474943");
  }
  const auto second = load_be<uint64_t>(bytes.data() + 8);
  if (second == nbd::kOldstyleMagic) {
    broken("oldstyle", "the server speaks the oldstyle handshake only",
           "the fixed newstyle handshake, which all implementations must have");
  }
  if (second != nbd::kOptionMagic) {
    broken("wrong-magic", "the greeting's second magic is not IHAVEOPT", "49484156454f5054");
  }
  return load_be<uint16_t>(bytes.data() + 16);
}

void Talk::client_flags(uint32_t flags) {
  std::array<std::byte, 4> bytes;
  store_be<uint32_t>(bytes.data(), flags);
  send(bytes, fmt::format("client flags {:#x}", flags));
}

Got Talk::send_option_header(uint32_t option, uint32_t length, uint64_t magic) {
  std::array<std::byte, 16> header;
  std::byte* to = store_be<uint64_t>(header.data(), magic);
  to = store_be<uint32_t>(to, option);
  store_be<uint32_t>(to, length);
  return send(header, fmt::format("the header of option {} ({}) with {} bytes of data", option,
                                  nbd::option_name(option), length));
}

Got Talk::send_option(uint32_t option, ByteSpan data, uint64_t magic) {
  std::vector<std::byte> bytes(16 + data.size());
  std::byte* to = store_be<uint64_t>(bytes.data(), magic);
  to = store_be<uint32_t>(to, option);
  to = store_be<uint32_t>(to, static_cast<uint32_t>(data.size()));
  std::ranges::copy(data, to);
  story_->add(fmt::format("sent option {} ({}) with {} bytes of data{}{}", option,
                          nbd::option_name(option), data.size(), data.empty() ? "" : ": ",
                          hex(data, 48)));
  return raw_.send(bytes);
}

OptionAnswer Talk::try_answer(uint32_t option) {
  OptionAnswer answer;
  while (true) {
    std::array<std::byte, kReplyHeaderSize> header;
    answer.got = receive(header);
    if (answer.got != Got::kAll) return answer;
    const auto type = load_be<uint32_t>(header.data() + 12);
    const auto length = load_be<uint32_t>(header.data() + 16);
    if (load_be<uint64_t>(header.data()) != nbd::kOptionReplyMagic) {
      story_->add(fmt::format("received {}", hex(header)));
      broken("wrong-magic", "what came is no option reply: its magic is wrong",
             "a reply that begins with 0003e889045565a9",
             {"Look whether an earlier option's data was skipped as a whole."});
    }
    if (load_be<uint32_t>(header.data() + 8) != option) {
      story_->add(fmt::format("received {}", hex(header)));
      broken("wrong-option",
             fmt::format("a reply to option {} came", load_be<uint32_t>(header.data() + 8)),
             fmt::format("a reply to option {}", option));
    }
    if (length > kReplyDataMax) {
      broken("malformed-reply", fmt::format("an option reply of {} bytes", length),
             "a reply of sensible size");
    }
    OptionReply reply{.type = type, .data = std::vector<std::byte>(length)};
    answer.got = receive(reply.data);
    if (answer.got != Got::kAll) return answer;
    const bool error = type & nbd::kRepErrorBit;
    story_->add(fmt::format("received {}{}{}", nbd::option_reply_name(type),
                            reply.data.empty() ? "" : ": ",
                            error ? std::string(text_of(reply.data)) : hex(reply.data)));
    if (error || type == nbd::kRepAck) {
      answer.last = type;
      if (!error && length != 0) {
        broken("malformed-reply", fmt::format("NBD_REP_ACK with {} bytes of data", length),
               "NBD_REP_ACK has no data");
      }
      if (const std::string fault = string_fault(reply.data); !fault.empty()) {
        broken("malformed-reply", "the text of an error is " + fault, "a string");
      }
      answer.text = text_of(reply.data);
      return answer;
    }
    answer.before.push_back(std::move(reply));
    if (answer.before.size() > kRepliesMax) {
      unclear(fmt::format("the server sends more than {} replies to one option", kRepliesMax));
    }
  }
}

OptionAnswer Talk::answer(uint32_t option, State on_loss) {
  OptionAnswer answer = try_answer(option);
  if (answer.got != Got::kAll) {
    lost(answer.got, on_loss,
         fmt::format("a reply to option {} ({})", option, nbd::option_name(option)));
  }
  return answer;
}

OptionAnswer Talk::ask(uint32_t option, ByteSpan data, State on_loss) {
  send_option(option, data);
  return answer(option, on_loss);
}

Got Talk::export_reply(bool zeroes, uint64_t& size, uint16_t& flags) {
  std::array<std::byte, 10> bytes;
  if (const Got got = receive(bytes); got != Got::kAll) return got;
  story_->add(fmt::format("received size and flags ({})", hex(bytes)));
  size = load_be<uint64_t>(bytes.data());
  flags = load_be<uint16_t>(bytes.data() + 8);
  if (!zeroes) return Got::kAll;
  std::array<std::byte, nbd::kOldstyleReservedSize> padding;
  if (const Got got = receive(padding); got != Got::kAll) return got;
  story_->add("received 124 bytes more");
  if (std::ranges::any_of(padding, [](std::byte b) { return b != std::byte{0}; })) {
    broken("malformed-reply", "the 124 reserved bytes are not zero", "124 zeroes");
  }
  return Got::kAll;
}

}  // namespace weft::check::conformance
