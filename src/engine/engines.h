// SPDX-License-Identifier: BSD-3-Clause
// The two implementations of Loop, for loop.cc.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "engine/loop.h"

namespace weft::engine {

std::unique_ptr<Loop> make_epoll_loop(BlockingPool& pool);
std::unique_ptr<Loop> make_uring_loop(BlockingPool& pool);

// A thread without which nothing would go on. When the system has none, waits until it has.
std::thread make_thread_at_any_cost(const std::function<void()>& body);

// Empty when io_uring with all that the engine uses is there, else what is missing, for a person.
std::string probe_uring();

}  // namespace weft::engine
