// Query rows and numbers of the CPU kernels as operands of common/packed_gemm.h. Part of files compiled once per
// instruction set.
#pragma once

#include <cstring>

#include "common/packed_gemm.h"
#include "cosine_correlation/cosine_correlation.h"

namespace fssops::cosine_correlation {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

using simd::kTileColumns;
using simd::kTileRows;
using simd::kTileVectors;
using simd::Vec;

constexpr int kRows = static_cast<int>(kRowBlock), kPanel = static_cast<int>(kColumnPanel);

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(bf16_t value) { return to_float(value); }

// Rows [first, first + count) of the query as [C][kRows] in sub-panels of kTileRows, zeros behind `count`; squares of
// their lengths. With `pairs`, as bfloat16 [C / 2][kRows][2] in sub-panels.
template <class T, class S>
void pack_rows(const Layer& layer, const S* query, int64_t first, int count, T* packed, T* squares) {
  constexpr int kTile = kTileRows<T>;
  const int64_t channel = layer.query_strides.channel, position = layer.query_strides.position;
  T parts[4][kRows] = {};
  for (int64_t c = 0; c < layer.channels; ++c) {
    const S* source = query + c * channel + first * position;
    T row[kRows] = {};
    if (position == 1)
      for (int i = 0; i < count; ++i) row[i] = widen(source[i]);
    else
      for (int i = 0; i < count; ++i) row[i] = widen(source[i * position]);
    T* part = parts[c % 4];
    for (int i = 0; i < kRows; ++i) part[i] += row[i] * row[i];
    for (int panel = 0; panel < kRows / kTile; ++panel)
      std::memcpy(packed + (panel * layer.channels + c) * kTile, row + panel * kTile, kTile * sizeof(T));
  }
  for (int i = 0; i < kRows; ++i) squares[i] = (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
}

inline void pack_row_pairs(const Layer& layer, const bf16_t* query, int64_t first, int count, uint32_t* packed,
                           float* squares) {
  constexpr int kTile = kTileRows<float>;
  const int64_t channel = layer.query_strides.channel, position = layer.query_strides.position;
  const int64_t all_pairs = (layer.channels + 1) / 2;
  float parts[2][kRows] = {};
  for (int64_t pair = 0; pair < all_pairs; ++pair) {
    const bf16_t* low = query + 2 * pair * channel + first * position;
    const bf16_t* high = 2 * pair + 1 < layer.channels ? low + channel : nullptr;
    uint32_t row[kRows] = {};
    if (position == 1 && high != nullptr && count == kRows) {
      for (int i = 0; i < kRows; ++i) row[i] = low[i].bits | static_cast<uint32_t>(high[i].bits) << 16;
    } else {
      for (int i = 0; i < count; ++i) {
        row[i] = low[i * position].bits;
        if (high != nullptr) row[i] |= static_cast<uint32_t>(high[i * position].bits) << 16;
      }
    }
    for (int i = 0; i < kRows; ++i) {
      const float first_value = to_float(bf16_t{static_cast<uint16_t>(row[i])});
      const float second_value = to_float(bf16_t{static_cast<uint16_t>(row[i] >> 16)});
      parts[0][i] += first_value * first_value;
      parts[1][i] += second_value * second_value;
    }
    for (int panel = 0; panel < kRows / kTile; ++panel)
      std::memcpy(packed + (panel * all_pairs + pair) * kTile, row + panel * kTile, kTile * sizeof(uint32_t));
  }
  for (int i = 0; i < kRows; ++i) squares[i] = parts[0][i] + parts[1][i];
}

// An operand of a tile product, [depth][width]: numbers as they are, ...
template <class T>
struct Plain {
  static constexpr bool kPairs = false;
  using Value = T;
  using Element = T;
  static int64_t steps(int64_t depth) { return depth; }
  static void put(Element* base, int64_t width, int64_t k, int64_t i, T value) { base[k * width + i] = value; }
  static T get(const Element* base, int64_t width, int64_t k, int64_t i) { return base[k * width + i]; }
  static Vec<T> load(const Element* base, int64_t width, int64_t k, int64_t i) {
    return Vec<T>::load(base + k * width + i);
  }
  // Vector i of rows k..k + count - 1, `values` apart.
  static void store(Element* base, int64_t width, int64_t k, int64_t i, const Vec<T>* values, int stride, int count) {
    for (int n = 0; n < count; ++n) values[n * stride].store(base + (k + n) * width + i);
  }
  static void multiply(int64_t depth, const Element* rows, const Element* columns, int64_t column_stride,
                       Vec<T> (&sums)[kTileColumns][kTileVectors]) {
    simd::multiply_tile(depth, rows, columns, column_stride, sums);
  }
};

#if defined(__AVX512F__)
// ... or as bfloat16, two neighbouring k in every element. Only where simd::has_bf16_pairs().
struct Pairs {
  static constexpr bool kPairs = true;
  using Value = float;
  using Element = uint32_t;
  static int64_t steps(int64_t depth) { return (depth + 1) / 2; }
  static void put(Element* base, int64_t width, int64_t k, int64_t i, float value) {
    const uint16_t bits = soft::float_to_bf16(value);
    std::memcpy(reinterpret_cast<char*>(base + k / 2 * width + i) + k % 2 * 2, &bits, sizeof bits);
  }
  static float get(const Element* base, int64_t width, int64_t k, int64_t i) {
    const uint32_t pair = base[k / 2 * width + i];
    return soft::from_bits(k % 2 == 0 ? pair << 16 : pair & 0xffff0000u);
  }
  static Vec<float> load(const Element* base, int64_t width, int64_t k, int64_t i) {
    const __m512i pairs = _mm512_loadu_si512(base + k / 2 * width + i);
    const __m512i bits = k % 2 == 0 ? _mm512_slli_epi32(pairs, 16)
                                    : _mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
    return {_mm512_castsi512_ps(bits)};
  }
  // `k` is even; behind an odd number of rows stand zeros.
  static void store(Element* base, int64_t width, int64_t k, int64_t i, const Vec<float>* values, int stride,
                    int count) {
    for (int n = 0; n < count; n += 2) {
      const __m512i low = rounded(values[n * stride]);
      const __m512i high = n + 1 < count ? rounded(values[(n + 1) * stride]) : _mm512_setzero_si512();
      const __m512i pairs = _mm512_or_si512(_mm512_srli_epi32(low, 16),
                                            _mm512_and_si512(high, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
      _mm512_storeu_si512(base + (k + n) / 2 * width + i, pairs);
    }
  }
  static void multiply(int64_t depth, const Element* rows, const Element* columns, int64_t column_stride,
                       Vec<float> (&sums)[kTileColumns][kTileVectors]) {
    simd::multiply_tile_pairs(steps(depth), rows, columns, column_stride, sums);
  }

 private:
  // The upper halves are `value` as bfloat16, to nearest even; NaN stays NaN.
  static __m512i rounded(Vec<float> value) {
    const __m512i bits = _mm512_castps_si512(value.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(value.v, value.v, _CMP_UNORD_Q);
    return _mm512_mask_blend_epi32(nan, sum, _mm512_set1_epi32(0x7fff0000));
  }
};
#endif

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_correlation
