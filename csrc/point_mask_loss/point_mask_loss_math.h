// Where a point takes its value from, and the losses of one point; shared by CPU and CUDA.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/macros.h"

namespace fssops::point_mask_loss {

// The two pixels of an axis between which a point lies: first and first + 1, always inside (first + 1 only if size >
// 1), with weights that are 0 for a pixel that the point does not touch. `p` in [0, 1] spans `extent` pixels.
template <class T>
struct AxisTaps {
  int first;
  T low, high;

  FSSOPS_HOST_DEVICE AxisTaps(T p, int size, T half_extent) {
    // As grid_sample computes it, rounding included: 2 p - 1, then back to pixels.
    const T position = ((T(2) * p - T(1)) + T(1)) * half_extent - T(0.5);
    T cell = std::floor(position);
    const T last = T(size > 1 ? size - 2 : 0);
    cell = cell > T(0) ? (cell < last ? cell : last) : T(0);  // NaN becomes 0; its weights stay NaN
    first = static_cast<int>(cell);
    const T d = position - cell;
    low = T(1) - (d < T(0) ? -d : d);
    high = T(1) - (d < T(1) ? T(1) - d : d - T(1));
    low = low < T(0) ? T(0) : low;
    high = high < T(0) ? T(0) : high;
    if (size < 2) high = high != high ? high : T(0);
  }
};

// Element of map `map`, pixel (y, x): 64 bits, so that [M, h, w] may have more than 2^31 elements.
FSSOPS_HOST_DEVICE int64_t pixel_offset(int64_t map, int64_t height, int64_t width, int y, int x) {
  return (map * height + y) * width + x;
}

FSSOPS_HOST_DEVICE int bit_at(const uint8_t* row, int x) { return (row[x >> 3] >> (7 - (x & 7))) & 1; }

// Values (0 or 1) of pixels (y, x) and (y + 1, x) of a mask of runs; the second only if y + 1 is inside.
FSSOPS_HOST_DEVICE void run_values(const int32_t* ends, const int32_t* columns, int height, int y, int x, int& upper,
                                   int& lower) {
  const int32_t pixel = x * height + y;  // masks have fewer than 2^31 pixels
  int32_t low = columns[x], high = columns[x + 1];
  while (low < high) {  // the first run that ends behind the pixel
    const int32_t middle = low + (high - low) / 2;
    if (ends[middle] <= pixel)
      low = middle + 1;
    else
      high = middle;
  }
  upper = low & 1;
  lower = 0;
  if (y + 1 < height) {
    const int32_t last = columns[x + 1];
    while (low < last && ends[low] <= pixel + 1) ++low;
    lower = low & 1;
  }
}

// The unsigned number by which values are put in order. Not uint64_t, which CUDA's atomics do not take.
template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = unsigned long long;
};

// What the backward pass multiplies with, per mask.
template <class T>
struct LossScales {
  T mask;           // gradient of loss_mask / P
  T dice_constant;  // gradient of loss_dice * numerator / denominator^2
  T dice_target;    // gradient of loss_dice * 2 / denominator

  FSSOPS_HOST_DEVICE LossScales() {}
  FSSOPS_HOST_DEVICE LossScales(T grad_mask, T grad_dice, T numerator, T denominator, int64_t points)
      : mask(grad_mask / T(points)),
        dice_constant(grad_dice * (numerator / denominator) / denominator),
        dice_target(grad_dice * T(2) / denominator) {}

  // d loss / d logit at a point with sigmoid s and target t.
  FSSOPS_HOST_DEVICE T grad(T s, T t) const {
    return mask * (s - t) + s * (T(1) - s) * (dice_constant - dice_target * t);
  }
};

}  // namespace fssops::point_mask_loss
