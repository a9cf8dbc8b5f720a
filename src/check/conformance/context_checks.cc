// SPDX-License-Identifier: BSD-3-Clause
// Metadata contexts: LIST_META_CONTEXT and SET_META_CONTEXT.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "check/conformance/probe.h"

namespace weft::check::conformance {
namespace {

constexpr uint32_t kList = nbd::kOptListMetaContext;
constexpr uint32_t kSet = nbd::kOptSetMetaContext;
constexpr char kUnknownContext[] = "x-nbdcheck:nothing";

using Queries = std::vector<std::string>;

// With structured replies agreed.
Talk open_structured(Probe& probe) {
  probe.use_mode(nbd::HeaderMode::kStructured);
  Talk talk = probe.open();
  probe.agree_mode(talk);
  return talk;
}

// The contexts of an answer that has to be an ACK.
std::vector<nbd::SelectedContext> contexts_of(const OptionAnswer& answer) {
  if (!answer.acked()) {
    broken("refused",
           fmt::format("the answer is {} {}", nbd::option_reply_name(answer.last), answer.text),
           "NBD_REP_ACK");
  }
  std::vector<nbd::SelectedContext> contexts;
  for (const OptionReply& reply : answer.before) {
    const ByteSpan data = reply.data;
    if (reply.type != nbd::kRepMetaContext || data.size() < 4) {
      broken("malformed-reply", "a reply that is no context",
             "NBD_REP_META_CONTEXT with id and name");
    }
    const std::string name(text_of(data.subspan(4)));
    if (const std::string fault = string_fault(data.subspan(4)); !fault.empty()) {
      broken("malformed-reply", "a context's name is " + fault, "a string");
    }
    if (const size_t colon = name.find(':'); colon == 0 || colon == std::string::npos) {
      broken("malformed-reply", fmt::format("a context \"{}\"", name),
             "a namespace, a colon, a name");
    }
    contexts.push_back({load_be<uint32_t>(data.data()), name});
  }
  return contexts;
}

std::vector<nbd::SelectedContext> ask(Probe& probe, Talk& talk, uint32_t option,
                                      const Queries& queries) {
  return contexts_of(talk.ask(option, context_data(probe.export_name(), queries)));
}

bool names(const std::vector<nbd::SelectedContext>& contexts, std::string_view name) {
  return std::ranges::find(contexts, name, &nbd::SelectedContext::name) != contexts.end();
}

void expect_none(const std::vector<nbd::SelectedContext>& contexts, std::string_view query) {
  if (contexts.empty()) return;
  broken("wrong-context", fmt::format("\"{}\" gives the context \"{}\"", query, contexts[0].name),
         "no context");
}

// GO without a context selected: BLOCK_STATUS has to fail.
void expect_no_status(Probe& probe, Talk& talk, State success) {
  probe.go(talk);
  probe.refuses(talk, {.type = nbd::kCmdBlockStatus, .offset = 0, .length = probe.block()}, {},
                {.success = success});
}

void list_all(Probe& probe) {
  Talk talk = open_structured(probe);
  const OptionAnswer answer = talk.ask(kList, context_data(probe.export_name(), {}));
  if (answer.last == nbd::kRepErrTooBig) {
    against_advice("wrong-error", "a list of all contexts is refused as too big", "all contexts");
  }
  if (!names(contexts_of(answer), nbd::kBaseAllocation)) {
    broken("wrong-context", "base:allocation is not listed, though it can be selected",
           "all contexts");
  }
}

void list_base(Probe& probe) {
  Talk talk = open_structured(probe);
  if (!names(ask(probe, talk, kList, {"base:"}), nbd::kBaseAllocation)) {
    broken("wrong-context", "\"base:\" does not list base:allocation", "it as a wildcard");
  }
}

void list_unknown(Probe& probe) {
  Talk talk = open_structured(probe);
  expect_none(ask(probe, talk, kList, {kUnknownContext}), kUnknownContext);
}

void set_unknown(Probe& probe) {
  Talk talk = open_structured(probe);
  expect_none(ask(probe, talk, kSet, {kUnknownContext}), kUnknownContext);
  expect_none(ask(probe, talk, kSet, {"base:nothing"}), "base:nothing");
  expect_no_status(probe, talk, State::kWarned);
}

void set_mixed(Probe& probe) {
  Talk talk = open_structured(probe);
  const auto contexts = ask(probe, talk, kSet, {kUnknownContext, nbd::kBaseAllocation});
  if (contexts.size() != 1 || contexts[0].name != nbd::kBaseAllocation) {
    broken("wrong-context", fmt::format("{} contexts are selected", contexts.size()),
           "base:allocation alone");
  }
}

void set_wildcard(Probe& probe) {
  Talk talk = open_structured(probe);
  expect_none(ask(probe, talk, kSet, {"base:"}), "base:");
}

void set_none(Probe& probe) {
  Talk talk = open_structured(probe);
  (void)ask(probe, talk, kSet, {nbd::kBaseAllocation});
  expect_none(ask(probe, talk, kSet, {}), "no query");
  expect_no_status(probe, talk, State::kFailed);
}

void set_replaces(Probe& probe) {
  Talk talk = open_structured(probe);
  (void)ask(probe, talk, kSet, {nbd::kBaseAllocation});
  (void)ask(probe, talk, kSet, {kUnknownContext});
  expect_no_status(probe, talk, State::kWarned);
}

void set_twice(Probe& probe) {
  Talk talk = open_structured(probe);
  (void)ask(probe, talk, kSet, {nbd::kBaseAllocation});
  auto contexts = ask(probe, talk, kSet, {nbd::kBaseAllocation});
  if (contexts.size() != 1) {
    broken("wrong-context", fmt::format("{} contexts are selected", contexts.size()), "one");
  }
  probe.go(talk, contexts);
  probe.succeeds(talk, {.type = nbd::kCmdBlockStatus, .offset = 0, .length = probe.block()});
}

void unique_ids(Probe& probe) {
  Talk talk = open_structured(probe);
  Queries all;
  for (const auto& context : ask(probe, talk, kList, {})) {
    if (!context.name.ends_with(':')) all.push_back(context.name);
  }
  std::set<uint32_t> ids;
  const auto contexts = ask(probe, talk, kSet, all);
  for (const auto& context : contexts) ids.insert(context.id);
  if (ids.size() != contexts.size()) {
    broken("wrong-context", "two selected contexts have the same id", "unique ids");
  }
  probe.go(talk, contexts);
  const Answer answer =
      probe.succeeds(talk, {.type = nbd::kCmdBlockStatus, .offset = 0, .length = probe.block()});
  std::set<uint32_t> told;
  for (const nbd::BlockStatus& status : answer.status) told.insert(status.context_id);
  if (told != ids || answer.status.size() != ids.size()) {
    broken("malformed-reply",
           fmt::format("{} status chunks for {} contexts", answer.status.size(), ids.size()),
           "exactly one for each selected context");
  }
}

void without_structured(Probe& probe) {
  Talk talk = probe.open();
  const OptionAnswer answer =
      talk.ask(kSet, context_data(probe.export_name(), Queries{nbd::kBaseAllocation}));
  probe.options_in_step(talk);
  if (answer.last != nbd::kRepErrInvalid) {
    against_advice("wrong-error",
                   fmt::format("the answer is {}", nbd::option_reply_name(answer.last)),
                   "NBD_REP_ERR_INVALID: structured replies were not agreed");
  }
}

void bad_lengths(Probe& probe) {
  const std::vector<std::byte> good =
      context_data(probe.export_name(), Queries{nbd::kBaseAllocation});
  const size_t count_at = 4 + probe.export_name().size();
  struct Bad {
    const char* what;
    std::vector<std::byte> data;
  };
  std::vector<Bad> cases = {{"a query longer than the option", good},
                            {"more queries announced than sent", good},
                            {"a name longer than the option", good},
                            {"2 bytes", {std::byte{0}, std::byte{0}}}};
  store_be<uint32_t>(cases[0].data.data() + count_at + 4, 1000);
  store_be<uint32_t>(cases[1].data.data() + count_at, 7);
  store_be<uint32_t>(cases[2].data.data(), 1u << 31);
  for (const uint32_t option : {kList, kSet}) {
    for (const Bad& bad : cases) {
      Talk talk = open_structured(probe);
      talk.tell(bad.what);
      const OptionAnswer answer = talk.ask(option, bad.data);
      if (answer.last != nbd::kRepErrInvalid) {
        broken("wrong-error",
               fmt::format("{}: the answer is {}", bad.what, nbd::option_reply_name(answer.last)),
               "NBD_REP_ERR_INVALID");
      }
      probe.options_in_step(talk);
    }
  }
}

void trailing_bytes(Probe& probe) {
  std::vector<std::byte> data = context_data(probe.export_name(), Queries{nbd::kBaseAllocation});
  data.push_back(std::byte{'x'});
  for (const uint32_t option : {kList, kSet}) {
    Talk talk = open_structured(probe);
    const OptionAnswer answer = talk.ask(option, data);
    probe.options_in_step(talk);
    if (answer.last != nbd::kRepErrInvalid) {
      against_advice("not-refused",
                     fmt::format("a byte after the last query: the answer is {}",
                                 nbd::option_reply_name(answer.last)),
                     "NBD_REP_ERR_INVALID");
    }
  }
}

void failed_set(Probe& probe) {
  Talk talk = open_structured(probe);
  (void)ask(probe, talk, kSet, {nbd::kBaseAllocation});
  std::vector<std::byte> bad = context_data(probe.export_name(), Queries{nbd::kBaseAllocation});
  store_be<uint32_t>(bad.data() + 4 + probe.export_name().size(), 7);
  if (!talk.ask(kSet, bad).refused()) skip("the server accepts the malformed request");
  expect_no_status(probe, talk, State::kWarned);
}

void other_export(Probe& probe) {
  Talk talk = open_structured(probe);
  (void)talk.ask(kSet, context_data("nbdcheck-no-such-export", Queries{nbd::kBaseAllocation}));
  expect_no_status(probe, talk, State::kWarned);
}

constexpr std::string_view kListBasis =
    "MUST, NBD protocol: Option types (NBD_OPT_LIST_META_CONTEXT)";
constexpr std::string_view kSetBasis =
    "MUST, NBD protocol: Option types (NBD_OPT_SET_META_CONTEXT)";

constexpr std::array kChecks = {
    Check{.name = "contexts.list-all",
          .title = "without a query, all contexts are listed",
          .basis = kListBasis,
          .needs = kContext,
          .run = list_all},
    Check{.name = "contexts.list-base",
          .title = "\"base:\" lists the contexts of that namespace",
          .basis = "MUST, NBD protocol: The base: metadata namespace",
          .needs = kContext,
          .run = list_base},
    Check{.name = "contexts.list-unknown",
          .title = "an unknown namespace is ignored when listing",
          .basis = kListBasis,
          .needs = kContext,
          .run = list_unknown},
    Check{.name = "contexts.set-unknown",
          .title = "unknown contexts are ignored when selecting",
          .basis = kSetBasis,
          .needs = kContext,
          .run = set_unknown},
    Check{.name = "contexts.set-mixed",
          .title = "a known context is selected beside an unknown one",
          .basis = kSetBasis,
          .needs = kContext,
          .run = set_mixed},
    Check{.name = "contexts.set-wildcard",
          .title = "\"base:\" selects nothing",
          .basis = "MUST, NBD protocol: The base: metadata namespace",
          .needs = kContext,
          .run = set_wildcard},
    Check{.name = "contexts.set-none",
          .title = "no query selects nothing, whatever was selected before",
          .basis = kSetBasis,
          .needs = kContext,
          .run = set_none},
    Check{.name = "contexts.set-replaces",
          .title = "a selection replaces the one before",
          .basis = "SHOULD, NBD protocol: Metadata querying; NBD_OPT_SET_META_CONTEXT",
          .needs = kContext,
          .run = set_replaces},
    Check{.name = "contexts.set-twice",
          .title = "the same selection twice is that selection",
          .basis = kSetBasis,
          .needs = kContext,
          .run = set_twice},
    Check{.name = "contexts.unique-ids",
          .title = "all contexts at once have ids of their own, and a status each",
          .basis = kSetBasis,
          .needs = kContext,
          .run = unique_ids},
    Check{.name = "contexts.without-structured",
          .title = "a selection without structured replies is INVALID",
          .basis = "SHOULD, NBD protocol: Option types (NBD_OPT_SET_META_CONTEXT)",
          .needs = kContext,
          .run = without_structured},
    Check{.name = "contexts.bad-lengths",
          .title = "lengths that contradict each other are INVALID",
          .basis = kListBasis,
          .needs = kContext,
          .run = bad_lengths},
    Check{.name = "contexts.trailing-bytes",
          .title = "bytes after the last query are INVALID",
          .basis = kListBasis,
          .needs = kContext,
          .run = trailing_bytes},
    Check{.name = "contexts.failed-set-forgets",
          .title = "a selection that fails withdraws the one before",
          .basis = "SHOULD, NBD protocol: Metadata querying; NBD_OPT_SET_META_CONTEXT",
          .needs = kContext,
          .run = failed_set},
    Check{.name = "contexts.other-export",
          .title = "contexts selected for another export are not those of this one",
          .basis = "SHOULD, NBD protocol: Metadata querying",
          .needs = kContext,
          .run = other_export},
};

}  // namespace

std::span<const Check> context_checks() {
  return kChecks;
}

}  // namespace weft::check::conformance
