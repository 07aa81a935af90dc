// Kernels of the losses at points. Sums have a fixed order: each block adds up one chunk of a row, one more block adds
// up the chunks. Beyond the sampling, the forward pass writes two numbers a point and the backward pass reads them.
#pragma once

#include "point_mask_loss/point_sampling_cuda.cuh"

namespace fssops::point_mask_loss {

// What the gradients at the points of a row are made with.
template <class A>
__device__ __forceinline__ LossScales<A> scales_of(int64_t row, int64_t points, bool reduce, A divisor,
                                                   const A* num_masks, const A* grad_mask, const A* grad_dice,
                                                   const A* stats) {
  const A scale = num_masks == nullptr ? divisor : divisor * num_masks[0];
  const int64_t i = reduce ? 0 : row;
  return LossScales<A>(grad_mask[i] / scale, grad_dice[i] / scale, stats[2 * row], stats[2 * row + 1], points);
}

// The gradient at points from what the forward pass kept.
template <class A>
struct LossGrad {
  const A *probabilities, *targets_at, *grad_mask, *grad_dice, *stats, *num_masks;
  A divisor;
  int64_t points;
  bool reduce;
  LossScales<A> scales;
  __device__ void begin_plane(int64_t row) {
    scales = scales_of(row, points, reduce, divisor, num_masks, grad_mask, grad_dice, stats);
  }
  __device__ A operator()(int64_t row, int64_t p) const {
    return scales.grad(probabilities[row * points + p], targets_at[row * points + p]);
  }
};

__device__ __forceinline__ float exp_of(float x) { return __expf(x); }
__device__ __forceinline__ double exp_of(double x) { return exp(x); }
__device__ __forceinline__ float log1p_of(float x) { return log1pf(x); }
__device__ __forceinline__ double log1p_of(double x) { return log1p(x); }

// s = sigmoid(x); returns softplus(x).
template <class A>
__device__ __forceinline__ A sigmoid_and_softplus(A x, A& s) {
  const A z = exp_of(x < A(0) ? x : -x);
  const A r = A(1) / (A(1) + z);
  s = x < A(0) ? z * r : r;
  return (x > A(0) || x != x ? x : A(0)) + log1p_of(z);
}

// grid (chunks, N): what is kept of each point, and the sums of a chunk.
template <class A, class F>
__global__ void __launch_bounds__(kThreads)
    loss_kernel(Maps logits, Maps targets, Points points, A* probabilities, A* targets_at, A* partial) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // [kWarps][kSums]
  const int64_t parts = gridDim.x;
  for (int64_t row = blockIdx.y; row < points.rows; row += gridDim.y) {
    const A* own = static_cast<const A*>(points.data) + points.offset(row);
    const int64_t from = blockIdx.x * kCudaChunk,
                  to = from + kCudaChunk < points.count ? from + kCudaChunk : points.count;
    A sums[kSums] = {};
#pragma unroll 2
    for (int64_t p = from + threadIdx.x; p < to; p += kThreads) {
      const A x = logit_value<A, F>(logits, row, own + 2 * p, points.count, p);
      const A t = target_value(targets, row, own + 2 * p, points.count, p);
      A s;
      const A softplus = sigmoid_and_softplus(x, s);
      sums[0] += softplus - x * t;
      sums[1] += s * t;
      sums[2] += s;
      sums[3] += t;
      if (probabilities != nullptr) {
        probabilities[row * points.count + p] = s;
        targets_at[row * points.count + p] = t;
      }
    }
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = warp_sum(sums[i]);
    __syncthreads();
    if (lane == 0)
      for (int i = 0; i < kSums; ++i) scratch[warp * kSums + i] = sums[i];
    __syncthreads();
    if (threadIdx.x < kSums) {
      A total = A(0);
      for (int i = 0; i < kWarps; ++i) total += scratch[i * kSums + threadIdx.x];
      partial[(row * parts + blockIdx.x) * kSums + threadIdx.x] = total;
    }
  }
}

constexpr int kFinishThreads = 512, kFinishLanes = 8;  // lanes that share the chunks of a row

// One block: stats [N, 2] and the losses.
template <class A>
__global__ void __launch_bounds__(kFinishThreads)
    finish_loss_kernel(int64_t rows, int64_t count, int64_t parts, bool reduce, A divisor, const A* num_masks,
                       const A* partial, A* stats, A* loss_mask, A* loss_dice) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // one number a warp
  const A scale = num_masks == nullptr ? divisor : divisor * num_masks[0];
  const int lane = threadIdx.x % kFinishLanes;
  A mask_total = A(0), dice_total = A(0);
  constexpr int64_t kRows = kFinishThreads / kFinishLanes;
  for (int64_t first = 0; first < rows; first += kRows) {  // all threads stay, for the shuffles
    const int64_t row = first + threadIdx.x / kFinishLanes;
    A total[kSums] = {};
    if (row < rows) {
#pragma unroll 4
      for (int64_t part = lane; part < parts; part += kFinishLanes)
#pragma unroll
        for (int i = 0; i < kSums; ++i) total[i] += partial[(row * parts + part) * kSums + i];
    }
#pragma unroll
    for (int offset = kFinishLanes / 2; offset > 0; offset /= 2)
#pragma unroll
      for (int i = 0; i < kSums; ++i) total[i] += __shfl_xor_sync(kFullWarp, total[i], offset);
    if (row >= rows || lane != 0) continue;
    const A numerator = A(2) * total[1] + A(1), denominator = total[2] + total[3] + A(1);
    stats[2 * row] = numerator;
    stats[2 * row + 1] = denominator;
    const A mask = total[0] / A(count), dice = A(1) - numerator / denominator;
    mask_total += mask;
    dice_total += dice;
    if (!reduce) {
      loss_mask[row] = mask / scale;
      loss_dice[row] = dice / scale;
    }
  }
  if (!reduce) return;
  mask_total = block_sum(mask_total, scratch);
  dice_total = block_sum(dice_total, scratch);
  if (threadIdx.x == 0) {
    loss_mask[0] = mask_total / scale;
    loss_dice[0] = dice_total / scale;
  }
}

// grad_logits [N, P] where logits were given at the points. grid (blocks of points, N).
template <class A, class F>
__global__ void __launch_bounds__(kThreads)
    values_grad_kernel(int64_t rows, int64_t count, LossGrad<A> grad, F* grad_logits) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= count) return;
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    grad.begin_plane(row);
    store_from_accumulator(grad_logits + row * count + p, grad(row, p));
  }
}

}  // namespace fssops::point_mask_loss
