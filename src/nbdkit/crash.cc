// SPDX-License-Identifier: BSD-3-Clause
#include "nbdkit/crash.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "base/log.h"
#include "nbdkit/call.h"

namespace weft::nbdkit {
namespace {

// Nothing but these, CallScope::current() and Host's name is looked at in a handler.
char the_prefix[64] = "";  // longer names are cut off
log::Form the_form = log::Form::kWeft;
std::atomic<bool> the_reporting{false};

// A line of bounded length, made without allocating.
class Line {
 public:
  Line& operator<<(std::string_view text) {
    const size_t length =
        text.size() < sizeof text_ - length_ ? text.size() : sizeof text_ - length_;
    std::memcpy(text_ + length_, text.data(), length);
    length_ += length;
    return *this;
  }
  [[nodiscard]] std::string_view view() const { return {text_, length_}; }

 private:
  char text_[512];
  size_t length_ = 0;
};

void begin(Line& line, std::string_view subject) {
  line << the_prefix << ": ";
  if (the_form == log::Form::kWeft) line << "error: ";
  if (!subject.empty()) line << subject << ": ";
  if (the_form == log::Form::kNbdkit) line << "error: ";
}

std::string_view subject_of(const CallScope& scope) {
  return scope.connection() ? std::string_view(scope.connection()->subject())
                            : std::string_view(scope.plugin());
}

std::string_view name_of(int signal) {
  switch (signal) {
    case SIGSEGV:
      return "SIGSEGV (a wrong memory access)";
    case SIGBUS:
      return "SIGBUS (memory that cannot be read)";
    case SIGFPE:
      return "SIGFPE (a wrong calculation)";
    case SIGILL:
      return "SIGILL (a wrong instruction)";
    case SIGABRT:
      return "SIGABRT (it gave up)";
    default:
      return "a signal";
  }
}

void report(int signal) {
  Line line;
  if (const CallScope* scope = CallScope::current()) {
    begin(line, subject_of(*scope));
    line << "the plugin " << scope->plugin() << " crashed in " << scope->method()
         << "(): " << name_of(signal);
  } else if (const std::string& plugin = Host::instance().plugin(); !plugin.empty()) {
    begin(line, {});
    line << "crashed outside of the callbacks of the plugin " << plugin
         << ", maybe in a thread of its own: " << name_of(signal);
  } else {
    begin(line, {});
    line << "crashed: " << name_of(signal);
  }
  line << "\n";
  log::write_from_signal(line.view());
}

// The action is the default one again by now (SA_RESETHAND). A fault comes again when its
// instruction does, and leaves a core of the right place; what somebody sent has to be sent again.
void on_signal(int signal, siginfo_t* info, void*) {
  report(signal);
  if (info->si_code <= 0) ::raise(signal);
}

// exit() runs this on the thread that calls it. While a plugin is configured it may well exit.
void on_exit() {
  const CallScope* scope = CallScope::current();
  if (!scope || !Host::instance().serving()) return;
  Line line;
  begin(line, subject_of(*scope));
  line << "the plugin " << scope->plugin() << " ended the server: it called exit() in "
       << scope->method() << "()\n";
  log::write_from_signal(line.view());
}

// Of a thread, as long as it lives.
class SignalStack {
 public:
  SignalStack() {
    stack_t present{};
    if (::sigaltstack(nullptr, &present) != 0 || !(present.ss_flags & SS_DISABLE)) return;
    void* memory = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) return;
    stack_t mine{};
    mine.ss_sp = memory;
    mine.ss_size = kSize;
    memory_ = memory;
    if (::sigaltstack(&mine, nullptr) != 0) release();
  }
  ~SignalStack() {
    if (!memory_) return;
    stack_t present{};
    if (::sigaltstack(nullptr, &present) != 0 || present.ss_sp != memory_) return;  // replaced
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    if (::sigaltstack(&none, nullptr) == 0) release();
  }
  SignalStack(const SignalStack&) = delete;
  SignalStack& operator=(const SignalStack&) = delete;

 private:
  static constexpr size_t kSize = 65536;  // touched only by a crash: costs addresses, not memory

  void release() {
    ::munmap(memory_, kSize);
    memory_ = nullptr;
  }

  void* memory_ = nullptr;
};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) ||
                            __has_feature(memory_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

}  // namespace

void prepare_thread_for_crash() {
  if (!the_reporting.load(std::memory_order_relaxed)) return;
  static thread_local SignalStack stack;
  (void)stack;
}

void report_crashes(const char* program_prefix) {
  if (kSanitized || the_reporting.exchange(true)) return;
  std::strncpy(the_prefix, program_prefix, sizeof the_prefix - 1);
  the_form = log::form();
  (void)Host::instance();  // made now, not in a handler
  prepare_thread_for_crash();
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
    struct sigaction before{};
    // Somebody else's, or ignored on purpose: left alone.
    if (::sigaction(signal, nullptr, &before) != 0 || before.sa_handler != SIG_DFL) continue;
    struct sigaction action{};
    action.sa_sigaction = on_signal;
    action.sa_flags = static_cast<int>(SA_SIGINFO | SA_ONSTACK | SA_RESETHAND | SA_NODEFER);
    ::sigemptyset(&action.sa_mask);
    ::sigaction(signal, &action, nullptr);
  }
  std::atexit(on_exit);
}

}  // namespace weft::nbdkit
