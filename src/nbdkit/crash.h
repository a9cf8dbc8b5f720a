// SPDX-License-Identifier: BSD-3-Clause
// What is said when code of a hosted plugin takes the program down. Nothing is caught: the program
// ends as it would have, by the signal, and leaves its core.
#pragma once

namespace weft::nbdkit {

// From now on a fatal signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT) is reported by a line that
// names the plugin and the callback that the thread is in, or says that it is in none; so is
// exit() called in a callback of a server that serves. `program_prefix`: how lines begin, "weft".
// Once, after log::configure(), before other threads run. A build with a sanitizer has its
// own reports, and this does nothing.
void report_crashes(const char* program_prefix);

// Gives the calling thread, once, a stack for the report, so that an overflow of its own is
// reported too. Does nothing unless crashes are reported, or if it has one already.
void prepare_thread_for_crash();

}  // namespace weft::nbdkit
