// SPDX-License-Identifier: BSD-3-Clause
// The rules that a request must keep, enumerated: every command x flag x alignment x mode.
#include <gtest/gtest.h>

#include "nbd/test_bytes.h"
#include "nbd/transmission.h"

namespace weft::nbd {
namespace {

using testing::hex;

constexpr uint64_t kSize = 1 << 20;
constexpr uint16_t kEverything = kHasFlags | kSendFlush | kSendFua | kSendTrim | kSendWriteZeroes |
                                 kSendDf | kCanMultiConn | kSendCache | kSendFastZero |
                                 kBlockStatusPayload;

TransmissionRules all_rules(HeaderMode mode) {
  return {.size = kSize,
          .transmission_flags = kEverything,
          .mode = mode,
          .allocation_context_selected = true,
          .block_min = 1};
}

// What the specification wants, as a list of laws; the first that is broken decides. Written
// apart from the code under test, in another shape.
Check expected_check(const Request& r, const TransmissionRules& rules) {
  const bool ext = rules.mode == HeaderMode::kExtended;
  const auto offered = [&](uint16_t flag) { return (rules.transmission_flags & flag) != 0; };
  const auto has = [&](uint16_t flag) { return (r.flags & flag) != 0; };
  const bool is_write = r.type == 1, is_trim = r.type == 4, is_zero = r.type == 6;
  const bool is_read = r.type == 0, is_status = r.type == 7, is_flush = r.type == 3;
  const uint64_t payload = (ext ? has(1 << 5) : is_write) ? r.length : 0;
  if (payload > rules.payload_max) return {.error = 22, .text = "", .disconnect = true};
  Check check{.payload_length = payload};
  if (r.type == 2) return check;
  const bool status_payload = is_status && ext && has(1 << 5) && offered(1 << 12);
  const __int128 end = static_cast<__int128>(r.offset) + r.length;
  const bool sized = !is_flush && !status_payload;
  const std::pair<bool, uint32_t> laws[] = {
      {r.type > 7, 22},
      {has(static_cast<uint16_t>(~0x3f)), 22},
      {has(1 << 0) && !offered(1 << 3), 22},
      {has(1 << 1) && !is_zero, 22},
      {has(1 << 2) && (!is_read || rules.mode == HeaderMode::kSimple), 22},
      {has(1 << 3) && !is_status, 22},
      {has(1 << 4) && !(is_zero && offered(1 << 11)), 22},
      {has(1 << 5) && !(ext && is_write) && !status_payload, 22},
      {ext && is_write && !has(1 << 5), 22},
      {(is_write || is_trim || is_zero) && offered(1 << 1), 1},
      {is_flush && !offered(1 << 2), 22},
      {is_trim && !offered(1 << 5), 22},
      {is_zero && !offered(1 << 6), 22},
      {r.type == 5 && !offered(1 << 10), 22},
      {is_status && (rules.mode == HeaderMode::kSimple || !rules.allocation_context_selected), 22},
      {status_payload && r.length != 12 && r.length != 8, 22},
      {sized && end > static_cast<__int128>(rules.size), is_write || is_zero ? 28u : 22u},
      {sized && (r.offset % rules.block_min != 0 || r.length % rules.block_min != 0), 22},
      {is_read && r.length > rules.payload_max, has(1 << 2) ? 75u : 22u},
      {is_status && r.length == 0, 22},
  };
  for (const auto& [broken, error] : laws) {
    if (!broken) continue;
    check.error = error;
    check.text = "";
    return check;
  }
  check.no_work = sized && r.length == 0;
  return check;
}

struct Counts {
  uint64_t cases = 0;
  uint64_t errors = 0;
};

void compare(const Request& request, const TransmissionRules& rules, Counts& counts) {
  const Check got = check_request(request, rules);
  const Check want = expected_check(request, rules);
  counts.cases++;
  counts.errors += want.error != 0;
  if (got.error == want.error && got.payload_length == want.payload_length &&
      got.disconnect == want.disconnect && got.no_work == want.no_work &&
      (got.text != nullptr) == (want.error != 0)) {
    return;
  }
  ADD_FAILURE() << command_name(request.type) << " flags " << request.flags << " offset "
                << request.offset << " length " << request.length << " mode "
                << header_mode_name(rules.mode) << " advertised " << rules.transmission_flags
                << " block " << rules.block_min << ": error " << got.error << " for " << want.error
                << ", payload " << got.payload_length << " for " << want.payload_length
                << ", no work " << got.no_work << " for " << want.no_work;
}

// Every command x flag combination x alignment x mode x what is advertised.
TEST(CheckRequest, Enumeration) {
  const uint16_t advertised[] = {kEverything, kEverything | kReadOnly, kHasFlags,
                                 kHasFlags | kReadOnly};
  const std::pair<uint64_t, uint64_t> ranges[] = {{0, 0},
                                                  {0, 1},
                                                  {0, 4096},
                                                  {512, 4096},
                                                  {1, 512},
                                                  {kSize, 0},
                                                  {kSize - 4096, 4096},
                                                  {kSize - 4096, 4097},
                                                  {kSize + 1, 0},
                                                  {0, 8},
                                                  {0, 12},
                                                  {4096, 16},
                                                  {UINT64_MAX, 1},
                                                  {UINT64_MAX, 2}};
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (const uint16_t flags_advertised : advertised) {
      for (const uint32_t block : {1u, 512u, 4096u}) {
        for (const bool context : {false, true}) {
          TransmissionRules rules = all_rules(mode);
          rules.transmission_flags = flags_advertised;
          rules.block_min = block;
          rules.allocation_context_selected = context;
          for (uint16_t type = 0; type <= 9; type++) {
            for (uint16_t flags = 0; flags < 128; flags++) {
              for (const auto& [offset, length] : ranges) {
                compare({flags, type, 7, offset, length}, rules, counts);
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(counts.cases, 3u * 4 * 3 * 2 * 10 * 128 * std::size(ranges));
  EXPECT_GT(counts.errors, counts.cases / 2);
  EXPECT_LT(counts.errors, counts.cases);
}

TEST(CheckRequest, EachFlagBitAdvertisedAlone) {
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (int bit = 0; bit < 16; bit++) {
      TransmissionRules rules = all_rules(mode);
      for (const bool only : {true, false}) {
        rules.transmission_flags = static_cast<uint16_t>(only ? 1 << bit : kEverything ^ 1 << bit);
        for (uint16_t type = 0; type < 10; type++) {
          for (uint16_t flags = 0; flags < 64; flags++) {
            compare({flags, type, 7, 4096, 12}, rules, counts);
          }
        }
      }
    }
  }
  EXPECT_GT(counts.cases, 50'000u);
}

TEST(CheckRequest, UnknownCommandsAndHighFlags) {
  Counts counts;
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    for (uint32_t type = 0; type <= 0xffff; type++) {
      compare({0, static_cast<uint16_t>(type), 7, 0, 4096}, all_rules(mode), counts);
    }
    for (int bit = 6; bit < 16; bit++) {
      for (uint16_t type = 0; type < 9; type++) {
        compare({static_cast<uint16_t>(1 << bit), type, 7, 0, 4096}, all_rules(mode), counts);
      }
    }
  }
}

// Lengths around every limit, on an export that is larger than all of them.
TEST(CheckRequest, Lengths) {
  Counts counts;
  const uint64_t limits[] = {0,
                             8,
                             12,
                             kDfLengthMin,
                             kPayloadAdvertisedMax,
                             kPayloadAcceptedMax,
                             UINT32_MAX,
                             uint64_t{1} << 40,
                             uint64_t{1} << 62,
                             INT64_MAX,
                             UINT64_MAX};
  for (const HeaderMode mode :
       {HeaderMode::kSimple, HeaderMode::kStructured, HeaderMode::kExtended}) {
    TransmissionRules rules = all_rules(mode);
    rules.size = INT64_MAX;
    for (const uint64_t limit : limits) {
      for (const uint64_t length : {limit - 1, limit, limit + 1}) {
        if (mode != HeaderMode::kExtended && length > UINT32_MAX) continue;
        for (const uint64_t offset : {uint64_t{0}, uint64_t{4096}, INT64_MAX - limit, limit}) {
          for (uint16_t type = 0; type < 9; type++) {
            for (uint16_t flags = 0; flags < 64; flags++) {
              compare({flags, type, 7, offset, length}, rules, counts);
            }
          }
        }
      }
    }
  }
  EXPECT_GT(counts.cases, 100'000u);
}

// The rules that a reader looks for first, by hand.
TEST(CheckRequest, TheTable) {
  const TransmissionRules simple = all_rules(HeaderMode::kSimple);
  TransmissionRules large = simple;
  large.size = uint64_t{1} << 40;
  const auto error = [](const Request& request, const TransmissionRules& rules) {
    return check_request(request, rules).error;
  };
  EXPECT_EQ(error({0, kCmdRead, 1, kSize - 1, 2}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdWrite, 1, kSize - 1, 2}, simple), uint32_t{kEnospc});
  EXPECT_EQ(error({0, kCmdWriteZeroes, 1, kSize - 1, 2}, simple), uint32_t{kEnospc});
  EXPECT_EQ(error({0, kCmdTrim, 1, kSize - 1, 2}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdRead, 1, UINT64_MAX - 511, 512}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdResize, 1, 0, 0}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({kFlagDf, kCmdRead, 1, 0, 1}, simple), uint32_t{kEinval});
  EXPECT_EQ(error({kFlagFua, kCmdRead, 1, 0, 1}, simple), uint32_t{kOk});
  EXPECT_EQ(error({kFlagFua, kCmdFlush, 1, 0, 0}, simple), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdFlush, 1, 1, UINT32_MAX}, simple), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdRead, 1, 0, kPayloadAcceptedMax}, large), uint32_t{kOk});
  EXPECT_EQ(error({0, kCmdRead, 1, 0, kPayloadAcceptedMax + 1}, large), uint32_t{kEinval});
  EXPECT_EQ(error({0, kCmdTrim, 1, 0, UINT32_MAX}, large), uint32_t{kOk});

  TransmissionRules read_only = simple;
  read_only.transmission_flags |= kReadOnly;
  const Check refused = check_request({0, kCmdWrite, 1, 0, 512}, read_only);
  EXPECT_EQ(refused.error, uint32_t{kEperm});
  EXPECT_EQ(refused.payload_length, 512u);  // still to be consumed
  EXPECT_FALSE(refused.disconnect);

  const Check whole = check_request({0, kCmdWrite, 1, 0, kPayloadAcceptedMax}, large);
  EXPECT_EQ(whole.error, uint32_t{kOk});
  EXPECT_EQ(whole.payload_length, kPayloadAcceptedMax);
  const Check too_long = check_request({0, kCmdWrite, 1, 0, kPayloadAcceptedMax + 1}, large);
  EXPECT_TRUE(too_long.disconnect);
  EXPECT_EQ(too_long.payload_length, 0u);

  EXPECT_TRUE(check_request({0, kCmdRead, 1, 0, 0}, simple).no_work);
  EXPECT_TRUE(check_request({0, kCmdWrite, 1, kSize, 0}, simple).no_work);
}

TEST(CheckBlockStatus, Payload) {  // ext
  const TransmissionRules rules = all_rules(HeaderMode::kExtended);
  const auto check = [&](uint64_t offset, ByteSpan payload, uint64_t* length = nullptr) {
    Request request = {kFlagPayloadLen, kCmdBlockStatus, 1, offset, payload.size()};
    const Check result = check_block_status(request, payload, rules);
    if (length) *length = request.length;
    return result.error;
  };
  uint64_t length = 0;
  EXPECT_EQ(check(0, hex("0000000000100000 00000001"), &length), uint32_t{kOk});
  EXPECT_EQ(length, kSize);
  EXPECT_EQ(check(1, hex("0000000000100000 00000001")), uint32_t{kEinval});  // past the end
  EXPECT_EQ(check(UINT64_MAX, hex("0000000000000001 00000001")), uint32_t{kEinval});
  EXPECT_EQ(check(0, hex("0000000000000000 00000001")), uint32_t{kEinval});           // length 0
  EXPECT_EQ(check(0, hex("0000000000100000 00000002")), uint32_t{kEinval});           // unknown id
  EXPECT_EQ(check(0, hex("0000000000100000")), uint32_t{kEinval});                    // no id
  EXPECT_EQ(check(0, hex("0000000000100000 00000001 00000001")), uint32_t{kEinval});  // twice
  EXPECT_EQ(check(0, {}), uint32_t{kEinval});
  TransmissionRules blocks = rules;
  blocks.block_min = 512;
  Request request = {kFlagPayloadLen, kCmdBlockStatus, 1, 0, 12};
  EXPECT_EQ(check_block_status(request, hex("0000000000000100 00000001"), blocks).error,
            uint32_t{kEinval});
}

}  // namespace
}  // namespace weft::nbd
