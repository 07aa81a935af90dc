// CUDA on the CPU, for tests: blocks run one after the other, the threads of a block as coroutines of one thread, in an
// order drawn anew at every barrier and warp operation, or as threads.
//
// What it shows: index errors (under AddressSanitizer; shared memory is a heap block of exactly the size asked for,
// filled with NaN before each block), missing barriers (another order gives another result), barriers that not all
// threads reach (a message and abort), and, with late copies, asynchronous copies that are read before they were waited
// for; with threads, under ThreadSanitizer, what two of them access without a barrier between. What it does not show:
// memory ordering in a GPU's own ways, speed. Launches are synchronous.
#pragma once

#include <algorithm>
#include <atomic>
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

#if defined(FSSOPS_EMULATION_THREADS)
inline thread_local dim3 threadIdx;
#else
inline dim3 threadIdx;
#endif
inline dim3 blockIdx, blockDim, gridDim;

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

inline std::mt19937 order{12345};
// Set the seed of the order in which threads run; 0 runs them in index order.
inline unsigned order_seed = 1;

// Whether an asynchronous copy is made when it is waited for (the last moment at which CUDA may make it) and not at
// once.
inline bool late_copies = false;

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "cuda_emulation: %s in block (%u, %u, %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z);
  std::abort();
}

struct Copy {
  void* shared;
  const void* global;  // null: zeros
};
// Copies of a thread under way: those of each group that was committed and not waited for yet, oldest first, and at the
// end those that belong to none yet.
using Copies = std::deque<std::vector<Copy>>;

// How many threads a block has.
inline int check_shape(dim3 grid, dim3 threads, size_t shared_bytes) {
  const int count = static_cast<int>(threads.x * threads.y * threads.z);
  if (count < 1 || count > 1024) die("a block must have 1 to 1024 threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) die("grid size out of range");
  if (shared_bytes > 99 * 1024) die("more than 99 KiB of shared memory");  // what 8.6, 8.9 and 12.0 give a block
  return count;
}

inline dim3 index_of(int flat) {
  const unsigned u = static_cast<unsigned>(flat);
  return dim3(u % blockDim.x, u / blockDim.x % blockDim.y, u / (blockDim.x * blockDim.y));
}

}  // namespace emulation

#if defined(FSSOPS_EMULATION_THREADS)
#include "cuda_threads.h"
#else
#include "cuda_coroutines.h"
#endif

namespace emulation {

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
    copies().back().push_back({shared, global});
  else
    make({shared, global});
}

inline void commit_copies() { copies().emplace_back(); }

inline void wait_copies(int pending) {
  Copies& all = copies();
  for (; all.size() > static_cast<size_t>(pending) + 1; all.pop_front())
    for (const Copy& copy : all.front()) make(copy);
}

inline int lane() { return flat_index() % 32; }

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

inline void __syncthreads() { emulation::barrier(0); }
inline int __syncthreads_or(int predicate) { return emulation::barrier(predicate != 0) != 0; }
inline int __syncthreads_count(int predicate) { return emulation::barrier(predicate != 0); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::sync_warp(mask); }
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

namespace emulation {

// Relaxed, as on CUDA: an atomic operation puts no other access in order.
template <class T, class Change>
T update(T* target, Change change) {
  const std::atomic_ref<T> shared(*target);
  T old = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace emulation

template <class T, class U>
T atomicAdd(T* target, U value) {
  return emulation::update(target, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* target, T value) {
  return emulation::update(target, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* target, T value) {
  return emulation::update(target, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* target, T value) {
  return emulation::update(target, [&](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* target, T value) {
  return emulation::update(target, [&](T old) { return old & value; });
}
template <class T>
T atomicExch(T* target, T value) {
  return emulation::update(target, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* target, T expected, T value) {
  return emulation::update(target, [&](T old) { return old == expected ? value : old; });
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
#define FSSOPS_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(::emulation::dynamic_shared())

// What every emulated library can be told.
#define FSSOPS_EXPORT extern "C" __attribute__((visibility("default"), used)) inline
FSSOPS_EXPORT void set_order_seed(unsigned seed) {
  emulation::order_seed = seed;
  emulation::order.seed(seed);
}
FSSOPS_EXPORT void set_late_copies(bool late) { emulation::late_copies = late; }
