// What CUDA kernels share. Compiled by nvcc for the GPU, and by g++ in the tests, where cuda_emulation.h
// (tests/emulation) runs every CUDA thread as a coroutine. Kernels take raw pointers and include no torch.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
#include "cuda_emulation.h"
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "common/half.h"

namespace fssops {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// Ceiling of a / b for positive b.
FSSOPS_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, value, offset);
    value = value < other ? other : value;
  }
  return value;
}

// Sum over the block, valid in every thread. `scratch` holds one T a warp; all threads must call it.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int warps = (blockDim.x + kWarpSize - 1) / kWarpSize;
  value = warp_sum(value);
  __syncthreads();
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  T total = T(0);
  for (int i = 0; i < warps; ++i) total += scratch[i];
  return total;
}

// ---- warp matrix multiply, half inputs and float accumulators: d[16x8] += a[16x16] * b[16x8] --------------------
// Fragments as in the PTX manual (mma.m16n8k16), two halves a register; with group = lane / 4, pair = 2 * (lane % 4):
//   a[0] = A[group][pair..],     a[1] = A[group + 8][pair..],
//   a[2] = A[group][pair + 8..], a[3] = A[group + 8][pair + 8..],
//   b[0] = B[pair..][group],     b[1] = B[pair + 8..][group],
//   d[0..1] = D[group][pair..],  d[2..3] = D[group + 8][pair..].
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], half_t) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma_16x8x16<half_t>(d, a, b);
#endif
}

__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16_t) {
#if defined(__CUDACC__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulation::mma_16x8x16<bf16_t>(d, a, b);
#endif
}

// ---- asynchronous copies -----------------------------------------------------------------------------------------
// 16 bytes from global to shared memory, both aligned to 16; there after wait_copies.
__device__ __forceinline__ void copy_16_bytes_async(void* shared, const void* global) {
#if defined(__CUDA_ARCH__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;\n" ::"r"(address), "l"(global) : "memory");
#elif !defined(__CUDACC__)
  emulation::copy_16_bytes_async(shared, global);
#endif
}

// The same, or zeros.
__device__ __forceinline__ void copy_16_bytes_async(void* shared, const void* global, bool inside) {
#if defined(__CUDA_ARCH__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(bytes) : "memory");
#elif !defined(__CUDACC__)
  emulation::copy_16_bytes_async(shared, inside ? global : nullptr);
#endif
}

// Makes a group of this thread's copies since the last one.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#elif !defined(__CUDACC__)
  emulation::commit_copies();
#endif
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  emulation::wait_copies(kPending);
#endif
}

// Two values in one register, the first in the low half.
template <class Half>
__device__ __forceinline__ uint32_t pack_pair(float first, float second) {
  Half low, high;
  store_from_accumulator(&low, first);
  store_from_accumulator(&high, second);
  return static_cast<uint32_t>(low.bits) | (static_cast<uint32_t>(high.bits) << 16);
}

// ---- launch shapes ---------------------------------------------------------------------------------------------
// Shared memory that every GPU from 8.0 on can give one block: 8.6, 8.9 and 12.0 have no more.
constexpr int kMostSharedBytes = 99 * 1024;

constexpr int64_t kMaxGridYZ = 65535;

// Blocks of a kernel that walks on by gridDim: at most `most`, at least one.
inline unsigned clamp_grid(int64_t blocks, int64_t most = kMaxGridYZ) {
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks < most ? blocks : most));
}

// The same for `count` elements, one a thread.
inline unsigned element_blocks(int64_t count, int threads, int64_t most = int64_t{1} << 20) {
  return clamp_grid(ceil_div(count, threads), most);
}

// Calls body(F{}) with the element type that launchers are told as 0 float32, 1 float64, 2 float16, 3 bfloat16.
template <class Body>
void dispatch_dtype(int dtype, const Body& body) {
  switch (dtype) {
    case 0:
      return body(float{});
    case 1:
      return body(double{});
    case 2:
      return body(half_t{});
    default:
      return body(bf16_t{});
  }
}

// ---- launch ------------------------------------------------------------------------------------------------------
// FSSOPS_LAUNCH((kernel<T, 4>), grid, block, shared_bytes, stream, arguments...); throws with the names of the operator
// and the kernel when the launch is refused. Kernels take their dynamic shared memory by FSSOPS_DYNAMIC_SHARED(type,
// name).

// More needs CUDA 12.1 and a driver of that age.
constexpr size_t kMostParameterBytes = 4096;

template <class... Parameters>
constexpr size_t parameter_bytes(void (*)(Parameters...)) {
  size_t bytes = 0;
  ((bytes = (bytes + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)), ...);
  return bytes;
}

// `file` is .../<operator>_cuda.cu.
inline void check_status(cudaError_t status, const char* what, const char* kernel, const std::string& file) {
  if (status == cudaSuccess) return;
  const size_t folder = file.find_last_of('/'), begin = folder == std::string::npos ? 0 : folder + 1;
  throw std::runtime_error("fssops: " + file.substr(begin, file.rfind('_') - begin) + ": " + what + ' ' + kernel +
                           " failed: " + cudaGetErrorString(status));
}

// A fault of a kernel that runs shows in whatever call asks next, often one of torch's. With CUDA_LAUNCH_BLOCKING=1,
// the setting that torch's own kernels know, each is waited for, but where a graph is captured and nothing runs.
inline void check_launch(const char* kernel, const char* file, cudaStream_t stream) {
  check_status(cudaGetLastError(), "launching", kernel, file);
  static const bool blocking = [] {
    const char* set = std::getenv("CUDA_LAUNCH_BLOCKING");
    return set != nullptr && *set != '\0' && *set != '0';
  }();
  if (!blocking) return;
  cudaStreamCaptureStatus capture;
  check_status(cudaStreamIsCapturing(stream, &capture), "running", kernel, file);
  if (capture == cudaStreamCaptureStatusNone) check_status(cudaStreamSynchronize(stream), "running", kernel, file);
}

#if defined(__CUDACC__)
#define FSSOPS_START(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)
#define FSSOPS_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(16) unsigned char fssops_dynamic[]; \
  type* name = reinterpret_cast<type*>(fssops_dynamic)
#endif

#define FSSOPS_STRIP_PARENTHESES(...) __VA_ARGS__
#define FSSOPS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                         \
  do {                                                                                        \
    constexpr auto fssops_kernel = &FSSOPS_STRIP_PARENTHESES kernel;                          \
    static_assert(::fssops::parameter_bytes(fssops_kernel) <= ::fssops::kMostParameterBytes); \
    const auto fssops_stream = static_cast<cudaStream_t>(stream);                             \
    if ((shared_bytes) > 48 * 1024)                                                           \
      cudaFuncSetAttribute(fssops_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,        \
                           static_cast<int>(shared_bytes));                                   \
    FSSOPS_START(fssops_kernel, grid, block, shared_bytes, fssops_stream, __VA_ARGS__);       \
    ::fssops::check_launch(#kernel, __FILE__, fssops_stream);                                 \
  } while (0)

}  // namespace fssops
