// SPDX-License-Identifier: BSD-3-Clause
#include "tools/workload.h"

#include <fmt/format.h>

#include <bit>
#include <numeric>
#include <optional>

#include "base/parse.h"
#include "base/result.h"

namespace weft::tools {
namespace {

constexpr uint32_t kWeightMax = 1'000'000;
constexpr std::array<std::string_view, kOpKindCount> kNames = {"read", "write", "zero",
                                                               "trim", "cache", "flush"};

std::optional<size_t> find_name(std::string_view name) {
  for (size_t i = 0; i < kOpKindCount; i++) {
    if (kNames[i] == name) return i;
  }
  return {};
}

}  // namespace

std::string_view op_name(OpKind kind) {
  return kNames[static_cast<size_t>(kind)];
}

uint32_t Mix::total() const {
  return std::accumulate(weights.begin(), weights.end(), 0u);
}

bool Mix::changes_data() const {
  for (const OpKind kind : kOpKinds) {
    if (changes(kind) && weight(kind) != 0) return true;
  }
  return false;
}

std::string Mix::text() const {
  std::string result;
  for (const OpKind kind : kOpKinds) {
    if (weight(kind) == 0) continue;
    result += fmt::format("{}{}={}", result.empty() ? "" : ",", op_name(kind), weight(kind));
  }
  return result;
}

Mix parse_mix(std::string_view text) {
  Mix mix;
  std::string_view rest = text;
  for (bool more = true; more;) {
    const size_t comma = rest.find(',');
    const std::string_view part = rest.substr(0, comma);
    more = comma != rest.npos;
    if (more) rest.remove_prefix(comma + 1);
    const size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    const auto index = find_name(name);
    if (!index) {
      throw ConfigError(
          fmt::format("--mix: '{}' is no operation: give read, write, zero, trim, "
                      "cache or flush, each with its share, as in read=70,write=30",
                      name));
    }
    if (mix.weights[*index] != 0) {
      throw ConfigError(fmt::format("--mix: '{}' is there twice: give one share", name));
    }
    mix.weights[*index] = 1;
    if (equals != part.npos) {
      const std::string what = fmt::format("--mix: {}", name);
      mix.weights[*index] =
          static_cast<uint32_t>(parse_unsigned(what, part.substr(equals + 1), kWeightMax));
    }
  }
  if (mix.total() == 0) throw ConfigError("--mix: all shares are 0: give one operation a share");
  return mix;
}

Random::Random(uint64_t seed) {
  for (uint64_t& word : state_) {  // splitmix64
    seed += 0x9e3779b97f4a7c15;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    word = z ^ (z >> 31);
  }
}

uint64_t Random::next() {
  const uint64_t result = std::rotl(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = std::rotl(state_[3], 45);
  return result;
}

Generator::Generator(const Workload& workload)
    : workload_(workload),
      mix_total_(workload.mix.total()),
      random_(workload.seed),
      at_(workload.block_start) {
  for (size_t i = 0; i < kOpKindCount; i++) {
    if (workload.mix.weights[i] == mix_total_) only_kind_ = static_cast<int>(i);
  }
}

OpKind Generator::next_kind() {
  if (only_kind_ >= 0) return static_cast<OpKind>(only_kind_);
  uint64_t point = random_.below(mix_total_);
  size_t index = 0;
  while (point >= workload_.mix.weights[index]) point -= workload_.mix.weights[index++];
  return static_cast<OpKind>(index);
}

uint64_t Generator::next_block() {
  uint64_t block = at_;
  if (workload_.random) {
    block = random_.below(workload_.block_count);
  } else if (++at_ == workload_.block_count) {
    at_ = 0;
  }
  return workload_.block_first + block;
}

Operation Generator::next() {
  if (workload_.flush_every != 0 && changes_ == workload_.flush_every) {
    changes_ = 0;
    return {.kind = OpKind::kFlush};
  }
  Operation operation = {.kind = next_kind()};
  if (operation.kind == OpKind::kFlush) return operation;
  operation.block = next_block();
  if (changes(operation.kind)) {
    changes_++;
    operation.fua = workload_.fua_percent != 0 && random_.below(100) < workload_.fua_percent;
  }
  return operation;
}

}  // namespace weft::tools
