// Included by cuda_emulation.h. The threads of a block as coroutines of one thread, in an order drawn anew at every
// barrier and warp operation.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FSSOPS_EMULATION_ASAN 1
#else
#define FSSOPS_EMULATION_ASAN 0
#endif
#include <ucontext.h>

namespace emulation {

constexpr size_t kStackBytes = 64 * 1024;

struct Warp {
  struct Collective {
    unsigned arrived = 0;
    unsigned generation = 0;
    uint64_t values[2][32][4];  // two generations, so that a fast lane cannot overwrite what a slow one reads
  };
  std::map<unsigned, Collective> by_mask;
};

struct Thread {
  enum class State { ready, at_barrier, in_warp, done };
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state;
  dim3 index;
  int flat;
  unsigned waits_for_mask;
  void* fake_stack;
  Copies copies;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> dynamic_shared;
  std::function<void()> body;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  void* scheduler_fake_stack = nullptr;
  Thread* current = nullptr;
  int barrier_sum = 0;  // of the contributions to this barrier so far
  int barrier_result = 0;
};

inline Block* block = nullptr;
inline void to_scheduler(bool finished = false) {
  Thread& self = *block->current;
#if FSSOPS_EMULATION_ASAN
  __sanitizer_start_switch_fiber(finished ? nullptr : &self.fake_stack, block->scheduler_stack,
                                 block->scheduler_stack_bytes);
#endif
  if (finished) {
    setcontext(&block->scheduler);
  } else {
    swapcontext(&self.context, &block->scheduler);
  }
#if FSSOPS_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(self.fake_stack, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
}

inline void thread_entry() {
#if FSSOPS_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &block->scheduler_stack, &block->scheduler_stack_bytes);
#endif
  block->body();
  block->current->state = Thread::State::done;
  to_scheduler(true);
}

inline void resume(Thread& thread) {
  block->current = &thread;
  threadIdx = thread.index;
#if FSSOPS_EMULATION_ASAN
  __sanitizer_start_switch_fiber(&block->scheduler_fake_stack, thread.stack.get(), kStackBytes);
#endif
  swapcontext(&block->scheduler, &thread.context);
#if FSSOPS_EMULATION_ASAN
  __sanitizer_finish_switch_fiber(block->scheduler_fake_stack, nullptr, nullptr);
#endif
}

inline void run_block(Block& b) {
  block = &b;
  std::vector<int> ready;
  while (true) {
    ready.clear();
    bool all_done = true, all_at_barrier = true;
    for (Thread& t : b.threads) {
      if (t.state == Thread::State::ready) ready.push_back(t.flat);
      if (t.state != Thread::State::done) {
        all_done = false;
        if (t.state != Thread::State::at_barrier) all_at_barrier = false;
      }
    }
    if (all_done) return;
    if (ready.empty()) {
      if (!all_at_barrier) die("threads wait for a barrier or warp operation that others never reach");
      b.barrier_result = b.barrier_sum;
      b.barrier_sum = 0;
      for (Thread& t : b.threads)
        if (t.state == Thread::State::at_barrier) t.state = Thread::State::ready;
      continue;
    }
    if (order_seed != 0) std::shuffle(ready.begin(), ready.end(), order);
    for (int i : ready)
      if (b.threads[static_cast<size_t>(i)].state == Thread::State::ready) resume(b.threads[static_cast<size_t>(i)]);
  }
}

template <class Body>
void launch(dim3 grid, dim3 threads, size_t shared_bytes, Body body) {
  Block b;
  const int count = check_shape(grid, threads, shared_bytes);
  b.threads.resize(static_cast<size_t>(count));
  for (Thread& t : b.threads) t.stack.reset(new char[kStackBytes]);
  b.body = body;
  gridDim = grid;
  blockDim = threads;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        b.dynamic_shared.assign(shared_bytes, 0xff);  // NaN in every float format
        b.dynamic_shared.shrink_to_fit();
        b.warps.assign(static_cast<size_t>((count + 31) / 32), Warp());
        for (int i = 0; i < count; ++i) {
          Thread& t = b.threads[static_cast<size_t>(i)];
          t.flat = i;
          t.index = index_of(i);
          t.state = Thread::State::ready;
          t.fake_stack = nullptr;
          t.copies.assign(1, {});
          getcontext(&t.context);
          t.context.uc_stack.ss_sp = t.stack.get();
          t.context.uc_stack.ss_size = kStackBytes;
          t.context.uc_link = nullptr;
          makecontext(&t.context, thread_entry, 0);
        }
        run_block(b);
      }
  block = nullptr;
}

inline int barrier(int contribution) {
  block->barrier_sum += contribution;
  block->current->state = Thread::State::at_barrier;
  to_scheduler();
  threadIdx = block->current->index;
  return block->barrier_result;
}

inline const uint64_t (*exchange(unsigned mask, const void* value, size_t bytes))[4];
inline void sync_warp(unsigned mask) {
  const char nothing = 0;
  exchange(mask, &nothing, 1);
}

inline int flat_index() { return block->current->flat; }
inline Copies& copies() { return block->current->copies; }
inline unsigned char* dynamic_shared() { return block->dynamic_shared.data(); }

// Every lane of `mask` gives up to 32 bytes and gets all lanes'. Lanes that have left the kernel do not count.
inline const uint64_t (*exchange(unsigned mask, const void* value, size_t bytes))[4] {
  Thread& self = *block->current;
  const int warp_index = self.flat / 32, lane = self.flat % 32;
  if (!(mask >> lane & 1u)) die("a lane takes part in a warp operation whose mask leaves it out");
  Warp& warp = block->warps[static_cast<size_t>(warp_index)];
  Warp::Collective& c = warp.by_mask[mask];
  const unsigned generation = c.generation;
  std::memcpy(c.values[generation & 1u][lane], value, bytes);
  c.arrived |= 1u << lane;
  unsigned expected = mask;
  for (int i = 0; i < 32; ++i) {
    const size_t flat = static_cast<size_t>(warp_index * 32 + i);
    if (flat >= block->threads.size() || block->threads[flat].state == Thread::State::done) expected &= ~(1u << i);
  }
  if ((c.arrived & expected) == expected) {
    c.arrived = 0;
    ++c.generation;
    for (int i = 0; i < 32; ++i) {
      const size_t flat = static_cast<size_t>(warp_index * 32 + i);
      if (flat >= block->threads.size()) break;
      Thread& t = block->threads[flat];
      if (t.state == Thread::State::in_warp && t.waits_for_mask == mask) t.state = Thread::State::ready;
    }
  } else {
    self.state = Thread::State::in_warp;
    self.waits_for_mask = mask;
    to_scheduler();
    threadIdx = block->current->index;
  }
  return c.values[generation & 1u];
}

}  // namespace emulation
