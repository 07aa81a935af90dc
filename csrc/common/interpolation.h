// Linear interpolation along one axis, as torch.nn.functional.interpolate computes it; shared by CPU and CUDA.
#pragma once

#include "common/macros.h"

namespace fssops {

// Where output position o lies among the inputs, pixel centres at half integers; `scale` is inputs per output.
template <class T>
FSSOPS_HOST_DEVICE T half_pixel_source(int o, T scale) {
  return (T(o) + T(0.5)) * scale - T(0.5);
}

// The value at `source`, brought inside, is (1 - fraction) * input[first] + fraction * input[second].
template <class T>
FSSOPS_HOST_DEVICE void linear_taps(T source, int in, int& first, int& second, T& fraction) {
  if (source < T(0)) source = T(0);
  first = static_cast<int>(source);
  if (first > in - 1) first = in - 1;
  second = first < in - 1 ? first + 1 : first;
  fraction = source - T(first);
  if (fraction > T(1)) fraction = T(1);
}

}  // namespace fssops
