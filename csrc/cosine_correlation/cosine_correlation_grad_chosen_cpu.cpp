// Backward pass of max and topk_mean: k columns of a query position have a gradient, so no matrix product is made.
#include "cosine_correlation/cosine_correlation_math.h"
#include "cosine_correlation/cosine_correlation_pack_cpu.h"

namespace fssops::cosine_correlation {
namespace FSSOPS_ISA {

namespace {

// Where `column` is among the ascending `index`.
inline int32_t place_of(const int32_t* index, int64_t count, int32_t column) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (index[middle] < column)
      low = middle + 1;
    else
      high = middle;
  }
  return static_cast<int32_t>(low);
}

// Sum of products, in an order that depends on the width of a vector only.
template <class T>
inline T dot(const T* a, const T* b, int64_t count) {
  using V = Vec<T>;
  V sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * V::kSize <= count; i += 4 * V::kSize)
    for (int n = 0; n < 4; ++n)
      sums[n] = simd::fma(V::load(a + i + n * V::kSize), V::load(b + i + n * V::kSize), sums[n]);
  for (; i < count; i += V::kSize) {
    const int left = static_cast<int>(count - i < V::kSize ? count - i : V::kSize);
    sums[0] = simd::fma(V::load_partial(a + i, left), V::load_partial(b + i, left), sums[0]);
  }
  return simd::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// target += factor * source
template <class T>
inline void add_scaled(T factor, const T* source, int64_t count, T* target) {
  using V = Vec<T>;
  const V f = V::broadcast(factor);
  for (int64_t i = 0; i < count; i += V::kSize) {
    const int left = static_cast<int>(count - i < V::kSize ? count - i : V::kSize);
    simd::fma(f, V::load_partial(source + i, left), V::load_partial(target + i, left)).store_partial(target + i, left);
  }
}

}  // namespace

template <class T, class S>
void grad_chosen_rows_cpu(const Rule& rule, const Layer& layer, const S* query, const GradColumns<T>& columns,
                          const T* grad, const Chosen<T>& chosen, T* grad_query, int64_t begin, int64_t end) {
  const int64_t channels = layer.channels, positions = layer.query_positions;
  const T eps = static_cast<T>(rule.eps), divisor = static_cast<T>(divisor_of(rule, layer, columns.count));
  const Strides& strides = layer.query_strides;
  simd::Scratch<T> rows(kRows * channels), gradients(kRows * channels);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kRowBlock;
    const int count = static_cast<int>(positions - first < kRowBlock ? positions - first : kRowBlock);
    for (int64_t c = 0; c < channels; ++c)
      for (int i = 0; i < count; ++i)
        rows[i * channels + c] = T(widen(query[c * strides.channel + (first + i) * strides.position]));
    for (int i = 0; i < count; ++i) {
      const T* own = rows.data() + i * channels;
      T* gradient = gradients.data() + i * channels;
      const T length = std::sqrt(dot(own, own, channels));
      for (int64_t c = 0; c < channels; ++c) gradient[c] = T(0);
      T taken = T(0);
      for (int n = 0; n < rule.k; ++n) {
        const int64_t at = n * positions + first + i;
        chosen.place[at] = -1;
        if (chosen.columns[at] < 0) continue;
        const int32_t j = place_of(columns.index, columns.count, chosen.columns[at]);
        // A chosen background column is a zero vector without a gradient.
        if (j >= columns.count || columns.index[j] != chosen.columns[at]) continue;
        const T* other = static_cast<const T*>(columns.rows) + j * columns.channels;
        const PairGrad<T> found = pair_grad(rule, eps, grad[first + i] / divisor, true, dot(own, other, channels),
                                            length, columns.weight[j], columns.length[j]);
        chosen.place[at] = j;
        chosen.coefficient[at] = found.coefficient;
        chosen.by_support[at] = found.by_support;
        taken += found.by_query;
        if (grad_query != nullptr) add_scaled(found.coefficient, other, channels, gradient);
      }
      if (grad_query != nullptr && length > T(0)) add_scaled(-taken / length, own, channels, gradient);
    }
    if (grad_query == nullptr) continue;
    for (int64_t c = 0; c < channels; ++c)
      for (int i = 0; i < count; ++i) grad_query[c * positions + first + i] += gradients[i * channels + c];
  }
}

template <class T, class S>
void grad_chosen_columns_cpu(const Rule& rule, const Layer& layer, const S* query, const GradColumns<T>& columns,
                             const Chosen<T>& chosen, const T* taken, T* grad_support, int64_t begin, int64_t end) {
  constexpr int kChannels = static_cast<int>(kGradChannels);
  const int64_t positions = layer.query_positions, per_shot = layer.support_positions;
  const Strides& strides = layer.query_strides;
  simd::Scratch<T> sums(columns.count * kChannels);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kChannels;
    const int width = static_cast<int>(layer.channels - first < kChannels ? layer.channels - first : kChannels);
    for (int64_t i = 0; i < columns.count * kChannels; ++i) sums[i] = T(0);
    for (int64_t at = 0; at < rule.k * positions; ++at) {
      const int32_t j = chosen.place[at];
      if (j < 0) continue;
      const S* source = query + first * strides.channel + at % positions * strides.position;
      const T coefficient = chosen.coefficient[at];
      T* target = sums.data() + static_cast<int64_t>(j) * kChannels;
      for (int c = 0; c < width; ++c) target[c] += coefficient * T(widen(source[c * strides.channel]));
    }
    for (int64_t j = 0; j < columns.count; ++j) {
      const T weight = columns.weight[j], own = columns.length[j] / (weight < T(0) ? -weight : weight);
      const T shared = own > T(0) ? taken[j] / own : T(0);
      const T* row = static_cast<const T*>(columns.rows) + j * columns.channels + first;
      const int64_t column = columns.index[j];
      T* target = grad_support + column / per_shot * layer.channels * per_shot + first * per_shot + column % per_shot;
      for (int c = 0; c < width; ++c) target[c * per_shot] += sums[j * kChannels + c] - shared * row[c];
    }
  }
}

#define FSSOPS_INSTANTIATE(T, S)                                                                                 \
  template void grad_chosen_rows_cpu<T, S>(const Rule&, const Layer&, const S*, const GradColumns<T>&, const T*, \
                                           const Chosen<T>&, T*, int64_t, int64_t);                              \
  template void grad_chosen_columns_cpu<T, S>(const Rule&, const Layer&, const S*, const GradColumns<T>&,        \
                                              const Chosen<T>&, const T*, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float, float)
FSSOPS_INSTANTIATE(double, double)
FSSOPS_INSTANTIATE(float, bf16_t)

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_correlation
