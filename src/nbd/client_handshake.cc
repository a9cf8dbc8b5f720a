// SPDX-License-Identifier: BSD-3-Clause
#include "nbd/client_handshake.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "nbd/transmission.h"

namespace weft::nbd {
namespace {

constexpr size_t kOldstyleRestSize = 8 + 4 + kOldstyleReservedSize;
constexpr size_t kReplyHeaderSize = 20;
constexpr size_t kReplyLengthMax = 64 << 10;  // the longest legal reply is two strings
constexpr size_t kContextCountMax = 1024;

void append_text(std::vector<std::byte>& to, std::string_view text) {
  const ByteSpan bytes = bytes_of(text);
  to.insert(to.end(), bytes.begin(), bytes.end());
}

template <std::unsigned_integral T>
void append_number(std::vector<std::byte>& to, T value) {
  to.resize(to.size() + sizeof value);
  store_be<T>(to.data() + to.size() - sizeof value, value);
}

void append_string(std::vector<std::byte>& to, std::string_view text) {
  append_number(to, static_cast<uint32_t>(text.size()));
  append_text(to, text);
}

bool sane(const BlockSizes& sizes) {
  return std::has_single_bit(sizes.min) && sizes.min <= 65536 &&
         std::has_single_bit(sizes.preferred) && sizes.preferred >= sizes.min &&
         sizes.payload_max >= sizes.min;
}

}  // namespace

std::optional<uint32_t> ClientResult::context_id(std::string_view context) const {
  for (const SelectedContext& selected : contexts) {
    if (selected.name == context) return selected.id;
  }
  return std::nullopt;
}

ClientHandshake::ClientHandshake(ClientConfig config) : config_(std::move(config)) {}

size_t ClientHandshake::consume(ByteSpan input) {
  size_t used = 0;
  while (state_ != State::kOver) {
    const ByteSpan taken =
        input.subspan(used, std::min(needed_ - input_.size(), input.size() - used));
    input_.insert(input_.end(), taken.begin(), taken.end());
    used += taken.size();
    if (input_.size() < needed_) break;
    switch (state_) {
      case State::kMagic:
        on_magic();
        break;
      case State::kOldstyleRest:
        on_oldstyle_rest();
        break;
      case State::kHandshakeFlags:
        on_handshake_flags();
        break;
      case State::kReplyHeader:
        on_reply_header();
        break;
      case State::kReplyData:
        on_reply();
        break;
      case State::kExportReply:
        on_export_reply();
        break;
      case State::kOver:
        break;
    }
  }
  return used;
}

void ClientHandshake::expect(State state, size_t size) {
  state_ = state;
  needed_ = size;
  input_.clear();
}

void ClientHandshake::on_magic() {
  if (load_be<uint64_t>(input_.data()) != kMagic) return fail("this is no NBD server");
  const uint64_t second = load_be<uint64_t>(input_.data() + 8);
  if (second == kOptionMagic) return expect(State::kHandshakeFlags, 2);
  if (second == kOldstyleMagic) return expect(State::kOldstyleRest, kOldstyleRestSize);
  fail(fmt::format("the server speaks an unknown handshake ({:#018x})", second));
}

void ClientHandshake::on_oldstyle_rest() {
  if (config_.goal == ClientGoal::kList) return fail("an oldstyle server has no list of exports");
  result_.oldstyle = true;
  result_.size = load_be<uint64_t>(input_.data());
  result_.transmission_flags = static_cast<uint16_t>(load_be<uint32_t>(input_.data() + 8));
  done();
}

void ClientHandshake::on_handshake_flags() {
  const uint16_t flags = load_be<uint16_t>(input_.data());
  fixed_newstyle_ = flags & kFixedNewstyle;
  no_zeroes_ = config_.no_zeroes && (flags & kNoZeroes);
  append_number<uint32_t>(
      output_, (fixed_newstyle_ ? kClientFixedNewstyle : 0u) | (no_zeroes_ ? kClientNoZeroes : 0u));
  start();
}

void ClientHandshake::start() {
  const ClientGoal goal = config_.goal;
  if (!fixed_newstyle_) {  // only one option exists
    if (goal == ClientGoal::kGo || goal == ClientGoal::kExportName) return send_export_name();
    return fail("the server does not speak fixed newstyle, which INFO and LIST need");
  }
  if (goal == ClientGoal::kList) return send_option(kOptList, {});
  if (config_.want_extended && goal != ClientGoal::kExportName) {
    return send_option(kOptExtendedHeaders, {});
  }
  if (config_.want_structured || config_.want_extended) {
    return send_option(kOptStructuredReply, {});
  }
  send_goal();
}

void ClientHandshake::after_headers() {
  if (config_.contexts.empty()) return send_goal();
  std::vector<std::byte> data;
  append_string(data, config_.export_name);
  append_number(data, static_cast<uint32_t>(config_.contexts.size()));
  for (const std::string& context : config_.contexts) append_string(data, context);
  send_option(kOptSetMetaContext, data);
}

void ClientHandshake::send_goal() {
  if (config_.goal == ClientGoal::kExportName) return send_export_name();
  std::vector<std::byte> data;
  append_string(data, config_.export_name);
  append_number(data, static_cast<uint16_t>(config_.infos.size()));
  for (const uint16_t info : config_.infos) append_number(data, info);
  send_option(config_.goal == ClientGoal::kInfo ? kOptInfo : kOptGo, data);
}

void ClientHandshake::send_export_name() {
  send_option(kOptExportName, bytes_of(config_.export_name));
  expect(State::kExportReply, 10 + (no_zeroes_ ? 0 : kOldstyleReservedSize));
}

void ClientHandshake::send_option(uint32_t option, ByteSpan data) {
  option_ = option;
  append_number(output_, kOptionMagic);
  append_number(output_, option);
  append_number(output_, static_cast<uint32_t>(data.size()));
  output_.insert(output_.end(), data.begin(), data.end());
  expect(State::kReplyHeader, kReplyHeaderSize);
}

void ClientHandshake::on_reply_header() {
  const uint64_t magic = load_be<uint64_t>(input_.data());
  const uint32_t option = load_be<uint32_t>(input_.data() + 8);
  reply_type_ = load_be<uint32_t>(input_.data() + 12);
  const uint32_t length = load_be<uint32_t>(input_.data() + 16);
  if (magic != kOptionReplyMagic) {
    return fail(fmt::format("{:#018x} where an option reply's magic is due", magic));
  }
  if (option != option_) {
    return fail(fmt::format("a reply to {} ({}) where one to {} is due", option_name(option),
                            option, option_name(option_)));
  }
  if (length > kReplyLengthMax) {
    return fail(fmt::format("a reply of {} bytes to {}", length, option_name(option_)));
  }
  expect(State::kReplyData, length);
}

void ClientHandshake::on_reply() {
  const bool info = option_ == kOptGo || option_ == kOptInfo;
  if (reply_type_ & kRepErrorBit) return on_refusal();
  if (reply_type_ == kRepAck) return on_ack();
  if (reply_type_ == kRepServer && option_ == kOptList) {
    on_server_reply();
  } else if (reply_type_ == kRepInfo && info) {
    on_info_reply();
  } else if (reply_type_ == kRepMetaContext && option_ == kOptSetMetaContext) {
    on_meta_context_reply();
  } else {
    fail(fmt::format("{} ({}) in reply to {}", option_reply_name(reply_type_), reply_type_,
                     option_name(option_)));
  }
  if (state_ != State::kOver) expect(State::kReplyHeader, kReplyHeaderSize);
}

void ClientHandshake::on_server_reply() {
  if (input_.size() < 4) return fail("a reply to NBD_OPT_LIST is too short");
  const uint32_t length = load_be<uint32_t>(input_.data());
  if (length > input_.size() - 4 || length > kStringLengthMax) {
    return fail("a reply to NBD_OPT_LIST has a wrong length");
  }
  if (result_.exports.size() == config_.list_count_max) {
    return fail(fmt::format("the server lists more than {} exports", config_.list_count_max));
  }
  const std::string_view text = text_of(input_).substr(4);
  result_.exports.push_back(
      {std::string(text.substr(0, length)), std::string(text.substr(length))});
}

void ClientHandshake::on_info_reply() {
  const ByteSpan data(input_);
  if (data.size() < 2) return fail("an information reply is too short");
  const ByteSpan rest = data.subspan(2);
  switch (load_be<uint16_t>(data.data())) {
    case kInfoExport:
      if (rest.size() != 10) return fail("an NBD_INFO_EXPORT of a wrong length");
      result_.size = load_be<uint64_t>(rest.data());
      result_.transmission_flags = load_be<uint16_t>(rest.data() + 8);
      info_export_seen_ = true;
      break;
    case kInfoName:
      result_.name = text_of(rest);
      break;
    case kInfoDescription:
      result_.description = text_of(rest);
      break;
    case kInfoBlockSize: {
      if (rest.size() != 12) return fail("an NBD_INFO_BLOCK_SIZE of a wrong length");
      const BlockSizes sizes = {load_be<uint32_t>(rest.data()), load_be<uint32_t>(rest.data() + 4),
                                load_be<uint32_t>(rest.data() + 8)};
      if (!sane(sizes)) return fail("block sizes that cannot be");
      result_.block_sizes = sizes;
      break;
    }
    default:
      break;  // unknown information is to be ignored
  }
}

void ClientHandshake::on_meta_context_reply() {
  if (input_.size() < 4 || input_.size() > 4 + kStringLengthMax) {
    return fail("a metadata context of a wrong length");
  }
  if (result_.contexts.size() == kContextCountMax) return fail("too many metadata contexts");
  result_.contexts.push_back(
      {load_be<uint32_t>(input_.data()), std::string(text_of(input_).substr(4))});
}

void ClientHandshake::on_ack() {
  switch (option_) {
    case kOptExtendedHeaders:
      result_.mode = HeaderMode::kExtended;
      return after_headers();
    case kOptStructuredReply:
      result_.mode = HeaderMode::kStructured;
      return after_headers();
    case kOptSetMetaContext:
      return send_goal();
    case kOptGo:
    case kOptInfo:
      if (!info_export_seen_) return fail("the server told no NBD_INFO_EXPORT");
      if (option_ == kOptInfo) send_option(kOptAbort, {});
      return done();
    default:  // LIST
      send_option(kOptAbort, {});
      return done();
  }
}

void ClientHandshake::on_refusal() {
  const bool final = reply_type_ == kRepErrShutdown || reply_type_ == kRepErrTlsReqd;
  if (!final) {
    switch (option_) {
      case kOptExtendedHeaders:
        return send_option(kOptStructuredReply, {});
      case kOptStructuredReply:
        return send_goal();
      case kOptSetMetaContext:
        result_.contexts.clear();
        return send_goal();
      case kOptGo:
        // After EXTENDED_HEADERS the old way is closed, and the server must know GO.
        if (reply_type_ != kRepErrUnsup || result_.mode == HeaderMode::kExtended) break;
        return send_export_name();
      default:
        break;
    }
  }
  server_error_ = reply_type_;
  std::string error = fmt::format("{}: {}", option_name(option_), option_reply_name(reply_type_));
  if (!input_.empty()) {
    error += ": ";
    error += text_of(input_).substr(0, kStringLengthMax);
  }
  send_option(kOptAbort, {});
  fail(std::move(error));
}

void ClientHandshake::on_export_reply() {
  result_.size = load_be<uint64_t>(input_.data());
  result_.transmission_flags = load_be<uint16_t>(input_.data() + 8);
  done();
}

void ClientHandshake::done() {
  status_ = Status::kDone;
  expect(State::kOver, 0);
}

void ClientHandshake::fail(std::string error) {
  status_ = Status::kFailed;
  error_ = std::move(error);
  expect(State::kOver, 0);
}

std::string ClientHandshake::state_name() const {
  switch (state_) {
    case State::kMagic:
    case State::kOldstyleRest:
    case State::kHandshakeFlags:
      return "waiting for the greeting";
    case State::kReplyHeader:
    case State::kReplyData:
    case State::kExportReply:
      return fmt::format("waiting for the reply to {}", option_name(option_));
    case State::kOver:
      return status_ == Status::kDone ? "done" : "failed";
  }
  return "?";
}

}  // namespace weft::nbd
