// Kernels of masked average pooling. F features, M masks, A accumulator. Every output has one writer and every sum a
// fixed order, so results do not change from run to run.
#pragma once

#include "common/device.cuh"
#include "masked_average_pooling/masked_average_pooling.h"
#include "masked_average_pooling/masked_average_pooling_math.h"

namespace fssops::masked_average_pooling {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;

// The two interpolations of a rule: of masks down to the features, and of features up to the masks.
template <class A>
struct Axes {
  Axis<A> y, x;
  __device__ Axes(const Sizes& s, Resize rule)
      : y(rule == Resize::upsample_features ? s.height : s.mask_height,
          rule == Resize::upsample_features ? s.mask_height : s.height, rule == Resize::nearest,
          rule == Resize::bilinear_align_corners),
        x(rule == Resize::upsample_features ? s.width : s.mask_width,
          rule == Resize::upsample_features ? s.mask_width : s.width, rule == Resize::nearest,
          rule == Resize::bilinear_align_corners) {}
};

// Interpolated value at (y, x) of the output grid.
template <class A, class S>
__device__ A interpolate_at(const Axes<A>& axes, const S* source, int y, int x) {
  int top, bottom, left, right;
  A down, across;
  axes.y.taps(y, top, bottom, down);
  axes.x.taps(x, left, right, across);
  const int64_t width = axes.x.in;
  const A above = (A(1) - across) * A(load_as_accumulator(source[top * width + left])) +
                  across * A(load_as_accumulator(source[top * width + right]));
  const A below = (A(1) - across) * A(load_as_accumulator(source[bottom * width + left])) +
                  across * A(load_as_accumulator(source[bottom * width + right]));
  return (A(1) - down) * above + down * below;
}

// Transpose of the interpolation, at (y, x) of its input grid: a gather over the outputs that read this input.
template <class A, class S>
__device__ A interpolate_transposed_at(const Axes<A>& axes, const S* source, int y, int x) {
  int y_low, y_high, x_low, x_high;
  axes.y.outputs_of(y, y_low, y_high);
  axes.x.outputs_of(x, x_low, x_high);
  A total = A(0);
  for (int row = y_low; row < y_high; ++row) {
    const A down = axes.y.weight(row, y);
    if (down == A(0)) continue;
    A line = A(0);
    for (int column = x_low; column < x_high; ++column) {
      const A across = axes.x.weight(column, x);
      if (across != A(0))
        line += across * A(load_as_accumulator(source[static_cast<int64_t>(row) * axes.x.out + column]));
    }
    total += down * line;
  }
  return total;
}

// grid (kMaskSumParts, planes): weights, and the part of the plane's divisor that this block sums.
template <class M, class A>
__global__ void __launch_bounds__(kThreads)
    weights_kernel(Sizes s, Resize rule, const M* masks, A* weights, A* partial) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);
  const Axes<A> axes(s, rule);
  for (int64_t plane = blockIdx.y; plane < s.batch * s.masks; plane += gridDim.y) {
    const M* mask = masks + plane * s.mask_pixels();
    A* out = weights + plane * s.pixels();
    A total = A(0);
    for (int64_t p = blockIdx.x * kThreads + threadIdx.x; p < s.pixels(); p += kMaskSumParts * kThreads) {
      const int y = static_cast<int>(p / s.width), x = static_cast<int>(p % s.width);
      A weight;
      if (rule == Resize::upsample_features)
        weight = interpolate_transposed_at(axes, mask, y, x);
      else if (rule == Resize::none)
        weight = A(load_as_accumulator(mask[p]));
      else
        weight = interpolate_at(axes, mask, y, x);
      out[p] = weight;
      if (rule != Resize::upsample_features) total += weight;
    }
    if (rule == Resize::upsample_features)
      for (int64_t p = blockIdx.x * kThreads + threadIdx.x; p < s.mask_pixels(); p += kMaskSumParts * kThreads)
        total += A(load_as_accumulator(mask[p]));
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) partial[plane * kMaskSumParts + blockIdx.x] = total;
  }
}

template <class A>
__device__ A divisor_of(const A* partial, int64_t plane, A eps) {
  A total = A(0);
  for (int64_t part = 0; part < kMaskSumParts; ++part) total += partial[plane * kMaskSumParts + part];
  return total + eps;
}

// Channels-first. A warp takes kChannels channels and kMasks masks; lanes run along the pixels.
// grid (blocks of channels, blocks of masks, batch).
template <class F, class A, int kChannels, int kMasks>
__global__ void __launch_bounds__(kThreads)
    pool_kernel(Sizes s, A eps, const F* features, const A* weights, const A* partial, A* divisor, F* prototypes) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t pixels = s.pixels();
  const int64_t c0 = (static_cast<int64_t>(blockIdx.x) * kWarps + warp) * kChannels;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kMasks;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    if (c0 < s.channels) {
      const F* f = features + (b * s.channels + c0) * pixels;
      const A* w = weights + (b * s.masks + n0) * pixels;
      A sums[kChannels][kMasks] = {};
#pragma unroll 2
      for (int64_t p = lane; p < pixels; p += kWarpSize) {
        A value[kChannels];
#pragma unroll
        for (int i = 0; i < kChannels; ++i)  // past the end: the last channel again, and not stored
          value[i] = A(load_as_accumulator(f[(c0 + i < s.channels ? i : 0) * pixels + p]));
#pragma unroll
        for (int j = 0; j < kMasks; ++j) {
          const A weight = w[(n0 + j < s.masks ? j : 0) * pixels + p];
#pragma unroll
          for (int i = 0; i < kChannels; ++i) sums[i][j] += value[i] * weight;
        }
      }
#pragma unroll
      for (int j = 0; j < kMasks; ++j) {
        if (n0 + j >= s.masks) break;
        const A d = divisor_of(partial, b * s.masks + n0 + j, eps);
        if (c0 == 0 && lane == 0) divisor[b * s.masks + n0 + j] = d;
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          const A total = warp_sum(sums[i][j]);
          if (lane == 0 && c0 + i < s.channels)
            store_from_accumulator(prototypes + (b * s.masks + n0 + j) * s.channels + c0 + i, total / d);
        }
      }
    }
  }
}

// Channels-last. A block takes 32 channels (one a lane) and kMasks masks; its warps share the pixels.
// grid (blocks of channels, blocks of masks, batch).
template <class F, class A, int kMasks>
__global__ void __launch_bounds__(kThreads)
    pool_channels_last_kernel(Sizes s, A eps, const F* features, const A* weights, const A* partial, A* divisor,
                              F* prototypes) {
  FSSOPS_DYNAMIC_SHARED(A, shared);  // [kWarps][kMasks][32]
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t pixels = s.pixels(), c = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kMasks;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    const F* f = features + b * s.channels * pixels + (c < s.channels ? c : 0);
    const A* w = weights + (b * s.masks + n0) * pixels;
    A sums[kMasks] = {};
#pragma unroll 4
    for (int64_t p = warp; p < pixels; p += kWarps) {
      const A value = A(load_as_accumulator(f[p * s.channels]));
#pragma unroll
      for (int j = 0; j < kMasks; ++j) sums[j] += value * w[(n0 + j < s.masks ? j : 0) * pixels + p];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMasks; ++j) shared[(warp * kMasks + j) * kWarpSize + lane] = sums[j];
    __syncthreads();
    for (int j = warp; j < kMasks; j += kWarps) {
      if (n0 + j >= s.masks) break;
      A total = A(0);
      for (int i = 0; i < kWarps; ++i) total += shared[(i * kMasks + j) * kWarpSize + lane];
      const A d = divisor_of(partial, b * s.masks + n0 + j, eps);
      if (c == 0) divisor[b * s.masks + n0 + j] = d;
      if (c < s.channels) store_from_accumulator(prototypes + (b * s.masks + n0 + j) * s.channels + c, total / d);
    }
  }
}

// One block a plane: scaled = grad / divisor, shared_term = sum_c scaled * prototypes.
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    scale_grad_kernel(Sizes s, const F* grad, const F* prototypes, const A* divisor, A* scaled, A* shared_term) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);
  for (int64_t plane = blockIdx.x; plane < s.batch * s.masks; plane += gridDim.x) {
    A total = A(0);
    for (int64_t c = threadIdx.x; c < s.channels; c += kThreads) {
      const A value = A(load_as_accumulator(grad[plane * s.channels + c])) / divisor[plane];
      scaled[plane * s.channels + c] = value;
      total += value * A(load_as_accumulator(prototypes[plane * s.channels + c]));
    }
    total = block_sum(total, scratch);
    if (threadIdx.x == 0) shared_term[plane] = total;
  }
}

// One thread an element of grad_features. grid-stride over B * C * h * w in memory order.
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    grad_features_kernel(Sizes s, const A* scaled, const A* weights, F* grad_features) {
  const int64_t pixels = s.pixels(), count = s.batch * s.channels * pixels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t b = i / (s.channels * pixels), rest = i % (s.channels * pixels);
    const int64_t c = s.channels_last ? rest % s.channels : rest / pixels;
    const int64_t p = s.channels_last ? rest / s.channels : rest % pixels;
    const A* g = scaled + b * s.masks * s.channels + c;
    const A* w = weights + b * s.masks * pixels + p;
    A total = A(0);
    for (int64_t n = 0; n < s.masks; ++n) total += g[n * s.channels] * w[n * pixels];
    store_from_accumulator(grad_features + i, total);
  }
}

// grad_weights[b, n, p] = sum_c scaled * features. A block takes 32 pixels (one a lane) and kMasks masks; its warps
// share the channels. grid (blocks of pixels, blocks of masks, batch).
template <class F, class A, int kMasks>
__global__ void __launch_bounds__(kThreads)
    grad_weights_kernel(Sizes s, const F* features, const A* scaled, A* grad_weights) {
  FSSOPS_DYNAMIC_SHARED(A, shared);  // [kWarps][kMasks][32]
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t pixels = s.pixels(), p = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  const int64_t n0 = static_cast<int64_t>(blockIdx.y) * kMasks;
  const int64_t pixel_stride = s.channels_last ? s.channels : 1, channel_stride = s.channels_last ? 1 : pixels;
  for (int64_t b = blockIdx.z; b < s.batch; b += gridDim.z) {
    const F* f = features + b * s.channels * pixels + (p < pixels ? p : 0) * pixel_stride;
    const A* g = scaled + (b * s.masks + n0) * s.channels;
    A sums[kMasks] = {};
#pragma unroll 4
    for (int64_t c = warp; c < s.channels; c += kWarps) {
      const A value = A(load_as_accumulator(f[c * channel_stride]));
#pragma unroll
      for (int j = 0; j < kMasks; ++j) sums[j] += value * g[(n0 + j < s.masks ? j : 0) * s.channels + c];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kMasks; ++j) shared[(warp * kMasks + j) * kWarpSize + lane] = sums[j];
    __syncthreads();
    for (int j = warp; j < kMasks; j += kWarps) {
      if (n0 + j >= s.masks || p >= pixels) break;
      A total = A(0);
      for (int i = 0; i < kWarps; ++i) total += shared[(i * kMasks + j) * kWarpSize + lane];
      grad_weights[(b * s.masks + n0 + j) * pixels + p] = total;
    }
  }
}

// One thread a mask pixel. grid-stride over B * N * H * W.
template <class M, class A>
__global__ void __launch_bounds__(kThreads)
    grad_masks_kernel(Sizes s, Resize rule, const A* grad_weights, const A* shared_term, M* grad_masks) {
  const Axes<A> axes(s, rule);
  const int64_t mask_pixels = s.mask_pixels(), count = s.batch * s.masks * mask_pixels;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t plane = i / mask_pixels, p = i % mask_pixels;
    const int y = static_cast<int>(p / s.mask_width), x = static_cast<int>(p % s.mask_width);
    const A* source = grad_weights + plane * s.pixels();
    A grad;
    if (rule == Resize::upsample_features) {
      grad = interpolate_at(axes, source, y, x) - shared_term[plane];
    } else if (rule == Resize::none) {
      grad = source[p] - shared_term[plane];
    } else {
      // d divisor / d mask is the sum of the transposed weights, so the shared term goes through the transpose too.
      int y_low, y_high, x_low, x_high;
      axes.y.outputs_of(y, y_low, y_high);
      axes.x.outputs_of(x, x_low, x_high);
      grad = A(0);
      for (int row = y_low; row < y_high; ++row) {
        const A down = axes.y.weight(row, y);
        if (down == A(0)) continue;
        for (int column = x_low; column < x_high; ++column) {
          const A across = axes.x.weight(column, x);
          if (across != A(0))
            grad += down * across * (source[static_cast<int64_t>(row) * s.width + column] - shared_term[plane]);
        }
      }
    }
    store_from_accumulator(grad_masks + i, grad);
  }
}

}  // namespace fssops::masked_average_pooling
