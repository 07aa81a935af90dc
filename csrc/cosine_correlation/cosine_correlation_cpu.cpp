// Forward pass: query positions run along the lanes, so every reduction over columns is lane by lane, and a tile of
// products is consumed where it was made, in registers.
#include "cosine_correlation/cosine_correlation.h"

#include "cosine_correlation/cosine_correlation_math.h"
#include "cosine_correlation/cosine_correlation_pack_cpu.h"

namespace fssops::cosine_correlation {
namespace FSSOPS_ISA {

namespace simd = ::fssops::simd::FSSOPS_ISA;

namespace {

using simd::kTileColumns;
using simd::kTileRows;
using simd::kTileVectors;
using simd::Vec;

// How the k largest cosines of every lane are kept: sorted, the largest first, with their columns.
template <class T>
struct Best {
  using Index = decltype(Vec<T>{}.v < Vec<T>{}.v);  // an integer vector of the lanes' width
  typename Vec<T>::Native value;
  Index column;
};

// a goes before b; NaN goes before every number.
template <class T>
inline typename Best<T>::Index before(typename Vec<T>::Native a, typename Vec<T>::Native b) {
  return (a > b) | ((a != a) & (b == b));
}

template <class T>
inline void insert(Best<T>* list, int k, typename Vec<T>::Native value, typename Best<T>::Index column) {
  for (int i = 0; i < k; ++i) {
    const auto first = before<T>(value, list[i].value);
    const auto old_value = list[i].value;
    const auto old_column = list[i].column;
    list[i].value = first ? value : old_value;
    list[i].column = first ? column : old_column;
    value = first ? old_value : value;
    column = first ? old_column : column;
  }
}

// What one sub-panel of rows needs while the columns go by.
template <class T>
struct RowState {
  Vec<T> sums[kTileVectors];     // mean
  Vec<T> lengths[kTileVectors];  // |q|
  Best<T>* best;                 // [kTileVectors][k]
};

// Reduces one tile of products into the state. `factors` are m / guarded length of the columns (separable rules).
template <class T, bool kSeparable>
inline void consume(const Rule& rule, const Vec<T> (&products)[kTileColumns][kTileVectors], int valid, const T* factors,
                    const T* weights, const T* lengths, const int32_t* index, RowState<T>& state) {
  using V = Vec<T>;
  const V zero = V::zero(), eps = V::broadcast(static_cast<T>(rule.eps));
  const bool mean = rule.reduction == Reduction::mean;
#pragma GCC unroll 4
  for (int v = 0; v < kTileVectors; ++v) {
    V total = zero;
#pragma GCC unroll 8
    for (int j = 0; j < kTileColumns; ++j) {
      if (j >= valid) break;
      V value;
      if constexpr (kSeparable)
        value = products[j][v] * V::broadcast(factors[j]);
      else
        value = products[j][v] * V::broadcast(weights[j]) / (state.lengths[v] * V::broadcast(lengths[j]) + eps);
      if (rule.relu) value = max(value, zero);
      if (mean)
        total += value;
      else
        insert<T>(state.best + v * rule.k, rule.k, value.v, typename Best<T>::Index{} + index[j]);
    }
    // Eight columns at a time, so that the running sum takes an eighth of the additions, and of their rounding.
    if (mean) state.sums[v] += total;
  }
}

template <class T>
void start(const Rule& rule, int64_t zeros, RowState<T>& state) {
  for (int v = 0; v < kTileVectors; ++v) {
    state.sums[v] = Vec<T>::zero();
    for (int i = 0; i < rule.k; ++i) {
      const T value = i < zeros ? T(0) : -static_cast<T>(__builtin_inf());
      state.best[v * rule.k + i] = {Vec<T>::broadcast(value).v, typename Best<T>::Index{} - 1};
    }
  }
}

// Values and chosen columns of rows [first, first + count) of the unit, from one sub-panel's state.
template <class T>
void finish(const Rule& rule, const Layer& layer, int64_t kept, const RowState<T>& state, const T* row_factors,
            int64_t first, int64_t count, T* values, int32_t* chosen) {
  constexpr int kSize = Vec<T>::kSize;
  const int64_t divisor = divisor_of(rule, layer, kept);
  const bool any = counted_columns(rule, layer, kept) > 0;
  for (int64_t i = 0; i < count; ++i) {
    const int v = static_cast<int>(i) / kSize, lane = static_cast<int>(i) % kSize;
    T total = T(0);
    if (rule.reduction == Reduction::mean) {
      total = state.sums[v][lane];
    } else {
      for (int64_t n = 0; n < rule.k; ++n) {
        const Best<T>& entry = state.best[v * rule.k + n];
        const bool counts = any && n < divisor;
        if (counts) total += entry.value[lane];
        chosen[n * layer.query_positions + first + i] = counts ? static_cast<int32_t>(entry.column[lane]) : -1;
      }
    }
    values[first + i] = any ? total * row_factors[i] / static_cast<T>(divisor) : T(0);
  }
}

}  // namespace

void has_bf16_dot(bool& has) { has = simd::has_bf16_pairs(); }

template <class T, class S>
void pack_columns_cpu(const Layer& layer, const S* support, const Columns<T>& columns, bool pairs, int64_t begin,
                      int64_t end) {
  const int64_t stride = layer.support_strides.channel, channels = layer.channels, all_pairs = (channels + 1) / 2;
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel * kColumnPanel;
    const int count = static_cast<int>(columns.count - first < kColumnPanel ? columns.count - first : kColumnPanel);
    const S* source[kPanel];
    for (int j = 0; j < kPanel; ++j)
      source[j] = support + column_offset(layer, columns.index[first + (j < count ? j : 0)]);
    T squares[4][kPanel] = {};
    if (pairs) {
      uint32_t* target = reinterpret_cast<uint32_t*>(columns.packed) + panel * all_pairs * kPanel;
      for (int64_t c = 0; c < channels; ++c)
        for (int j = 0; j < kPanel; ++j) {
          const T value = widen(source[j][c * stride]);
          squares[c % 4][j] += value * value;
          uint32_t bits;
          const float single = static_cast<float>(value);
          std::memcpy(&bits, &single, sizeof bits);
          uint32_t& pair = target[c / 2 * kPanel + j];
          pair = c % 2 == 0 ? bits >> 16 : (pair | (bits & 0xffff0000u));
        }
    } else {
      T* target = columns.packed + panel * channels * kPanel;
      for (int64_t c = 0; c < channels; ++c)
        for (int j = 0; j < kPanel; ++j) {
          const T value = widen(source[j][c * stride]);
          squares[c % 4][j] += value * value;
          target[c * kPanel + j] = value;
        }
    }
    for (int j = 0; j < count; ++j) {
      const T weight = columns.weight[first + j], magnitude = weight < T(0) ? -weight : weight;
      columns.length[first + j] =
          magnitude * std::sqrt((squares[0][j] + squares[1][j]) + (squares[2][j] + squares[3][j]));
    }
  }
}

template <class T, class S>
void correlate_cpu(const Rule& rule, const Layer& layer, const S* query, const Columns<T>& columns, bool pairs,
                   T* values, int32_t* chosen, int64_t begin, int64_t end) {
  constexpr int kTile = kTileRows<T>, kSubPanels = kRows / kTile;
  static_assert(kRows % kTile == 0 && kPanel % kTileColumns == 0);
  const T eps = static_cast<T>(rule.eps);
  const bool split = separable(rule.eps_rule);
  const int64_t depth = layer.channels;
  const int64_t zeros = rule.all_positions ? counted_columns(rule, layer, columns.count) - columns.count : 0;
  simd::Scratch<T> packed(depth > 0 ? (depth + 1) * kRows : 0), factors(columns.count + kPanel);
  simd::Scratch<Best<T>> best(static_cast<int64_t>(kTileVectors) * rule.k);
  for (int64_t j = 0; j < columns.count + kPanel; ++j)
    factors[j] =
        j < columns.count && split ? columns.weight[j] / guarded_length(rule.eps_rule, columns.length[j], eps) : T(0);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * kRowBlock;
    const int count =
        static_cast<int>(layer.query_positions - first < kRowBlock ? layer.query_positions - first : kRowBlock);
    T squares[kRows], row_factors[kRows];
    if constexpr (sizeof(S) == 2) {
      if (pairs)
        pack_row_pairs(layer, query, first, count, reinterpret_cast<uint32_t*>(packed.data()), squares);
      else
        pack_rows(layer, query, first, count, packed.data(), squares);
    } else {
      pack_rows(layer, query, first, count, packed.data(), squares);
    }
    for (int i = 0; i < kRows; ++i) {
      squares[i] = std::sqrt(squares[i]);
      row_factors[i] = row_factor(rule.eps_rule, squares[i], eps);
    }
    for (int sub = 0; sub < kSubPanels && sub * kTile < count; ++sub) {
      RowState<T> state;
      state.best = best.data();
      start(rule, zeros, state);
      for (int v = 0; v < kTileVectors; ++v) state.lengths[v] = Vec<T>::load(squares + sub * kTile + v * Vec<T>::kSize);
      for (int64_t j = 0; j < columns.count; j += kTileColumns) {
        Vec<T> products[kTileColumns][kTileVectors];
        const int64_t panel = j / kPanel, inside = j % kPanel;
#if defined(__AVX512F__)
        if constexpr (sizeof(S) == 2) {
          const int64_t all_pairs = (depth + 1) / 2;
          if (pairs)
            simd::multiply_tile_pairs(
                all_pairs, reinterpret_cast<const uint32_t*>(packed.data()) + sub * all_pairs * kTile,
                reinterpret_cast<const uint32_t*>(columns.packed) + panel * all_pairs * kPanel + inside, kPanel,
                products);
          else
            simd::multiply_tile(depth, packed.data() + sub * depth * kTile,
                                columns.packed + panel * depth * kPanel + inside, kPanel, products);
        } else
#endif
          simd::multiply_tile(depth, packed.data() + sub * depth * kTile,
                              columns.packed + panel * depth * kPanel + inside, kPanel, products);
        const int64_t left = columns.count - j;
        const int valid = static_cast<int>(left < kTileColumns ? left : kTileColumns);
        if (split)
          consume<T, true>(rule, products, valid, factors.data() + j, columns.weight + j, columns.length + j,
                           columns.index + j, state);
        else
          consume<T, false>(rule, products, valid, factors.data() + j, columns.weight + j, columns.length + j,
                            columns.index + j, state);
      }
      const int64_t rows = count - sub * kTile < kTile ? count - sub * kTile : kTile;
      finish(rule, layer, columns.count, state, row_factors + sub * kTile, first + sub * kTile, rows, values, chosen);
    }
  }
}

#define FSSOPS_INSTANTIATE(T, S)                                                                                \
  template void pack_columns_cpu<T, S>(const Layer&, const S*, const Columns<T>&, bool, int64_t, int64_t);      \
  template void correlate_cpu<T, S>(const Rule&, const Layer&, const S*, const Columns<T>&, bool, T*, int32_t*, \
                                    int64_t, int64_t);
FSSOPS_INSTANTIATE(float, float)
FSSOPS_INSTANTIATE(double, double)
FSSOPS_INSTANTIATE(float, bf16_t)

}  // namespace FSSOPS_ISA
}  // namespace fssops::cosine_correlation
