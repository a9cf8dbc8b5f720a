// SPDX-License-Identifier: BSD-3-Clause
// LogWriter: writes records to a file and gives them to a script, in order, on a thread of its own.
// Who logs only puts text into a queue. A queue that is full makes those wait who can: see
// wait_for_room().
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

#include "base/fd.h"
#include "filters/log/record.h"

namespace weft::filters {

// Thread-safe between start() and finish().
class LogWriter {
 public:
  // `file`: may be none. `script`: may be empty.
  LogWriter(Fd file, std::string path, std::string script)
      : file_(std::move(file)), path_(std::move(path)), script_(std::move(script)) {}
  ~LogWriter() { end(); }

  // Once, after forking.
  void start();

  void write(const Record& record);

  // Whether more is queued than should be.
  [[nodiscard]] bool full() const;
  // Blocks until it is no longer.
  void wait_for_room();

  // Blocks until everything is written and every script has ended, at most this long: what is left
  // then is dropped, with a message. Without it, the destructor drops what scripts were to be run
  // for.
  void finish(std::chrono::milliseconds time_max);

 private:
  static constexpr size_t kQueueMax = 1 << 20;  // bytes

  [[nodiscard]] bool full_locked() const { return queued_ > kQueueMax; }
  void run();
  void end();
  void write_file(std::string_view text);
  void run_script(const std::string& assignments);
  void complain(const char* what, int error);

  Fd file_;
  const std::string path_;
  const std::string script_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;   // the thread
  std::condition_variable moved_;  // those who wait for it
  std::string lines_;
  std::deque<std::string> entries_;  // for the script
  size_t queued_ = 0;                // bytes of both
  pid_t child_ = 0;                  // the script that runs
  bool ending_ = false;
  bool ended_ = false;
  bool abandoned_ = false;

  bool complained_ = false;  // own thread: once is enough
  std::thread thread_;
};

}  // namespace weft::filters
