// Choosing the points whose logits are nearest to 0: keys of all candidates, then one block a mask finds the key at
// position `keep` digit by digit and writes the chosen points in their order. A few reads of 4 bytes a candidate, from
// the L2 cache.
#pragma once

#include "point_mask_loss/point_sampling_cuda.cuh"

namespace fssops::point_mask_loss {

constexpr int kSelectThreads = 1024;
constexpr int kSelectWarps = kSelectThreads / kWarpSize;
constexpr int kDigit = 11, kBins = 1 << kDigit;
constexpr int kBinsPerThread = kBins / kSelectThreads;
constexpr int kSelectInts = kBins + 2 * kSelectWarps + 2;  // shared memory of select_kernel

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

// Inclusive sum over the lanes below and this one.
__device__ __forceinline__ int warp_scan(int value) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int offset = 1; offset < kWarpSize; offset *= 2) {
    const int other = __shfl_up_sync(kFullWarp, value, offset);
    if (lane >= offset) value += other;
  }
  return value;
}

// One block a row.
template <class A>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(Points points, int64_t keep, int64_t stride, const typename KeyOf<A>::type* keys, A* chosen) {
  using Key = typename KeyOf<A>::type;
  FSSOPS_DYNAMIC_SHARED(int, bins);        // [kBins]
  int* counts = bins + kBins;              // [2 * kSelectWarps]
  int* found = counts + 2 * kSelectWarps;  // digit, and how many keys with this prefix lie below it
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t row = blockIdx.x, count = points.count;
  const Key* own = keys + row * count;
  Key prefix = 0, known = 0;
  int64_t smaller = 0;
  // Digits from the top, the sign bit left out (it is 0); the last one overlaps the one before, in bits known already.
  // The first tells exponents and 3 bits of mantissa apart, so that few lanes of a warp meet in one bin.
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - 1 - kDigit;; shift = shift > kDigit ? shift - kDigit : 0) {
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < count; i += kSelectThreads) {
      const Key key = own[i];
      if ((key & known) == prefix) atomicAdd(&bins[static_cast<int>(key >> shift) & (kBins - 1)], 1);
    }
    __syncthreads();
    int own_bins[kBinsPerThread], sum = 0;
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) sum += own_bins[i] = bins[threadIdx.x * kBinsPerThread + i];
    const int inclusive = warp_scan(sum);
    if (lane == kWarpSize - 1) counts[warp] = inclusive;
    __syncthreads();
    int before = inclusive - sum;
    for (int i = 0; i < warp; ++i) before += counts[i];
    const int64_t rank = keep - 1 - smaller;  // among the keys with this prefix
#pragma unroll
    for (int i = 0; i < kBinsPerThread; ++i) {
      if (rank >= before && rank < before + own_bins[i]) {
        found[0] = static_cast<int>(threadIdx.x) * kBinsPerThread + i;
        found[1] = before;
      }
      before += own_bins[i];
    }
    __syncthreads();
    prefix |= static_cast<Key>(found[0]) << shift;
    known |= static_cast<Key>(kBins - 1) << shift;
    smaller += found[1];
    if (shift == 0) break;
    __syncthreads();
  }
  // Every warp writes what is chosen of its part of the candidates, in their order; of those at the limit the first
  // ones.
  const int64_t share = ceil_div(ceil_div(count, kSelectWarps), kWarpSize) * kWarpSize;
  const int64_t from = warp * share, to = from + share < count ? from + share : count;
  int below = 0, tied = 0;
#pragma unroll 4
  for (int64_t start = from; start < to; start += kWarpSize) {
    const int64_t i = start + lane;
    const Key key = i < to ? own[i] : ~Key(0);
    below += key < prefix;
    tied += key == prefix;
  }
  below = warp_sum(below);
  tied = warp_sum(tied);
  __syncthreads();
  if (lane == 0) {
    counts[warp] = below;
    counts[kSelectWarps + warp] = tied;
  }
  __syncthreads();
  int64_t ties_left = keep - smaller, written = 0;
  for (int i = 0; i < warp; ++i) {
    const int64_t ties = counts[kSelectWarps + i];
    const int64_t taken = ties < ties_left ? ties : ties_left;
    ties_left -= taken;
    written += counts[i] + taken;
  }
  const A* source = static_cast<const A*>(points.data) + points.offset(row);
  A* target = chosen + row * stride * 2;
#pragma unroll 2
  for (int64_t start = from; start < to; start += kWarpSize) {
    const int64_t i = start + lane;
    const Key key = i < to ? own[i] : ~Key(0);
    const unsigned lower = (1u << lane) - 1u;
    const unsigned ties = __ballot_sync(kFullWarp, key == prefix);
    const bool taken = key < prefix || (key == prefix && __popc(ties & lower) < ties_left);
    const unsigned all = __ballot_sync(kFullWarp, taken);
    if (taken) {
      A* pair = target + 2 * (written + __popc(all & lower));
      pair[0] = source[2 * i];
      pair[1] = source[2 * i + 1];
    }
    written += __popc(all);
    const int64_t more = __popc(ties);
    ties_left -= more < ties_left ? more : ties_left;
  }
}

}  // namespace fssops::point_mask_loss
