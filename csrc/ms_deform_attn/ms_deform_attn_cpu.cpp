#include "ms_deform_attn/ms_deform_attn.h"

#include "ms_deform_attn/ms_deform_attn_taps.h"

namespace fssops::ms_deform_attn {
namespace FSSOPS_ISA {

namespace {

// output[c ...] = sum over points [begin, end) and their corners of corner weight * token. A token of -1 is read as
// zeros: nothing outside a level is touched, and no test stands in the loop. kFull: every vector is full, else `inside`
// elements.
template <class T, int kVectors, bool kFull>
inline void gather(const Taps<T>& taps, int64_t begin, int64_t end, const T* value, int64_t token_stride,
                   const T* zeros, T* output, int inside) {
  using V = simd::Vec<T>;
  // Several sums of each channel, so that an addition need not wait for the one before it.
  constexpr int kSums = kVectors > 2 ? 2 : 4;
  V sums[kSums][kVectors];
  for (auto& row : sums)
    for (V& sum : row) sum = V::zero();
  for (int64_t i = begin; i < end; ++i)
    for (int k = 0; k < kCorners; ++k) {
      const int64_t token = taps.token[k][i];
      const T* source = token < 0 ? zeros : value + token * token_stride;
      const V weight = V::broadcast(taps.corner[k][i]);
      for (int j = 0; j < kVectors; ++j) {
        const V row = kFull ? V::load(source + j * V::kSize) : V::load_partial(source, inside);
        sums[k % kSums][j] = simd::fma(weight, row, sums[k % kSums][j]);
      }
    }
  for (int j = 0; j < kVectors; ++j) {
    V total = sums[0][j] + sums[1][j];
    if constexpr (kSums == 4) total += sums[2][j] + sums[3][j];
    if constexpr (kFull)
      total.store(output + j * V::kSize);
    else
      total.store_partial(output, inside);
  }
}

}  // namespace

template <class T>
void forward_cpu(const Sizes& s, const Inputs<T>& in, T* output, int64_t begin, int64_t end) {
  if (s.row() == 0) return;
  Taps<T> taps(s, in.placement, 0, s.levels, s.heads);
  simd::Scratch<T> zeros(4 * simd::Vec<T>::kSize);
  for (int i = 0; i < 4 * simd::Vec<T>::kSize; ++i) zeros[i] = T(0);
  const int64_t samples = s.samples();
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / s.queries, q = query_at(s, static_cast<int32_t>(row % s.queries));
    const T* weights = in.weights.at(b, q);
    if (in.placement == Placement::locations) {
      for (int64_t i = 0; i < taps.count; ++i) taps.weights[i] = weights[i];
    } else {
      taps.place(in.reference.at(b, q));
      softmax_heads(s.heads, samples, weights, taps.weights);
    }
    taps.find(in.points.at(b, q));
    taps.weigh();
    for (int64_t m = 0; m < s.heads; ++m) {
      const T* value = in.value.data + value_offset(b, 0, m, in.value.batch_stride, in.value.row_stride, s.channels);
      T* out = output + ((b * s.queries + q) * s.heads + m) * s.channels;
      for_channel_blocks<T>(s.channels, [&](auto vectors, int64_t c, int inside) {
        constexpr int kVectors = decltype(vectors)::kCount;
        const int64_t first = m * samples, last = first + samples;
        if (inside == simd::Vec<T>::kSize)
          gather<T, kVectors, true>(taps, first, last, value + c, in.value.row_stride, zeros.data(), out + c, inside);
        else if constexpr (kVectors == 1)
          gather<T, 1, false>(taps, first, last, value + c, in.value.row_stride, zeros.data(), out + c, inside);
      });
    }
  }
}

template <class T>
void softmax_cpu(const Sizes& s, const Inputs<T>& in, T* weights, int64_t begin, int64_t end) {
  const int64_t count = s.heads * s.samples();
  for (int64_t row = begin; row < end; ++row)
    softmax_heads<T>(s.heads, s.samples(), in.weights.at(row / s.queries, row % s.queries), weights + row * count);
}

#define FSSOPS_INSTANTIATE(T)                                                         \
  template void forward_cpu<T>(const Sizes&, const Inputs<T>&, T*, int64_t, int64_t); \
  template void softmax_cpu<T>(const Sizes&, const Inputs<T>&, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::ms_deform_attn
