#include "masked_average_pooling/masked_average_pooling.h"

#include "common/gemm.h"
#include "common/simd.h"
#include "masked_average_pooling/masked_average_pooling_math.h"

namespace fssops::masked_average_pooling {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

bool is_nearest(Resize rule) { return rule == Resize::nearest; }
bool aligns(Resize rule) { return rule == Resize::bilinear_align_corners; }

// row += factor * source, for a source of T or of bytes.
template <class T, class M>
inline void add_row(int64_t count, T factor, const M* source, T* row) {
  for (int64_t x = 0; x < count; ++x) row[x] += factor * static_cast<T>(source[x]);
}

// target [yo, xo] = interpolation of source [yi, xi].
template <class T, class M>
void interpolate_plane(const Axis<T>& y_axis, const Axis<T>& x_axis, const M* source, T* target) {
  for (int y = 0; y < y_axis.out; ++y) {
    int top, bottom;
    T down;
    y_axis.taps(y, top, bottom, down);
    const M* upper = source + static_cast<int64_t>(top) * x_axis.in;
    const M* lower = source + static_cast<int64_t>(bottom) * x_axis.in;
    for (int x = 0; x < x_axis.out; ++x) {
      int left, right;
      T across;
      x_axis.taps(x, left, right, across);
      const T above = (T(1) - across) * static_cast<T>(upper[left]) + across * static_cast<T>(upper[right]);
      const T below = (T(1) - across) * static_cast<T>(lower[left]) + across * static_cast<T>(lower[right]);
      target[static_cast<int64_t>(y) * x_axis.out + x] = (T(1) - down) * above + down * below;
    }
  }
}

// target [yi, xi] = transpose of that interpolation, applied to source [yo, xo]. Rows first, so that each source
// pixel is read once, along memory.
template <class T, class M>
void interpolate_transposed_plane(const Axis<T>& y_axis, const Axis<T>& x_axis, const M* source, T* target) {
  const int64_t wide = x_axis.out, narrow = x_axis.in;
  simd::Scratch<T> rows(y_axis.in * wide);
  for (int64_t i = 0; i < y_axis.in * wide; ++i) rows[i] = T(0);
  for (int y = 0; y < y_axis.out; ++y) {
    int top, bottom;
    T down;
    y_axis.taps(y, top, bottom, down);
    add_row(wide, T(1) - down, source + y * wide, rows.data() + top * wide);
    if (down != T(0)) add_row(wide, down, source + y * wide, rows.data() + bottom * wide);
  }
  for (int64_t i = 0; i < y_axis.in * narrow; ++i) target[i] = T(0);
  for (int x = 0; x < x_axis.out; ++x) {
    int left, right;
    T across;
    x_axis.taps(x, left, right, across);
    for (int64_t y = 0; y < y_axis.in; ++y) {
      const T value = rows[y * wide + x];
      target[y * narrow + left] += (T(1) - across) * value;
      target[y * narrow + right] += across * value;
    }
  }
}

template <class T, class M>
T sum_plane(const M* values, int64_t count) {
  // Sixteen running sums: the additions are independent and the error grows as for pairwise summation.
  T sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int j = 0; j < 16; ++j) sums[j] += static_cast<T>(values[i + j]);
  for (; i < count; ++i) sums[0] += static_cast<T>(values[i]);
  for (int width = 8; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
  return sums[0];
}

}  // namespace

template <class T, class M>
void weights_cpu(const Sizes& s, Resize rule, T eps, const M* masks, T* weights, T* divisor, int64_t begin,
                 int64_t end) {
  const int64_t pixels = s.pixels(), mask_pixels = s.mask_pixels();
  const Axis<T> y_down(s.mask_height, s.height, is_nearest(rule), aligns(rule));
  const Axis<T> x_down(s.mask_width, s.width, is_nearest(rule), aligns(rule));
  const Axis<T> y_up(s.height, s.mask_height, false, false), x_up(s.width, s.mask_width, false, false);
  for (int64_t plane = begin; plane < end; ++plane) {
    const M* mask = masks + plane * mask_pixels;
    T* out = weights + plane * pixels;
    if (rule == Resize::upsample_features) {
      interpolate_transposed_plane(y_up, x_up, mask, out);
      divisor[plane] = sum_plane<T>(mask, mask_pixels) + eps;
      continue;
    }
    if (rule != Resize::none)
      interpolate_plane(y_down, x_down, mask, out);
    else if (static_cast<const void*>(mask) != static_cast<const void*>(out))  // float masks are used in place
      for (int64_t p = 0; p < pixels; ++p) out[p] = static_cast<T>(mask[p]);
    divisor[plane] = sum_plane<T>(out, pixels) + eps;
  }
}

template <class T>
void pool_cpu(const Sizes& s, const T* features, const T* weights, const T* divisor, T* prototypes, int64_t begin,
              int64_t end) {
  const int64_t pixels = s.pixels();
  const int64_t mask_blocks = (s.masks + kMaskBlock - 1) / kMaskBlock;
  const int64_t channel_blocks = (s.channels + kChannelBlock - 1) / kChannelBlock;
  for (int64_t task = begin; task < end; ++task) {
    // Blocks of masks run fastest: the features of a channel block stay in the cache for all masks.
    const int64_t n = task % mask_blocks * kMaskBlock, c = task / mask_blocks % channel_blocks * kChannelBlock;
    const int64_t b = task / mask_blocks / channel_blocks;
    const int64_t rows = n + kMaskBlock < s.masks ? kMaskBlock : s.masks - n;
    const int64_t columns = c + kChannelBlock < s.channels ? kChannelBlock : s.channels - c;
    const T* w = weights + (b * s.masks + n) * pixels;
    const T* f = features + b * s.channels * pixels;
    T* out = prototypes + (b * s.masks + n) * s.channels + c;
    if (s.channels_last)
      simd::gemm_nn<T>(rows, columns, pixels, w, pixels, 1, f + c, s.channels, out, s.channels);
    else
      simd::gemm_nt<T>(rows, columns, pixels, w, pixels, f + c * pixels, pixels, out, s.channels, 1);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) out[i * s.channels + j] /= divisor[b * s.masks + n + i];
  }
}

template <class T>
void scale_grad_cpu(const Sizes& s, const T* grad, const T* prototypes, const T* divisor, T* scaled, T* shared,
                    int64_t begin, int64_t end) {
  for (int64_t plane = begin; plane < end; ++plane) {
    T total = T(0);
    for (int64_t c = plane * s.channels; c < (plane + 1) * s.channels; ++c) {
      scaled[c] = grad[c] / divisor[plane];
      total += scaled[c] * prototypes[c];
    }
    shared[plane] = total;
  }
}

template <class T>
void grad_features_cpu(const Sizes& s, const T* scaled, const T* weights, T* grad_features, int64_t begin,
                       int64_t end) {
  const int64_t pixels = s.pixels(), all_rows = s.channels_last ? pixels : s.channels;
  const int64_t blocks = (all_rows + kChannelBlock - 1) / kChannelBlock;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, row = task % blocks * kChannelBlock;
    const int64_t rows = row + kChannelBlock < all_rows ? kChannelBlock : all_rows - row;
    const T* g = scaled + b * s.masks * s.channels;
    const T* w = weights + b * s.masks * pixels;
    T* out = grad_features + b * s.channels * pixels;
    if (s.channels_last)
      simd::gemm_nn<T>(rows, s.channels, s.masks, w + row, 1, pixels, g, s.channels, out + row * s.channels,
                       s.channels);
    else
      simd::gemm_nn<T>(rows, pixels, s.masks, g + row, 1, s.channels, w, pixels, out + row * pixels, pixels);
  }
}

template <class T>
void grad_masks_cpu(const Sizes& s, Resize rule, const T* features, const T* scaled, const T* shared, T* grad_masks,
                    int64_t begin, int64_t end) {
  const int64_t pixels = s.pixels(), mask_pixels = s.mask_pixels();
  simd::Scratch<T> own(rule == Resize::none ? 0 : pixels);
  const Axis<T> y_down(s.mask_height, s.height, is_nearest(rule), aligns(rule));
  const Axis<T> x_down(s.mask_width, s.width, is_nearest(rule), aligns(rule));
  const Axis<T> y_up(s.height, s.mask_height, false, false), x_up(s.width, s.mask_width, false, false);
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* f = features + plane / s.masks * s.channels * pixels;
    T* out = grad_masks + plane * mask_pixels;
    T* grad_weights = rule == Resize::none ? out : own.data();
    const T* g = scaled + plane * s.channels;
    if (s.channels_last)
      simd::gemm_nt<T>(1, pixels, s.channels, g, s.channels, f, s.channels, grad_weights, pixels, 1);
    else
      simd::gemm_nn<T>(1, pixels, s.channels, g, s.channels, 1, f, pixels, grad_weights, pixels);
    if (rule == Resize::upsample_features) {
      interpolate_plane(y_up, x_up, grad_weights, out);
      for (int64_t p = 0; p < mask_pixels; ++p) out[p] -= shared[plane];
      continue;
    }
    for (int64_t p = 0; p < pixels; ++p) grad_weights[p] -= shared[plane];
    if (rule != Resize::none) interpolate_transposed_plane(y_down, x_down, grad_weights, out);
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                               \
  template void weights_cpu<T, uint8_t>(const Sizes&, Resize, T, const uint8_t*, T*, T*, int64_t, int64_t); \
  template void weights_cpu<T, T>(const Sizes&, Resize, T, const T*, T*, T*, int64_t, int64_t);             \
  template void pool_cpu<T>(const Sizes&, const T*, const T*, const T*, T*, int64_t, int64_t);              \
  template void scale_grad_cpu<T>(const Sizes&, const T*, const T*, const T*, T*, T*, int64_t, int64_t);    \
  template void grad_features_cpu<T>(const Sizes&, const T*, const T*, T*, int64_t, int64_t);               \
  template void grad_masks_cpu<T>(const Sizes&, Resize, const T*, const T*, const T*, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::masked_average_pooling
