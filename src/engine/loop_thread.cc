// SPDX-License-Identifier: BSD-3-Clause
#include "engine/loop_thread.h"

#include <pthread.h>

#include <future>

namespace weft::engine {

LoopThread::LoopThread(EngineKind kind, BlockingPool& pool, const std::string& name)
    : loop_(Loop::create(kind, pool)) {
  std::promise<void> runs;
  loop_->call([&runs] { runs.set_value(); });
  thread_ = std::thread([this, name] {
    pthread_setname_np(pthread_self(), name.c_str());
    loop_->run();
  });
  runs.get_future().wait();
}

LoopThread::~LoopThread() {
  loop_->stop();
  thread_.join();
}

}  // namespace weft::engine
