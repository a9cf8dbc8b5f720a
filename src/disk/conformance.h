// SPDX-License-Identifier: BSD-3-Clause
// The conformance suite: what every disk must do, whatever plugin or filter it comes from, on both
// engines. A test program lists its candidates, and compiles conformance.cc in:
//
//   INSTANTIATE_TEST_SUITE_P(Plugins, Conformance, each_engine({{"memory", make_memory}}),
//                            conformance_name);
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "disk/disk.h"
#include "disk/scratch_folder.h"
#include "engine/blocking_pool.h"
#include "engine/loop.h"

namespace weft::disk {

struct Candidate {
  std::string name;  // letters and digits
  // A plugin after config_complete(), whose default export has at most 8 MiB. `scratch` is an empty
  // folder that goes after the test. Null: it cannot be had on this machine.
  std::function<std::unique_ptr<Plugin>(const std::filesystem::path& scratch)> make;
  bool remembers = true;  // what is written can be read back
};

struct ConformanceCase {
  Candidate candidate;
  engine::EngineKind engine;
};

// The test's name says it all; GoogleTest would print the bytes.
inline void PrintTo(const ConformanceCase& the_case, std::ostream* out) {
  *out << the_case.candidate.name;
}

std::vector<ConformanceCase> each_engine_case(const std::vector<Candidate>& candidates);

inline auto each_engine(const std::vector<Candidate>& candidates) {
  return testing::ValuesIn(each_engine_case(candidates));
}

inline std::string conformance_name(const testing::TestParamInfo<ConformanceCase>& info) {
  return info.param.candidate.name +
         (info.param.engine == engine::EngineKind::kUring ? "OnIoUring" : "OnEpoll");
}

class Conformance : public testing::TestWithParam<ConformanceCase> {
 public:
  void SetUp() override;
  void TearDown() override;

  // A disk as a connection would have it: behind a waist.
  std::unique_ptr<Disk> open(engine::Loop& on, bool read_only = false);
  void close(engine::Loop& on, std::unique_ptr<Disk>& disk);

  ScratchFolder scratch;
  engine::BlockingPool pool;
  // Before the plugin: a thread of one of its lanes may still be posting to them.
  std::unique_ptr<engine::Loop> loop;
  std::vector<std::unique_ptr<engine::Loop>> other_loops;
  std::unique_ptr<Plugin> plugin;
  std::unique_ptr<Disk> disk;
  uint64_t size = 0;
  std::vector<std::byte> model;  // what the disk must hold
};

}  // namespace weft::disk
