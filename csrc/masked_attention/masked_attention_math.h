// What the CPU and CUDA kernels share: where a resized mask takes its values from, and how mask bits lie in memory.
#pragma once

#include <cstdint>

#include "common/interpolation.h"
#include "common/macros.h"

namespace fssops::masked_attention {

// Bits of one query's mask, 32 keys a word, key 32 * w + i in bit i of word w; 1 = may attend. Whoever makes them
// leaves those past the last key 0; whoever reads them takes none of those for a key.
constexpr int kWordBits = 32;

FSSOPS_HOST_DEVICE int64_t words_of(int64_t keys) { return (keys + kWordBits - 1) / kWordBits; }

// The bits of word `word` that stand for keys.
FSSOPS_HOST_DEVICE uint32_t valid_bits(int64_t keys, int64_t word) {
  const int64_t left = keys - word * kWordBits;
  return left >= kWordBits ? 0xffffffffu : (left <= 0 ? 0u : (1u << left) - 1u);
}

// One axis of a bilinear resize from `in` to `out` positions, pixel centres at half integers, as
// torch.nn.functional.interpolate(mode="bilinear", align_corners=False) computes it.
template <class T>
struct ResizeAxis {
  int in, out;
  T scale;

  FSSOPS_HOST_DEVICE ResizeAxis(int64_t in_size, int64_t out_size)
      : in(static_cast<int>(in_size)), out(static_cast<int>(out_size)), scale(T(in_size) / T(out_size)) {}

  // Output position o is (1 - fraction) * input[first] + fraction * input[second].
  FSSOPS_HOST_DEVICE void taps(int o, int& first, int& second, T& fraction) const {
    linear_taps(half_pixel_source(o, scale), in, first, second, fraction);
  }
};

}  // namespace fssops::masked_attention
