// SPDX-License-Identifier: BSD-3-Clause
// --run: a shell command for whose time a server runs.
#pragma once

#include <sys/types.h>

#include <string>

namespace weft::cli {

// Runs `script` with /bin/sh while the child `server` serves, then stops the server and waits for
// it. The caller holds no listening socket any more, so clients of a server that died are refused
// instead of hanging.
//
// A signal from the terminal (^C) is the command's own business; SIGTERM and SIGHUP, and what
// another process sends, are passed on to the command and to the server. A server that ends early
// is reported at once; the command, whose connections are closed, decides what to do.
//
// Returns the exit status for weft: the command's (128 + N if signal N killed it); when that is 0,
// the server's, so that neither its death nor a failed last sync goes unnoticed.
int run_command(const std::string& script, pid_t server);

}  // namespace weft::cli
