// Small single-threaded matrix products for the inside of kernels, in the two forms that need no packing.
// The order of additions depends on the sizes and the instruction set only, so results are reproducible.
#pragma once

#include "common/simd.h"

namespace fssops::simd {
namespace FSSOPS_ISA {

// out[m * out_stride + n] (+)= sum_k a[m * a_row + k * a_column] * x[k * x_stride + n]; x and out run along n.
// kMasked: `columns` (1..kVectors * kSize) of the block are inside.
template <class T, int kRows, int kVectors, bool kAdd, bool kMasked>
inline void outer_block(int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* x, int64_t x_stride,
                        T* out, int64_t out_stride, int columns) {
  using V = Vec<T>;
  V sums[kRows][kVectors];
  int inside[kVectors];
  for (int j = 0; j < kVectors; ++j) {
    const int left = columns - j * V::kSize;
    inside[j] = left < 0 ? 0 : (left > V::kSize ? V::kSize : left);
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (!kAdd)
        sums[i][j] = V::zero();
      else if constexpr (kMasked)
        sums[i][j] = V::load_partial(out + i * out_stride + j * V::kSize, inside[j]);
      else
        sums[i][j] = V::load(out + i * out_stride + j * V::kSize);
    }
  for (int64_t k = 0; k < depth; ++k) {
    V row[kVectors];
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (kMasked)
        row[j] = V::load_partial(x + k * x_stride + j * V::kSize, inside[j]);
      else
        row[j] = V::load(x + k * x_stride + j * V::kSize);
    }
    for (int i = 0; i < kRows; ++i) {
      const V factor = V::broadcast(a[i * a_row + k * a_column]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = fma(factor, row[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (kMasked)
        sums[i][j].store_partial(out + i * out_stride + j * V::kSize, inside[j]);
      else
        sums[i][j].store(out + i * out_stride + j * V::kSize);
    }
}

template <class T, int kRows, bool kAdd>
inline void outer_rows(int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_column, const T* x,
                       int64_t x_stride, T* out, int64_t out_stride) {
  constexpr int kVectors = 4, kBlock = kVectors * Vec<T>::kSize;
  int64_t n = 0;
  for (; n + kBlock <= columns; n += kBlock)
    outer_block<T, kRows, kVectors, kAdd, false>(depth, a, a_row, a_column, x + n, x_stride, out + n, out_stride,
                                                 kBlock);
  for (; n < columns; n += Vec<T>::kSize) {
    const int64_t left = columns - n;
    outer_block<T, kRows, 1, kAdd, true>(depth, a, a_row, a_column, x + n, x_stride, out + n, out_stride,
                                         static_cast<int>(left < Vec<T>::kSize ? left : Vec<T>::kSize));
  }
}

// out [rows, columns] = a [rows, depth] (any strides) times x [depth, columns] (rows contiguous).
template <class T, bool kAdd = false>
inline void gemm_nn(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_row, int64_t a_column,
                    const T* x, int64_t x_stride, T* out, int64_t out_stride) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4)
    outer_rows<T, 4, kAdd>(columns, depth, a + m * a_row, a_row, a_column, x, x_stride, out + m * out_stride,
                           out_stride);
  for (; m < rows; ++m)
    outer_rows<T, 1, kAdd>(columns, depth, a + m * a_row, a_row, a_column, x, x_stride, out + m * out_stride,
                           out_stride);
}

template <class T, int kRows, int kColumns>
inline void inner_block(int64_t depth, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* out,
                        int64_t out_row, int64_t out_column) {
  using V = Vec<T>;
  V sums[kRows][kColumns];
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) sums[i][j] = V::zero();
  int64_t k = 0;
  for (; k + V::kSize <= depth; k += V::kSize) {
    V left[kRows];
    for (int i = 0; i < kRows; ++i) left[i] = V::load(a + i * a_stride + k);
    for (int j = 0; j < kColumns; ++j) {
      const V right = V::load(b + j * b_stride + k);
      for (int i = 0; i < kRows; ++i) sums[i][j] = fma(left[i], right, sums[i][j]);
    }
  }
  if (k < depth) {
    const int rest = static_cast<int>(depth - k);
    V left[kRows];
    for (int i = 0; i < kRows; ++i) left[i] = V::load_partial(a + i * a_stride + k, rest);
    for (int j = 0; j < kColumns; ++j) {
      const V right = V::load_partial(b + j * b_stride + k, rest);
      for (int i = 0; i < kRows; ++i) sums[i][j] = fma(left[i], right, sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kColumns; ++j) out[i * out_row + j * out_column] = sum(sums[i][j]);
}

// out[m * out_row + n * out_column] = sum_k a[m * a_stride + k] * b[n * b_stride + k]; both run along k.
template <class T>
inline void gemm_nt(int64_t rows, int64_t columns, int64_t depth, const T* a, int64_t a_stride, const T* b,
                    int64_t b_stride, T* out, int64_t out_row, int64_t out_column) {
  int64_t m = 0;
  for (; m + 4 <= rows; m += 4) {
    int64_t n = 0;
    for (; n + 4 <= columns; n += 4)
      inner_block<T, 4, 4>(depth, a + m * a_stride, a_stride, b + n * b_stride, b_stride,
                           out + m * out_row + n * out_column, out_row, out_column);
    for (; n < columns; ++n)
      inner_block<T, 4, 1>(depth, a + m * a_stride, a_stride, b + n * b_stride, b_stride,
                           out + m * out_row + n * out_column, out_row, out_column);
  }
  for (; m < rows; ++m) {
    int64_t n = 0;
    for (; n + 4 <= columns; n += 4)
      inner_block<T, 1, 4>(depth, a + m * a_stride, a_stride, b + n * b_stride, b_stride,
                           out + m * out_row + n * out_column, out_row, out_column);
    for (; n < columns; ++n)
      inner_block<T, 1, 1>(depth, a + m * a_stride, a_stride, b + n * b_stride, b_stride,
                           out + m * out_row + n * out_column, out_row, out_column);
  }
}

}  // namespace FSSOPS_ISA
}  // namespace fssops::simd
