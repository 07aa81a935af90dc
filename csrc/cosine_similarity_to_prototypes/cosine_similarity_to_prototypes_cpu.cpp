#include "common/gemm.h"
#include "common/simd.h"
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes.h"

namespace fssops::cosine_similarity_to_prototypes {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

constexpr int kBlock = static_cast<int>(kPixelBlock);

template <class T>
T squares_of(const T* vector, int64_t count) {
  using V = simd::Vec<T>;
  V sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * V::kSize <= count; i += 4 * V::kSize)
    for (int j = 0; j < 4; ++j) {
      const V value = V::load(vector + i + j * V::kSize);
      sums[j] = fma(value, value, sums[j]);
    }
  T total = sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total += vector[i] * vector[i];
  return total;
}

}  // namespace

template <class T>
void prototype_lengths_cpu(const Sizes& s, const T* prototypes, T* lengths, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) lengths[i] = std::sqrt(squares_of(prototypes + i * s.channels, s.channels));
}

template <class T>
void values_cpu(const Sizes& s, const T* features, const T* prototypes, const T* prototype_lengths, T* values,
                T* feature_lengths, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(s.pixels, kPixelBlock);
  const T eps = static_cast<T>(s.eps), scale = static_cast<T>(s.scale);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, p0 = task % blocks * kPixelBlock;
    const int count = static_cast<int>(s.pixels - p0 < kBlock ? s.pixels - p0 : kBlock);
    const T* f = features + b * s.channels * s.pixels + p0 * s.pixel_stride();
    const T* q = prototypes + b * s.prototypes * s.channels;
    T* out = values + b * s.prototypes * s.pixels + p0;
    T squares[kBlock] = {};
    if (s.channels_last) {
      for (int i = 0; i < count; ++i) squares[i] = squares_of(f + i * s.channels, s.channels);
      simd::gemm_nt<T>(count, s.prototypes, s.channels, f, s.channels, q, s.channels, out, 1, s.pixels);
    } else {
      T parts[4][kBlock] = {};
      for (int64_t c = 0; c < s.channels; ++c) {
        const T* row = f + c * s.pixels;
        for (int i = 0; i < count; ++i) parts[c % 4][i] += row[i] * row[i];
      }
      for (int i = 0; i < count; ++i) squares[i] = (parts[0][i] + parts[1][i]) + (parts[2][i] + parts[3][i]);
      simd::gemm_nn<T>(s.prototypes, count, s.channels, q, s.channels, 1, f, s.pixels, out, s.pixels);
    }
    T factors[kBlock];
    for (int i = 0; i < count; ++i) {
      const T length = std::sqrt(squares[i]);
      feature_lengths[b * s.pixels + p0 + i] = length;
      factors[i] = scale / clamped(length, eps);
    }
    for (int64_t n = 0; n < s.prototypes; ++n) {
      const T factor = T(1) / clamped(prototype_lengths[b * s.prototypes + n], eps);
      for (int i = 0; i < count; ++i) out[n * s.pixels + i] *= factors[i] * factor;
    }
  }
}

template <class T>
void coefficients_cpu(const Sizes& s, const T* grad, const T* values, const T* feature_lengths,
                      const T* prototype_lengths, T* coefficients, T* feature_terms, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(s.pixels, kPixelBlock);
  const T eps = static_cast<T>(s.eps), scale = static_cast<T>(s.scale);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, p0 = task % blocks * kPixelBlock;
    const int count = static_cast<int>(s.pixels - p0 < kBlock ? s.pixels - p0 : kBlock);
    T terms[kBlock] = {}, factors[kBlock];
    for (int i = 0; i < count; ++i) factors[i] = scale / clamped(feature_lengths[b * s.pixels + p0 + i], eps);
    for (int64_t n = 0; n < s.prototypes; ++n) {
      const T factor = T(1) / clamped(prototype_lengths[b * s.prototypes + n], eps);
      const int64_t at = (b * s.prototypes + n) * s.pixels + p0;
      for (int i = 0; i < count; ++i) {
        coefficients[at + i] = grad[at + i] * factors[i] * factor;
        terms[i] += grad[at + i] * values[at + i];
      }
    }
    for (int i = 0; i < count; ++i) {
      const int64_t p = b * s.pixels + p0 + i;
      feature_terms[p] = terms[i] * inverse_square(feature_lengths[p], eps);
    }
  }
}

template <class T>
void grad_features_cpu(const Sizes& s, const T* features, const T* prototypes, const T* coefficients,
                       const T* feature_terms, T* grad_features, int64_t begin, int64_t end) {
  const int64_t all_rows = s.channels_last ? s.pixels : s.channels, columns = s.channels_last ? s.channels : s.pixels;
  const int64_t block = s.channels_last ? kPixelBlock : kChannelBlock, blocks = blocks_of(all_rows, block);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, row = task % blocks * block;
    const int64_t rows = all_rows - row < block ? all_rows - row : block;
    const T* e = coefficients + b * s.prototypes * s.pixels;
    const T* q = prototypes + b * s.prototypes * s.channels;
    const T* terms = feature_terms + b * s.pixels;
    const int64_t at = b * s.channels * s.pixels + row * columns;
    if (s.channels_last)
      simd::gemm_nn<T>(rows, columns, s.prototypes, e + row, 1, s.pixels, q, s.channels, grad_features + at, columns);
    else
      simd::gemm_nn<T>(rows, columns, s.prototypes, q + row, 1, s.channels, e, s.pixels, grad_features + at, columns);
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        grad_features[at + i * columns + j] -=
            features[at + i * columns + j] * (s.channels_last ? terms[row + i] : terms[j]);
  }
}

template <class T>
void grad_prototypes_cpu(const Sizes& s, const T* features, const T* prototypes, const T* coefficients, const T* grad,
                         const T* values, const T* prototype_lengths, T* grad_prototypes, int64_t begin, int64_t end) {
  const int64_t blocks = blocks_of(s.channels, kChannelBlock);
  const T eps = static_cast<T>(s.eps);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / blocks, c = task % blocks * kChannelBlock;
    const int64_t columns = s.channels - c < kChannelBlock ? s.channels - c : kChannelBlock;
    const T* e = coefficients + b * s.prototypes * s.pixels;
    const T* f = features + b * s.channels * s.pixels;
    const int64_t at = b * s.prototypes * s.channels + c;
    T* out = grad_prototypes + at;
    if (s.channels_last)
      simd::gemm_nn<T>(s.prototypes, columns, s.pixels, e, s.pixels, 1, f + c, s.channels, out, s.channels);
    else
      simd::gemm_nt<T>(s.prototypes, columns, s.pixels, e, s.pixels, f + c * s.pixels, s.pixels, out, s.channels, 1);
    for (int64_t n = 0; n < s.prototypes; ++n) {
      const int64_t row = (b * s.prototypes + n) * s.pixels;
      T parts[4] = {};
      for (int64_t p = 0; p < s.pixels; ++p) parts[p % 4] += grad[row + p] * values[row + p];
      const T term = ((parts[0] + parts[1]) + (parts[2] + parts[3])) *
                     inverse_square(prototype_lengths[b * s.prototypes + n], eps);
      for (int64_t j = 0; j < columns; ++j) out[n * s.channels + j] -= prototypes[at + n * s.channels + j] * term;
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                        \
  template void prototype_lengths_cpu<T>(const Sizes&, const T*, T*, int64_t, int64_t);                              \
  template void values_cpu<T>(const Sizes&, const T*, const T*, const T*, T*, T*, int64_t, int64_t);                 \
  template void coefficients_cpu<T>(const Sizes&, const T*, const T*, const T*, const T*, T*, T*, int64_t, int64_t); \
  template void grad_features_cpu<T>(const Sizes&, const T*, const T*, const T*, const T*, T*, int64_t, int64_t);    \
  template void grad_prototypes_cpu<T>(const Sizes&, const T*, const T*, const T*, const T*, const T*, const T*, T*, \
                                       int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_similarity_to_prototypes
