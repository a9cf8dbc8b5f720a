// SPDX-License-Identifier: BSD-3-Clause
#include "check/conformance/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace weft::check::conformance {
namespace {

constexpr size_t kFirst = 10;  // lines of a story that are always kept
constexpr size_t kLast = 14;

}  // namespace

void breach(State state, std::string kind, std::string what, std::string due,
            std::vector<std::string> advice) {
  throw Verdict{.state = state,
                .kind = std::move(kind),
                .what = std::move(what),
                .due = std::move(due),
                .advice = std::move(advice)};
}

void broken(std::string kind, std::string what, std::string due, std::vector<std::string> advice) {
  breach(State::kFailed, std::move(kind), std::move(what), std::move(due), std::move(advice));
}

void against_advice(std::string kind, std::string what, std::string due,
                    std::vector<std::string> advice) {
  breach(State::kWarned, std::move(kind), std::move(what), std::move(due), std::move(advice));
}

void skip(std::string why) {
  throw Verdict{.state = State::kSkipped, .kind = {}, .what = std::move(why)};
}

void unclear(std::string why) {
  throw Verdict{.state = State::kInconclusive, .kind = {}, .what = std::move(why)};
}

void Story::add(std::string line) {
  ++count_;
  if (first_.size() < kFirst) {
    first_.push_back(std::move(line));
  } else if (last_.size() < kLast) {
    last_.push_back(std::move(line));
  } else {
    last_[(count_ - 1 - kFirst) % kLast] = std::move(line);
  }
}

void Story::clear() {
  first_.clear();
  last_.clear();
  count_ = 0;
}

std::vector<std::string> Story::lines() const {
  std::vector<std::string> lines = first_;
  const uint64_t later = count_ - first_.size();
  if (later > kLast) lines.push_back(fmt::format("... {} more steps ...", later - kLast));
  const size_t begin = later > kLast ? static_cast<size_t>(later % kLast) : 0;
  for (size_t i = 0; i < last_.size(); ++i) lines.push_back(last_[(begin + i) % last_.size()]);
  return lines;
}

std::string hex(ByteSpan bytes, size_t max) {
  std::string digits;
  for (const std::byte byte : bytes.first(std::min(max, bytes.size()))) {
    digits += fmt::format("{:02x}", static_cast<unsigned>(byte));
  }
  return bytes.size() > max ? digits + "..." : digits;
}

}  // namespace weft::check::conformance
