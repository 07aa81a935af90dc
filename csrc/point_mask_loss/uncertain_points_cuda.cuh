// Choosing the points whose logits are nearest to 0: keys of all candidates, then one block a mask finds the key at
// position `keep` digit by digit and writes the chosen points in their order.
#pragma once

#include "point_mask_loss/point_mask_loss_cuda.cuh"

namespace fssops::point_mask_loss {

constexpr int kSelectThreads = 512;
constexpr int kDigit = 8, kBins = 1 << kDigit;

template <class A>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = unsigned long long;
};

__device__ __forceinline__ uint32_t key_of(float x) { return x != x ? 0u : __float_as_uint(x) & 0x7fffffffu; }
__device__ __forceinline__ unsigned long long key_of(double x) {
  unsigned long long bits;
  memcpy(&bits, &x, sizeof bits);
  return x != x ? 0ull : bits & 0x7fffffffffffffffull;
}

// grid (blocks of points, N).
template <class A, class F>
__global__ void __launch_bounds__(kThreads)
    uncertainty_kernel(Maps maps, Points points, typename KeyOf<A>::type* keys) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= points.count) return;
  for (int64_t row = blockIdx.y; row < points.rows; row += gridDim.y)
    keys[row * points.count + p] = key_of(
        logit_value<A, F>(maps, row, static_cast<const A*>(points.data) + points.offset(row) + 2 * p, points.count, p));
}

// Number of set predicates in lower threads of the block; `total` is that of all. Uses counts [warps].
__device__ __forceinline__ int block_rank(bool predicate, int* counts, int& total) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const unsigned bits = __ballot_sync(kFullWarp, predicate);
  __syncthreads();
  if (lane == 0) counts[warp] = __popc(bits);
  __syncthreads();
  int before = __popc(bits & ((1u << lane) - 1u));
  total = 0;
  for (int i = 0; i < kSelectThreads / kWarpSize; ++i) {
    if (i < warp) before += counts[i];
    total += counts[i];
  }
  return before;
}

// One block a row.
template <class A>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(Points points, int64_t keep, int64_t stride, const typename KeyOf<A>::type* keys, A* chosen) {
  using Key = typename KeyOf<A>::type;
  FSSOPS_DYNAMIC_SHARED(int, shared);
  int* bins = shared;                                      // [kBins]
  int* counts = shared + kBins;                            // [2 * warps]
  int* found = counts + 2 * (kSelectThreads / kWarpSize);  // [2]: digit, keys below it
  const int64_t row = blockIdx.x, count = points.count;
  const Key* own = keys + row * count;
  Key prefix = 0, known = 0;
  int64_t smaller = 0;
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - kDigit; shift >= 0; shift -= kDigit) {
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += kSelectThreads) {
      const Key key = own[i];
      if ((key & known) == prefix) atomicAdd(&bins[static_cast<int>(key >> shift) & (kBins - 1)], 1);
    }
    __syncthreads();
    if (threadIdx.x < kWarpSize) {  // the first warp finds the digit: 8 bins a lane
      int own_bins[kBins / kWarpSize], sum = 0;
#pragma unroll
      for (int i = 0; i < kBins / kWarpSize; ++i) sum += own_bins[i] = bins[threadIdx.x * (kBins / kWarpSize) + i];
      int before = sum;
#pragma unroll
      for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const int other = __shfl_up_sync(kFullWarp, before, offset);
        if (static_cast<int>(threadIdx.x) >= offset) before += other;
      }
      before -= sum;
      const int64_t rank = keep - 1 - smaller;  // among the keys with this prefix
      if (rank >= before && rank < before + sum) {
        int digit = static_cast<int>(threadIdx.x) * (kBins / kWarpSize);
#pragma unroll
        for (int i = 0; i < kBins / kWarpSize; ++i) {
          if (rank < before + own_bins[i]) {
            found[0] = digit + i;
            found[1] = before;
            break;
          }
          before += own_bins[i];
        }
      }
    }
    __syncthreads();
    prefix |= static_cast<Key>(found[0]) << shift;
    known |= static_cast<Key>(kBins - 1) << shift;
    smaller += found[1];
    __syncthreads();
  }
  // In the order of the candidates; of those at the limit the first ones.
  const A* from = static_cast<const A*>(points.data) + points.offset(row);
  A* to = chosen + row * stride * 2;
  const int64_t ties = keep - smaller;
  int64_t written = 0, tied = 0;
  for (int64_t start = 0; start < count; start += kSelectThreads) {
    const int64_t i = start + threadIdx.x;
    const Key key = i < count ? own[i] : Key(0);
    const bool tie = i < count && key == prefix;
    int total_ties, total;
    const int tie_rank = block_rank(tie, counts, total_ties);
    const bool taken = (i < count && key < prefix) || (tie && tied + tie_rank < ties);
    const int rank = block_rank(taken, counts + kSelectThreads / kWarpSize, total);
    if (taken) {
      to[2 * (written + rank)] = from[2 * i];
      to[2 * (written + rank) + 1] = from[2 * i + 1];
    }
    written += total;
    tied += total_ties;
  }
}

}  // namespace fssops::point_mask_loss
