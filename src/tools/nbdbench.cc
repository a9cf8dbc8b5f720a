// SPDX-License-Identifier: BSD-3-Clause
// nbdbench: puts load on an NBD server and measures it. See nbdbench.md.
#include <fmt/format.h>
#include <signal.h>

#include <atomic>
#include <cstdio>
#include <exception>

#include "tools/bench_options.h"
#include "tools/bench_report.h"
#include "tools/bench_run.h"

namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free);

// The first signal ends the run with a report, the second ends the program.
void on_signal(int) {
  interrupted = true;
}

void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = weft::tools::parse_bench_options(argc, argv);
    if (!options) return 0;
    catch_signals();
    const weft::tools::BenchReport report = weft::tools::run_bench(*options, interrupted);
    const std::string text = options->json ? weft::tools::json_report(*options, report)
                                           : weft::tools::text_report(*options, report);
    std::fputs(text.c_str(), stdout);
    return report.good() ? 0 : 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "nbdbench: {}\n", error.what());
    return 1;
  }
}
