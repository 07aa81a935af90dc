// Backward pass: products are made again, a block of 64 vectors of one side against the other side, 64 at a time.
// With E[i, j] = d loss / d (q_i . s_j), a side's gradient is E times the other side, less what its own lengths take.
// Both sides go through the same loop; every output has one writer.
#include "cosine_correlation/cosine_correlation.h"

#include "common/gemm.h"
#include "cosine_correlation/cosine_correlation_math.h"

namespace fssops::cosine_correlation {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

constexpr int kBlock = static_cast<int>(kGradBlock);

// The gradient [C, kBlock] of `count` own vectors, [C, kBlock] in memory, against `others` vectors whose element
// (i, c) is other[i * other_step + c * other_channel]. pair(other index, own index, product) gives the PairGrad, and
// by_own(PairGrad) the part of it for the own lengths.
template <class T, class Pair, class ByOwn>
void own_gradient(int64_t channels, int count, const T* own, int64_t others, const T* other, int64_t other_step,
                  int64_t other_channel, const T* own_lengths, T* products, T* gradient, Pair pair, ByOwn by_own) {
  T shared[kBlock] = {};
  for (int64_t i = 0; i < channels * kBlock; ++i) gradient[i] = T(0);
  for (int64_t first = 0; first < others; first += kBlock) {
    const int64_t rows = others - first < kBlock ? others - first : kBlock;
    const T* block = other + first * other_step;
    simd::gemm_nn<T>(rows, kBlock, channels, block, other_step, other_channel, own, kBlock, products, kBlock);
    for (int64_t i = 0; i < rows; ++i)
      for (int j = 0; j < kBlock; ++j) {
        T& product = products[i * kBlock + j];
        if (j >= count) {
          product = T(0);
          continue;
        }
        const PairGrad<T> g = pair(first + i, j, product);
        product = g.coefficient;
        shared[j] += by_own(g);
      }
    simd::gemm_nn<T, true>(channels, kBlock, rows, block, other_channel, other_step, products, kBlock, gradient,
                           kBlock);
  }
  for (int j = 0; j < kBlock; ++j) shared[j] = j < count && own_lengths[j] > T(0) ? shared[j] / own_lengths[j] : T(0);
  for (int64_t c = 0; c < channels; ++c)
    for (int j = 0; j < kBlock; ++j) gradient[c * kBlock + j] -= own[c * kBlock + j] * shared[j];
}

}  // namespace

template <class T>
void gather_columns_cpu(const Layer& layer, const T* support, const Columns<T>& columns, int64_t begin, int64_t end) {
  const int64_t stride = layer.support_strides.channel;
  for (int64_t j = begin; j < end; ++j) {
    const T* source = support + column_offset(layer, columns.index[j]);
    T squares[4] = {};
    for (int64_t c = 0; c < layer.channels; ++c) {
      const T value = source[c * stride];
      squares[c % 4] += value * value;
      columns.packed[c * columns.count + j] = value;
    }
    const T weight = columns.weight[j];
    columns.length[j] =
        (weight < T(0) ? -weight : weight) * std::sqrt((squares[0] + squares[1]) + (squares[2] + squares[3]));
  }
}

template <class T>
void query_lengths_cpu(const Layer& layer, const T* query, T* lengths, int64_t begin, int64_t end) {
  const int64_t channel = layer.query_strides.channel, position = layer.query_strides.position;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int count = static_cast<int>(end - first < kBlock ? end - first : kBlock);
    T squares[4][kBlock] = {};
    for (int64_t c = 0; c < layer.channels; ++c)
      for (int i = 0; i < count; ++i) {
        const T value = query[c * channel + (first + i) * position];
        squares[c % 4][i] += value * value;
      }
    for (int i = 0; i < count; ++i)
      lengths[first + i] = std::sqrt((squares[0][i] + squares[1][i]) + (squares[2][i] + squares[3][i]));
  }
}

template <class T>
void grad_query_cpu(const Rule& rule, const Layer& layer, const T* query, const T* lengths, const Columns<T>& columns,
                    const T* grad, const int32_t* chosen, T* grad_query, int64_t begin, int64_t end) {
  const int64_t channels = layer.channels, positions = layer.query_positions;
  const T eps = static_cast<T>(rule.eps), divisor = static_cast<T>(divisor_of(rule, layer, columns.count));
  const bool mean = rule.reduction == Reduction::mean;
  simd::Scratch<T> own(channels * kBlock), products(kBlock * kBlock), gradient(channels * kBlock);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kGradBlock;
    const int count = static_cast<int>(positions - first < kBlock ? positions - first : kBlock);
    const int64_t step = layer.query_strides.position;
    T scaled[kBlock], own_lengths[kBlock];
    for (int j = 0; j < count; ++j) {
      scaled[j] = grad[first + j] / divisor;
      own_lengths[j] = lengths[first + j];
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int j = 0; j < kBlock; ++j)
        own[c * kBlock + j] = j < count ? query[c * layer.query_strides.channel + (first + j) * step] : T(0);
    own_gradient<T>(
        channels, count, own.data(), columns.count, columns.packed, 1, columns.count, own_lengths, products.data(),
        gradient.data(),
        [&](int64_t i, int j, T product) {
          const bool active = mean || is_chosen(chosen + first + j, positions, rule.k, columns.index[i]);
          return pair_grad(rule, eps, scaled[j], active, product, own_lengths[j], columns.weight[i], columns.length[i]);
        },
        [](const PairGrad<T>& g) { return g.by_query; });
    for (int64_t c = 0; c < channels; ++c)
      for (int j = 0; j < count; ++j) grad_query[c * positions + first + j] += gradient[c * kBlock + j];
  }
}

template <class T>
void grad_support_cpu(const Rule& rule, const Layer& layer, const T* query, const T* lengths, const Columns<T>& columns,
                      const T* grad, const int32_t* chosen, T* grad_support, int64_t begin, int64_t end) {
  const int64_t channels = layer.channels, positions = layer.query_positions, per_shot = layer.support_positions;
  const T eps = static_cast<T>(rule.eps), divisor = static_cast<T>(divisor_of(rule, layer, columns.count));
  const bool mean = rule.reduction == Reduction::mean;
  simd::Scratch<T> own(channels * kBlock), products(kBlock * kBlock), gradient(channels * kBlock);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kGradBlock;
    const int count = static_cast<int>(columns.count - first < kBlock ? columns.count - first : kBlock);
    T own_lengths[kBlock];  // |s|, without the mask
    for (int j = 0; j < count; ++j) {
      const T weight = columns.weight[first + j];
      own_lengths[j] = columns.length[first + j] / (weight < T(0) ? -weight : weight);
    }
    for (int64_t c = 0; c < channels; ++c)
      for (int j = 0; j < kBlock; ++j)
        own[c * kBlock + j] = j < count ? columns.packed[c * columns.count + first + j] : T(0);
    own_gradient<T>(
        channels, count, own.data(), positions, query, layer.query_strides.position, layer.query_strides.channel,
        own_lengths, products.data(), gradient.data(),
        [&](int64_t i, int j, T product) {
          const bool active = mean || is_chosen(chosen + i, positions, rule.k, columns.index[first + j]);
          return pair_grad(rule, eps, grad[i] / divisor, active, product, lengths[i], columns.weight[first + j],
                           columns.length[first + j]);
        },
        [](const PairGrad<T>& g) { return g.by_support; });
    for (int j = 0; j < count; ++j) {
      const int64_t column = columns.index[first + j];
      T* target = grad_support + column / per_shot * channels * per_shot + column % per_shot;
      for (int64_t c = 0; c < channels; ++c) target[c * per_shot] += gradient[c * kBlock + j];
    }
  }
}

#define FSSOPS_INSTANTIATE(T)                                                                                   \
  template void gather_columns_cpu<T>(const Layer&, const T*, const Columns<T>&, int64_t, int64_t);             \
  template void query_lengths_cpu<T>(const Layer&, const T*, T*, int64_t, int64_t);                             \
  template void grad_query_cpu<T>(const Rule&, const Layer&, const T*, const T*, const Columns<T>&, const T*,   \
                                  const int32_t*, T*, int64_t, int64_t);                                        \
  template void grad_support_cpu<T>(const Rule&, const Layer&, const T*, const T*, const Columns<T>&, const T*, \
                                    const int32_t*, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_correlation
