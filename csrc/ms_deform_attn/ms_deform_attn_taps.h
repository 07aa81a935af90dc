// The sampling points of one query on the CPU: which tokens each reads, and how much of each. Compiled once per
// instruction set, for the *_cpu.cpp files only.
#pragma once

#include "common/simd.h"
#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fssops::ms_deform_attn {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

// The four tokens around a point: upper left, upper right, lower left, lower right.
constexpr int kCorners = 4;

// Arrays over the points of `heads` heads and levels [level_begin, level_end): head, level, point, as in memory. The
// loops over them are free of branches, so that the compiler vectorises them.
template <class T>
class Taps {
 public:
  Taps(const Sizes& s, Placement placement, int level_begin, int level_end, int64_t heads)
      : count(heads * (level_end - level_begin) * s.points),
        placement_(placement),
        sizes_(s),
        level_begin_(level_begin),
        level_end_(level_end),
        per_head_(static_cast<int64_t>(level_end - level_begin) * s.points),
        reals_(count * 13),
        integers_(count * 7) {
    T* real = reals_.data();
    T** reals[] = {&width_, &height_, &base_x_,   &base_y_,   &scale_x_,  &scale_y_, &across,
                   &down,   &weights, &corner[0], &corner[1], &corner[2], &corner[3]};
    for (T** array : reals) {
      *array = real;
      real += count;
    }
    int32_t* integer = integers_.data();
    int32_t** integers[] = {&columns_, &rows_, &start_, &token[0], &token[1], &token[2], &token[3]};
    for (int32_t** array : integers) {
      *array = integer;
      integer += count;
    }
    for (int64_t i = 0; i < count; ++i) {
      const Level& level = s.level[level_begin + i % per_head_ / s.points];
      columns_[i] = level.width;
      rows_[i] = level.height;
      start_[i] = level.start;
      width_[i] = static_cast<T>(level.width);
      height_[i] = static_cast<T>(level.height);
    }
    if (placement == Placement::locations) place(nullptr);
  }

  // Takes the reference points of a query, [L, 2] or boxes [L, 4]; for locations there are none.
  void place(const T* reference) {
    const int components = placement_ == Placement::boxes ? 4 : 2;
    const T half_step = T(0.5) / static_cast<T>(sizes_.points);
    int64_t i = 0;
    for (int l = level_begin_; l < level_end_; ++l) {
      const T* r = reference == nullptr ? nullptr : reference + l * components;
      const bool box = placement_ == Placement::boxes;
      const Frame<T> x = frame_of(placement_, r ? r[0] : T(0), box ? r[2] : T(0), width_[i], half_step);
      const Frame<T> y = frame_of(placement_, r ? r[1] : T(0), box ? r[3] : T(0), height_[i], half_step);
      for (int p = 0; p < sizes_.points; ++p, ++i) {
        base_x_[i] = x.base;
        base_y_[i] = y.base;
        scale_x_[i] = x.scale;
        scale_y_[i] = y.scale;
      }
    }
    T* filled[] = {base_x_, base_y_, scale_x_, scale_y_};
    for (T* array : filled)
      for (int64_t j = per_head_; j < count; ++j) array[j] = array[j - per_head_];
  }

  // Finds the tokens around each point; `points` is [count, 2]. A corner that is outside, or belongs to a point that
  // does not contribute, has token -1.
  void find(const T* points) {
    const T* __restrict base_x = base_x_, * __restrict base_y = base_y_, * __restrict scale_x = scale_x_;
    const T* __restrict scale_y = scale_y_, * __restrict width = width_, * __restrict height = height_;
    const int32_t* __restrict columns = columns_, * __restrict rows = rows_, * __restrict start = start_;
    T* __restrict across_out = across, * __restrict down_out = down;
    int32_t* __restrict upper_left = token[0], * __restrict upper_right = token[1], * __restrict lower_left = token[2];
    int32_t* __restrict lower_right = token[3];
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const T x = base_x[i] + scale_x[i] * points[2 * i], y = base_y[i] + scale_y[i] * points[2 * i + 1];
      T right_part, lower_part;
      const int32_t column = cell_below(x, width[i], right_part), row = cell_below(y, height[i], lower_part);
      across_out[i] = keep_nan(right_part, x, y);
      down_out[i] = keep_nan(lower_part, x, y);
      const int32_t inside = contributes(x, y, width[i], height[i]) ? 0 : -1;
      const int32_t left = inside | (column >> 31), right = inside | ((columns[i] - 2 - column) >> 31);
      const int32_t upper = row >> 31, lower = (rows[i] - 2 - row) >> 31;
      const int32_t first = start[i] + row * columns[i] + column;
      // Each of left, right, upper and lower is -1 where that side is outside, else 0.
      upper_left[i] = (left | upper) | first;
      upper_right[i] = (right | upper) | (first + 1);
      lower_left[i] = (left | lower) | (first + columns[i]);
      lower_right[i] = (right | lower) | (first + columns[i] + 1);
    }
  }

  // corner[k] = what the token of corner k counts in the output.
  void weigh() {
    const T* __restrict across_in = across, * __restrict down_in = down, * __restrict weight = weights;
    T* __restrict upper_left = corner[0], * __restrict upper_right = corner[1], * __restrict lower_left = corner[2];
    T* __restrict lower_right = corner[3];
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      const T lower = weight[i] * down_in[i], upper = weight[i] - lower;
      lower_right[i] = lower * across_in[i];
      upper_right[i] = upper * across_in[i];
      lower_left[i] = lower - lower * across_in[i];
      upper_left[i] = upper - upper * across_in[i];
    }
  }

  T width(int64_t i) const { return width_[i]; }
  T height(int64_t i) const { return height_[i]; }
  T scale_x(int64_t i) const { return scale_x_[i]; }
  T scale_y(int64_t i) const { return scale_y_[i]; }

  const int64_t count;
  T* across;   // fraction beyond the left corner
  T* down;     // fraction beyond the upper corner
  T* weights;  // attention weights, for the caller to fill
  T* corner[kCorners];
  int32_t* token[kCorners];

 private:
  const Placement placement_;
  const Sizes& sizes_;
  const int level_begin_, level_end_;
  const int64_t per_head_;
  simd::Scratch<T> reals_;
  simd::Scratch<int32_t> integers_;
  T *width_, *height_, *base_x_, *base_y_, *scale_x_, *scale_y_;
  int32_t *columns_, *rows_, *start_;
};

// weights [heads, samples] = softmax of logits over the samples; NaN as PyTorch gives it.
template <class T>
inline void softmax_heads(int64_t heads, int64_t samples, const T* logits, T* weights) {
  using V = simd::Vec<T>;
  const int64_t count = heads * samples;
  for (int64_t m = 0; m < heads; ++m) {
    const T* row = logits + m * samples;
    T largest = row[0];
    for (int64_t i = 1; i < samples; ++i) largest = row[i] > largest ? row[i] : largest;
    for (int64_t i = 0; i < samples; ++i) weights[m * samples + i] = row[i] - largest;
  }
  int64_t i = 0;
  for (; i + V::kSize <= count; i += V::kSize) simd::exp(V::load(weights + i)).store(weights + i);
  if (i < count) {
    const int rest = static_cast<int>(count - i);
    simd::exp(V::load_partial(weights + i, rest)).store_partial(weights + i, rest);
  }
  for (int64_t m = 0; m < heads; ++m) {
    T total = T(0);
    for (int64_t j = 0; j < samples; ++j) total += weights[m * samples + j];
    const T factor = T(1) / total;
    for (int64_t j = 0; j < samples; ++j) weights[m * samples + j] *= factor;
  }
}

// Calls block(vectors, first channel, channels in the block): `vectors` full ones, or one that is partly filled.
template <int kVectors>
struct Vectors {
  static constexpr int kCount = kVectors;
};

template <class T, class Block>
inline void for_channel_blocks(int64_t channels, const Block& block) {
  constexpr int kSize = simd::Vec<T>::kSize;
  int64_t c = 0;
  for (; c + 4 * kSize <= channels; c += 4 * kSize) block(Vectors<4>{}, c, kSize);
  if (c + 2 * kSize <= channels) {
    block(Vectors<2>{}, c, kSize);
    c += 2 * kSize;
  }
  if (c + kSize <= channels) {
    block(Vectors<1>{}, c, kSize);
    c += kSize;
  }
  if (c < channels) block(Vectors<1>{}, c, static_cast<int>(channels - c));
}

}  // namespace FSSOPS_ISA
}  // namespace fssops::ms_deform_attn
