// Forward kernel of the mean of the k largest.
#pragma once

#include "cosine_correlation/cosine_correlation_cuda.cuh"

namespace fssops::cosine_correlation {

// The mean of the k largest: a tile of products goes through shared memory, half its columns at a time, and one thread
// a row keeps a sorted list. Two stages and half a tile leave room for the lists within 99 KiB, what small GPUs have.
constexpr int kTopKStages = 2;
template <class F>
constexpr int kTopKWidth = Tile<F>::kColumns / 2 + 1;  // odd: threads of neighbouring rows read different banks
template <class F>
constexpr int kTopKBytes =
    kPipelineBytes<F, kTopKStages> + Tile<F>::kRows * kTopKWidth<F> * static_cast<int>(sizeof(accumulator_t<F>));

// Puts a value into a list of k with its elements `step` apart, the largest first. Columns come in ascending order, so
// an equal value never overtakes.
template <class A>
__device__ __forceinline__ void insert_sorted(A* list, int32_t* columns, int step, int k, A value, int32_t column) {
  int i = k;
  while (i > 0) {
    const A other = list[(i - 1) * step];
    if (!(value > other || (value != value && other == other))) break;
    --i;
  }
  if (i == k) return;
  for (int n = k - 1; n > i; --n) {
    list[n * step] = list[(n - 1) * step];
    columns[n * step] = columns[(n - 1) * step];
  }
  list[i * step] = value;
  columns[i * step] = column;
}

// grid (row tiles, units, layers).
template <class F, class A>
__global__ void __launch_bounds__(kThreads, 1)
    topk_kernel(Rule rule, const __grid_constant__ Table table, A* values, int32_t* chosen) {
  using T = Tile<F>;
  constexpr int kWidth = kTopKWidth<F>, kHalf = T::kColumns / 2;
  FSSOPS_DYNAMIC_SHARED(unsigned char, memory);
  F* shared = reinterpret_cast<F*>(memory);
  A* tile = reinterpret_cast<A*>(memory + kPipelineBytes<F, kTopKStages>);  // [kRows][kWidth]
  A* list = reinterpret_cast<A*>(memory + kTopKBytes<F>);                   // [k][kRows]
  int32_t* list_column = reinterpret_cast<int32_t*>(list + rule.k * T::kRows);
  const CudaLayer& target = table.layer[blockIdx.z];
  const Layer& layer = target.layer;
  const A eps = static_cast<A>(rule.eps);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * T::kRows;
  if (row0 >= layer.query_positions) return;
  const int r = threadIdx.x;
  for (int64_t u = blockIdx.y; u < rule.units(); u += gridDim.y) {
    const Unit unit(rule, u);
    const int64_t count = target.count[u];
    const A* weights = static_cast<const A*>(target.weight) + u * target.support_ld;
    const A* lengths = static_cast<const A*>(target.length) + u * target.support_ld;
    const int32_t* index = target.index + u * target.support_ld;
    const F* query = static_cast<const F*>(target.query_packed) + unit.image * target.query_batch + row0;
    const F* support = static_cast<const F*>(target.support_packed) + u * layer.channels * target.support_ld;
    const A* row_lengths = static_cast<const A*>(target.query_length) + unit.image * layer.query_positions;
    const int64_t valid = (target.pack_query ? target.query_ld : layer.query_positions) - row0;
    const int64_t counted = counted_columns(rule, layer, count);
    const int tiles = static_cast<int>(ceil_div(count, T::kColumns));
    const bool has_row = r < T::kRows && row0 + r < layer.query_positions;
    if (has_row)
      for (int i = 0; i < rule.k; ++i) {
        list[i * T::kRows + r] = i < counted - count ? A(0) : -static_cast<A>(INFINITY);
        list_column[i * T::kRows + r] = -1;
      }
    const A row_length = has_row ? row_lengths[row0 + r] : A(0);
    multiply_tiles<F, kTopKStages>(
        query, target.query_ld, valid, support, target.support_ld, layer.channels, tiles, 1, shared,
        [&](int64_t first, A(&sums)[T::kOwn][T::kOwn]) {
          for (int half = 0; half < T::kColumns; half += kHalf) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < T::kOwn; ++i)
#pragma unroll
              for (int j = 0; j < T::kOwn; ++j) {
                const int column = T::column(j) - half;
                if (column >= 0 && column < kHalf) tile[T::row(i) * kWidth + column] = sums[i][j];
              }
            __syncthreads();
            if (!has_row) continue;
            const int64_t base = first + half;
            for (int j = 0; j < kHalf && base + j < count; ++j) {
              A value = tile[r * kWidth + j];
              if (separable(rule.eps_rule))
                value = value * column_factor(rule, eps, weights[base + j], lengths[base + j]);
              else
                value = value * weights[base + j] / (row_length * lengths[base + j] + eps);
              if (rule.relu && value < A(0)) value = A(0);
              insert_sorted(list + r, list_column + r, T::kRows, rule.k, value, index[base + j]);
            }
          }
        });
    if (!has_row) continue;
    const int64_t divisor = divisor_of(rule, layer, count), row = layer.first_row + u * layer.query_positions;
    A total = A(0);
    for (int i = 0; i < rule.k; ++i) {
      const bool counts = counted > 0 && i < divisor;
      if (counts) total += list[i * T::kRows + r];
      chosen[row * rule.k + i * layer.query_positions + row0 + r] = counts ? list_column[i * T::kRows + r] : -1;
    }
    total *= row_factor(rule.eps_rule, row_length, eps);
    values[row + row0 + r] = counted > 0 ? total / static_cast<A>(divisor) : A(0);
  }
}

}  // namespace fssops::cosine_correlation
