// SPDX-License-Identifier: BSD-3-Clause
// Task<T>: a computation that may suspend, awaited once by its parent.
//
// A task is either *ready* (it holds its value and has no coroutine: a layer whose data is at hand
// returns one and costs nothing) or a coroutine that has not run yet. Awaiting it starts it inline;
// the parent suspends only if the child did. A child that finishes later resumes its parent from
// its final suspension, and every wake-up from outside (a completion, a timer, another thread)
// comes from the loop's ready queue: so a loop that awaits children which finish at once never
// grows the stack, whatever the compiler and the sanitizer.
//
// A task belongs to the thread that awaits it. Destroying one that was started and has not finished
// is a defect: cancel what it waits for, and await it.
#pragma once

#include <cassert>
#include <coroutine>
#include <cstddef>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace weft::engine {

// The memory of coroutine frames: free lists per thread, by size.
void* allocate_frame(size_t size_bytes);
void free_frame(void* frame, size_t size_bytes) noexcept;

// Told when a task that was spawned on it ends (see scope.h).
class TaskOwner {
 public:
  virtual void task_ended() noexcept = 0;

 protected:
  ~TaskOwner() = default;
};

template <typename T>
class Task;

namespace internal {

struct PromiseBase {
  std::coroutine_handle<> continuation;  // the parent, once it has suspended
  TaskOwner* owner = nullptr;            // set for a spawned task, which has no parent

  static void* operator new(size_t size) { return allocate_frame(size); }
  static void operator delete(void* frame, size_t size) noexcept { free_frame(frame, size); }

  struct FinalAwaiter {
    [[nodiscard]] bool await_ready() const noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> handle) const noexcept {
      PromiseBase& promise = handle.promise();
      if (TaskOwner* told = promise.owner) {
        handle.destroy();
        told->task_ended();
        return std::noop_coroutine();
      }
      // Without a continuation the parent is still in await_suspend() and sees done().
      return promise.continuation ? promise.continuation : std::noop_coroutine();
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() noexcept { return {}; }
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }
};

template <typename T>
struct Promise : PromiseBase {
  std::optional<T> value;
  Task<T> get_return_object() noexcept;
  template <typename U>
    requires std::is_constructible_v<T, U&&>
  void return_value(U&& result) {
    value.emplace(std::forward<U>(result));
  }
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object() noexcept;
  void return_void() noexcept {}
};

struct Nothing {};

}  // namespace internal

template <typename T>
class [[nodiscard]] Task {
 public:
  using promise_type = internal::Promise<T>;
  using Handle = std::coroutine_handle<promise_type>;
  using Value = std::conditional_t<std::is_void_v<T>, internal::Nothing, T>;

  // A ready task. Implicit, so that a layer may `return fail(EIO);` or `return Status{};`.
  template <typename U = Value>
    requires(!std::is_void_v<T> && std::is_convertible_v<U &&, Value> &&
             !std::is_same_v<std::remove_cvref_t<U>, Task>)
  Task(U&& value) : value_(std::in_place, std::forward<U>(value)) {}

  explicit Task(Handle handle) noexcept : handle_(handle) {}
  Task(Task&& other) noexcept
      : handle_(std::exchange(other.handle_, nullptr)), value_(std::move(other.value_)) {}
  Task& operator=(Task&& other) noexcept {
    if (this != &other) {
      if (handle_) handle_.destroy();
      handle_ = std::exchange(other.handle_, nullptr);
      value_ = std::move(other.value_);
    }
    return *this;
  }
  ~Task() {
    if (handle_) handle_.destroy();
  }

  // True when the task has its value without having to be awaited.
  [[nodiscard]] bool ready() const noexcept { return !handle_; }
  // The value of a ready task.
  Value take() {
    assert(!handle_);
    return std::move(*value_);
  }
  // Hands the coroutine over to Scope::spawn().
  Handle release() noexcept { return std::exchange(handle_, nullptr); }

  // The awaiter is the task itself: it lives in the parent's frame.
  [[nodiscard]] bool await_ready() const noexcept { return !handle_; }
  bool await_suspend(std::coroutine_handle<> parent) {
    handle_.resume();
    if (handle_.done()) return false;
    handle_.promise().continuation = parent;
    return true;
  }
  T await_resume() {
    if constexpr (!std::is_void_v<T>) {
      if (!handle_) return std::move(*value_);
      return std::move(*handle_.promise().value);
    }
  }

 private:
  Handle handle_;
  [[no_unique_address]] std::optional<Value> value_;
};

namespace internal {

template <typename T>
Task<T> Promise<T>::get_return_object() noexcept {
  return Task<T>(std::coroutine_handle<Promise>::from_promise(*this));
}
inline Task<void> Promise<void>::get_return_object() noexcept {
  return Task<void>(std::coroutine_handle<Promise>::from_promise(*this));
}

}  // namespace internal

// A Task<void> that is already done.
inline Task<void> done() {
  co_return;
}

}  // namespace weft::engine
