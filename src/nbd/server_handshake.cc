// SPDX-License-Identifier: BSD-3-Clause
#include "nbd/server_handshake.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "nbd/transmission.h"

namespace weft::nbd {
namespace {

constexpr size_t kOptionHeaderSize = 16;

// Reads the fields of an option's data one after the other; what does not fit yields nothing.
class Fields {
 public:
  explicit Fields(ByteSpan data) : data_(data) {}

  template <std::unsigned_integral T>
  std::optional<T> number() {
    if (data_.size() < sizeof(T)) return std::nullopt;
    const T value = load_be<T>(data_.data());
    data_ = data_.subspan(sizeof(T));
    return value;
  }

  // A string with its 32-bit length in front: present, complete and valid.
  std::optional<std::string_view> string() {
    const auto length = number<uint32_t>();
    if (!length || *length > data_.size()) return std::nullopt;
    const std::string_view text = text_of(data_.first(*length));
    data_ = data_.subspan(*length);
    if (!valid_string(text)) return std::nullopt;
    return text;
  }

  [[nodiscard]] size_t left() const { return data_.size(); }

 private:
  ByteSpan data_;
};

}  // namespace

ServerHandshake::ServerHandshake(const ServerHandshakeOptions& options)
    : options_(options), option_count_max_(options.option_count_max) {}

std::vector<std::byte> ServerHandshake::greeting() const {
  std::vector<std::byte> bytes(18);
  std::byte* to = store_be<uint64_t>(bytes.data(), kMagic);
  to = store_be<uint64_t>(to, kOptionMagic);
  store_be<uint16_t>(to, options_.handshake_flags);
  return bytes;
}

size_t ServerHandshake::consume(ByteSpan input) {
  size_t used = 0;
  while (state_ != State::kAnswer && state_ != State::kFinal) {
    const size_t available = input.size() - used;
    if (state_ == State::kSkipData) {
      const size_t count = std::min<size_t>(skip_left_, available);
      used += count;
      skip_left_ -= static_cast<uint32_t>(count);
      if (skip_left_ != 0) break;
      reply_error(skip_reply_, skip_text_);
      next_option();
      continue;
    }
    const ByteSpan taken = input.subspan(used, std::min(needed_ - input_.size(), available));
    input_.insert(input_.end(), taken.begin(), taken.end());
    used += taken.size();
    if (input_.size() < needed_) break;
    switch (state_) {
      case State::kClientFlags:
        on_client_flags();
        break;
      case State::kOptionHeader:
        on_option_header();
        break;
      default:
        on_option_data();
        break;
    }
  }
  return used;
}

void ServerHandshake::on_client_flags() {
  const uint32_t flags = load_be<uint32_t>(input_.data());
  // The client's flags have the bits of the handshake flags that they answer.
  static_assert(uint32_t{kClientFixedNewstyle} == kFixedNewstyle);
  static_assert(uint32_t{kClientNoZeroes} == kNoZeroes);
  const uint32_t offered = options_.handshake_flags & (kFixedNewstyle | kNoZeroes);
  if (flags & ~offered) {
    close(CloseCause::kViolation,
          fmt::format("client flags {:#x} where {:#x} were offered", flags, offered));
    return;
  }
  client_fixed_newstyle_ = flags & kClientFixedNewstyle;
  client_no_zeroes_ = flags & kClientNoZeroes;
  next_option();
}

void ServerHandshake::on_option_header() {
  const uint64_t magic = load_be<uint64_t>(input_.data());
  option_ = load_be<uint32_t>(input_.data() + 8);
  option_length_ = load_be<uint32_t>(input_.data() + 12);
  if (magic != kOptionMagic) {
    close(CloseCause::kViolation, fmt::format("{:#018x} where an option's magic is due", magic));
    return;
  }
  if (++option_count_ > option_count_max_) {
    close(CloseCause::kLimit,
          fmt::format("more than {} options in one handshake", option_count_max_));
    return;
  }
  if (!client_fixed_newstyle_ && option_ != kOptExportName) {
    close(CloseCause::kViolation,
          fmt::format("{} ({}) from a client that did not negotiate fixed newstyle",
                      option_name(option_), option_));
    return;
  }
  if (option_ == kOptAbort) {  // with whatever data: the client may be gone before it is sent
    reply_ack();
    close(CloseCause::kAbort, "the client ended the negotiation");
    return;
  }
  if (option_length_ > kOptionDataSkippedMax) {
    close(CloseCause::kLimit, fmt::format("{} ({}) with {} bytes of data", option_name(option_),
                                          option_, option_length_));
    return;
  }
  on_option();
}

// Decides by the header alone what can be decided by it; collects the data otherwise.
void ServerHandshake::on_option() {
  const bool has_data = option_length_ != 0;
  if (shutting_down_) {
    if (option_ == kOptExportName) {
      close(CloseCause::kRefused, "the server is shutting down");
    } else {
      skip_and_reply(kRepErrShutdown, "the server is shutting down");
    }
    return;
  }
  switch (option_) {
    case kOptExportName:
      if (extended_headers_) {
        close(CloseCause::kViolation, "NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS");
      } else if (option_length_ > kStringLengthMax) {
        close(CloseCause::kViolation,
              fmt::format("NBD_OPT_EXPORT_NAME with a name of {} bytes", option_length_));
      } else {
        expect(State::kOptionData, option_length_);
      }
      return;
    case kOptList:
      if (has_data) return skip_and_reply(kRepErrInvalid, "NBD_OPT_LIST takes no data");
      event_ = WantList{};
      state_ = State::kAnswer;
      return;
    case kOptStarttls:
      if (has_data) return skip_and_reply(kRepErrInvalid, "NBD_OPT_STARTTLS takes no data");
      return skip_and_reply(kRepErrPolicy, "TLS is not available on this server");
    case kOptStructuredReply:
      return on_structured_reply();
    case kOptExtendedHeaders:
      return on_extended_headers();
    case kOptSetMetaContext:
    case kOptListMetaContext:
      if (!options_.meta_contexts) break;
      // Even a failing request replaces what was selected.
      if (option_ == kOptSetMetaContext) allocation_selected_ = false;
      if (!structured_replies_ && !extended_headers_) {
        return skip_and_reply(kRepErrInvalid, "structured replies must be negotiated first");
      }
      [[fallthrough]];
    case kOptInfo:
    case kOptGo:
      if (option_length_ > kOptionDataBufferedMax) {
        return skip_and_reply(kRepErrTooBig, "the option is too long");
      }
      return expect(State::kOptionData, option_length_);
    default:
      break;
  }
  skip_and_reply(kRepErrUnsup, "the option is not supported");
}

void ServerHandshake::on_structured_reply() {
  if (!options_.structured_replies) {
    return skip_and_reply(kRepErrUnsup, "structured replies are disabled");
  }
  if (option_length_ != 0) {
    return skip_and_reply(kRepErrInvalid, "NBD_OPT_STRUCTURED_REPLY takes no data");
  }
  if (extended_headers_) {
    return skip_and_reply(kRepErrExtHeaderReqd, "extended headers are already negotiated");
  }
  if (structured_replies_) {
    return skip_and_reply(kRepErrInvalid, "structured replies are already negotiated");
  }
  structured_replies_ = true;
  reply_ack();
  next_option();
}

void ServerHandshake::on_extended_headers() {
  if (!options_.structured_replies || !options_.extended_headers) {
    return skip_and_reply(kRepErrUnsup, "extended headers are disabled");
  }
  if (option_length_ != 0) {
    return skip_and_reply(kRepErrInvalid, "NBD_OPT_EXTENDED_HEADERS takes no data");
  }
  if (extended_headers_) {
    return skip_and_reply(kRepErrInvalid, "extended headers are already negotiated");
  }
  extended_headers_ = true;
  reply_ack();
  next_option();
}

void ServerHandshake::on_option_data() {
  switch (option_) {
    case kOptExportName: {
      const std::string_view name = text_of(input_);
      if (!valid_string(name)) {
        return close(CloseCause::kViolation, "NBD_OPT_EXPORT_NAME with a name that is no UTF-8");
      }
      return want_export(name, ExportQuery::kExportName);
    }
    case kOptInfo:
    case kOptGo:
      return on_info_or_go();
    default:
      return on_meta_context();
  }
}

void ServerHandshake::on_info_or_go() {
  Fields fields(input_);
  const auto name = fields.string();
  const auto count = fields.number<uint16_t>();
  if (!name || !count || fields.left() != size_t{*count} * 2) {
    reply_error(kRepErrInvalid, "wrong lengths, or a name that is no UTF-8 string");
    return next_option();
  }
  requested_infos_ = 0;
  while (const auto info = fields.number<uint16_t>()) {
    if (*info <= kInfoBlockSize) requested_infos_ |= 1u << *info;  // others are to be ignored
  }
  want_export(*name, option_ == kOptGo ? ExportQuery::kGo : ExportQuery::kInfo);
}

void ServerHandshake::on_meta_context() {
  const bool list = option_ == kOptListMetaContext;
  Fields fields(input_);
  const auto name = fields.string();
  const auto count = fields.number<uint32_t>();
  bool valid = name && count;
  base_allocation_matches_ = valid && list && *count == 0;
  for (uint32_t i = 0; valid && i < *count; i++) {
    const auto query = fields.string();
    if (!query) {
      valid = false;
    } else if (*query == kBaseAllocation || (list && *query == "base:")) {
      base_allocation_matches_ = true;
    }  // what else is asked for does not exist here, and is to be ignored
  }
  if (!valid || fields.left() != 0) {
    reply_error(kRepErrInvalid, "wrong lengths, or a name or query that is no UTF-8 string");
    return next_option();
  }
  want_export(*name, ExportQuery::kMetaContext);
}

void ServerHandshake::next_option() {
  expect(State::kOptionHeader, kOptionHeaderSize);
}

void ServerHandshake::expect(State state, size_t size) {
  state_ = state;
  needed_ = size;
  input_.clear();
}

void ServerHandshake::skip_and_reply(uint32_t error, std::string_view text) {
  state_ = State::kSkipData;
  skip_left_ = option_length_;
  skip_reply_ = error;
  skip_text_ = text;
}

void ServerHandshake::want_export(std::string_view name, ExportQuery query) {
  event_ = WantExport{.name = std::string(name), .query = query};
  state_ = State::kAnswer;
}

void ServerHandshake::close(CloseCause cause, std::string reason) {
  event_ = Closed{.cause = cause, .reason = std::move(reason)};
  state_ = State::kFinal;
  std::vector<std::byte>().swap(input_);
}

std::string ServerHandshake::state_name() const {
  switch (state_) {
    case State::kClientFlags:
      return "waiting for the client flags";
    case State::kOptionHeader:
      if (input_.empty()) return fmt::format("waiting for option {}", option_count_ + 1);
      return fmt::format("reading the header of option {}, {} of {} bytes", option_count_ + 1,
                         input_.size(), needed_);
    case State::kOptionData:
      return fmt::format("reading {} ({}), {} of {} bytes", option_name(option_), option_,
                         input_.size(), needed_);
    case State::kSkipData:
      return fmt::format("skipping {} ({}), {} of {} bytes left", option_name(option_), option_,
                         skip_left_, option_length_);
    case State::kAnswer:
      return fmt::format("answering {}", option_name(option_));
    case State::kFinal:
      return std::holds_alternative<Established>(event_) ? "established" : "closed";
  }
  return "?";
}

}  // namespace weft::nbd
