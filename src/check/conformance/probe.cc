// SPDX-License-Identifier: BSD-3-Clause
#include "check/conformance/probe.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/result.h"

namespace weft::check::conformance {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kLimitMax{3'000};     // of one silence
constexpr uint64_t kReadMax = 8u << 20;      // bytes of one READ, where length is no matter
constexpr milliseconds kSecondLimit{1'000};  // for a greeting beside another connection

// Takes what INFO or GO told.
void note_info(const OptionReply& reply, nbd::ClientResult& result) {
  if (reply.type != nbd::kRepInfo || reply.data.size() < 2) return;
  const std::byte* at = reply.data.data();
  switch (load_be<uint16_t>(at)) {
    case nbd::kInfoExport:
      if (reply.data.size() != 12) return;
      result.size = load_be<uint64_t>(at + 2);
      result.transmission_flags = load_be<uint16_t>(at + 10);
      return;
    case nbd::kInfoBlockSize:
      if (reply.data.size() != 14) return;
      result.block_sizes = nbd::BlockSizes{.min = load_be<uint32_t>(at + 2),
                                           .preferred = load_be<uint32_t>(at + 6),
                                           .payload_max = load_be<uint32_t>(at + 10)};
      return;
    default:
      return;
  }
}

}  // namespace

std::vector<std::byte> go_data(std::string_view name, std::span<const uint16_t> infos) {
  std::vector<std::byte> data(4 + name.size() + 2 + 2 * infos.size());
  std::byte* to = store_be<uint32_t>(data.data(), static_cast<uint32_t>(name.size()));
  to = std::ranges::copy(bytes_of(name), to).out;
  to = store_be<uint16_t>(to, static_cast<uint16_t>(infos.size()));
  for (const uint16_t info : infos) to = store_be<uint16_t>(to, info);
  return data;
}

std::vector<std::byte> context_data(std::string_view name, std::span<const std::string> queries) {
  size_t size = 4 + name.size() + 4;
  for (const std::string& query : queries) size += 4 + query.size();
  std::vector<std::byte> data(size);
  std::byte* to = store_be<uint32_t>(data.data(), static_cast<uint32_t>(name.size()));
  to = std::ranges::copy(bytes_of(name), to).out;
  to = store_be<uint32_t>(to, static_cast<uint32_t>(queries.size()));
  for (const std::string& query : queries) {
    to = store_be<uint32_t>(to, static_cast<uint32_t>(query.size()));
    to = std::ranges::copy(bytes_of(query), to).out;
  }
  return data;
}

std::vector<std::byte> pattern(size_t size, uint64_t seed) {
  std::vector<std::byte> bytes(size);
  uint64_t state = seed * 0x9e3779b97f4a7c15 + 1;
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005 + 1442695040888963407;
    byte = static_cast<std::byte>((state >> 56) | 1);
  }
  return bytes;
}

Probe::Probe(Run& run) : run_(&run), limit_(std::min(run.options.patience, kLimitMax)) {}

bool Probe::offers(nbd::HeaderMode mode) const {
  return agreed_[static_cast<size_t>(mode)].has_value();
}

const nbd::ClientResult& Probe::agreed_of(nbd::HeaderMode mode) const {
  return *agreed_[static_cast<size_t>(mode)];
}

uint32_t Probe::block_min() const {
  return agreed().block_sizes ? std::max(1u, agreed().block_sizes->min) : 1;
}

uint64_t Probe::block() const {
  const uint64_t wanted = std::max<uint64_t>(512, block_min());
  return wanted <= size() ? wanted : size() / block_min() * block_min();
}

uint64_t Probe::payload_max() const {
  return agreed().block_sizes ? agreed().block_sizes->payload_max : nbd::kPayloadAdvertisedMax;
}

uint16_t Probe::write_flags() const {
  return mode_ == nbd::HeaderMode::kExtended ? nbd::kFlagPayloadLen : 0;
}

bool Probe::may_change(Range range) const {
  if (!why_no_writes_.empty() || !range.within(size())) return false;
  const auto& allowed = run_->options.range;
  return !allowed || (range.offset >= allowed->offset && range.end() <= allowed->end());
}

std::string Probe::lacks(uint32_t needs) const {
  const auto flag = [&](uint32_t need, uint16_t bit, const char* name) -> std::string {
    return needs & need && !has(bit) ? fmt::format("the server does not advertise {}", name) : "";
  };
  const auto fact = [&](uint32_t need, bool there, const char* why) -> std::string {
    return needs & need && !there ? why : "";
  };
  for (const std::string& why : {
           fact(kReadOnlyExport, has(nbd::kReadOnly), "the export is not read-only"),
           fact(kWrites, why_no_writes_.empty(), why_no_writes_.c_str()),
           flag(kFlush, nbd::kSendFlush, "NBD_FLAG_SEND_FLUSH"),
           flag(kTrim, nbd::kSendTrim, "NBD_FLAG_SEND_TRIM"),
           flag(kZeroes, nbd::kSendWriteZeroes, "NBD_FLAG_SEND_WRITE_ZEROES"),
           flag(kCache, nbd::kSendCache, "NBD_FLAG_SEND_CACHE"),
           flag(kFua, nbd::kSendFua, "NBD_FLAG_SEND_FUA"),
           flag(kDf, nbd::kSendDf, "NBD_FLAG_SEND_DF"),
           flag(kFastZero, nbd::kSendFastZero, "NBD_FLAG_SEND_FAST_ZERO"),
           fact(kNoDf, !has(nbd::kSendDf), "the server advertises NBD_FLAG_SEND_DF"),
           fact(kNoFastZero, !has(nbd::kSendFastZero),
                "the server advertises NBD_FLAG_SEND_FAST_ZERO"),
           fact(kStructured, structured_, "the server does not offer structured replies"),
           fact(kContext,
                std::ranges::any_of(agreed_,
                                    [](const auto& a) { return a && !a->contexts.empty(); }),
                "the server does not offer base:allocation"),
           fact(kExtendedHeaders, extended_, "the server does not offer extended headers"),
           fact(kInfo, info_, "the server does not know NBD_OPT_INFO and NBD_OPT_GO"),
           fact(kMinimum, block_min() > 1, "the server advertises no smallest block above 1"),
           fact(kSecond, second_, "the server serves one connection at a time"),
           fact(kPlaintext, !tls_, "the server offers TLS, which is not tested"),
       }) {
    if (!why.empty()) return why;
  }
  return "";
}

void Probe::begin(nbd::HeaderMode mode) {
  mode_ = mode;
  story_.clear();
}

Talk Probe::connect() {
  try {
    return {tools::connect_to(run_->target, limit_), limit_, story_};
  } catch (const ConfigError& error) {
    unclear(error.what());
  }
}

Talk Probe::open() {
  return open(handshake_flags_ & 3);
}

Talk Probe::open(uint32_t client_flags) {
  Talk talk = connect();
  talk.greeting();
  talk.client_flags(client_flags);
  return talk;
}

Talk Probe::start() {
  return start(true);
}

Talk Probe::start(bool want_context) {
  Talk talk = open();
  agree_mode(talk);
  std::vector<nbd::SelectedContext> contexts;
  if (want_context && mode_ != nbd::HeaderMode::kSimple) contexts = select_context(talk);
  go(talk, std::move(contexts));
  return talk;
}

void Probe::agree_mode(Talk& talk) {
  if (mode_ == nbd::HeaderMode::kSimple) return;
  const uint32_t option =
      mode_ == nbd::HeaderMode::kExtended ? nbd::kOptExtendedHeaders : nbd::kOptStructuredReply;
  if (!talk.ask(option).acked()) {
    broken("not-constant",
           fmt::format("the server refuses {}, which it accepted before", nbd::option_name(option)),
           "the same answer on every connection");
  }
}

std::vector<nbd::SelectedContext> Probe::select_context(Talk& talk) {
  const std::array<std::string, 1> queries = {nbd::kBaseAllocation};
  const OptionAnswer answer =
      talk.ask(nbd::kOptSetMetaContext, context_data(export_name(), queries));
  std::vector<nbd::SelectedContext> contexts;
  if (!answer.acked()) return contexts;
  for (const OptionReply& reply : answer.before) {
    if (reply.type != nbd::kRepMetaContext || reply.data.size() < 5) {
      broken("malformed-reply", "a reply to NBD_OPT_SET_META_CONTEXT that is no context",
             "NBD_REP_META_CONTEXT with an id and a name");
    }
    const ByteSpan name = ByteSpan(reply.data).subspan(4);
    contexts.push_back({load_be<uint32_t>(reply.data.data()), std::string(text_of(name))});
  }
  return contexts;
}

nbd::ClientResult Probe::go(Talk& talk, std::vector<nbd::SelectedContext> contexts) {
  nbd::ClientResult result;
  result.mode = mode_;
  result.contexts = std::move(contexts);
  if (info_) {
    const std::array<uint16_t, 1> infos = {nbd::kInfoBlockSize};
    const OptionAnswer answer = talk.ask(nbd::kOptGo, go_data(export_name(), infos));
    if (!answer.acked()) {
      broken("refused",
             fmt::format("NBD_OPT_GO is refused: {} {}", nbd::option_reply_name(answer.last),
                         answer.text),
             "NBD_REP_ACK, as on other connections");
    }
    for (const OptionReply& reply : answer.before) note_info(reply, result);
  } else {
    talk.send_option(nbd::kOptExportName, bytes_of(export_name()));
    if (talk.export_reply(!(handshake_flags_ & nbd::kNoZeroes), result.size,
                          result.transmission_flags) != Got::kAll) {
      broken("disconnected", "NBD_OPT_EXPORT_NAME is not answered", "size and flags");
    }
  }
  Talk::Terms terms{.mode = mode_, .size = result.size, .contexts = {}, .block_min = 1};
  for (const nbd::SelectedContext& context : result.contexts) terms.contexts.push_back(context.id);
  if (result.block_sizes) terms.block_min = result.block_sizes->min;
  talk.enter(std::move(terms));
  return result;
}

void Probe::options_in_step(Talk& talk) {
  talk.tell("is the connection still in step?");
  (void)talk.ask(kUnknownOption);
}

void Probe::in_step(Talk& talk) {
  talk.tell("is the connection still in step?");
  const Answer answer = talk.exchange({.type = nbd::kCmdRead,
                                       .cookie = talk.next_cookie(),
                                       .offset = 0,
                                       .length = std::min<uint64_t>(block(), size())});
  if (!answer.ok()) {
    broken("out-of-step",
           fmt::format("an ordinary READ is then answered with {}", nbd::error_name(answer.error)),
           "the data");
  }
}

void Probe::serves_others() {
  story_.add("does the server still serve others?");
  Talk talk = open();
  mode_ == nbd::HeaderMode::kSimple ? void() : agree_mode(talk);
  go(talk);
  in_step(talk);
}

void Probe::refuses(Talk& talk, nbd::Request request, ByteSpan payload) {
  refuses(talk, request, payload, Refusal{});
}

void Probe::refuses(Talk& talk, nbd::Request request, ByteSpan payload, const Refusal& refusal) {
  request.cookie = talk.next_cookie();
  const std::vector<std::string> advice =
      refusal.advice.empty() ? std::vector<std::string>{} : std::vector{refusal.advice};
  const Answer answer = talk.exchange(request, payload, refusal.loss);
  in_step(talk);
  const std::string due = fmt::format("{}", nbd::error_name(refusal.error));
  if (answer.ok()) {
    breach(refusal.success, "not-refused", fmt::format("{} succeeds", describe(request)), due,
           advice);
  }
  if (answer.error != refusal.error) {
    against_advice(
        "wrong-error",
        fmt::format("{} is refused with {}", describe(request), nbd::error_name(answer.error)), due,
        advice);
  }
}

void Probe::survives(Talk& talk, nbd::Request request, ByteSpan payload) {
  request.cookie = talk.next_cookie();
  (void)talk.exchange(request, payload, State::kWarned);
  in_step(talk);
}

Answer Probe::succeeds(Talk& talk, nbd::Request request, ByteSpan payload) {
  request.cookie = talk.next_cookie();
  Answer answer = talk.exchange(request, payload);
  if (!answer.ok()) {
    broken("refused",
           fmt::format("{} fails with {}", describe(request), nbd::error_name(answer.error)),
           "success");
  }
  return answer;
}

std::vector<std::byte> Probe::read(Talk& talk, Range range) {
  const uint64_t most =
      std::max<uint64_t>(1, std::min(payload_max(), kReadMax) / block_min()) * block_min();
  std::vector<std::byte> data;
  do {
    const Answer answer = succeeds(talk, {.type = nbd::kCmdRead,
                                          .offset = range.offset + data.size(),
                                          .length = std::min(most, range.length - data.size())});
    data.insert(data.end(), answer.data.begin(), answer.data.end());
  } while (data.size() < range.length);
  return data;
}

void Probe::write(Talk& talk, uint64_t offset, ByteSpan data, uint16_t flags) {
  succeeds(talk,
           {.flags = static_cast<uint16_t>(flags | write_flags()),
            .type = nbd::kCmdWrite,
            .offset = offset,
            .length = data.size()},
           data);
}

void Probe::survey() {
  story_.clear();
  survey_options();
  for (const auto mode :
       {nbd::HeaderMode::kSimple, nbd::HeaderMode::kStructured, nbd::HeaderMode::kExtended}) {
    if (mode == nbd::HeaderMode::kStructured && !structured_) continue;
    if (mode == nbd::HeaderMode::kExtended && !extended_) continue;
    survey_mode(mode);
  }
  mode_ = nbd::HeaderMode::kSimple;
  if (has(nbd::kReadOnly)) {
    why_no_writes_ = "the export is read-only";
  } else if (!run_->options.destroy && run_->disk == nullptr) {
    why_no_writes_ = "it writes: --destroy allows that";
  } else {
    try {
      room_ = run_->layout(agreed()).whole();
    } catch (const ConfigError& error) {
      why_no_writes_ = error.what();
    }
    const uint64_t most = std::min<uint64_t>(payload_max(), room_.length);
    room_.length = most / block_min() * block_min();
  }
  survey_second();
  story_.clear();
}

void Probe::survey_options() {
  Talk talk = connect();
  handshake_flags_ = talk.greeting();
  if (!(handshake_flags_ & nbd::kFixedNewstyle)) {
    broken("not-fixed-newstyle", "the server does not set NBD_FLAG_FIXED_NEWSTYLE",
           "the fixed newstyle handshake");
  }
  talk.client_flags(handshake_flags_ & 3);
  const std::array<uint16_t, 1> infos = {nbd::kInfoBlockSize};
  const OptionAnswer info = talk.ask(nbd::kOptInfo, go_data(export_name(), infos));
  if (info.last == nbd::kRepErrTlsReqd) unclear("the server insists on TLS, which is not tested");
  if (info.last == nbd::kRepErrUnknown) {
    unclear(fmt::format("the server has no export \"{}\" ({})", export_name(), info.text));
  }
  info_ = info.acked();
  const OptionAnswer other = talk.ask(nbd::kOptInfo, go_data("nbdcheck-no-such-export", infos));
  any_name_ = other.acked();
  structured_ = talk.ask(nbd::kOptStructuredReply).acked();
  extended_ = talk.ask(nbd::kOptExtendedHeaders).acked();
  talk.send_option(nbd::kOptAbort, {});
  talk.raw().close();

  Talk tls = open();
  tls_ = tls.ask(nbd::kOptStarttls).acked();
}

void Probe::survey_mode(nbd::HeaderMode mode) {
  mode_ = mode;
  Talk talk = open();
  agree_mode(talk);
  std::vector<nbd::SelectedContext> contexts;
  if (mode != nbd::HeaderMode::kSimple) contexts = select_context(talk);
  nbd::ClientResult result = go(talk, std::move(contexts));
  if (result.size == 0) unclear("the export is empty: nothing can be asked of it");
  agreed_[static_cast<size_t>(mode)] = std::move(result);
  (void)talk.request({.type = nbd::kCmdDisc, .cookie = 1});
}

void Probe::survey_second() {
  Talk first = start(false);
  try {
    Talk second = connect();
    second.raw().set_limit(std::min(limit_, kSecondLimit));
    second.greeting();
    second.client_flags(handshake_flags_ & 3);
    go(second);
    in_step(second);
    second_ = true;
  } catch (const Verdict&) {
    second_ = false;
  }
}

}  // namespace weft::check::conformance
