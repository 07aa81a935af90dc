// Where a resized pixel takes its values from, on one axis; shared by CPU and CUDA.
// Source coordinates follow torch.nn.functional.interpolate, which the published systems call.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/interpolation.h"
#include "common/macros.h"

namespace fssops::masked_average_pooling {

// One axis of an interpolation from `in` to `out` positions. T is the type the coordinates are computed in.
template <class T>
struct Axis {
  int in, out;
  T scale;
  bool nearest, align_corners;

  FSSOPS_HOST_DEVICE Axis(int64_t in_size, int64_t out_size, bool nearest_rule, bool align)
      : in(static_cast<int>(in_size)), out(static_cast<int>(out_size)), nearest(nearest_rule), align_corners(align) {
    if (align)
      scale = out > 1 ? T(in - 1) / T(out - 1) : T(0);
    else
      scale = T(in) / T(out);
  }

  // Output position o is (1 - fraction) * input[first] + fraction * input[second].
  FSSOPS_HOST_DEVICE void taps(int o, int& first, int& second, T& fraction) const {
    if (nearest) {
      // In float32 whatever T is, as there: a product in float64 may fall on the other side of an integer.
      const int source = static_cast<int>(static_cast<float>(o) * static_cast<float>(scale));
      first = second = source < in - 1 ? source : in - 1;
      fraction = T(0);
      return;
    }
    linear_taps(align_corners ? T(o) * scale : half_pixel_source(o, scale), in, first, second, fraction);
  }

  // Weight of input i in output o.
  FSSOPS_HOST_DEVICE T weight(int o, int i) const {
    int first, second;
    T fraction;
    taps(o, first, second, fraction);
    return (first == i ? T(1) - fraction : T(0)) + (second == i ? fraction : T(0));
  }

  // Outputs outside [low, high) do not touch input i. Generous by two positions, for rounding.
  FSSOPS_HOST_DEVICE void outputs_of(int i, int& low, int& high) const {
    if (scale <= T(0)) {
      low = 0;
      high = out;
      return;
    }
    const T from = (T(i) - T(1)) / scale - T(2), to = (T(i) + T(2)) / scale + T(2);
    low = from > T(0) ? static_cast<int>(from) : 0;
    high = to < T(out) ? static_cast<int>(to) + 1 : out;
    if (i == 0) low = 0;  // clamped coordinates land on the ends
    if (i == in - 1) high = out;
    if (high > out) high = out;
  }
};

}  // namespace fssops::masked_average_pooling
