// Where a sampling point falls on its level's grid: maths that CPU and CUDA share.
#pragma once

#include <cstdint>

#include "common/macros.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fssops::ms_deform_attn {

// Offset of the D channels of one head of one token from the start of value; all in 64 bits.
FSSOPS_HOST_DEVICE int64_t value_offset(int64_t batch, int64_t token, int64_t head, int64_t batch_stride,
                                        int64_t token_stride, int64_t channels) {
  return batch * batch_stride + token * token_stride + head * channels;
}

// The query that comes at `position` in the walk over all queries; see Sizes::tiled. Tiles are kTile on a side, smaller
// at the right and lower edge of a level, and go from left to right in strips.
constexpr int32_t kTile = 8;

FSSOPS_HOST_DEVICE int32_t query_at(const Sizes& s, int32_t position) {
  if (!s.tiled) return position;
  int l = 0;
  while (l + 1 < s.levels && position >= s.level[l + 1].start) ++l;
  const Level level = s.level[l];
  const int32_t inside = position - level.start, strip = inside / (kTile * level.width);
  const int32_t top = strip * kTile, in_strip = inside - top * level.width;
  const int32_t rows = level.height - top < kTile ? level.height - top : kTile;
  const int32_t tile = in_strip / (rows * kTile), left = tile * kTile, in_tile = in_strip - left * rows;
  const int32_t columns = level.width - left < kTile ? level.width - left : kTile;
  const int32_t row = in_tile / columns;
  return level.start + (top + row) * level.width + left + in_tile - row * columns;
}

// Along one axis, a point lies at `base + scale * number` cells from the centre of the first cell, where the number is
// the location or the offset. `reference` is the centre of the reference point or box, `extent` the box's size,
// `half_step` 0.5 over the number of points.
template <class A>
struct Frame {
  A base, scale;
};

template <class A>
FSSOPS_HOST_DEVICE Frame<A> frame_of(Placement placement, A reference, A extent, A size, A half_step) {
  if (placement == Placement::locations) return {A(-0.5), size};
  const A base = reference * size - A(0.5);
  return {base, placement == Placement::offsets ? A(1) : extent * size * half_step};
}

// Cell below `position` and the fraction beyond it. Safe for every input: the position is brought to [-1, size] before
// it becomes an integer (NaN becomes -1).
template <class A>
FSSOPS_HOST_DEVICE int32_t cell_below(A position, A size, A& fraction) {
  const A above = position > A(-1) ? position : A(-1);
  const A bounded = above < size ? above : size;
  int32_t cell = static_cast<int32_t>(bounded);  // towards zero
  cell -= bounded < static_cast<A>(cell) ? 1 : 0;
  fraction = bounded - static_cast<A>(cell);
  return cell;
}

// A point contributes when it is less than one cell away from the grid in both directions. One on the outer border or
// beyond, infinity included, contributes nothing, and its gradients are zero. False for NaN.
template <class A>
FSSOPS_HOST_DEVICE bool contributes(A x, A y, A width, A height) {
  return (x > A(-1)) & (x < width) & (y > A(-1)) & (y < height);
}

// x, or NaN if x or y is one: a NaN location makes everything it takes part in NaN.
template <class A>
FSSOPS_HOST_DEVICE A keep_nan(A fraction, A x, A y) {
  return (x == x) & (y == y) ? fraction : x + y;
}

}  // namespace fssops::ms_deform_attn
