// Sampling a block of points, for the CPU kernels of this operator. Part of files compiled once per instruction set.
//
// Blocks go through short loops that the compiler vectorises: locate the points, fetch pairs of neighbouring pixels
// (the only scattered access), combine.
#pragma once

#include <cstring>

#include "common/simd.h"
#include "point_mask_loss/point_mask_loss.h"
#include "point_mask_loss/point_mask_loss_math.h"

namespace fssops::point_mask_loss {
namespace FSSOPS_ISA {

constexpr int kBlock = 256;

// Loops over a block are functions of their own, with pointers that do not overlap: inlined into their callers the
// compiler loses sight of that and gives up vectorising them.
#define FSSOPS_BLOCK_LOOP __attribute__((noinline))

// Where the points of a block lie.
template <class T>
struct Located {
  alignas(64) int32_t y[kBlock], x[kBlock];
  alignas(64) T left[kBlock], right[kBlock], upper[kBlock], lower[kBlock];
};

template <class T>
FSSOPS_BLOCK_LOOP void locate(const Maps& maps, const T* __restrict__ points, int count, Located<T>& __restrict__ at) {
  const T half_width = T(maps.extent_width) * T(0.5), half_height = T(maps.extent_height) * T(0.5);
  const int width = static_cast<int>(maps.width), height = static_cast<int>(maps.height);
  for (int i = 0; i < count; ++i) {
    const AxisTaps<T> x(points[2 * i], width, half_width);
    at.x[i] = x.first;
    at.left[i] = x.low;
    at.right[i] = x.high;
    const AxisTaps<T> y(points[2 * i + 1], height, half_height);
    at.y[i] = y.first;
    at.upper[i] = y.low;
    at.lower[i] = y.high;
  }
}

// Pixels (y, x) and (y, x + 1) of every point to top[2 i], those of the next row to bottom[2 i].
template <class E>
FSSOPS_BLOCK_LOOP void fetch_dense(const E* __restrict__ plane, int64_t height, int64_t width, const int32_t* ys,
                                   const int32_t* xs, int count, E* top, E* bottom) {
  const int64_t step = height > 1 ? width : 0;
  if (width > 1) {
    for (int i = 0; i < count; ++i) {
      const E* pixel = plane + ys[i] * width + xs[i];
      std::memcpy(top + 2 * i, pixel, 2 * sizeof(E));
      std::memcpy(bottom + 2 * i, pixel + step, 2 * sizeof(E));
    }
    return;
  }
  for (int i = 0; i < count; ++i) {
    top[2 * i] = plane[ys[i]];
    bottom[2 * i] = plane[ys[i] + step];
    top[2 * i + 1] = bottom[2 * i + 1] = E(0);
  }
}

inline void fetch_bits(const uint8_t* plane, const Maps& maps, const int32_t* ys, const int32_t* xs, int count,
                       uint8_t* top, uint8_t* bottom) {
  const int64_t bytes = maps.row_bytes(), step = maps.height > 1 ? bytes : 0;
  for (int i = 0; i < count; ++i) {
    const uint8_t* row = plane + ys[i] * bytes;
    const int next = xs[i] + 1 < maps.width ? xs[i] + 1 : xs[i];
    top[2 * i] = static_cast<uint8_t>(bit_at(row, xs[i]));
    top[2 * i + 1] = static_cast<uint8_t>(bit_at(row, next));
    bottom[2 * i] = static_cast<uint8_t>(bit_at(row + step, xs[i]));
    bottom[2 * i + 1] = static_cast<uint8_t>(bit_at(row + step, next));
  }
}

inline void fetch_runs(const int32_t* ends, const int32_t* columns, const Maps& maps, const int32_t* ys,
                       const int32_t* xs, int count, uint8_t* top, uint8_t* bottom) {
  const int height = static_cast<int>(maps.height);
  for (int i = 0; i < count; ++i) {
    int upper, lower;
    run_values(ends, columns, height, ys[i], xs[i], upper, lower);
    top[2 * i] = static_cast<uint8_t>(upper);
    bottom[2 * i] = static_cast<uint8_t>(lower);
    run_values(ends, columns, height, ys[i], xs[i] + 1 < maps.width ? xs[i] + 1 : xs[i], upper, lower);
    top[2 * i + 1] = static_cast<uint8_t>(upper);
    bottom[2 * i + 1] = static_cast<uint8_t>(lower);
  }
}

// A pixel of weight 0 does not count, whatever it holds: it may be the neighbour of one that the point lies beyond.
template <class T, class E>
FSSOPS_BLOCK_LOOP void combine(const Located<T>& at, const E* __restrict__ top, const E* __restrict__ bottom, int count,
                               T* __restrict__ out) {
  const T* __restrict__ left = at.left;
  const T* __restrict__ right = at.right;
  const T* __restrict__ upper = at.upper;
  const T* __restrict__ lower = at.lower;
  for (int i = 0; i < count; ++i) {
    const T a = T(top[2 * i]), b = T(top[2 * i + 1]), c = T(bottom[2 * i]), d = T(bottom[2 * i + 1]);
    const T l = left[i], r = right[i], u = upper[i], w = lower[i];
    const T la = l == T(0) ? T(0) : l * a, lc = l == T(0) ? T(0) : l * c;
    const T rb = r == T(0) ? T(0) : r * b, rd = r == T(0) ? T(0) : r * d;
    const T above = u * (la + rb), below = w * (lc + rd);
    out[i] = (u == T(0) ? T(0) : above) + (w == T(0) ? T(0) : below);
  }
}

// Values of map `map` (of M * channels planes) at located points.
template <class T>
inline void read_located(const Maps& maps, int64_t map, const Located<T>& at, int count, T* out) {
  if (maps.format == Format::dense && maps.type != MaskType::uint8) {
    alignas(64) T top[2 * kBlock], bottom[2 * kBlock];
    fetch_dense(static_cast<const T*>(maps.data) + map * maps.pixels(), maps.height, maps.width, at.y, at.x, count, top,
                bottom);
    combine(at, top, bottom, count, out);
    return;
  }
  alignas(64) uint8_t top[2 * kBlock], bottom[2 * kBlock];
  const uint8_t* bytes = static_cast<const uint8_t*>(maps.data);
  if (maps.format == Format::dense)
    fetch_dense(bytes + map * maps.pixels(), maps.height, maps.width, at.y, at.x, count, top, bottom);
  else if (maps.format == Format::bits)
    fetch_bits(bytes + map * maps.height * maps.row_bytes(), maps, at.y, at.x, count, top, bottom);
  else
    fetch_runs(static_cast<const int32_t*>(maps.data), maps.columns + map * (maps.width + 1), maps, at.y, at.x, count,
               top, bottom);
  combine(at, top, bottom, count, out);
}

// Values of row `row` at points [start, start + count).
template <class T>
inline void read_row(const Maps& maps, const Points& points, int64_t row, int64_t start, int count, T* out) {
  if (maps.format == Format::values) {
    std::memcpy(out, static_cast<const T*>(maps.data) + maps.map_of(row) * points.count + start,
                static_cast<size_t>(count) * sizeof(T));
    return;
  }
  Located<T> at;
  locate(maps, static_cast<const T*>(points.data) + points.offset(row) + 2 * start, count, at);
  read_located(maps, maps.map_of(row), at, count, out);
}

// Adds grad times the weights to the four pixels of every point, in order.
template <class T>
FSSOPS_BLOCK_LOOP void spread(const Maps& maps, const Located<T>& __restrict__ at, const T* __restrict__ grad,
                              int count, T* __restrict__ plane) {
  typedef T Pair __attribute__((vector_size(2 * sizeof(T))));
  alignas(64) T top[2 * kBlock], bottom[2 * kBlock];
  for (int i = 0; i < count; ++i) {
    const T above = at.upper[i] * grad[i], below = at.lower[i] * grad[i];
    top[2 * i] = at.left[i] * above;
    top[2 * i + 1] = at.right[i] * above;
    bottom[2 * i] = at.left[i] * below;
    bottom[2 * i + 1] = at.right[i] * below;
  }
  const int64_t step = maps.height > 1 ? maps.width : 0;
  if (maps.width > 1) {
    for (int i = 0; i < count; ++i) {
      T* pixel = plane + at.y[i] * maps.width + at.x[i];
      Pair sums, more;
      std::memcpy(&sums, pixel, sizeof sums);
      std::memcpy(&more, top + 2 * i, sizeof more);
      sums += more;
      std::memcpy(pixel, &sums, sizeof sums);
      std::memcpy(&sums, pixel + step, sizeof sums);
      std::memcpy(&more, bottom + 2 * i, sizeof more);
      sums += more;
      std::memcpy(pixel + step, &sums, sizeof sums);
    }
    return;
  }
  for (int i = 0; i < count; ++i) {
    plane[at.y[i]] += top[2 * i];
    plane[at.y[i] + step] += bottom[2 * i];
  }
}

}  // namespace FSSOPS_ISA
}  // namespace fssops::point_mask_loss
