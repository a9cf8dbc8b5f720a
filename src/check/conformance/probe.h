// SPDX-License-Identifier: BSD-3-Clause
// Probe: what the checks know of the server, and the steps they share. And Check: a row of the
// tables.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "check/conformance/talk.h"
#include "check/subject.h"

namespace weft::check::conformance {

// What a check cannot do without; the runner skips it otherwise, and says what is missing.
enum Need : uint32_t {
  kWrites = 1 << 0,  // permission, and an export that is not read-only
  kFlush = 1 << 1,   // the transmission flag; as those that follow
  kTrim = 1 << 2,
  kZeroes = 1 << 3,
  kCache = 1 << 4,
  kFua = 1 << 5,
  kReadOnlyExport = 1 << 6,
  kDf = 1 << 7,
  kFastZero = 1 << 8,
  kNoFastZero = 1 << 9,   // the flag is not set
  kStructured = 1 << 10,  // the server knows the option
  kContext = 1 << 11,     // base:allocation can be selected
  kExtendedHeaders = 1 << 12,
  kInfo = 1 << 13,     // the server knows INFO and GO
  kMinimum = 1 << 14,  // a smallest block above 1
  kSecond = 1 << 15,   // a second connection at the same time
  kNoDf = 1 << 16,
  kPlaintext = 1 << 17,  // STARTTLS is refused
};

// In which header modes a check runs.
enum class In : uint8_t { kHandshake, kEveryMode, kChunkModes, kSimple, kExtendedOnly };

class Probe;

struct Check {
  std::string_view name;   // a suffix for the mode is added: ".structured"
  std::string_view title;  // what is promised
  std::string_view basis;  // "MUST, NBD protocol: SECTION"
  In in = In::kHandshake;
  uint32_t needs = 0;  // Need
  void (*run)(Probe& probe) = nullptr;
};

[[nodiscard]] std::span<const Check> handshake_checks();
[[nodiscard]] std::span<const Check> option_checks();
[[nodiscard]] std::span<const Check> info_checks();
[[nodiscard]] std::span<const Check> context_checks();
[[nodiscard]] std::span<const Check> request_checks();
[[nodiscard]] std::span<const Check> bounds_checks();
[[nodiscard]] std::span<const Check> size_checks();
[[nodiscard]] std::span<const Check> connection_checks();
[[nodiscard]] std::span<const Check> leaving_checks();
[[nodiscard]] std::span<const Check> reply_checks();
[[nodiscard]] std::span<const Check> status_checks();
[[nodiscard]] std::span<const Check> extended_checks();

// An option number that nobody uses.
inline constexpr uint32_t kUnknownOption = 0x7fff0077;

[[nodiscard]] std::vector<std::byte> go_data(std::string_view name,
                                             std::span<const uint16_t> infos);
[[nodiscard]] std::vector<std::byte> context_data(std::string_view name,
                                                  std::span<const std::string> queries);
// For checks with many steps: servers far away are not asked for longer.
inline constexpr std::chrono::seconds kManyStepsMax{20};

// Bytes that differ from zeroes and from another seed's.
[[nodiscard]] std::vector<std::byte> pattern(size_t size, uint64_t seed);

class Probe {
 public:
  explicit Probe(Run& run);

  // Learns what the server offers. Throws Verdict when it cannot be tested at all.
  void survey();
  [[nodiscard]] bool offers(nbd::HeaderMode mode) const;
  // "", or why a check with these needs does not apply.
  [[nodiscard]] std::string lacks(uint32_t needs) const;
  // A check begins.
  void begin(nbd::HeaderMode mode);
  void use_mode(nbd::HeaderMode mode) { mode_ = mode; }

  // Connections. Each throws Verdict where the server does not take it.
  [[nodiscard]] Talk connect();
  // With greeting and client flags exchanged.
  [[nodiscard]] Talk open();
  [[nodiscard]] Talk open(uint32_t client_flags);
  // In the transmission phase, in the mode of the check; base:allocation selected if it can be.
  [[nodiscard]] Talk start();
  [[nodiscard]] Talk start(bool want_context);
  // SR or extended headers of the mode, nothing else.
  void agree_mode(Talk& talk);
  // GO (or EXPORT_NAME) for the export; enters transmission.
  nbd::ClientResult go(Talk& talk, std::vector<nbd::SelectedContext> contexts = {});
  // Selects base:allocation; what the server answers.
  std::vector<nbd::SelectedContext> select_context(Talk& talk);

  // Verdicts on a connection after a disturbance.
  void options_in_step(Talk& talk);
  void in_step(Talk& talk);  // a READ is answered
  void serves_others();      // a new connection is served

  // A request that has to be refused with `error`; then the connection goes on.
  struct Refusal {
    uint32_t error = nbd::kEinval;
    State success = State::kWarned;  // what it is when the server says it succeeded
    State loss = State::kWarned;     // ... when it closes the connection or is silent
    std::string advice = {};
  };
  void refuses(Talk& talk, nbd::Request request, ByteSpan payload, const Refusal& refusal);
  void refuses(Talk& talk, nbd::Request request, ByteSpan payload = {});
  // A request that may be answered in any way, but not with the end of the connection.
  void survives(Talk& talk, nbd::Request request, ByteSpan payload = {});
  // A request that has to succeed.
  Answer succeeds(Talk& talk, nbd::Request request, ByteSpan payload = {});
  std::vector<std::byte> read(Talk& talk, Range range);
  void write(Talk& talk, uint64_t offset, ByteSpan data, uint16_t flags = 0);

  // A WRITE's flags in this mode.
  [[nodiscard]] uint16_t write_flags() const;
  [[nodiscard]] nbd::HeaderMode mode() const { return mode_; }
  // What this mode's connections are told.
  [[nodiscard]] const nbd::ClientResult& agreed() const { return agreed_of(mode_); }
  [[nodiscard]] const nbd::ClientResult& agreed_of(nbd::HeaderMode mode) const;
  [[nodiscard]] bool has(uint16_t flag) const { return agreed().transmission_flags & flag; }
  [[nodiscard]] uint64_t size() const { return agreed().size; }
  [[nodiscard]] uint32_t block_min() const;
  [[nodiscard]] uint64_t block() const;        // a small request: bytes, at least 512 if it fits
  [[nodiscard]] uint64_t payload_max() const;  // as advertised, or 32 MiB
  [[nodiscard]] Range room() const { return room_; }  // where content may be changed
  // Whether all of a range may be changed.
  [[nodiscard]] bool may_change(Range range) const;
  [[nodiscard]] std::string export_name() const { return run_->target.export_name; }
  [[nodiscard]] uint16_t handshake_flags() const { return handshake_flags_; }
  [[nodiscard]] bool any_name() const { return any_name_; }  // every export name is accepted
  [[nodiscard]] std::chrono::milliseconds limit() const { return limit_; }
  [[nodiscard]] std::chrono::milliseconds patience() const { return run_->options.patience; }
  [[nodiscard]] Story& story() { return story_; }
  [[nodiscard]] Run& run() { return *run_; }

 private:
  void survey_options();
  void survey_mode(nbd::HeaderMode mode);
  void survey_second();

  Run* run_;
  Story story_;
  std::chrono::milliseconds limit_;
  nbd::HeaderMode mode_ = nbd::HeaderMode::kSimple;
  std::array<std::optional<nbd::ClientResult>, 3> agreed_;
  uint16_t handshake_flags_ = 0;
  bool info_ = false;
  bool structured_ = false;
  bool extended_ = false;
  bool any_name_ = false;
  bool second_ = false;
  bool tls_ = false;
  std::string why_no_writes_;
  Range room_;
};

}  // namespace weft::check::conformance
