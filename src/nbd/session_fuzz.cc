// SPDX-License-Identifier: BSD-3-Clause
// Whole negotiations, made of options that mean something, against NegotiationModel: what was
// negotiated, and which reply is due. Traps on the first disagreement.
//
// With WEFT_FUZZ_CANARY (canary_fuzz.cc) the model has a bug, and the target must fail.
#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "nbd/negotiation_model.h"

using namespace weft;
using namespace weft::nbd;
using nbd::testing::NegotiationModel;
using nbd::testing::Outcome;
using nbd::testing::Step;

namespace {

#ifdef WEFT_FUZZ_CANARY
constexpr bool kCanary = true;
#else
constexpr bool kCanary = false;
#endif

// Hands out the input byte by byte; zeroes after its end.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  unsigned next() { return at_ < size_ ? data_[at_++] : 0; }
  [[nodiscard]] bool empty() const { return at_ >= size_; }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
};

Step next_step(Input& input) {
  static const char* const kQueries[] = {"base:allocation", "base:", "x:y", "", "base:allocatio"};
  static const char* const kNames[] = {"a", "b", "c", "", "a "};
  const unsigned what = input.next();
  Step step;
  step.number = what % 14;
  step.damaged = (what / 14) % 8 == 7;
  const unsigned names = input.next();
  step.name = kNames[names % 5];
  for (unsigned count = names / 5 % 4; count > 0; count--) {
    const unsigned choice = input.next();
    step.queries.emplace_back(kQueries[choice % 5]);
    step.infos.push_back(static_cast<uint16_t>(choice % 6));
  }
  return step;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const unsigned bits = input.next();
  const ServerHandshakeOptions options = {.structured_replies = (bits & 3) != 3,
                                          .meta_contexts = (bits & 12) != 12,
                                          .extended_headers = (bits & 48) != 48};
  const size_t piece = input.next() + 1;
  ServerHandshake handshake(options);
  NegotiationModel model(options);
  if (kCanary) model.forget_that_extended_is_structured();
  if (handshake.consume(nbd::testing::hex("00000003")) != 4) std::abort();
  Outcome::End end = Outcome::kGoesOn;
  while (!input.empty() && end == Outcome::kGoesOn) {
    const Step step = next_step(input);
    if (const auto difference = play(handshake, model, step, piece, end)) {
      std::fprintf(stderr, "server and model disagree: %s, at option %u\n", difference->c_str(),
                   step.number);
      std::abort();
    }
  }
  return 0;
}
