// The matching cost: two matrix products over the points that share their right side, with sigmoid and softplus formed
// as logits are read. Blocks share the points among them; a second kernel adds the parts in a fixed order and finishes.
#pragma once

#include "point_mask_loss/point_mask_loss_cuda.cuh"

namespace fssops::point_mask_loss {

constexpr int kTileQueries = 32, kTileTargets = 32, kTilePoints = 32;
// A thread of 16 x 16 holds 2 x 2 of both products.

// Layout of `partial`, by split: products of logits [Q, G], of sigmoids [Q, G], sums of softplus [Q], of sigmoids [Q],
// of targets [G].
template <class A>
struct CostPartial {
  A *of_logits, *of_sigmoids, *softplus, *sigmoid, *target;
  FSSOPS_HOST_DEVICE CostPartial(const CostSizes& s, A* partial, int64_t split) {
    const int64_t products = s.queries * s.targets;
    of_logits = partial + split * (2 * products + 2 * s.queries + s.targets);
    of_sigmoids = of_logits + products;
    softplus = of_sigmoids + products;
    sigmoid = softplus + s.queries;
    target = sigmoid + s.queries;
  }
};

// grid (splits, tiles of queries, tiles of targets).
template <class A>
__global__ void __launch_bounds__(kThreads, 1)
    cost_partial_kernel(CostSizes s, int64_t splits, const A* logits, const A* targets, A* partial) {
  // Rows of odd length, so that the threads of a warp, which walk down the rows, use different banks.
  FSSOPS_DYNAMIC_SHARED(A, shared);
  A(*x)[kTilePoints + 1] = reinterpret_cast<A(*)[kTilePoints + 1]>(shared);
  A(*sigmoid)[kTilePoints + 1] = x + kTileQueries;
  A(*t)[kTilePoints + 1] = sigmoid + kTileQueries;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int column = threadIdx.x % 16, line = threadIdx.x / 16;
  const int64_t q0 = static_cast<int64_t>(blockIdx.y) * kTileQueries,
                g0 = static_cast<int64_t>(blockIdx.z) * kTileTargets;
  const int64_t share = ceil_div(ceil_div(s.points, splits), kTilePoints) * kTilePoints;
  const int64_t from = blockIdx.x * share, to = from + share < s.points ? from + share : s.points;
  A of_logits[2][2] = {}, of_sigmoids[2][2] = {};
  A softplus_sum[kTileQueries / kWarps] = {}, sigmoid_sum[kTileQueries / kWarps] = {},
                                target_sum[kTileTargets / kWarps] = {};
  // The next tile is on its way from memory while this one is multiplied.
  A next_logit[kTileQueries / kWarps], next_target[kTileTargets / kWarps];
  const auto fetch = [&](int64_t start) {
    const int64_t p = start + lane;
#pragma unroll
    for (int i = 0; i < kTileQueries / kWarps; ++i) {
      const int64_t q = q0 + warp + i * kWarps;
      next_logit[i] = q < s.queries && p < to ? logits[q * s.points + p] : A(0);
    }
#pragma unroll
    for (int i = 0; i < kTileTargets / kWarps; ++i) {
      const int64_t g = g0 + warp + i * kWarps;
      next_target[i] = g < s.targets && p < to ? targets[g * s.points + p] : A(0);
    }
  };
  fetch(from);
  for (int64_t start = from; start < to; start += kTilePoints) {
    const bool inside = start + lane < to;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kTileQueries / kWarps; ++i) {
      A probability;
      const A softplus = sigmoid_and_softplus(next_logit[i], probability);
      if (!inside) probability = A(0);  // past the end targets are 0; rows past the end are not stored
      softplus_sum[i] += inside ? softplus : A(0);
      sigmoid_sum[i] += probability;
      x[warp + i * kWarps][lane] = next_logit[i];
      sigmoid[warp + i * kWarps][lane] = probability;
    }
#pragma unroll
    for (int i = 0; i < kTileTargets / kWarps; ++i) {
      target_sum[i] += next_target[i];
      t[warp + i * kWarps][lane] = next_target[i];
    }
    __syncthreads();
    if (start + kTilePoints < to) fetch(start + kTilePoints);
#pragma unroll 4
    for (int k = 0; k < kTilePoints; ++k) {
      const A t0 = t[column][k], t1 = t[column + 16][k];
      const A x0 = x[line][k], x1 = x[line + 16][k];
      const A s0 = sigmoid[line][k], s1 = sigmoid[line + 16][k];
      of_logits[0][0] += x0 * t0;
      of_logits[0][1] += x0 * t1;
      of_logits[1][0] += x1 * t0;
      of_logits[1][1] += x1 * t1;
      of_sigmoids[0][0] += s0 * t0;
      of_sigmoids[0][1] += s0 * t1;
      of_sigmoids[1][0] += s1 * t0;
      of_sigmoids[1][1] += s1 * t1;
    }
  }
  const CostPartial<A> out(s, partial, blockIdx.x);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t q = q0 + line + 16 * i, g = g0 + column + 16 * j;
      if (q < s.queries && g < s.targets) {
        out.of_logits[q * s.targets + g] = of_logits[i][j];
        out.of_sigmoids[q * s.targets + g] = of_sigmoids[i][j];
      }
    }
#pragma unroll
  for (int i = 0; i < kTileQueries / kWarps; ++i) {
    const int64_t q = q0 + warp + i * kWarps;
    const A softplus_total = warp_sum(softplus_sum[i]), sigmoid_total = warp_sum(sigmoid_sum[i]);
    if (lane == 0 && blockIdx.z == 0 && q < s.queries) {
      out.softplus[q] = softplus_total;
      out.sigmoid[q] = sigmoid_total;
    }
  }
#pragma unroll
  for (int i = 0; i < kTileTargets / kWarps; ++i) {
    const int64_t g = g0 + warp + i * kWarps;
    const A total = warp_sum(target_sum[i]);
    if (lane == 0 && blockIdx.y == 0 && g < s.targets) out.target[g] = total;
  }
}

// One block a query: its softmax, the sums of the parts, the cost.
template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_cost_kernel(CostSizes s, int64_t splits, A* partial, const A* class_logits, const int64_t* labels, A* cost) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // [2 * kWarps]
  const int64_t q = blockIdx.x;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const A* classes = class_logits == nullptr ? nullptr : class_logits + q * s.classes;
  A largest = A(0), scale = A(0);
  if (classes != nullptr) {
    A own = classes[0];
    for (int64_t c = threadIdx.x; c < s.classes; c += kThreads)
      own = own < classes[c] || classes[c] != classes[c] ? classes[c] : own;
    own = warp_max(own);
    if (lane == 0) scratch[warp] = own;
    __syncthreads();
    largest = scratch[0];
    for (int i = 1; i < kWarps; ++i) largest = largest < scratch[i] ? scratch[i] : largest;
    A total = A(0);
    for (int64_t c = threadIdx.x; c < s.classes; c += kThreads) total += exp(classes[c] - largest);
    scale = A(1) / block_sum(total, scratch + kWarps);
  }
  A softplus = A(0), sigmoid = A(0);
  for (int64_t split = threadIdx.x; split < splits; split += kThreads) {
    const CostPartial<A> part(s, partial, split);
    softplus += part.softplus[q];
    sigmoid += part.sigmoid[q];
  }
  softplus = block_sum(softplus, scratch);
  sigmoid = block_sum(sigmoid, scratch + kWarps);
  constexpr int kLanes = 8, kTargets = kThreads / kLanes;  // lanes that share the parts of a target
  const int part_lane = threadIdx.x % kLanes;
  for (int64_t first = 0; first < s.targets; first += kTargets) {  // all threads stay, for the shuffles
    const int64_t g = first + threadIdx.x / kLanes;
    A of_logits = A(0), of_sigmoids = A(0), target = A(0);
    if (g < s.targets) {
#pragma unroll 4
      for (int64_t split = part_lane; split < splits; split += kLanes) {
        const CostPartial<A> part(s, partial, split);
        of_logits += part.of_logits[q * s.targets + g];
        of_sigmoids += part.of_sigmoids[q * s.targets + g];
        target += part.target[g];
      }
    }
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      of_logits += __shfl_xor_sync(kFullWarp, of_logits, offset);
      of_sigmoids += __shfl_xor_sync(kFullWarp, of_sigmoids, offset);
      target += __shfl_xor_sync(kFullWarp, target, offset);
    }
    if (g >= s.targets || part_lane != 0) continue;
    const A entropy = (softplus - of_logits) / A(s.points);
    const A dice = A(1) - (A(2) * of_sigmoids + A(1)) / (sigmoid + target + A(1));
    A value = A(s.mask_weight) * entropy + A(s.dice_weight) * dice;
    if (classes != nullptr) {
      const int64_t label = labels[g];
      // The device cannot raise an error: a label that names no class makes the cost NaN.
      const bool known = label >= 0 && label < s.classes;
      const A probability = known ? exp(classes[label] - largest) * scale : A(0) / A(0);
      value -= A(s.class_weight) * probability;
    }
    cost[q * s.targets + g] = value;
  }
}

}  // namespace fssops::point_mask_loss
