// SPDX-License-Identifier: BSD-3-Clause
// ServerHandshake: the answers to its events, and the bytes of option replies.
#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <utility>

#include "nbd/server_handshake.h"

namespace weft::nbd {
namespace {

constexpr size_t kOptionReplyHeaderSize = 20;

std::byte* store_text(std::byte* to, std::string_view text) {
  return std::ranges::copy(bytes_of(text), to).out;
}

}  // namespace

void ServerHandshake::answer_list(std::span<const ListEntry> exports) {
  // Whoever lists may ask about each export.
  option_count_max_ = std::max<uint64_t>(
      option_count_max_, options_.option_count_max + exports.size() * kOptionsPerExport);
  assert(std::holds_alternative<WantList>(event_));
  event_ = {};
  for (const ListEntry& entry : exports) {
    std::byte* to = reply(kRepServer, 4 + entry.name.size() + entry.description.size());
    to = store_be<uint32_t>(to, static_cast<uint32_t>(entry.name.size()));
    store_text(store_text(to, entry.name), entry.description);
  }
  reply_ack();
  next_option();
}

void ServerHandshake::refuse_list(uint32_t error, std::string_view text) {
  assert(std::holds_alternative<WantList>(event_));
  event_ = {};
  reply_error(error, text);
  next_option();
}

void ServerHandshake::answer_export(const ExportInfo& info) {
  assert(std::holds_alternative<WantExport>(event_));
  const WantExport want = std::get<WantExport>(std::exchange(event_, {}));
  switch (want.query) {
    case ExportQuery::kExportName: {
      const size_t start = output_.size();
      output_.resize(start + 10 + (client_no_zeroes_ ? 0 : kOldstyleReservedSize));
      std::byte* to = store_be<uint64_t>(output_.data() + start, info.size);
      store_be<uint16_t>(to, flags_for(info, want.name));
      requested_infos_ = 0;
      return establish(info, want.name);
    }
    case ExportQuery::kInfo:
    case ExportQuery::kGo:
      reply_infos(info, want.name);
      reply_ack();
      if (want.query == ExportQuery::kGo) return establish(info, want.name);
      break;
    case ExportQuery::kMetaContext: {
      const bool set = option_ == kOptSetMetaContext;
      if (base_allocation_matches_) {
        std::byte* to = reply(kRepMetaContext, 4 + sizeof kBaseAllocation - 1);
        store_text(store_be<uint32_t>(to, set ? kBaseAllocationId : 0), kBaseAllocation);
        if (set) {
          allocation_selected_ = true;
          selected_name_ = want.name;
        }
      }
      reply_ack();
      break;
    }
  }
  next_option();
}

void ServerHandshake::refuse_export(uint32_t error, std::string_view text) {
  assert(std::holds_alternative<WantExport>(event_));
  const WantExport want = std::get<WantExport>(std::exchange(event_, {}));
  if (want.query == ExportQuery::kExportName) {  // this option has no error reply
    return close(CloseCause::kRefused,
                 fmt::format("NBD_OPT_EXPORT_NAME '{}': {}", want.name, text));
  }
  reply_error(error, text);
  next_option();
}

void ServerHandshake::establish(const ExportInfo& info, const std::string& name) {
  Established established;
  established.name = name;
  established.mode = extended_headers_     ? HeaderMode::kExtended
                     : structured_replies_ ? HeaderMode::kStructured
                                           : HeaderMode::kSimple;
  established.transmission_flags = flags_for(info, name);
  established.allocation_context = selection_holds_for(name);
  established.block_sizes_sent = requested_infos_ & (1u << kInfoBlockSize);
  established.info = info;
  event_ = std::move(established);
  state_ = State::kFinal;
  std::vector<std::byte>().swap(input_);
}

bool ServerHandshake::selection_holds_for(std::string_view name) const {
  return allocation_selected_ && selected_name_ == name;
}

uint16_t ServerHandshake::flags_for(const ExportInfo& info, std::string_view name) const {
  uint16_t flags = info.transmission_flags & ~(kSendDf | kBlockStatusPayload);
  flags |= kHasFlags;
  if (structured_replies_ || extended_headers_) flags |= kSendDf;
  if (extended_headers_ && selection_holds_for(name)) flags |= kBlockStatusPayload;
  return flags;
}

std::byte* ServerHandshake::reply(uint32_t type, size_t length) {
  const size_t start = output_.size();
  output_.resize(start + kOptionReplyHeaderSize + length);
  std::byte* to = store_be<uint64_t>(output_.data() + start, kOptionReplyMagic);
  to = store_be<uint32_t>(to, option_);
  to = store_be<uint32_t>(to, type);
  return store_be<uint32_t>(to, static_cast<uint32_t>(length));
}

void ServerHandshake::reply_ack() {
  reply(kRepAck, 0);
}

void ServerHandshake::reply_error(uint32_t error, std::string_view text) {
  assert(error & kRepErrorBit);
  text = text.substr(0, kStringLengthMax);
  store_text(reply(error, text.size()), text);
}

void ServerHandshake::reply_infos(const ExportInfo& info, std::string_view name) {
  const auto requested = [this](InfoType type) { return (requested_infos_ & (1u << type)) != 0; };
  std::byte* to = store_be<uint16_t>(reply(kRepInfo, 12), kInfoExport);
  to = store_be<uint64_t>(to, info.size);
  store_be<uint16_t>(to, flags_for(info, name));

  const auto text = [&](InfoType type, std::string_view value) {
    store_text(store_be<uint16_t>(reply(kRepInfo, 2 + value.size()), type), value);
  };
  if (requested(kInfoName) && valid_string(info.name)) text(kInfoName, info.name);
  if (requested(kInfoDescription) && !info.description.empty() && valid_string(info.description)) {
    text(kInfoDescription, info.description);
  }
  if (requested(kInfoBlockSize)) {
    to = store_be<uint16_t>(reply(kRepInfo, 14), kInfoBlockSize);
    to = store_be<uint32_t>(to, info.block_sizes.min);
    to = store_be<uint32_t>(to, info.block_sizes.preferred);
    store_be<uint32_t>(to, info.block_sizes.payload_max);
  }
}

std::vector<std::byte> oldstyle_greeting(const ExportInfo& info) {
  std::vector<std::byte> bytes(28 + kOldstyleReservedSize);
  std::byte* to = store_be<uint64_t>(bytes.data(), kMagic);
  to = store_be<uint64_t>(to, kOldstyleMagic);
  to = store_be<uint64_t>(to, info.size);
  // The upper half are handshake flags, which an oldstyle server must not set.
  const uint32_t flags = info.transmission_flags & ~(kSendDf | kBlockStatusPayload);
  store_be<uint32_t>(to, flags | kHasFlags);
  return bytes;
}

}  // namespace weft::nbd
