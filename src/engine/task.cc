// SPDX-License-Identifier: BSD-3-Clause
#include "engine/task.h"

#include <array>
#include <new>

namespace weft::engine {
namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(memory_sanitizer)
#define WEFT_FRAME_CACHE 0  // let the sanitizer see every frame's end
#endif
#endif
#ifndef WEFT_FRAME_CACHE
#define WEFT_FRAME_CACHE 1
#endif

constexpr size_t kFrameStep = 64;        // bytes between size classes
constexpr size_t kFrameSizeMax = 2048;   // larger frames are not cached
constexpr size_t kFramesPerClass = 512;  // kept per thread and size class

struct FreeFrame {
  FreeFrame* next;
};

struct FrameCache {
  std::array<FreeFrame*, kFrameSizeMax / kFrameStep + 1> heads{};
  std::array<size_t, kFrameSizeMax / kFrameStep + 1> counts{};

  ~FrameCache() {
    for (FreeFrame* head : heads) {
      while (head) ::operator delete(std::exchange(head, head->next));
    }
  }
};

thread_local FrameCache frame_cache;

}  // namespace

void* allocate_frame(size_t size_bytes) {
  const size_t index = (size_bytes + kFrameStep - 1) / kFrameStep;
  if (!WEFT_FRAME_CACHE || index >= frame_cache.heads.size()) return ::operator new(size_bytes);
  FrameCache& cache = frame_cache;
  if (FreeFrame* frame = cache.heads[index]) {
    cache.heads[index] = frame->next;
    cache.counts[index]--;
    return frame;
  }
  return ::operator new(index * kFrameStep);
}

void free_frame(void* frame, size_t size_bytes) noexcept {
  const size_t index = (size_bytes + kFrameStep - 1) / kFrameStep;
  FrameCache& cache = frame_cache;
  if (!WEFT_FRAME_CACHE || index >= cache.heads.size() || cache.counts[index] >= kFramesPerClass) {
    ::operator delete(frame);
    return;
  }
  cache.heads[index] = new (frame) FreeFrame{cache.heads[index]};
  cache.counts[index]++;
}

}  // namespace weft::engine
