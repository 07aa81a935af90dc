// Backward pass of the mean. With E[i, j] = d loss / d (q_i . s_j), a side's gradient is E times the other side, less
// what its own lengths take. A slab of query rows at a time, products are made again and turned into E, from which both
// gradients are taken; so three matrix products in all, and never more of E than a slab.
#include "cosine_correlation/cosine_correlation_math.h"
#include "cosine_correlation/cosine_correlation_pack_cpu.h"

namespace fssops::cosine_correlation {
namespace FSSOPS_ISA {

namespace {

// What E and the length terms need of a column or row, whichever the rule.
template <class T>
struct Terms {
  const T* column_factors;  // separable rules: m / guarded length
  const T* weights;
  const T* lengths;
};

// One tile of products into coefficients, in place; adds up what the lengths of its rows and columns take.
template <class T, bool kSeparable>
inline void to_coefficients(const Rule& rule, int valid, const Terms<T>& terms,
                            const Vec<T> (&row_factors)[kTileVectors], const Vec<T> (&row_grads)[kTileVectors],
                            const Vec<T> (&row_lengths)[kTileVectors], Vec<T> (&products)[kTileColumns][kTileVectors],
                            Vec<T> (&row_sums)[kTileVectors], T* column_sums) {
  using V = Vec<T>;
  const V zero = V::zero(), eps = V::broadcast(static_cast<T>(rule.eps));
  for (int j = 0; j < kTileColumns; ++j) {
    if (j >= valid) break;
    V of_column = zero;
    const V weight = V::broadcast(terms.weights[j]), length = V::broadcast(terms.lengths[j]);
    const T magnitude = terms.weights[j] < T(0) ? -terms.weights[j] : terms.weights[j];
#pragma GCC unroll 4
    for (int v = 0; v < kTileVectors; ++v) {
      const V product = products[j][v];
      V scale, by_row, by_column;
      if constexpr (kSeparable) {
        scale = row_factors[v] * V::broadcast(terms.column_factors[j]);
      } else {
        const V divisor = row_lengths[v] * length + eps;
        scale = weight / divisor;
        by_row = length / divisor;
        by_column = row_lengths[v] * V::broadcast(magnitude) / divisor;
      }
      V coefficient = row_grads[v] * scale, taken = coefficient * product;
      if (rule.relu) {
        const auto closed = (scale * product).v <= zero.v;  // NaN stays
        coefficient.v = closed ? zero.v : coefficient.v;
        taken.v = closed ? zero.v : taken.v;
      }
      products[j][v] = coefficient;
      if constexpr (kSeparable) {
        row_sums[v] += taken;
        of_column += taken;
      } else {
        row_sums[v] = simd::fma(taken, by_row, row_sums[v]);
        of_column = simd::fma(taken, by_column, of_column);
      }
    }
    column_sums[j] += simd::sum(of_column);
  }
}

// The query rows of one block: E to the slab, and the gradient of the rows.
template <class Operand, class S>
void grad_block(const Rule& rule, const Layer& layer, const S* query,
                const GradColumns<typename Operand::Value>& columns, const typename Operand::Value* grad, int64_t first,
                int count, int64_t row, const GradSlab<typename Operand::Value>& slab,
                typename Operand::Element* packed, typename Operand::Element* coefficients,
                typename Operand::Value* grad_query) {
  using T = typename Operand::Value;
  using E = typename Operand::Element;
  using V = Vec<T>;
  constexpr int kTile = kTileRows<T>;
  const int64_t channels = layer.channels, positions = layer.query_positions, n = columns.count;
  const T eps = static_cast<T>(rule.eps), divisor = static_cast<T>(divisor_of(rule, layer, n));
  const bool split = separable(rule.eps_rule), clamps = rule.eps_rule == EpsRule::clamp_norms;
  const int64_t depth = Operand::steps(channels);
  T lengths[kRows], factors[kRows], grads[kRows], by_row[kRows];
  if constexpr (Operand::kPairs)
    pack_row_pairs(layer, query, first, count, packed, lengths);
  else
    pack_rows(layer, query, first, count, packed, lengths);
  for (int i = 0; i < kRows; ++i) {
    // Rows behind the last one have no gradient and harmless lengths.
    lengths[i] = i < count ? std::sqrt(lengths[i]) : T(1);
    factors[i] = split ? row_factor(rule.eps_rule, lengths[i], eps) : T(1);
    grads[i] = i < count ? grad[first + i] / divisor : T(0);
    by_row[i] =
        split ? (clamps && !(lengths[i] > eps) ? T(0) : T(1) / guarded_length(rule.eps_rule, lengths[i], eps)) : T(1);
  }
  T* column_sums = slab.column_sums + row / kRows * columns.padded;
  for (int64_t j = 0; j < columns.padded; ++j) column_sums[j] = T(0);
  E* across = static_cast<E*>(slab.coefficients);
  for (int sub = 0; sub * kTile < count; ++sub) {
    const int rows = count - sub * kTile < kTile ? count - sub * kTile : kTile;
    const E* panel = packed + sub * depth * kTile;
    V row_factors[kTileVectors], row_grads[kTileVectors], row_lengths[kTileVectors], row_sums[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const int at = sub * kTile + v * V::kSize;
      row_factors[v] = V::load(factors + at);
      row_grads[v] = V::load(grads + at);
      row_lengths[v] = V::load(lengths + at);
      row_sums[v] = V::zero();
    }
    for (int64_t j = 0; j < n; j += kTileColumns) {
      V products[kTileColumns][kTileVectors];
      const int valid = static_cast<int>(n - j < kTileColumns ? n - j : kTileColumns);
      Operand::multiply(channels, panel,
                        static_cast<const E*>(columns.panels) + j / kPanel * depth * kPanel + j % kPanel, kPanel,
                        products);
      const Terms<T> terms{columns.factor + j, columns.weight + j, columns.length + j};
      if (split)
        to_coefficients<T, true>(rule, valid, terms, row_factors, row_grads, row_lengths, products, row_sums,
                                 column_sums + j);
      else
        to_coefficients<T, false>(rule, valid, terms, row_factors, row_grads, row_lengths, products, row_sums,
                                  column_sums + j);
      if (grad_query != nullptr)
        for (int v = 0; v < kTileVectors; ++v)
          Operand::store(coefficients, kTile, j, v * V::kSize, &products[0][v], kTileVectors, valid);
      if (across != nullptr) {
        T tile[kTileColumns][kTile];
        for (int c = 0; c < kTileColumns; ++c)
          for (int v = 0; v < kTileVectors; ++v) (c < valid ? products[c][v] : V::zero()).store(tile[c] + v * V::kSize);
        for (int i = 0; i < rows; ++i)
          for (int c = 0; c < kTileColumns; ++c)
            Operand::put(across, columns.padded, row + sub * kTile + i, j + c, tile[c][i]);
      }
    }
    if (across != nullptr) {
      // The rows themselves, channels along the lanes: [channel block][slab rows][kTile].
      E* turned = static_cast<E*>(slab.rows);
      const int64_t slab_steps = Operand::steps(slab.capacity);
      for (int64_t c = 0; c < channels; ++c) {
        E* block = turned + c / kTile * slab_steps * kTile;
        for (int i = 0; i < rows; ++i)
          Operand::put(block, kTile, row + sub * kTile + i, c % kTile, Operand::get(panel, kTile, c, i));
      }
    }
    if (grad_query == nullptr) continue;
    V taken[kTileVectors];
    for (int v = 0; v < kTileVectors; ++v) {
      const int at = sub * kTile + v * V::kSize;
      const V length = V::load(lengths + at);
      taken[v] = row_sums[v] * V::load(by_row + at) / length;
      taken[v].v = length.v > V::zero().v ? taken[v].v : V::zero().v;
    }
    for (int64_t c = 0; c < channels; c += kTileColumns) {
      V sums[kTileColumns][kTileVectors];
      Operand::multiply(n, coefficients, static_cast<const E*>(columns.rows) + c, columns.channels, sums);
      for (int64_t k = c; k < channels && k < c + kTileColumns; ++k)
        for (int v = 0; v < kTileVectors && v * V::kSize < rows; ++v) {
          T* target = grad_query + k * positions + first + sub * kTile + v * V::kSize;
          const int valid = rows - v * V::kSize < V::kSize ? rows - v * V::kSize : V::kSize;
          const V own = Operand::load(panel, kTile, k, v * V::kSize);
          const V value = V::load_partial(target, valid) + (sums[k - c][v] - own * taken[v]);
          value.store_partial(target, valid);
        }
    }
  }
}

template <class Operand, class S>
void grad_rows(const Rule& rule, const Layer& layer, const S* query,
               const GradColumns<typename Operand::Value>& columns, const typename Operand::Value* grad,
               const GradSlab<typename Operand::Value>& slab, typename Operand::Value* grad_query, int64_t begin,
               int64_t end) {
  using E = typename Operand::Element;
  simd::Scratch<E> packed((layer.channels + 1) * kRows);
  simd::Scratch<E> coefficients(
      grad_query != nullptr ? (columns.count + kTileColumns) * kTileRows<typename Operand::Value> : 0);
  if (Operand::kPairs && slab.coefficients != nullptr && slab.count % 2 == 1 && begin == 0) {
    // The row that completes the last pair.
    constexpr int kTile = kTileRows<typename Operand::Value>;
    for (int64_t j = 0; j < columns.padded; ++j)
      Operand::put(static_cast<E*>(slab.coefficients), columns.padded, slab.count, j, 0);
    for (int64_t c = 0; c < layer.channels; ++c)
      Operand::put(static_cast<E*>(slab.rows) + c / kTile * Operand::steps(slab.capacity) * kTile, kTile, slab.count,
                   c % kTile, 0);
  }
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block * kRowBlock, first = slab.first + row;
    const int count = static_cast<int>(slab.count - row < kRowBlock ? slab.count - row : kRowBlock);
    grad_block<Operand, S>(rule, layer, query, columns, grad, first, count, row, slab, packed.data(),
                           coefficients.data(), grad_query);
  }
}

template <class Operand>
void grad_columns(const Layer& layer, const GradColumns<typename Operand::Value>& columns,
                  const GradSlab<typename Operand::Value>& slab, typename Operand::Value* sums, int64_t begin,
                  int64_t end) {
  using T = typename Operand::Value;
  using E = typename Operand::Element;
  using V = Vec<T>;
  constexpr int kTile = kTileRows<T>;
  const int64_t blocks = (layer.channels + kTile - 1) / kTile, slab_steps = Operand::steps(slab.capacity);
  const int64_t width = blocks * kTile;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t j = task / blocks * kTileColumns, block = task % blocks;
    if (j >= columns.count) continue;
    V tile[kTileColumns][kTileVectors];
    Operand::multiply(slab.count, static_cast<const E*>(slab.rows) + block * slab_steps * kTile,
                      static_cast<const E*>(slab.coefficients) + j, columns.padded, tile);
    for (int c = 0; c < kTileColumns && j + c < columns.count; ++c)
      for (int v = 0; v < kTileVectors; ++v) {
        T* target = sums + (j + c) * width + block * kTile + v * V::kSize;
        (V::load(target) + tile[c][v]).store(target);
      }
  }
}

template <class Operand>
void grad_scatter(const Rule& rule, const Layer& layer, const GradColumns<typename Operand::Value>& columns,
                  const typename Operand::Value* sums, const typename Operand::Value* taken,
                  typename Operand::Value* grad_support, int64_t begin, int64_t end) {
  using T = typename Operand::Value;
  constexpr int kTile = kTileRows<T>;
  const int64_t width = (layer.channels + kTile - 1) / kTile * kTile, per_shot = layer.support_positions;
  const T eps = static_cast<T>(rule.eps);
  const bool split = separable(rule.eps_rule), clamps = rule.eps_rule == EpsRule::clamp_norms;
  for (int64_t j = begin; j < end; ++j) {
    const T weight = columns.weight[j], magnitude = weight < T(0) ? -weight : weight, length = columns.length[j];
    const T own = length / magnitude;  // |s|, without the mask
    T shared = taken[j];
    if (split) shared *= clamps && !(length > eps) ? T(0) : magnitude / guarded_length(rule.eps_rule, length, eps);
    shared = own > T(0) ? shared / own : T(0);
    const int64_t column = columns.index[j];
    T* target = grad_support + column / per_shot * layer.channels * per_shot + column % per_shot;
    for (int64_t c = 0; c < layer.channels; ++c)
      target[c * per_shot] +=
          sums[j * width + c] -
          shared * Operand::get(static_cast<const typename Operand::Element*>(columns.rows), columns.channels, j, c);
  }
}

}  // namespace

template <class T, class S>
void pack_column_rows_cpu(const Layer& layer, const S* support, const GradColumns<T>& columns, bool pairs,
                          int64_t begin, int64_t end) {
  const int64_t stride = layer.support_strides.channel;
  // Rows in twos, so that a pair has one writer.
  for (int64_t j = 2 * begin; j < 2 * end; ++j) {
    const S* source = j < columns.count ? support + column_offset(layer, columns.index[j]) : nullptr;
    if (j >= columns.count && !(pairs && j % 2 == 1)) continue;
    for (int64_t c = 0; c < columns.channels; ++c) {
      const T value = source != nullptr && c < layer.channels ? T(widen(source[c * stride])) : T(0);
#if defined(__AVX512F__)
      if constexpr (sizeof(S) == 2) {
        if (pairs) {
          Pairs::put(static_cast<uint32_t*>(columns.rows), columns.channels, j, c, value);
          continue;
        }
      }
#endif
      Plain<T>::put(static_cast<T*>(columns.rows), columns.channels, j, c, value);
    }
  }
}

template <class T, class S>
void grad_rows_cpu(const Rule& rule, const Layer& layer, const S* query, const GradColumns<T>& columns,
                   [[maybe_unused]] bool pairs, const T* grad, const GradSlab<T>& slab, T* grad_query, int64_t begin,
                   int64_t end) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 2) {
    if (pairs) return grad_rows<Pairs, S>(rule, layer, query, columns, grad, slab, grad_query, begin, end);
  }
#endif
  grad_rows<Plain<T>, S>(rule, layer, query, columns, grad, slab, grad_query, begin, end);
}

template <class T>
void grad_columns_cpu(const Layer& layer, const GradColumns<T>& columns, [[maybe_unused]] bool pairs,
                      const GradSlab<T>& slab, T* sums, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (pairs) return grad_columns<Pairs>(layer, columns, slab, sums, begin, end);
  }
#endif
  grad_columns<Plain<T>>(layer, columns, slab, sums, begin, end);
}

template <class T>
void grad_scatter_cpu(const Rule& rule, const Layer& layer, const GradColumns<T>& columns, [[maybe_unused]] bool pairs,
                      const T* sums, const T* taken, T* grad_support, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    if (pairs) return grad_scatter<Pairs>(rule, layer, columns, sums, taken, grad_support, begin, end);
  }
#endif
  grad_scatter<Plain<T>>(rule, layer, columns, sums, taken, grad_support, begin, end);
}

template <class T>
void grad_widths_cpu(const Layer& layer, int64_t& column_tasks, int64_t& width) {
  constexpr int kTile = kTileRows<T>;
  const int64_t blocks = (layer.channels + kTile - 1) / kTile;
  width = blocks * kTile;
  column_tasks = blocks * (kColumnPanel / kTileColumns);
}

#define FSSOPS_INSTANTIATE(T)                                                                                       \
  template void grad_columns_cpu<T>(const Layer&, const GradColumns<T>&, bool, const GradSlab<T>&, T*, int64_t,     \
                                    int64_t);                                                                       \
  template void grad_scatter_cpu<T>(const Rule&, const Layer&, const GradColumns<T>&, bool, const T*, const T*, T*, \
                                    int64_t, int64_t);                                                              \
  template void grad_widths_cpu<T>(const Layer&, int64_t&, int64_t&);
#define FSSOPS_INSTANTIATE_STORED(T, S)                                                                            \
  template void pack_column_rows_cpu<T, S>(const Layer&, const S*, const GradColumns<T>&, bool, int64_t, int64_t); \
  template void grad_rows_cpu<T, S>(const Rule&, const Layer&, const S*, const GradColumns<T>&, bool, const T*,    \
                                    const GradSlab<T>&, T*, int64_t, int64_t);
FSSOPS_INSTANTIATE(float)
FSSOPS_INSTANTIATE(double)
FSSOPS_INSTANTIATE_STORED(float, float)
FSSOPS_INSTANTIATE_STORED(double, double)
FSSOPS_INSTANTIATE_STORED(float, bf16_t)

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_correlation
