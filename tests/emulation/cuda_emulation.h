// CUDA on one CPU thread, for tests: every CUDA thread is a coroutine with a stack of its own, blocks run one after
// the other, and threads of a block run in an order drawn anew at every barrier and warp operation.
//
// What it shows: index errors (under AddressSanitizer; shared memory is a heap block of exactly the size asked for,
// filled with NaN before each block), missing barriers (another order gives another result), barriers that not all
// threads reach (a message and abort), and, with late copies, asynchronous copies that are read before they were waited
// for. What it does not show: races inside one run between barriers, memory ordering, speed. Launches are synchronous.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "common/half.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define FSSOPS_EMULATION_ASAN 1
#else
#define FSSOPS_EMULATION_ASAN 0
#endif
#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#ifndef __grid_constant__
#define __grid_constant__
#endif
#define __align__(n) alignas(n)
// Blocks run one after the other, so a block's static shared memory may be a static variable.
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// What launching asks of the CUDA runtime. A test sets what is answered.
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchOutOfResources = 701, cudaErrorIllegalAddress = 700 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
using cudaStream_t = void*;
namespace emulation {
inline cudaError_t on_launch = cudaSuccess, on_synchronize = cudaSuccess;
inline cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
}  // namespace emulation
inline cudaError_t cudaGetLastError() { return emulation::on_launch; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return emulation::on_synchronize; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulation::capture;
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaErrorIllegalAddress ? "an illegal memory access was encountered"
                                           : "too many resources requested for launch";
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int) {
  return cudaSuccess;
}

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

struct Copy {
  void* shared;
  const void* global;  // null: zeros
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
  // Copies under way: those of each group that was committed and not waited for yet, oldest first, and at the end those
  // that belong to none yet.
  std::deque<std::vector<Copy>> copies;
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
  int barrier_predicate = 0;  // running or-count of __syncthreads_* at this barrier
  int barrier_result = 0;
};

inline Block* block = nullptr;
inline std::mt19937 order{12345};
// Set the seed of the order in which threads run; 0 runs them in index order.
inline unsigned order_seed = 1;

// Whether an asynchronous copy is made when it is waited for (the last moment at which CUDA may make it) and not at
// once.
inline bool late_copies = false;

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

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "cuda_emulation: %s in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
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
      b.barrier_result = b.barrier_predicate;
      b.barrier_predicate = 0;
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
  const int count = static_cast<int>(threads.x * threads.y * threads.z);
  if (count < 1 || count > 1024) die("a block must have 1 to 1024 threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) die("grid size out of range");
  if (shared_bytes > 99 * 1024) die("more than 99 KiB of shared memory");  // what 8.6, 8.9 and 12.0 give a block
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
          const unsigned u = static_cast<unsigned>(i);
          t.index = dim3(u % threads.x, u / threads.x % threads.y, u / (threads.x * threads.y));
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

inline void barrier() {
  block->current->state = Thread::State::at_barrier;
  to_scheduler();
  threadIdx = block->current->index;
}

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

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
  const auto* values = exchange(mask, &value, sizeof value);
  T out;
  std::memcpy(&out, values[source & 31], sizeof out);
  return out;
}

inline void make(const Copy& copy) {
  if (copy.global != nullptr)
    std::memcpy(copy.shared, copy.global, 16);
  else
    std::memset(copy.shared, 0, 16);
}

inline void copy_16_bytes_async(void* shared, const void* global) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0)
    die("an asynchronous copy between addresses that are no multiples of 16");
  if (late_copies)
    block->current->copies.back().push_back({shared, global});
  else
    make({shared, global});
}

inline void commit_copies() { block->current->copies.emplace_back(); }

inline void wait_copies(int pending) {
  auto& copies = block->current->copies;
  for (; copies.size() > static_cast<size_t>(pending) + 1; copies.pop_front())
    for (const Copy& copy : copies.front()) make(copy);
}

inline int lane() { return block->current->flat % 32; }

template <class Half>
void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  uint32_t own[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const auto* values = exchange(0xffffffffu, own, sizeof own);
  auto element = [&](int from_lane, int reg, int part) {
    uint32_t regs[6];
    std::memcpy(regs, values[from_lane], sizeof regs);
    Half half;
    half.bits = static_cast<uint16_t>(regs[reg] >> (16 * part));
    return to_float(half);
  };
  const int group = lane() / 4, pair = 2 * (lane() % 4);
  for (int i = 0; i < 4; ++i) {
    const int row = group + (i / 2) * 8, column = pair + i % 2;
    float total = d[i];
    for (int k = 0; k < 16; ++k) {
      const float left = element((row % 8) * 4 + (k % 8) / 2, (row / 8) + 2 * (k / 8), k % 2);
      const float right = element(column * 4 + (k % 8) / 2, 4 + k / 8, k % 2);
      total += left * right;
    }
    d[i] = total;
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }
inline int __syncthreads_or(int predicate) {
  emulation::block->barrier_predicate |= predicate != 0;
  emulation::barrier();
  return emulation::block->barrier_result;
}
inline int __syncthreads_count(int predicate) {
  emulation::block->barrier_predicate += predicate != 0;
  emulation::barrier();
  return emulation::block->barrier_result;
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  char nothing = 0;
  emulation::exchange(mask, &nothing, 1);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int base = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, base + source % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int source = emulation::lane() ^ lanes;
  const T got = emulation::shuffle(mask, value, source);
  return source / width == emulation::lane() / width ? got : value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = emulation::lane() + static_cast<int>(delta);
  const T got = emulation::shuffle(mask, value, source);
  return source / width == emulation::lane() / width ? got : value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = emulation::lane() - static_cast<int>(delta);
  const T got = emulation::shuffle(mask, value, source & 31);
  return source >= emulation::lane() / width * width ? got : value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto* values = emulation::exchange(mask, &predicate, sizeof predicate);
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) {
    int set;
    std::memcpy(&set, values[i], sizeof set);
    if ((mask >> i & 1u) && set) bits |= 1u << i;
  }
  return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class T, class U>
T atomicAdd(T* target, U value) {
  const T old = *target;
  *target = static_cast<T>(old + value);
  return old;
}
template <class T>
T atomicMax(T* target, T value) {
  const T old = *target;
  *target = old < value ? value : old;
  return old;
}
template <class T>
T atomicMin(T* target, T value) {
  const T old = *target;
  *target = value < old ? value : old;
  return old;
}
template <class T>
T atomicOr(T* target, T value) {
  const T old = *target;
  *target = old | value;
  return old;
}
template <class T>
T atomicAnd(T* target, T value) {
  const T old = *target;
  *target = old & value;
  return old;
}
template <class T>
T atomicExch(T* target, T value) {
  const T old = *target;
  *target = value;
  return old;
}
template <class T>
T atomicCAS(T* target, T expected, T value) {
  const T old = *target;
  if (old == expected) *target = value;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* source) {
  return *source;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1. / std::sqrt(x); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __saturatef(float x) { return x < 0.f ? 0.f : (x > 1.f ? 1.f : x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __ffsll(unsigned long long x) { return __builtin_ffsll(static_cast<long long>(x)); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= (x >> i & 1u) << (31 - i);
  return out;
}
inline float __uint_as_float(unsigned x) { return fssops::soft::from_bits(x); }
inline unsigned __float_as_uint(float x) { return fssops::soft::to_bits(x); }
inline int __float_as_int(float x) { return static_cast<int>(fssops::soft::to_bits(x)); }
inline float __int_as_float(int x) { return fssops::soft::from_bits(static_cast<unsigned>(x)); }
using std::max;
using std::min;

#define FSSOPS_START(kernel, grid, block_size, shared_bytes, stream, ...) \
  ::emulation::launch(dim3(grid), dim3(block_size), static_cast<size_t>(shared_bytes), [&] { (kernel)(__VA_ARGS__); })
#define FSSOPS_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::emulation::block->dynamic_shared.data())

// What every emulated library can be told.
#define FSSOPS_EXPORT extern "C" __attribute__((visibility("default"), used)) inline
FSSOPS_EXPORT void set_order_seed(unsigned seed) {
  emulation::order_seed = seed;
  emulation::order.seed(seed);
}
FSSOPS_EXPORT void set_late_copies(bool late) { emulation::late_copies = late; }
