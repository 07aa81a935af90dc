// Kernels of the cosine with prototypes. F features, A accumulator. Every output has one writer and every sum a fixed
// order, so results do not change from run to run.
#pragma once

#include "common/device.cuh"
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes.h"

namespace fssops::cosine_similarity_to_prototypes {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// Neighbours that are loaded together, kVector times sizeof(F) bytes.
template <class F, int kVector>
struct alignas(sizeof(F) * kVector) Pack {
  F value[kVector];
};

// A warp takes a prototype.
template <class F, class A>
__global__ void __launch_bounds__(kThreads) prototype_lengths_kernel(Sizes s, const F* prototypes, A* lengths) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarps;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize; i < s.batch * s.prototypes;
       i += warps) {
    A squares = A(0);
    for (int64_t c = lane; c < s.channels; c += kWarpSize) {
      const A value = A(load_as_accumulator(prototypes[i * s.channels + c]));
      squares += value * value;
    }
    squares = warp_sum(squares);
    if (lane == 0) lengths[i] = sqrt(squares);
  }
}

// Channels-first. Lanes run along pixels, kVector each; the warps of a block share the channels.
// grid (pixel blocks, prototype blocks, images).
template <class F, class A, int kPrototypes, int kVector>
__global__ void __launch_bounds__(kThreads) values_kernel(Sizes s, const F* features, const F* prototypes,
                                                          const A* prototype_lengths, A* values, A* feature_lengths) {
  FSSOPS_DYNAMIC_SHARED(A, shared);  // [kWarps][kVector][32]
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t p0 = (static_cast<int64_t>(blockIdx.x) * kWarpSize + lane) * kVector;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kPrototypes;
  const A eps = static_cast<A>(s.eps), scale = static_cast<A>(s.scale);
  const bool inside = p0 < s.pixels;  // kVector divides the number of pixels
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    const F* f = features + b * s.channels * s.pixels + (inside ? p0 : 0);
    const F* q = prototypes + (b * s.prototypes + n0) * s.channels;
    A dots[kPrototypes + 1][kVector] = {};  // and the squares
#pragma unroll 4
    for (int64_t c = warp; c < s.channels; c += kWarps) {
      const auto pack = *reinterpret_cast<const Pack<F, kVector>*>(f + c * s.pixels);
#pragma unroll
      for (int n = 0; n <= kPrototypes; ++n) {
        const A factor =
            n < kPrototypes ? A(load_as_accumulator(q[(n0 + n < s.prototypes ? n : 0) * s.channels + c])) : A(0);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          const A value = A(load_as_accumulator(pack.value[v]));
          dots[n][v] += value * (n < kPrototypes ? factor : value);
        }
      }
    }
    // The squares first: every prototype's cosine is divided by the length.
    A lengths[kVector];
#pragma unroll
    for (int n = kPrototypes; n >= 0; --n) {
      __syncthreads();
#pragma unroll
      for (int v = 0; v < kVector; ++v) shared[(warp * kVector + v) * kWarpSize + lane] = dots[n][v];
      __syncthreads();
      if (warp != 0 || !inside) continue;
      if (n < kPrototypes && n0 + n >= s.prototypes) continue;
#pragma unroll
      for (int v = 0; v < kVector; ++v) {
        A total = A(0);
        for (int w = 0; w < kWarps; ++w) total += shared[(w * kVector + v) * kWarpSize + lane];
        if (n == kPrototypes) {
          lengths[v] = sqrt(total);
          if (n0 == 0) feature_lengths[b * s.pixels + p0 + v] = lengths[v];
        } else {
          const int64_t row = b * s.prototypes + n0 + n;
          const A divisor = clamped(lengths[v], eps) * clamped(prototype_lengths[row], eps);
          values[row * s.pixels + p0 + v] = scale * total / divisor;
        }
      }
    }
  }
}

// Channels-last. A warp takes kPixels pixels, its lanes run along the channels, kVector each.
// grid (pixel blocks, prototype blocks, images).
template <class F, class A, int kPrototypes, int kVector>
__global__ void __launch_bounds__(kThreads)
    values_channels_last_kernel(Sizes s, const F* features, const F* prototypes, const A* prototype_lengths, A* values,
                                A* feature_lengths) {
  constexpr int kPixels = 4;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t p0 = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kPixels;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kPrototypes;
  const A eps = static_cast<A>(s.eps), scale = static_cast<A>(s.scale);
  if (p0 >= s.pixels) return;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    const F* f = features + (b * s.pixels + p0) * s.channels;
    const F* q = prototypes + (b * s.prototypes + n0) * s.channels;
    A dots[kPixels][kPrototypes] = {}, squares[kPixels] = {};
    for (int64_t c = lane * kVector; c < s.channels; c += kWarpSize * kVector) {  // kVector divides the channels
      Pack<F, kVector> factor[kPrototypes];
#pragma unroll
      for (int n = 0; n < kPrototypes; ++n)
        factor[n] = *reinterpret_cast<const Pack<F, kVector>*>(q + (n0 + n < s.prototypes ? n : 0) * s.channels + c);
#pragma unroll
      for (int i = 0; i < kPixels; ++i) {
        const auto pack = *reinterpret_cast<const Pack<F, kVector>*>(f + (p0 + i < s.pixels ? i : 0) * s.channels + c);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
          const A value = A(load_as_accumulator(pack.value[v]));
          squares[i] += value * value;
#pragma unroll
          for (int n = 0; n < kPrototypes; ++n) dots[i][n] += value * A(load_as_accumulator(factor[n].value[v]));
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const A length = sqrt(warp_sum(squares[i]));
      const bool inside = p0 + i < s.pixels;
      if (lane == 0 && n0 == 0 && inside) feature_lengths[b * s.pixels + p0 + i] = length;
#pragma unroll
      for (int n = 0; n < kPrototypes; ++n) {
        const A total = warp_sum(dots[i][n]);
        if (lane != 0 || !inside || n0 + n >= s.prototypes) continue;
        const int64_t row = b * s.prototypes + n0 + n;
        values[row * s.pixels + p0 + i] = scale * total / (clamped(length, eps) * clamped(prototype_lengths[row], eps));
      }
    }
  }
}

// One thread a pixel. grid-stride over B * h * w.
template <class A>
__global__ void __launch_bounds__(kThreads)
    coefficients_kernel(Sizes s, const A* grad, const A* values, const A* feature_lengths, const A* prototype_lengths,
                        A* coefficients, A* feature_terms) {
  const A eps = static_cast<A>(s.eps), scale = static_cast<A>(s.scale);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < s.batch * s.pixels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t b = i / s.pixels, p = i % s.pixels;
    const A length = feature_lengths[i];
    A term = A(0);
    for (int64_t n = 0; n < s.prototypes; ++n) {
      const int64_t row = b * s.prototypes + n, at = row * s.pixels + p;
      coefficients[at] = grad[at] * scale / (clamped(length, eps) * clamped(prototype_lengths[row], eps));
      term += grad[at] * values[at];
    }
    feature_terms[i] = term * inverse_square(length, eps);
  }
}

// One block a prototype: sum_p grad * values, over its length squared.
template <class A>
__global__ void __launch_bounds__(kThreads)
    prototype_terms_kernel(Sizes s, const A* grad, const A* values, const A* prototype_lengths, A* prototype_terms) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);
  for (int64_t row = blockIdx.x; row < s.batch * s.prototypes; row += gridDim.x) {
    A total = A(0);
    for (int64_t p = threadIdx.x; p < s.pixels; p += kThreads)
      total += grad[row * s.pixels + p] * values[row * s.pixels + p];
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) prototype_terms[row] = total * inverse_square(prototype_lengths[row], static_cast<A>(s.eps));
  }
}

// One thread an element, in memory order. grid-stride over B * C * h * w.
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    grad_features_kernel(Sizes s, const F* features, const F* prototypes, const A* coefficients, const A* feature_terms,
                         F* grad_features) {
  const int64_t image = s.channels * s.pixels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < s.batch * image;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t b = i / image, rest = i % image;
    const int64_t c = s.channels_last ? rest % s.channels : rest / s.pixels;
    const int64_t p = s.channels_last ? rest / s.channels : rest % s.pixels;
    const A* e = coefficients + b * s.prototypes * s.pixels + p;
    const F* q = prototypes + b * s.prototypes * s.channels + c;
    A total = -A(load_as_accumulator(features[i])) * feature_terms[b * s.pixels + p];
    for (int64_t n = 0; n < s.prototypes; ++n) total += e[n * s.pixels] * A(load_as_accumulator(q[n * s.channels]));
    store_from_accumulator(grad_features + i, total);
  }
}

// Sums over pixels. Channels-first: a warp takes a channel, its lanes run along the pixels. Channels-last: lanes run
// along the channels, warps share the pixels. grid (channel blocks of kWarps or 32, prototype blocks, images).
template <class F, class A, int kPrototypes, bool kChannelsLast>
__global__ void __launch_bounds__(kThreads)
    grad_prototypes_kernel(Sizes s, const F* features, const F* prototypes, const A* coefficients,
                           const A* prototype_terms, F* grad_prototypes) {
  FSSOPS_DYNAMIC_SHARED(A, shared);  // [kWarps][kPrototypes][32], channels-last
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t c = kChannelsLast ? static_cast<int64_t>(blockIdx.x) * kWarpSize + lane
                                  : static_cast<int64_t>(blockIdx.x) * kWarps + warp;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kPrototypes;
  const int64_t first = kChannelsLast ? warp : lane, step = kChannelsLast ? kWarps : kWarpSize;
  const bool inside = c < s.channels;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    const F* f = features + b * s.channels * s.pixels + (inside ? c : 0) * s.channel_stride();
    const A* e = coefficients + (b * s.prototypes + n0) * s.pixels;
    A sums[kPrototypes] = {};
#pragma unroll 4
    for (int64_t p = first; p < s.pixels; p += step) {
      const A value = A(load_as_accumulator(f[p * s.pixel_stride()]));
#pragma unroll
      for (int n = 0; n < kPrototypes; ++n) sums[n] += value * e[(n0 + n < s.prototypes ? n : 0) * s.pixels + p];
    }
    if constexpr (kChannelsLast) {
      __syncthreads();
#pragma unroll
      for (int n = 0; n < kPrototypes; ++n) shared[(warp * kPrototypes + n) * kWarpSize + lane] = sums[n];
      __syncthreads();
    }
#pragma unroll
    for (int n = 0; n < kPrototypes; ++n) {
      A total = A(0);
      if constexpr (kChannelsLast) {
        if (warp != n % kWarps) continue;
        for (int w = 0; w < kWarps; ++w) total += shared[(w * kPrototypes + n) * kWarpSize + lane];
      } else {
        total = warp_sum(sums[n]);
        if (lane != 0) continue;
      }
      if (!inside || n0 + n >= s.prototypes) continue;
      const int64_t row = b * s.prototypes + n0 + n, at = row * s.channels + c;
      store_from_accumulator(grad_prototypes + at,
                             total - A(load_as_accumulator(prototypes[at])) * prototype_terms[row]);
    }
  }
}

}  // namespace fssops::cosine_similarity_to_prototypes
