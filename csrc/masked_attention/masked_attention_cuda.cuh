// Kernels of masked attention: those on the matrix units, those on the ordinary ones, those that make masks, and here
// what is done a query at a time. F inputs, A accumulator.
#pragma once

#include "masked_attention/masked_attention_fma.cuh"
#include "masked_attention/masked_attention_half_backward.cuh"
#include "masked_attention/masked_attention_mask.cuh"

namespace fssops::masked_attention {

constexpr int kRowThreads = 128, kRowsPerBlock = kRowThreads / kWarpSize;

// Which query a row of [B, M, Q] is.
struct RowIndex {
  int64_t b, m, q;
  __device__ RowIndex(const Sizes& s, int64_t row)
      : b(row / s.queries / s.heads), m(row / s.queries % s.heads), q(row % s.queries) {}
};

// out and logsumexp from the parts' shares. A warp a row.
template <class F, class A>
__global__ void __launch_bounds__(kRowThreads)
    combine_kernel(Sizes s, int parts, const A* partial, F* out, A* logsumexp) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t rows = s.batch * s.heads * s.queries, depth = s.head_size, step = depth + 2;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarpSize; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    A largest = -INFINITY;
    int has_key = 0;
    for (int part = lane; part < parts; part += kWarpSize) {
      const A* share = partial + (part * rows + row) * step;
      if (share[depth + 1] == A(-1)) continue;
      has_key = 1;
      largest = largest < share[depth] ? share[depth] : largest;
    }
    largest = warp_max(largest);
    has_key = __any_sync(kFullWarp, has_key);
    const A shift = largest == A(-INFINITY) ? A(0) : largest;
    A total = A(0), sums[kMaxHeadSize / kWarpSize] = {};
    for (int part = 0; part < parts; ++part) {
      const A* share = partial + (part * rows + row) * step;
      if (share[depth + 1] == A(-1)) continue;
      const A factor = exp2(share[depth] - shift);
      total += factor * share[depth + 1];
#pragma unroll
      for (int c = 0; c < kMaxHeadSize / kWarpSize; ++c)
        if (c * kWarpSize + lane < depth) sums[c] += factor * share[c * kWarpSize + lane];
    }
    const RowIndex at(s, row);
#pragma unroll
    for (int c = 0; c < kMaxHeadSize / kWarpSize; ++c)
      if (c * kWarpSize + lane < depth)
        store_from_accumulator(out + s.out.at(at.b, at.m, at.q) + c * kWarpSize + lane,
                               has_key ? sums[c] / total : A(0));
    if (lane == 0) logsumexp[row] = has_key ? A(0.6931471805599453) * largest + log(total) : A(-INFINITY);
  }
}

// delta = <grad, out>. A warp a row.
template <class F, class A>
__global__ void __launch_bounds__(kRowThreads) delta_kernel(Sizes s, const F* grad, const F* out, A* delta) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t rows = s.batch * s.heads * s.queries;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarpSize; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const RowIndex at(s, row);
    const F* g = grad + s.grad_out.at(at.b, at.m, at.q);
    const F* o = out + s.out.at(at.b, at.m, at.q);
    A total = A(0);
    for (int d = lane; d < s.head_size; d += kWarpSize)
      total += A(load_as_accumulator(g[d])) * A(load_as_accumulator(o[d]));
    total = warp_sum(total);
    if (lane == 0) delta[row] = total;
  }
}

// grad_query = scale * sum of the parts' shares. A warp a row.
template <class F, class A>
__global__ void __launch_bounds__(kRowThreads)
    sum_parts_kernel(Sizes s, int parts, A scale, const A* partial, F* grad_query) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t rows = s.batch * s.heads * s.queries;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarpSize; row < rows;
       row += static_cast<int64_t>(gridDim.x) * kRowsPerBlock) {
    const RowIndex at(s, row);
    F* target = grad_query + s.out.at(at.b, at.m, at.q);
    for (int d = lane; d < s.head_size; d += kWarpSize) {
      A total = A(0);
      for (int part = 0; part < parts; ++part) total += partial[(part * rows + row) * s.head_size + d];
      store_from_accumulator(target + d, scale * total);
    }
  }
}

}  // namespace fssops::masked_attention
