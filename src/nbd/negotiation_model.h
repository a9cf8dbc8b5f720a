// SPDX-License-Identifier: BSD-3-Clause
// For tests and fuzz targets: what a negotiation must come to, as a table of the specification's
// sentences over whole options. It shares nothing with ServerHandshake: no bytes, no state names.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "nbd/server_handshake.h"
#include "nbd/test_bytes.h"

namespace weft::nbd::testing {

// One option as a client may send it.
struct Step {
  uint32_t number = 0;
  std::string name = {};                  // of the export, where the option has one
  std::vector<std::string> queries = {};  // of the metadata options
  std::vector<uint16_t> infos = {};       // of INFO and GO
  bool damaged = false;                   // a byte too much, where the option's data has a form
};

// The exports of the server that the steps are played to: "a" and "b".
inline bool model_export_exists(std::string_view name) {
  return name == "a" || name == "b";
}

inline ExportInfo model_export(std::string_view name) {
  ExportInfo info;
  info.size = name == "a" ? 0x100000 : 0x7fffffffffffffff;
  info.transmission_flags = kSendFlush | kSendFua | kCanMultiConn;
  info.name = name;
  info.description = name == "a" ? "the first" : "";
  info.block_sizes = {512, 65536, kPayloadAdvertisedMax};
  return info;
}

// Everything that one step must lead to.
struct Outcome {
  std::vector<uint32_t> replies = {};  // their types, in order
  enum End : uint8_t { kGoesOn, kEstablished, kClosed } end = kGoesOn;
};

class NegotiationModel {
 public:
  explicit NegotiationModel(const ServerHandshakeOptions& options) : options_(options) {}

  Outcome play(const Step& step) {
    const bool chunks = structured_ || (extended_ && !forgetful_);
    const bool sr_known = options_.structured_replies;
    const bool ext_known = sr_known && options_.extended_headers;
    switch (step.number) {
      case 1:  // EXPORT_NAME: no error replies, no reply header
        if (extended_ || step.damaged || !model_export_exists(step.name))
          return {{}, Outcome::kClosed};
        return establish(step.name, {});
      case 2:
        return {{kRepAck}, Outcome::kClosed};
      case 3:
        if (step.damaged) return {{kRepErrInvalid}};
        return {{kRepServer, kRepServer, kRepAck}};
      case 5:
        return {{step.damaged ? kRepErrInvalid : kRepErrPolicy}};
      case 6:
      case 7: {
        if (step.damaged) return {{kRepErrInvalid}};
        if (!model_export_exists(step.name)) return {{kRepErrUnknown}};
        std::vector<uint32_t> replies(1 + infos_told(step), kRepInfo);
        replies.push_back(kRepAck);
        return step.number == 7 ? establish(step.name, replies) : Outcome{replies};
      }
      case 8:
        if (!sr_known) return {{kRepErrUnsup}};
        if (step.damaged) return {{kRepErrInvalid}};
        if (extended_) return {{kRepErrExtHeaderReqd}};
        if (structured_) return {{kRepErrInvalid}};
        structured_ = true;
        return {{kRepAck}};
      case 9:
      case 10: {
        if (!options_.meta_contexts) return {{kRepErrUnsup}};
        const bool set = step.number == 10;
        if (set) selected_.reset();
        if (!chunks || step.damaged) return {{kRepErrInvalid}};
        if (!model_export_exists(step.name)) return {{kRepErrUnknown}};
        bool found = !set && step.queries.empty();
        for (const std::string& query : step.queries) {
          if (query == "base:allocation") found = true;
          if (query == "base:" && !set) found = true;
        }
        if (!found) return {{kRepAck}};
        if (set) selected_ = step.name;
        return {{kRepMetaContext, kRepAck}};
      }
      case 11:
        if (!ext_known) return {{kRepErrUnsup}};
        if (step.damaged || extended_) return {{kRepErrInvalid}};
        extended_ = true;
        return {{kRepAck}};
      default:
        return {{kRepErrUnsup}};
    }
  }

  // Plants a bug, for the canary: extended headers do not count as structured replies.
  void forget_that_extended_is_structured() { forgetful_ = true; }

  // What the transmission phase must be, once a step led there.
  [[nodiscard]] HeaderMode mode() const {
    if (extended_) return HeaderMode::kExtended;
    return structured_ ? HeaderMode::kStructured : HeaderMode::kSimple;
  }
  [[nodiscard]] bool context() const { return selected_ == name_; }
  [[nodiscard]] const std::string& name() const { return *name_; }
  [[nodiscard]] uint16_t flags() const {
    unsigned flags = model_export(*name_).transmission_flags | 1u;
    if (structured_ || extended_) flags |= 1u << 7;
    if (extended_ && context()) flags |= 1u << 12;
    return static_cast<uint16_t>(flags);
  }

 private:
  Outcome establish(const std::string& name, std::vector<uint32_t> replies) {
    name_ = name;
    return {std::move(replies), Outcome::kEstablished};
  }

  static size_t infos_told(const Step& step) {
    std::map<uint16_t, bool> told;
    for (const uint16_t info : step.infos) {
      if (info == 1 || info == 3 || (info == 2 && step.name == "a")) told[info] = true;
    }
    return told.size();
  }

  ServerHandshakeOptions options_;
  bool structured_ = false;
  bool extended_ = false;
  bool forgetful_ = false;
  std::optional<std::string> selected_;
  std::optional<std::string> name_;
};

// The step as bytes.
inline Bytes step_bytes(const Step& step) {
  Builder data;
  switch (step.number) {
    case 1:
      data.text(step.name);
      if (step.damaged) data.number(0, 1);  // NUL
      return option(step.number, data.bytes);
    case 6:
    case 7:
      data.raw(go_data(step.name, step.infos));
      break;
    case 9:
    case 10:
      data.raw(meta_data(step.name, step.queries));
      break;
    default:
      break;
  }
  if (step.damaged) data.number(0, 1);
  return option(step.number, data.bytes);
}

// Answers a pending WantList or WantExport as the server of the model does.
inline void answer(ServerHandshake& handshake) {
  if (std::holds_alternative<WantList>(handshake.event())) {
    const std::vector<ListEntry> list = {{"a", "the first"}, {"b", ""}};
    handshake.answer_list(list);
  } else if (const auto* want = std::get_if<WantExport>(&handshake.event())) {
    const std::string name = want->name;
    if (model_export_exists(name)) {
      handshake.answer_export(model_export(name));
    } else {
      handshake.refuse_export(kRepErrUnknown, "no such export");
    }
  }
}

// Plays a step to both, cutting its bytes after every `piece`. Returns nothing, or in which way
// they disagree. `end` says how the step ended.
inline std::optional<std::string> play(ServerHandshake& handshake, NegotiationModel& model,
                                       const Step& step, size_t piece, Outcome::End& end) {
  const Outcome expected = model.play(step);
  end = expected.end;
  const Bytes bytes = step_bytes(step);
  size_t at = 0;
  handshake.clear_output();
  const auto final = [&] {
    return std::holds_alternative<Established>(handshake.event()) ||
           std::holds_alternative<Closed>(handshake.event());
  };
  while (at < bytes.size() && !final()) {
    const ByteSpan part = ByteSpan(bytes).subspan(at, std::min(piece, bytes.size() - at));
    const size_t used = handshake.consume(part);
    if (used > part.size()) return "consumed more than there was";
    const bool pending = !std::holds_alternative<std::monostate>(handshake.event());
    if (used < part.size() && !pending) return "stopped without an event";
    at += used;
    answer(handshake);
  }
  const auto* established = std::get_if<Established>(&handshake.event());
  const bool closed = std::holds_alternative<Closed>(handshake.event());
  if ((established != nullptr) != (expected.end == Outcome::kEstablished)) return "established";
  if (closed != (expected.end == Outcome::kClosed)) return "closed";
  if (!final() && at != bytes.size()) return "bytes left over";

  ByteSpan output = handshake.output();
  if (step.number == kOptExportName) {
    if (!established) return output.empty() ? std::nullopt : std::optional("bytes before closing");
    if (output.size() != 10 || number_at(output, 0, 8) != model_export(step.name).size ||
        number_at(output, 8, 2) != model.flags()) {
      return "the reply to EXPORT_NAME";
    }
  } else {
    std::vector<Reply> replies;
    if (!split_replies(output, replies)) return "no well-formed replies";
    std::vector<uint32_t> types;
    for (const Reply& reply : replies) {
      if (reply.option != step.number) return "a reply to another option";
      types.push_back(reply.type);
    }
    if (types != expected.replies) return "other replies";
  }
  if (established) {
    if (established->name != model.name()) return "the name";
    if (established->mode != model.mode()) return "the header mode";
    if (established->allocation_context != model.context()) return "the metadata context";
    if (established->transmission_flags != model.flags()) return "the transmission flags";
  }
  return std::nullopt;
}

}  // namespace weft::nbd::testing
