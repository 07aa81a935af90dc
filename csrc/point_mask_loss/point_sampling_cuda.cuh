// Kernels of point sampling. A: accumulator (points, sums, kept arrays), F: a float dtype.
//
// One thread a point; its four reads are scattered, everything else is coalesced. Of 20 masks with 12,544 points each,
// on a machine of 4 TB/s: points, values and planes are 10 MB, 2.5 us; the scattered sectors, 35 MB, come from the L2
// cache.
#pragma once

#include "common/device.cuh"
#include "point_mask_loss/point_mask_loss.h"
#include "point_mask_loss/point_mask_loss_math.h"

namespace fssops::point_mask_loss {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kStagedThreads = 512;

// Both axes of a point of a row.
template <class A>
struct Taps {
  AxisTaps<A> x, y;
  __device__ Taps(const Maps& maps, const A* point)
      : x(point[0], static_cast<int>(maps.width), A(maps.extent_width) * A(0.5)),
        y(point[1], static_cast<int>(maps.height), A(maps.extent_height) * A(0.5)) {}
};

// The weighted sum of the four pixels `value(y, x)`. A pixel of weight 0 is not read.
template <class A, class Value>
__device__ __forceinline__ A interpolate(const Taps<A>& taps, Value value) {
  const A zero = A(0);
  const bool left = taps.x.low != zero, right = taps.x.high != zero;
  const bool upper = taps.y.low != zero, lower = taps.y.high != zero;
  // A NaN weight reads too: every pixel exists (AxisTaps), but for the second of an axis of one pixel, whose weight is
  // NaN only beside a first that is NaN as well.
  const int y = taps.y.first, x = taps.x.first;
  const A a = upper && left ? value(y, x) : zero;
  const A b = upper && right ? value(y, x + 1) : zero;
  const A c = lower && left ? value(y + 1, x) : zero;
  const A d = lower && right ? value(y + 1, x + 1) : zero;
  return taps.y.low * (taps.x.low * a + taps.x.high * b) + taps.y.high * (taps.x.low * c + taps.x.high * d);
}

// Value of a plane with elements E at `taps`.
template <class A, class E>
__device__ __forceinline__ A plane_value(const E* plane, const Maps& maps, const Taps<A>& taps) {
  const int width = static_cast<int>(maps.width), last_y = static_cast<int>(maps.height) - 1, last_x = width - 1;
  return interpolate(taps, [&](int y, int x) {
    return A(load_as_accumulator(plane[(y < last_y ? y : last_y) * width + (x < last_x ? x : last_x)]));
  });
}

// Value of map `map` (among M * channels planes) at `taps`. E: element type of dense maps.
template <class A, class E>
__device__ __forceinline__ A dense_value(const Maps& maps, int64_t map, const Taps<A>& taps) {
  return plane_value(static_cast<const E*>(maps.data) + map * maps.pixels(), maps, taps);
}

// Value of a target of any form at a point of a row.
template <class A>
__device__ A target_value(const Maps& maps, int64_t row, const A* point, int64_t points, int64_t p) {
  const int64_t map = maps.map_of(row);
  // The device cannot raise an error: an index that names no map gives NaN, and so do columns that name no run.
  if (static_cast<uint64_t>(map) >= static_cast<uint64_t>(maps.count)) return A(0) / A(0);
  if (maps.format == Format::values) {
    const int64_t i = map * points + p;
    switch (maps.type) {
      case MaskType::float64:
        return A(static_cast<const double*>(maps.data)[i]);
      case MaskType::float16:
        return A(load_as_accumulator(static_cast<const half_t*>(maps.data)[i]));
      case MaskType::bfloat16:
        return A(load_as_accumulator(static_cast<const bf16_t*>(maps.data)[i]));
      default:
        return A(static_cast<const float*>(maps.data)[i]);
    }
  }
  const Taps<A> taps(maps, point);
  const int last_y = static_cast<int>(maps.height) - 1, last_x = static_cast<int>(maps.width) - 1;
  if (maps.format == Format::bits) {
    const uint8_t* plane = static_cast<const uint8_t*>(maps.data) + map * maps.height * maps.row_bytes();
    return interpolate(taps, [&](int y, int x) {
      return A(bit_at(plane + (y < last_y ? y : last_y) * maps.row_bytes(), x < last_x ? x : last_x));
    });
  }
  if (maps.format == Format::runs) {
    const int32_t* ends = static_cast<const int32_t*>(maps.data);
    const int32_t* columns = maps.columns + map * (maps.width + 1);
    const int next_x = taps.x.first < last_x ? taps.x.first + 1 : last_x;
    for (int x = taps.x.first; x <= next_x + 1; ++x)
      if (static_cast<uint32_t>(columns[x]) >= static_cast<uint64_t>(maps.runs)) return A(0) / A(0);
    int upper[2], lower[2];
    run_values(ends, columns, last_y + 1, taps.y.first, taps.x.first, upper[0], lower[0]);
    run_values(ends, columns, last_y + 1, taps.y.first, next_x, upper[1], lower[1]);
    return interpolate(taps, [&](int y, int x) {
      const bool first_row = y == taps.y.first;
      if (x == taps.x.first) return A(first_row ? upper[0] : lower[0]);
      return A(first_row ? upper[1] : lower[1]);
    });
  }
  switch (maps.type) {
    case MaskType::uint8:
      return dense_value<A, uint8_t>(maps, map, taps);
    case MaskType::float32:
      return dense_value<A, float>(maps, map, taps);
    case MaskType::float64:
      return dense_value<A, double>(maps, map, taps);
    case MaskType::float16:
      return dense_value<A, half_t>(maps, map, taps);
    default:
      return dense_value<A, bf16_t>(maps, map, taps);
  }
}

// Value of a row's own float map, dense or values.
template <class A, class F>
__device__ __forceinline__ A logit_value(const Maps& maps, int64_t row, const A* point, int64_t points, int64_t p) {
  if (maps.format == Format::values) return A(load_as_accumulator(static_cast<const F*>(maps.data)[row * points + p]));
  return dense_value<A, F>(maps, row, Taps<A>(maps, point));
}

// sampled [N, C, P] of float maps. grid (blocks of points, N, blocks of channels).
template <class A, class F>
__global__ void __launch_bounds__(kThreads) sample_kernel(Maps maps, Points points, int64_t channels, F* sampled) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= points.count) return;
  for (int64_t row = blockIdx.y; row < points.rows; row += gridDim.y) {
    const Taps<A> taps(maps, static_cast<const A*>(points.data) + points.offset(row) + 2 * p);
    const int64_t map = maps.map_of(row);
    const bool exists = static_cast<uint64_t>(map) < static_cast<uint64_t>(maps.count);
#pragma unroll 4
    for (int64_t c = blockIdx.z; c < channels; c += gridDim.z)
      store_from_accumulator(sampled + (row * channels + c) * points.count + p,
                             exists ? dense_value<A, F>(maps, map * channels + c, taps) : A(0) / A(0));
  }
}

// The same where a plane fits into shared memory: it is read once, in a row, and the scattered reads stay on the chip.
// grid (channels, N).
template <class A, class F>
__global__ void __launch_bounds__(kStagedThreads)
    sample_staged_kernel(Maps maps, Points points, int64_t channels, F* sampled) {
  FSSOPS_DYNAMIC_SHARED(F, plane);  // [h, w]
  const int64_t c = blockIdx.x, pixels = maps.pixels();
  constexpr int kPerVector = 16 / sizeof(F);
  for (int64_t row = blockIdx.y; row < points.rows; row += gridDim.y) {
    const int64_t map = maps.map_of(row);
    const bool exists = static_cast<uint64_t>(map) < static_cast<uint64_t>(maps.count);
    __syncthreads();
    if (exists) {
      const F* source = static_cast<const F*>(maps.data) + (map * channels + c) * pixels;
      const bool aligned = reinterpret_cast<uintptr_t>(source) % 16 == 0;
      const int64_t vectors = aligned ? pixels / kPerVector : 0;
#pragma unroll 4
      for (int64_t i = threadIdx.x; i < vectors; i += kStagedThreads)
        reinterpret_cast<uint4*>(plane)[i] = reinterpret_cast<const uint4*>(source)[i];
      for (int64_t i = vectors * kPerVector + threadIdx.x; i < pixels; i += kStagedThreads) plane[i] = source[i];
    }
    __syncthreads();
    const A* own = static_cast<const A*>(points.data) + points.offset(row);
    F* out = sampled + (row * channels + c) * points.count;
#pragma unroll 2
    for (int64_t p = threadIdx.x; p < points.count; p += kStagedThreads)
      store_from_accumulator(out + p, exists ? plane_value(plane, maps, Taps<A>(maps, own + 2 * p)) : A(0) / A(0));
  }
}

// sampled [N, P] of masks of any form. grid (blocks of points, N).
template <class A>
__global__ void __launch_bounds__(kThreads)
    sample_masks_kernel(Maps maps, Points points, int64_t channels, A* sampled) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= points.count) return;
  for (int64_t row = blockIdx.y; row < points.rows; row += gridDim.y) {
    const A* point = static_cast<const A*>(points.data) + points.offset(row) + 2 * p;
    if (channels == 1) {
      sampled[row * points.count + p] = target_value(maps, row, point, points.count, p);
      continue;
    }
    const Taps<A> taps(maps, point);  // several channels: dense bytes
    const int64_t map = maps.map_of(row);
    const bool exists = static_cast<uint64_t>(map) < static_cast<uint64_t>(maps.count);
    for (int64_t c = 0; c < channels; ++c)
      sampled[(row * channels + c) * points.count + p] =
          exists ? dense_value<A, uint8_t>(maps, map * channels + c, taps) : A(0) / A(0);
  }
}

// Adds value times the weights of a point to its pixels of a plane.
template <class A>
__device__ __forceinline__ void add_to_pixels(const Maps& maps, const Taps<A>& taps, A value, A* plane) {
  const int64_t width = maps.width;
  A* pixel = plane + taps.y.first * width + taps.x.first;
  const A upper = taps.y.low * value, lower = taps.y.high * value;
  const bool left = taps.x.low != A(0), right = taps.x.high != A(0) && width > 1;
  if (taps.y.low != A(0)) {
    if (left) atomicAdd(pixel, taps.x.low * upper);
    if (right) atomicAdd(pixel + 1, taps.x.high * upper);
  }
  if (taps.y.high != A(0) && maps.height > 1) {
    if (left) atomicAdd(pixel + width, taps.x.low * lower);
    if (right) atomicAdd(pixel + width + 1, taps.x.high * lower);
  }
}

// Where the gradient at points comes from: here, an array [N, C, P].
template <class A, class F>
struct GivenGrad {
  const F* grad;
  int64_t points;
  __device__ void begin_plane(int64_t) {}
  __device__ A operator()(int64_t plane, int64_t p) const { return A(load_as_accumulator(grad[plane * points + p])); }
};

// Gradient of maps, added atomically. accumulator is zeros. grid (blocks of points, planes = N * C).
template <class A, class Grad>
__global__ void __launch_bounds__(kThreads)
    spread_kernel(Maps maps, Points points, int64_t channels, Grad grad, A* accumulator) {
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= points.count) return;
  for (int64_t plane = blockIdx.y; plane < points.rows * channels; plane += gridDim.y) {
    const int64_t row = plane / channels;
    const Taps<A> taps(maps, static_cast<const A*>(points.data) + points.offset(row) + 2 * p);
    grad.begin_plane(plane);
    add_to_pixels(maps, taps, grad(plane, p), accumulator + plane * maps.pixels());
  }
}

// The same without atomics: one thread a pixel visits all points in order. grid (blocks of pixels, planes).
template <class A, class F, class Grad>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Maps maps, Points points, int64_t channels, Grad grad, F* grad_maps) {
  FSSOPS_DYNAMIC_SHARED(A, weights);                            // [kThreads][5]: weights of y, of x, gradient
  int* cells = reinterpret_cast<int*>(weights + 5 * kThreads);  // [kThreads][2]
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int own_y = static_cast<int>(pixel / maps.width), own_x = static_cast<int>(pixel % maps.width);
  for (int64_t plane = blockIdx.y; plane < points.rows * channels; plane += gridDim.y) {
    const A* own = static_cast<const A*>(points.data) + points.offset(plane / channels);
    grad.begin_plane(plane);
    A total = A(0);
    for (int64_t start = 0; start < points.count; start += kThreads) {
      __syncthreads();
      const int64_t p = start + threadIdx.x;
      if (p < points.count) {
        const Taps<A> taps(maps, own + 2 * p);
        cells[2 * threadIdx.x] = taps.y.first;
        cells[2 * threadIdx.x + 1] = taps.x.first;
        weights[5 * threadIdx.x] = taps.y.low;
        weights[5 * threadIdx.x + 1] = taps.y.high;
        weights[5 * threadIdx.x + 2] = taps.x.low;
        weights[5 * threadIdx.x + 3] = taps.x.high;
        weights[5 * threadIdx.x + 4] = grad(plane, p);
      }
      __syncthreads();
      const int count = static_cast<int>(points.count - start < kThreads ? points.count - start : kThreads);
      for (int i = 0; i < count; ++i) {
        const unsigned down = static_cast<unsigned>(own_y - cells[2 * i]);
        const unsigned across = static_cast<unsigned>(own_x - cells[2 * i + 1]);
        if (down > 1u || across > 1u) continue;
        const A weight = weights[5 * i + down] * weights[5 * i + 2 + across];
        if (weight != A(0)) total += weight * weights[5 * i + 4];
      }
    }
    if (pixel < maps.pixels()) store_from_accumulator(grad_maps + plane * maps.pixels() + pixel, total);
  }
}

template <class A, class F>
__global__ void __launch_bounds__(kThreads) convert_kernel(int64_t count, const A* source, F* target) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    store_from_accumulator(target + i, source[i]);
}

}  // namespace fssops::point_mask_loss
