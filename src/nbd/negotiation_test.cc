// SPDX-License-Identifier: BSD-3-Clause
// The negotiation as a whole: all orders of options against a model, and server against client.
#include <gtest/gtest.h>

#include "nbd/client_handshake.h"
#include "nbd/negotiation_model.h"

namespace weft::nbd {
namespace {

using testing::Bytes;
using testing::NegotiationModel;
using testing::Outcome;
using testing::Step;

std::vector<Step> alphabet() {
  std::vector<Step> steps;
  for (const uint32_t number : {2u, 3u, 4u, 5u, 8u, 11u, 12u}) {
    steps.push_back({.number = number});
    steps.push_back({.number = number, .damaged = true});
  }
  for (const uint32_t number : {1u, 6u, 7u}) {
    for (const char* name : {"a", "b", "c"}) {
      steps.push_back({.number = number, .name = name, .infos = {1, 2, 3}});
    }
    steps.push_back({.number = number, .name = "a", .damaged = true});
  }
  for (const uint32_t number : {9u, 10u}) {
    steps.push_back({.number = number, .name = "a"});
    steps.push_back({.number = number, .name = "a", .queries = {"base:"}});
    steps.push_back({.number = number, .name = "a", .queries = {"x:y", "base:allocation"}});
    steps.push_back({.number = number, .name = "b", .queries = {"base:allocation"}});
    steps.push_back({.number = number, .name = "c", .queries = {"base:allocation"}});
    steps.push_back(
        {.number = number, .name = "a", .queries = {"base:allocation"}, .damaged = true});
  }
  return steps;
}

// Plays the steps at these indices; false when server and model disagree.
bool agree(const std::vector<Step>& steps, const std::vector<size_t>& order,
           const ServerHandshakeOptions& options, size_t piece) {
  ServerHandshake handshake(options);
  NegotiationModel model(options);
  const Bytes flags = testing::hex("00000003");
  if (handshake.consume(flags) != 4) return false;
  Outcome::End end = Outcome::kGoesOn;
  for (size_t i = 0; i < order.size() && end == Outcome::kGoesOn; i++) {
    if (const auto difference = play(handshake, model, steps[order[i]], piece, end)) {
      std::string text;
      for (const size_t step : order) text += " " + std::to_string(steps[step].number);
      ADD_FAILURE() << *difference << " at position " << i << " of options" << text;
      return false;
    }
  }
  return true;
}

TEST(Orders, EveryOrderUpToLength3) {
  const std::vector<Step> steps = alphabet();
  for (size_t a = 0; a < steps.size(); a++) {
    for (size_t b = 0; b < steps.size(); b++) {
      for (size_t c = 0; c < steps.size(); c++) {
        ASSERT_TRUE(agree(steps, {a, b, c}, {}, 4096));
      }
    }
  }
}

// A server that lacks something, up to length 2 and a GO.
TEST(Orders, EveryPairWithSomethingDisabled) {
  std::vector<Step> steps = alphabet();
  const size_t count = steps.size();
  steps.push_back({.number = 7, .name = "a"});
  for (const ServerHandshakeOptions& options :
       {ServerHandshakeOptions{.extended_headers = false},
        ServerHandshakeOptions{.meta_contexts = false},
        ServerHandshakeOptions{.structured_replies = false}}) {
    for (size_t a = 0; a < count; a++) {
      for (size_t b = 0; b < count; b++) ASSERT_TRUE(agree(steps, {a, b, count}, options, 4096));
    }
  }
}

// After headers and a selection, where the state is richest, all pairs follow; in small pieces.
TEST(Orders, EveryPairAfterASelection) {
  std::vector<Step> steps = alphabet();
  const size_t sr = steps.size(), ext = sr + 1, set = sr + 2;
  steps.push_back({.number = 8});
  steps.push_back({.number = 11});
  steps.push_back({.number = 10, .name = "a", .queries = {"base:allocation"}});
  const Step go = {.number = 7, .name = "a"};
  const size_t last = steps.size();
  steps.push_back(go);
  for (size_t piece : {1, 7, 4096}) {
    for (size_t a = 0; a < sr; a++) {
      for (size_t b = 0; b < sr; b++) {
        ASSERT_TRUE(agree(steps, {sr, set, a, b, last}, {}, piece));
        ASSERT_TRUE(agree(steps, {ext, set, a, b, last}, {}, piece));
        ASSERT_TRUE(agree(steps, {sr, set, ext, a, b, last}, {}, piece));
      }
    }
  }
}

// --- server against client ---------------------------------------------------------------------

struct Pair {
  Pair(const ServerHandshakeOptions& options, const ClientConfig& config, size_t piece = 4096)
      : server(options), client(config) {
    Bytes to_client = server.greeting();
    Bytes to_server;
    while (!to_client.empty() || !to_server.empty()) {
      move(to_client, piece, [&](ByteSpan bytes) { return client.consume(bytes); });
      append(to_server, client);
      move(to_server, piece, [&](ByteSpan bytes) { return server.consume(bytes); });
      testing::answer(server);
      append(to_client, server);
      if (client.status() != ClientHandshake::Status::kNegotiating && to_server.empty()) break;
    }
  }

  template <typename Consume>
  static void move(Bytes& from, size_t piece, Consume consume) {
    const size_t used = consume(ByteSpan(from).first(std::min(piece, from.size())));
    from.erase(from.begin(), from.begin() + static_cast<ptrdiff_t>(used));
  }
  template <typename Side>
  static void append(Bytes& to, Side& side) {
    to.insert(to.end(), side.output().begin(), side.output().end());
    side.clear_output();
  }

  ServerHandshake server;
  ClientHandshake client;
};

// Whatever either side offers, both end with the same idea of the connection.
TEST(ServerAgainstClient, AgreeOnEverything) {
  int sessions = 0;
  for (int bits = 0; bits < 1 << 9; bits++) {
    const auto bit = [bits](int n) { return (bits >> n & 1) != 0; };
    ServerHandshakeOptions options = {
        .structured_replies = bit(0), .meta_contexts = bit(1), .extended_headers = bit(2)};
    if (bit(3)) options.handshake_flags = kFixedNewstyle;
    ClientConfig config = {.export_name = "a",
                           .goal = bit(4) ? ClientGoal::kGo : ClientGoal::kExportName,
                           .want_structured = bit(5),
                           .want_extended = bit(6),
                           .no_zeroes = bit(7),
                           .infos = {kInfoName, kInfoDescription, kInfoBlockSize}};
    if (bit(8)) config.contexts = {"x:y", "base:allocation"};
    for (const size_t piece : {1u, 4096u}) {
      Pair pair(options, config, piece);
      ASSERT_EQ(pair.client.status(), ClientHandshake::Status::kDone) << pair.client.error();
      const auto* established = std::get_if<Established>(&pair.server.event());
      ASSERT_TRUE(established);
      const ClientResult& result = pair.client.result();
      EXPECT_EQ(result.mode, established->mode);
      EXPECT_EQ(result.size, 0x100000u);
      EXPECT_EQ(result.transmission_flags, established->transmission_flags);
      EXPECT_EQ(result.context_id("base:allocation"),
                established->allocation_context ? std::optional(kBaseAllocationId) : std::nullopt);
      if (config.goal == ClientGoal::kGo) {
        EXPECT_EQ(result.block_sizes, (BlockSizes{512, 65536, kPayloadAdvertisedMax}));
        EXPECT_EQ(result.name, "a");
        EXPECT_EQ(result.description, "the first");
      }
      // Each side gets the best that both have.
      const bool extended = config.want_extended && options.extended_headers &&
                            options.structured_replies && config.goal == ClientGoal::kGo;
      const bool structured =
          options.structured_replies && (config.want_structured || config.want_extended);
      EXPECT_EQ(result.mode, extended     ? HeaderMode::kExtended
                             : structured ? HeaderMode::kStructured
                                          : HeaderMode::kSimple);
      EXPECT_EQ(established->allocation_context,
                bit(8) && options.meta_contexts && result.mode != HeaderMode::kSimple);
      sessions++;
    }
  }
  EXPECT_EQ(sessions, 1024);
}

TEST(ServerAgainstClient, ListAndInfo) {
  Pair list({}, {.goal = ClientGoal::kList});
  ASSERT_EQ(list.client.status(), ClientHandshake::Status::kDone);
  ASSERT_EQ(list.client.result().exports.size(), 2u);
  EXPECT_EQ(list.client.result().exports[0].name, "a");
  EXPECT_EQ(list.client.result().exports[0].description, "the first");
  ASSERT_TRUE(std::holds_alternative<Closed>(list.server.event()));
  EXPECT_EQ(std::get<Closed>(list.server.event()).cause, CloseCause::kAbort);

  Pair info({}, {.export_name = "b", .goal = ClientGoal::kInfo});
  ASSERT_EQ(info.client.status(), ClientHandshake::Status::kDone);
  EXPECT_EQ(info.client.result().size, 0x7fffffffffffffffu);
  EXPECT_TRUE(std::holds_alternative<Closed>(info.server.event()));
}

TEST(ServerAgainstClient, AnUnknownExportEndsPolitely) {
  Pair go({}, {.export_name = "c"});
  EXPECT_EQ(go.client.status(), ClientHandshake::Status::kFailed);
  EXPECT_EQ(go.client.server_error(), uint32_t{kRepErrUnknown});
  EXPECT_EQ(go.client.error(), "NBD_OPT_GO: NBD_REP_ERR_UNKNOWN: no such export");
  ASSERT_TRUE(std::holds_alternative<Closed>(go.server.event()));
  EXPECT_EQ(std::get<Closed>(go.server.event()).cause, CloseCause::kAbort);
}

TEST(ServerAgainstClient, WithoutFixedNewstyle) {
  Pair go({.handshake_flags = 0}, {.export_name = "a", .want_extended = true});
  ASSERT_EQ(go.client.status(), ClientHandshake::Status::kDone);
  EXPECT_EQ(go.client.result().mode, HeaderMode::kSimple);
  EXPECT_TRUE(std::holds_alternative<Established>(go.server.event()));
  Pair list({.handshake_flags = 0}, {.goal = ClientGoal::kList});
  EXPECT_EQ(list.client.status(), ClientHandshake::Status::kFailed);
}

}  // namespace
}  // namespace weft::nbd
