// The small dense pieces that the CPU passes are made of: products of gathered rows with one segment of keys.
//
// A segment is kSegment keys. `rows` lists the queries that have an open key in it. Tiles are [depth, kSegment] (the
// segment's keys or values, transposed) or [kSegment, width] (as they are); `width` is the head size rounded up to
// whole vectors, with zeros behind.
#pragma once

#include "common/simd.h"
#include "masked_attention/masked_attention.h"

namespace fssops::masked_attention {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

template <class T>
inline constexpr int kSegmentVectors = static_cast<int>(kSegment) / simd::Vec<T>::kSize;

template <class T>
inline int64_t padded_width(int64_t head_size) {
  return (head_size + simd::Vec<T>::kSize - 1) / simd::Vec<T>::kSize * simd::Vec<T>::kSize;
}

// 2^x for x <= 0, NaN kept; results below the smallest normal number are 0. Float: within 2 units in the last place.
inline simd::Vec<float> exp2_not_positive(simd::Vec<float> x) {
  using V = simd::Vec<float>;
  using Native = V::Native;
#if defined(__AVX512F__)
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, (__m512)x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Native r = x.v - (Native)n;
#else
  typedef int32_t Ints __attribute__((vector_size(simd::kBytes)));
  const V low = V::broadcast(-126.f), shifter = V::broadcast(12582912.f);  // 1.5 * 2^23 rounds to an integer
  const Native clamped = x.v < low.v ? low.v : x.v;
  const Native shifted = clamped + shifter.v, n = shifted - shifter.v;
  const Native r = clamped - n;
#endif
  Native p = V::broadcast(1.3264727e-3f).v;
  p = p * r + 9.6715130e-3f;
  p = p * r + 5.5507336e-2f;
  p = p * r + 2.4022242e-1f;
  p = p * r + 6.9314700e-1f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  // -inf - n is NaN in r; the mask puts the 0 there that 2^-inf is.
  const __mmask16 normal = _mm512_cmp_ps_mask((__m512)x.v, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
  return {(Native)_mm512_maskz_scalef_ps(normal, (__m512)p, n)};
#else
  union Bits {
    Ints i;
    Native f;
  } power;
  power.f = shifted;
  power.i = (power.i << 23) + (127 << 23);  // the shifter's own bits leave at the top
  Native out = p * power.f;
  out = x.v < low.v ? V::zero().v : out;
  return {x.v != x.v ? x.v : out};
#endif
}

inline simd::Vec<double> exp2_not_positive(simd::Vec<double> x) {
  simd::Vec<double> out;
  for (int i = 0; i < simd::Vec<double>::kSize; ++i) out.v[i] = std::exp2(x.v[i]);
  return out;
}

// Lanes whose bit is set keep `open`, the others get `closed`. Lane i looks at bit first + i.
template <class T>
inline simd::Vec<T> choose(uint32_t bits, int first, simd::Vec<T> open, simd::Vec<T> closed) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return {(typename simd::Vec<T>::Native)_mm512_mask_mov_ps((__m512)closed.v, static_cast<__mmask16>(bits >> first),
                                                              (__m512)open.v)};
  else
    return {(typename simd::Vec<T>::Native)_mm512_mask_mov_pd((__m512d)closed.v, static_cast<__mmask8>(bits >> first),
                                                              (__m512d)open.v)};
#else
  for (int i = 0; i < simd::Vec<T>::kSize; ++i)
    if (!(bits >> (first + i) & 1u)) open.v[i] = closed.v[i];
  return open;
#endif
}

// tile[d * kSegment + k] = source[k * step + d] for `count` keys, zeros for those behind them.
template <class T>
inline void transpose_segment(int64_t depth, int64_t count, const T* source, int64_t step, T* tile) {
  int64_t d = 0;
  if constexpr (sizeof(T) == 4) {
    typedef T Four __attribute__((vector_size(16)));
    if (count == kSegment)
      for (; d + 4 <= depth; d += 4)
        for (int64_t k = 0; k < kSegment; k += 4) {
          Four row[4];
          for (int i = 0; i < 4; ++i) std::memcpy(&row[i], source + (k + i) * step + d, 16);
          const Four a = __builtin_shufflevector(row[0], row[1], 0, 4, 1, 5),
                     b = __builtin_shufflevector(row[2], row[3], 0, 4, 1, 5);
          const Four c = __builtin_shufflevector(row[0], row[1], 2, 6, 3, 7),
                     e = __builtin_shufflevector(row[2], row[3], 2, 6, 3, 7);
          const Four out[4] = {__builtin_shufflevector(a, b, 0, 1, 4, 5), __builtin_shufflevector(a, b, 2, 3, 6, 7),
                               __builtin_shufflevector(c, e, 0, 1, 4, 5), __builtin_shufflevector(c, e, 2, 3, 6, 7)};
          for (int i = 0; i < 4; ++i) std::memcpy(tile + (d + i) * kSegment + k, &out[i], 16);
        }
  }
  for (; d < depth; ++d)
    for (int64_t k = 0; k < kSegment; ++k) tile[d * kSegment + k] = k < count ? source[k * step + d] : T(0);
}

// Asks for the rows of a segment ahead of their use: they may be far apart, where the hardware foresees nothing.
template <class T>
inline void prefetch_rows(int64_t depth, const T* source, int64_t step) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t k = 0; k < kSegment; ++k)
    for (int64_t d = 0; d < depth; d += kLine) __builtin_prefetch(source + k * step + d);
}

// target[r * width + d] = factor * source[r * step + d], zeros behind the depth.
template <class T>
inline void copy_rows(int64_t rows, int64_t depth, int64_t width, T factor, const T* source, int64_t step, T* target) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t d = 0; d < width; ++d) target[r * width + d] = d < depth ? factor * source[r * step + d] : T(0);
}

template <class T, int kRows>
inline void score_block(int64_t depth, const int32_t* rows, const T* a, int64_t width, const T* tile, T* out,
                        int64_t out_step) {
  using V = simd::Vec<T>;
  constexpr int kVectors = kSegmentVectors<T>;
  V sums[kRows][kVectors];
  const T* row[kRows];
  for (int i = 0; i < kRows; ++i) {
    row[i] = a + rows[i] * width;
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V::zero();
  }
  for (int64_t d = 0; d < depth; ++d) {
    V column[kVectors];
    for (int j = 0; j < kVectors; ++j) column[j] = V::load(tile + d * kSegment + j * V::kSize);
    for (int i = 0; i < kRows; ++i) {
      const V factor = V::broadcast(row[i][d]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = fma(factor, column[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sums[i][j].store(out + rows[i] * out_step + j * V::kSize);
}

// out[row * out_step + k] = sum_d a[row * width + d] * tile[d * kSegment + k] for the listed rows. The list is read in
// whole blocks: behind its end it must repeat its last entry kListSlack times.
constexpr int64_t kListSlack = 8;
template <class T>
inline void score_rows(int64_t depth, int64_t count, const int32_t* rows, const T* a, int64_t width, const T* tile,
                       T* out, int64_t out_step) {
  constexpr int kMany = kSegmentVectors<T> <= 2 ? 8 / kSegmentVectors<T> : 2, kFew = kMany / 2;
  int64_t i = 0;
  for (; i + kFew < count; i += kMany) score_block<T, kMany>(depth, rows + i, a, width, tile, out, out_step);
  if (i < count) score_block<T, kFew>(depth, rows + i, a, width, tile, out, out_step);
}

template <class T, int kRows, int kVectors>
inline void gather_block(const int32_t* rows, const T* p, int64_t p_step, const T* x, int64_t x_step, T* out,
                         int64_t out_step) {
  using V = simd::Vec<T>;
  V sums[kRows][kVectors];
  const T* weights[kRows];
  for (int i = 0; i < kRows; ++i) {
    weights[i] = p + rows[i] * p_step;
    for (int j = 0; j < kVectors; ++j) sums[i][j] = V::load(out + rows[i] * out_step + j * V::kSize);
  }
  for (int64_t k = 0; k < kSegment; ++k) {
    V value[kVectors];
    for (int j = 0; j < kVectors; ++j) value[j] = V::load(x + k * x_step + j * V::kSize);
    for (int i = 0; i < kRows; ++i) {
      const V factor = V::broadcast(weights[i][k]);
      for (int j = 0; j < kVectors; ++j) sums[i][j] = fma(factor, value[j], sums[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kVectors; ++j) sums[i][j].store(out + rows[i] * out_step + j * V::kSize);
}

// out[row * out_step + d] += sum_k p[row * p_step + k] * x[k * x_step + d] for the listed rows, d < width.
template <class T>
inline void add_to_rows(int64_t width, int64_t count, const int32_t* rows, const T* p, int64_t p_step, const T* x,
                        int64_t x_step, T* out, int64_t out_step) {
  constexpr int kSize = simd::Vec<T>::kSize;
  int64_t d = 0;
  for (; d + 2 * kSize <= width; d += 2 * kSize) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) gather_block<T, 4, 2>(rows + i, p, p_step, x + d, x_step, out + d, out_step);
    for (; i + 2 <= count; i += 2) gather_block<T, 2, 2>(rows + i, p, p_step, x + d, x_step, out + d, out_step);
    for (; i < count; ++i) gather_block<T, 1, 2>(rows + i, p, p_step, x + d, x_step, out + d, out_step);
  }
  for (; d < width; d += kSize) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) gather_block<T, 4, 1>(rows + i, p, p_step, x + d, x_step, out + d, out_step);
    for (; i < count; ++i) gather_block<T, 1, 1>(rows + i, p, p_step, x + d, x_step, out + d, out_step);
  }
}

template <class T, int kKeys, int kVectors>
inline void scatter_block(int64_t count, const int32_t* rows, const T* p, int64_t p_step, const T* a, int64_t width,
                          T* out) {
  using V = simd::Vec<T>;
  V sums[kKeys][kVectors];
  for (int k = 0; k < kKeys; ++k)
    for (int j = 0; j < kVectors; ++j) sums[k][j] = V::zero();
  for (int64_t i = 0; i < count; ++i) {
    V value[kVectors];
    for (int j = 0; j < kVectors; ++j) value[j] = V::load(a + rows[i] * width + j * V::kSize);
    const T* weights = p + rows[i] * p_step;
    for (int k = 0; k < kKeys; ++k) {
      const V factor = V::broadcast(weights[k]);
      for (int j = 0; j < kVectors; ++j) sums[k][j] = fma(factor, value[j], sums[k][j]);
    }
  }
  for (int k = 0; k < kKeys; ++k)
    for (int j = 0; j < kVectors; ++j) sums[k][j].store(out + k * width + j * V::kSize);
}

// out[k * width + d] = sum over the listed rows of p[row * p_step + k] * a[row * width + d], for all keys of the
// segment.
template <class T>
inline void sum_over_rows(int64_t width, int64_t count, const int32_t* rows, const T* p, int64_t p_step, const T* a,
                          T* out) {
  constexpr int kSize = simd::Vec<T>::kSize, kKeys = simd::kBytes == 64 ? 8 : 4;
  for (int64_t k = 0; k < kSegment; k += kKeys) {
    int64_t d = 0;
    for (; d + 2 * kSize <= width; d += 2 * kSize)
      scatter_block<T, kKeys, 2>(count, rows, p + k, p_step, a + d, width, out + k * width + d);
    for (; d < width; d += kSize)
      scatter_block<T, kKeys, 1>(count, rows, p + k, p_step, a + d, width, out + k * width + d);
  }
}

// The queries that have an open key in each segment of a block of keys.
class ActiveRows {
 public:
  explicit ActiveRows(int64_t queries)
      : step_(queries + kListSlack), rows_(kKeyBlock / kSegment * step_), counts_(kKeyBlock / kSegment) {}

  // Lists for keys [first, first + count), first a multiple of kKeyBlock; `bits` is the first query's row, null for
  // a mask that is open everywhere.
  void collect(int64_t queries, int64_t words, const uint32_t* bits, int64_t first, int64_t count) {
    segments_ = (count + kSegment - 1) / kSegment;
    for (int64_t j = 0; j < segments_; ++j) counts_[j] = 0;
    for (int64_t q = 0; q < queries; ++q) {
      if (bits == nullptr) {
        for (int64_t j = 0; j < segments_; ++j) add(j, q);
        continue;
      }
      const uint32_t* row = bits + q * words + first / kWordBits;
      for (int64_t j = 0; j < segments_; j += 2) {
        const uint32_t word = row[j / 2];
        if (word == 0) continue;
        if (word & 0xffffu) add(j, q);
        if (word >> 16) add(j + 1, q);  // no bit is set past the last key
      }
    }
    for (int64_t j = 0; j < segments_; ++j)
      for (int64_t i = 0; i < kListSlack && counts_[j] > 0; ++i)
        rows_[j * step_ + counts_[j] + i] = rows_[j * step_ + counts_[j] - 1];
  }
  int64_t segments() const { return segments_; }
  int64_t count(int64_t segment) { return counts_[segment]; }
  const int32_t* rows(int64_t segment) { return rows_.data() + segment * step_; }

 private:
  void add(int64_t segment, int64_t q) { rows_[segment * step_ + counts_[segment]++] = static_cast<int32_t>(q); }

  int64_t step_, segments_ = 0;
  simd::Scratch<int32_t> rows_;
  simd::Scratch<int64_t> counts_;
};

// Bits of a segment of a query's mask row.
inline uint32_t segment_bits(const uint32_t* row, int64_t segment) {
  return row[segment / 2] >> (segment % 2 * 16) & 0xffffu;
}

// The bits of a segment when every key is open: those of the keys that there are.
inline uint32_t open_segment_bits(int64_t keys, int64_t segment) {
  return valid_bits(keys, segment / 2) >> (segment % 2 * 16) & 0xffffu;
}

}  // namespace FSSOPS_ISA
}  // namespace fssops::masked_attention
