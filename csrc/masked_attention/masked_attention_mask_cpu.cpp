// Making masks: bits from bytes, from logits of another size, and from the product that logits would be.
#include "common/simd.h"
#include "masked_attention/masked_attention.h"

namespace fssops::masked_attention {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

// Bit i: values[i] is not negative (a NaN is open), for the first vector's lanes.
template <class T>
inline uint32_t open_lanes(simd::Vec<T> values) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return _mm512_cmp_ps_mask((__m512)values.v, _mm512_setzero_ps(), _CMP_NLT_UQ);
  else
    return _mm512_cmp_pd_mask((__m512d)values.v, _mm512_setzero_pd(), _CMP_NLT_UQ);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4)
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)values.v, _mm256_setzero_ps(), _CMP_NLT_UQ)));
  else
    return static_cast<uint32_t>(
        _mm256_movemask_pd(_mm256_cmp_pd((__m256d)values.v, _mm256_setzero_pd(), _CMP_NLT_UQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < simd::Vec<T>::kSize; ++i) bits |= static_cast<uint32_t>(!(values[i] < T(0))) << i;
  return bits;
#endif
}

// Words of `count` values that lie in a row; bits past the end are 0.
template <class T>
void threshold(int64_t count, const T* values, uint32_t* words) {
  using V = simd::Vec<T>;
  for (int64_t first = 0; first < count; first += kWordBits) {
    uint32_t word = 0;
    for (int i = 0; i < kWordBits; i += V::kSize) {
      const int64_t left = count - first - i;
      if (left <= 0) break;
      const V lanes = V::load_partial(values + first + i, static_cast<int>(left < V::kSize ? left : V::kSize));
      word |= open_lanes(lanes) << i;
    }
    words[first / kWordBits] = word & valid_bits(count, first / kWordBits);
  }
}

void open_if_empty(int64_t keys, uint32_t* row) {
  const int64_t words = words_of(keys);
  for (int64_t w = 0; w < words; ++w)
    if (row[w] != 0) return;
  for (int64_t w = 0; w < words; ++w) row[w] = valid_bits(keys, w);
}

}  // namespace

void open_empty_rows_cpu(int64_t keys, uint32_t* bits, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) open_if_empty(keys, bits + row * words_of(keys));
}

void pack_mask_cpu(int64_t keys, bool open_empty, const uint8_t* closed, uint32_t* bits, int64_t begin, int64_t end) {
  const int64_t words = words_of(keys);
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* source = closed + row * keys;
    uint32_t* target = bits + row * words;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t first = w * kWordBits, left = keys - first;
#if defined(__AVX512F__)
      if (left >= kWordBits) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + first));
        target[w] = _mm256_testn_epi8_mask(bytes, bytes);
        continue;
      }
#endif
      uint32_t word = 0;
      for (int64_t i = 0; i < kWordBits && i < left; ++i) word |= static_cast<uint32_t>(source[first + i] == 0) << i;
      target[w] = word;
    }
    if (open_empty) open_if_empty(keys, target);
  }
}

template <class T>
void mask_from_logits_cpu(int64_t h, int64_t w, int64_t height, int64_t width, const T* logits, uint32_t* bits,
                          int64_t begin, int64_t end) {
  const int64_t keys = height * width, words = words_of(keys);
  const ResizeAxis<T> rows(h, height), columns(w, width);
  // Values of a plane, in the order of its keys. A line of the input grid is interpolated first, then its columns.
  simd::Scratch<T> values(keys), line(w), fractions(width);
  simd::Scratch<int32_t> left(width), right(width);
  for (int64_t x = 0; x < width; ++x) columns.taps(static_cast<int>(x), left[x], right[x], fractions[x]);
  const int32_t* l = left.data();
  const int32_t* r = right.data();
  const T* f = fractions.data();
  for (int64_t plane = begin; plane < end; ++plane) {
    const T* source = logits + plane * h * w;
    for (int64_t y = 0; y < height; ++y) {
      int top, bottom;
      T down;
      rows.taps(static_cast<int>(y), top, bottom, down);
      const T* upper = source + top * w;
      const T* lower = source + bottom * w;
      T* out = values.data() + y * width;
      T* mixed = line.data();
      for (int64_t x = 0; x < w; ++x) mixed[x] = (T(1) - down) * upper[x] + down * lower[x];
      for (int64_t x = 0; x < width; ++x) out[x] = (T(1) - f[x]) * mixed[l[x]] + f[x] * mixed[r[x]];
    }
    threshold(keys, values.data(), bits + plane * words);
    open_if_empty(keys, bits + plane * words);
  }
}

namespace {

// sums[i][j] = <embedding i, features of the tile's column j>; the tile is [channels, kEmbeddingTile].
template <class T, int kRows, int kVectors>
inline void project(int64_t channels, const T* embeddings, const T* tile, T* out) {
  using V = simd::Vec<T>;
  for (int64_t first = 0; first < kEmbeddingTile; first += kVectors * V::kSize) {
    V sums[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) sums[i][j] = V::zero();
    for (int64_t c = 0; c < channels; ++c) {
      V column[kVectors];
      for (int j = 0; j < kVectors; ++j) column[j] = V::load(tile + c * kEmbeddingTile + first + j * V::kSize);
      for (int i = 0; i < kRows; ++i) {
        const V factor = V::broadcast(embeddings[i * channels + c]);
        for (int j = 0; j < kVectors; ++j) sums[i][j] = fma(factor, column[j], sums[i][j]);
      }
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kVectors; ++j) sums[i][j].store(out + i * kEmbeddingTile + first + j * V::kSize);
  }
}

}  // namespace

template <class T>
void mask_from_embeddings_cpu(int64_t queries, int64_t channels, int64_t keys, const T* embeddings, const T* features,
                              uint32_t* bits, int64_t begin, int64_t end) {
  constexpr int kRows = 4, kVectors = simd::kBytes == 64 ? 4 : 2;
  const int64_t tiles = embedding_tiles(keys), words = words_of(keys);
  // The tile is copied so that its columns lie together: rows of features may be a power of two apart, which would
  // map all of them to the same few cache lines.
  simd::Scratch<T> tile(channels * kEmbeddingTile), values(kRows * kEmbeddingTile);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / tiles, first = i % tiles * kEmbeddingTile;
    const int64_t count = first + kEmbeddingTile < keys ? kEmbeddingTile : keys - first;
    for (int64_t c = 0; c < channels; ++c) {
      const T* source = features + (b * channels + c) * keys + first;
      T* target = tile.data() + c * kEmbeddingTile;
      for (int64_t k = 0; k < kEmbeddingTile; ++k) target[k] = k < count ? source[k] : T(0);
    }
    const T* rows = embeddings + b * queries * channels;
    uint32_t* target = bits + b * queries * words + first / kWordBits;
    for (int64_t q = 0; q < queries; q += kRows) {
      const int64_t inside = q + kRows < queries ? kRows : queries - q;
      if (inside == kRows)
        project<T, kRows, kVectors>(channels, rows + q * channels, tile.data(), values.data());
      else
        for (int64_t j = 0; j < inside; ++j)
          project<T, 1, kVectors>(channels, rows + (q + j) * channels, tile.data(), values.data() + j * kEmbeddingTile);
      for (int64_t j = 0; j < inside; ++j)
        threshold(count, values.data() + j * kEmbeddingTile, target + (q + j) * words);
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                       \
  template void mask_from_logits_cpu<T>(int64_t, int64_t, int64_t, int64_t, const T*, uint32_t*, int64_t, int64_t); \
  template void mask_from_embeddings_cpu<T>(int64_t, int64_t, int64_t, const T*, const T*, uint32_t*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)
#undef FSSOPS_INSTANTIATE

}  // namespace FSSOPS_ISA
}  // namespace fssops::masked_attention
