// The register-blocked core of a matrix product whose operands were packed first: both are read along memory, once per
// tile, and the tile stays in registers, so that the caller can reduce it without storing it.
//
//   sums[j][v][lane] = sum_k rows[k][v * kSize + lane] * columns[k][j]
//
// rows: [depth][kTileVectors * kSize], columns: [depth][column_stride]. Additions run in the order of k.
#pragma once

#include "common/half.h"
#include "common/simd.h"

namespace fssops::simd {
namespace FSSOPS_ISA {

// Three vectors by eight columns fill 24 of AVX-512's 32 registers; the sets with 16 registers take four columns.
inline constexpr int kTileVectors = 3;
#if defined(__AVX512F__)
inline constexpr int kTileColumns = 8;
#else
inline constexpr int kTileColumns = 4;
#endif

template <class T>
inline constexpr int kTileRows = kTileVectors * Vec<T>::kSize;

template <class T>
inline void multiply_tile(int64_t depth, const T* rows, const T* columns, int64_t column_stride,
                          Vec<T> (&sums)[kTileColumns][kTileVectors]) {
  using V = Vec<T>;
  V totals[kTileColumns][kTileVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kTileColumns; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) totals[j][v] = V::zero();
  for (int64_t k = 0; k < depth; ++k) {
    V left[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) left[v] = V::load(rows + v * V::kSize);
#pragma GCC unroll 8
    for (int j = 0; j < kTileColumns; ++j) {
      const V right = V::broadcast(columns[j]);
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) totals[j][v] = fma(left[v], right, totals[j][v]);
    }
    rows += kTileRows<T>;
    columns += column_stride;
  }
#pragma GCC unroll 8
  for (int j = 0; j < kTileColumns; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sums[j][v] = totals[j][v];
}

#if defined(__AVX512F__)
// Whether this processor multiplies pairs of bfloat16 and adds them up in float32.
inline bool has_bf16_pairs() {
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
}

// The same product for bfloat16, two neighbouring k in every 32-bit element: rows [depth / 2][kTileRows][2], columns
// [depth / 2][column_stride][2]. Call it only where has_bf16_pairs().
__attribute__((target("avx512bf16"))) inline void multiply_tile_pairs(int64_t pairs, const uint32_t* rows,
                                                                      const uint32_t* columns, int64_t column_stride,
                                                                      Vec<float> (&sums)[kTileColumns][kTileVectors]) {
  __m512 totals[kTileColumns][kTileVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kTileColumns; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) totals[j][v] = _mm512_setzero_ps();
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh left[kTileVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v)
      left[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(rows + v * Vec<float>::kSize));
#pragma GCC unroll 8
    for (int j = 0; j < kTileColumns; ++j) {
      const __m512bh right = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(columns[j])));
#pragma GCC unroll 4
      for (int v = 0; v < kTileVectors; ++v) totals[j][v] = _mm512_dpbf16_ps(totals[j][v], left[v], right);
    }
    rows += kTileRows<float>;
    columns += column_stride;
  }
#pragma GCC unroll 8
  for (int j = 0; j < kTileColumns; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) sums[j][v] = {totals[j][v]};
}
#else
inline bool has_bf16_pairs() { return false; }
#endif

}  // namespace FSSOPS_ISA
}  // namespace fssops::simd
