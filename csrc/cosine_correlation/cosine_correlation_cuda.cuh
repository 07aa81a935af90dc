// Forward kernels: list the kept columns, pack features and measure lengths, multiply and reduce, add up the parts.
// Every output has one writer and every sum a fixed order.
#pragma once

#include "cosine_correlation/cosine_correlation_tile.cuh"

namespace fssops::cosine_correlation {

constexpr int kWarps = kThreads / kWarpSize;

struct Table {
  CudaLayer layer[kMaxLayers];
};

// Lists the kept columns of a unit in ascending order. grid (units, layers).
template <class A>
__global__ void __launch_bounds__(kThreads) compact_kernel(Rule rule, const __grid_constant__ Table table) {
  FSSOPS_DYNAMIC_SHARED(int, warp_counts);  // [kWarps]
  const CudaLayer& target = table.layer[blockIdx.y];
  const Layer& layer = target.layer;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t all = rule.unit_shots() * layer.support_positions;
  for (int64_t u = blockIdx.x; u < rule.units(); u += gridDim.x) {
    const Unit unit(rule, u);
    const A* mask = static_cast<const A*>(layer.masks) + unit.mask_offset(rule, layer);
    int32_t* index = target.index + u * target.support_ld;
    A* weight = static_cast<A*>(target.weight) + u * target.support_ld;
    int64_t written = 0;
    for (int64_t first = 0; first < all; first += kThreads) {
      const int64_t i = first + threadIdx.x;
      const A value = i < all ? mask[i] : A(0);
      const bool kept = value != A(0);
      const unsigned bits = __ballot_sync(kFullWarp, kept);
      __syncthreads();
      if (lane == 0) warp_counts[warp] = __popc(bits);
      __syncthreads();
      int before = __popc(bits & ((1u << lane) - 1u)), total = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w < warp) before += warp_counts[w];
        total += warp_counts[w];
      }
      if (kept) {
        index[written + before] = static_cast<int32_t>(i);
        weight[written + before] = value;
      }
      written += total;
    }
    const int64_t end = ceil_div(written, kTileAlign) * kTileAlign;
    for (int64_t i = written + threadIdx.x; i < end; i += kThreads) {
      index[i] = 0;
      weight[i] = A(0);
    }
    if (threadIdx.x == 0) target.count[u] = static_cast<int32_t>(written);
  }
}

// Sum over the block's warps of a value per lane, in every warp 0 lane. All threads must call it.
template <class A>
__device__ __forceinline__ A sum_of_warps(A value, A* scratch) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  __syncthreads();
  scratch[warp * kWarpSize + lane] = value;
  __syncthreads();
  A total = A(0);
  for (int w = 0; w < kWarps; ++w) total += scratch[w * kWarpSize + lane];
  return total;
}

// Lengths of query vectors, and their packed copy where the memory does not allow 16-byte loads along positions.
// Lanes run along 32 positions, warps share the channels. grid (position blocks, images, layers).
template <class F, class A>
__global__ void __launch_bounds__(kThreads) pack_query_kernel(Rule rule, const __grid_constant__ Table table) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // [kWarps][32]
  const CudaLayer& target = table.layer[blockIdx.z];
  const Layer& layer = target.layer;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  const bool pads = target.pack_query && p < target.query_ld, inside = p < layer.query_positions;
  for (int64_t b = blockIdx.y; b < rule.batch; b += gridDim.y) {
    const F* source = static_cast<const F*>(layer.query) + b * layer.query_strides.batch +
                      (inside ? p : 0) * layer.query_strides.position;
    F* copy = static_cast<F*>(const_cast<void*>(target.query_packed)) + b * target.query_batch + p;
    A squares = A(0);
#pragma unroll 4
    for (int64_t c = warp; c < layer.channels; c += kWarps) {
      F value = source[c * layer.query_strides.channel];
      if (!inside) store_from_accumulator(&value, A(0));
      if (pads) copy[c * target.query_ld] = value;
      const A wide = load_as_accumulator(value);
      squares += wide * wide;
    }
    squares = sum_of_warps(squares, scratch);
    if (warp == 0 && inside) static_cast<A*>(target.query_length)[b * layer.query_positions + p] = sqrt(squares);
  }
}

// Packed kept columns, zeros behind them up to kTileAlign, and t = |m| |s|. grid (column blocks, units, layers).
template <class F, class A>
__global__ void __launch_bounds__(kThreads) pack_support_kernel(Rule rule, const __grid_constant__ Table table) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // [kWarps][32]
  const CudaLayer& target = table.layer[blockIdx.z];
  const Layer& layer = target.layer;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t u = blockIdx.y; u < rule.units(); u += gridDim.y) {
    const int64_t count = target.count[u], end = ceil_div(count, kTileAlign) * kTileAlign;
    const Unit unit(rule, u);
    for (int64_t j = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane; j - lane < end; j += gridDim.x * kWarpSize) {
      const bool inside = j < count;
      const int64_t column = inside ? target.index[u * target.support_ld + j] : 0;
      const F* source =
          static_cast<const F*>(layer.support) + unit.support_offset(layer) + column_offset(layer, column);
      F* copy = static_cast<F*>(target.support_packed) + u * layer.channels * target.support_ld + j;
      A squares = A(0);
#pragma unroll 4
      for (int64_t c = warp; c < layer.channels; c += kWarps) {
        F value = source[c * layer.support_strides.channel];
        if (!inside) store_from_accumulator(&value, A(0));
        copy[c * target.support_ld] = value;
        const A wide = load_as_accumulator(value);
        squares += wide * wide;
      }
      squares = sum_of_warps(squares, scratch);
      if (warp == 0) {
        const A weight = static_cast<const A*>(target.weight)[u * target.support_ld + j];
        static_cast<A*>(target.length)[u * target.support_ld + j] = (weight < A(0) ? -weight : weight) * sqrt(squares);
      }
    }
  }
}

// (value, column) that goes first: NaN before numbers, the larger, of equals the lower column.
template <class A>
__device__ __forceinline__ bool goes_first(A a, int32_t a_column, A b, int32_t b_column) {
  const bool a_nan = a != a, b_nan = b != b;
  if (a_nan || b_nan) return a_nan && (!b_nan || a_column < b_column);
  return a > b || (a == b && a_column < b_column);
}

// The factor that makes a product the cosine, of column j.
template <class A>
__device__ __forceinline__ A column_factor(const Rule& rule, A eps, A weight, A length) {
  return weight / guarded_length(rule.eps_rule, length, eps);
}

// Row sums or row maxima over the column tiles of one split. grid (row tiles * kColumnSplits, units, layers).
template <class F, class A, bool kMax>
__global__ void __launch_bounds__(kThreads, 2) correlate_kernel(Rule rule, const __grid_constant__ Table table) {
  using T = Tile<F>;
  FSSOPS_DYNAMIC_SHARED(F, shared);
  const CudaLayer& target = table.layer[blockIdx.z];
  const Layer& layer = target.layer;
  const A eps = static_cast<A>(rule.eps);
  const int split = blockIdx.x % kColumnSplits;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x / kColumnSplits) * T::kRows;
  if (row0 >= layer.query_positions) return;
  const bool split_rule = separable(rule.eps_rule);
  for (int64_t u = blockIdx.y; u < rule.units(); u += gridDim.y) {
    const Unit unit(rule, u);
    const int64_t count = target.count[u];
    const int all_tiles = static_cast<int>(ceil_div(count, T::kColumns));
    const int tiles = all_tiles > split ? (all_tiles - split + kColumnSplits - 1) / kColumnSplits : 0;
    const int64_t base = static_cast<int64_t>(split) * T::kColumns;
    const A* weights = static_cast<const A*>(target.weight) + u * target.support_ld + base;
    const A* lengths = static_cast<const A*>(target.length) + u * target.support_ld + base;
    const int32_t* index = target.index + u * target.support_ld + base;
    const F* query = static_cast<const F*>(target.query_packed) + unit.image * target.query_batch + row0;
    const F* support = static_cast<const F*>(target.support_packed) + u * layer.channels * target.support_ld + base;
    const A* row_lengths = static_cast<const A*>(target.query_length) + unit.image * layer.query_positions;
    const int64_t valid = (target.pack_query ? target.query_ld : layer.query_positions) - row0;
    // A background column is a zero that the first split brings in.
    const bool zero = kMax && split == 0 && rule.all_positions && count < counted_columns(rule, layer, count);
    A best[T::kOwn];
    int32_t best_column[T::kOwn];
#pragma unroll
    for (int i = 0; i < T::kOwn; ++i) {
      best[i] = kMax && !zero ? -static_cast<A>(INFINITY) : A(0);
      best_column[i] = kMax && !zero ? INT32_MAX : -1;
    }
    multiply_tiles<F>(query, target.query_ld, valid, support, target.support_ld, layer.channels, tiles, kColumnSplits,
                      shared, [&](int64_t first, A(&sums)[T::kOwn][T::kOwn]) {
#pragma unroll
                        for (int j = 0; j < T::kOwn; ++j) {
                          const int64_t column = first + T::column(j);
                          const bool inside = base + column < count;
                          const A weight = weights[column], length = lengths[column];
                          const A factor = column_factor(rule, eps, weight, length);
#pragma unroll
                          for (int i = 0; i < T::kOwn; ++i) {
                            A value = sums[i][j] * factor;
                            if (!split_rule) {
                              const int64_t row = row0 + T::row(i);
                              const A query_length = row < layer.query_positions ? row_lengths[row] : A(0);
                              value = sums[i][j] * weight / (query_length * length + eps);
                            }
                            if (rule.relu && value < A(0)) value = A(0);
                            if constexpr (kMax) {
                              if (inside && goes_first(value, index[column], best[i], best_column[i])) {
                                best[i] = value;
                                best_column[i] = index[column];
                              }
                            } else {
                              best[i] += inside ? value : A(0);
                            }
                          }
                        }
                      });
    // Lanes side by side, then warps side by side, hold parts of the same rows.
#pragma unroll
    for (int i = 0; i < T::kOwn; ++i) {
#pragma unroll
      for (int offset = T::kColumnLanes / 2; offset > 0; offset /= 2) {
        const A other = __shfl_xor_sync(kFullWarp, best[i], offset);
        if constexpr (kMax) {
          const int32_t column = __shfl_xor_sync(kFullWarp, best_column[i], offset);
          if (goes_first(other, column, best[i], best_column[i])) {
            best[i] = other;
            best_column[i] = column;
          }
        } else {
          best[i] += other;
        }
      }
    }
    __syncthreads();
    A* parts = reinterpret_cast<A*>(shared);  // [kColumnWarps][kRows]
    int32_t* part_columns = reinterpret_cast<int32_t*>(parts + T::kColumnWarps * T::kRows);
    const int column_warp = T::kColumnWarps == 1 ? 0 : static_cast<int>(threadIdx.x) / kWarpSize % T::kColumnWarps;
    if (threadIdx.x % T::kColumnLanes == 0)
#pragma unroll
      for (int i = 0; i < T::kOwn; ++i) {
        parts[column_warp * T::kRows + T::row(i)] = best[i];
        if (kMax) part_columns[column_warp * T::kRows + T::row(i)] = best_column[i];
      }
    __syncthreads();
    const int r = threadIdx.x;
    if (r < T::kRows && row0 + r < layer.query_positions) {
      A total = parts[r];
      int32_t column = kMax ? part_columns[r] : 0;
      for (int w = 1; w < T::kColumnWarps; ++w) {
        const A other = parts[w * T::kRows + r];
        if constexpr (kMax) {
          const int32_t other_column = part_columns[w * T::kRows + r];
          if (goes_first(other, other_column, total, column)) {
            total = other;
            column = other_column;
          }
        } else {
          total += other;
        }
      }
      const int64_t row = (static_cast<int64_t>(split) * rule.units() + u) * layer.query_positions + row0 + r;
      static_cast<A*>(target.partial)[row] = total;
      if (kMax) target.partial_column[row] = column;
    }
  }
}

// Values of the rows from the parts of the splits. grid (position blocks, units, layers).
template <class A, bool kMax>
__global__ void __launch_bounds__(kThreads)
    combine_kernel(Rule rule, const __grid_constant__ Table table, A* values, int32_t* chosen) {
  const CudaLayer& target = table.layer[blockIdx.z];
  const Layer& layer = target.layer;
  const A eps = static_cast<A>(rule.eps);
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p >= layer.query_positions) return;
  for (int64_t u = blockIdx.y; u < rule.units(); u += gridDim.y) {
    const int64_t count = target.count[u], row = u * layer.query_positions + p;
    const int64_t step = rule.units() * layer.query_positions;
    const A* parts = static_cast<const A*>(target.partial) + row;
    A total = parts[0];
    int32_t column = kMax ? target.partial_column[row] : 0;
    for (int split = 1; split < kColumnSplits; ++split) {
      if constexpr (kMax) {
        if (goes_first(parts[split * step], target.partial_column[split * step + row], total, column)) {
          total = parts[split * step];
          column = target.partial_column[split * step + row];
        }
      } else {
        total += parts[split * step];
      }
    }
    total *=
        row_factor(rule.eps_rule,
                   static_cast<const A*>(target.query_length)[Unit(rule, u).image * layer.query_positions + p], eps);
    if (counted_columns(rule, layer, count) == 0) {
      total = A(0);
      column = -1;
    }
    values[layer.first_row + row] = kMax ? total : total / static_cast<A>(divisor_of(rule, layer, count));
    if (kMax) chosen[layer.first_row + row] = column;
  }
}

// The mean of the k largest: a tile of cosines goes through shared memory, and one thread a row keeps a sorted list.
// grid (row tiles, units, layers).
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    topk_kernel(Rule rule, const __grid_constant__ Table table, A* values, int32_t* chosen) {
  using T = Tile<F>;
  constexpr int kWidth = T::kColumns + 1;
  FSSOPS_DYNAMIC_SHARED(unsigned char, memory);
  F* shared = reinterpret_cast<F*>(memory);
  A* tile = reinterpret_cast<A*>(memory + kPipelineBytes<F>);  // [kRows][kWidth]
  A* list = tile + T::kRows * kWidth;                          // [k][kRows]
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
    multiply_tiles<F>(
        query, target.query_ld, valid, support, target.support_ld, layer.channels, tiles, 1, shared,
        [&](int64_t first, A(&sums)[T::kOwn][T::kOwn]) {
          __syncthreads();
#pragma unroll
          for (int i = 0; i < T::kOwn; ++i)
#pragma unroll
            for (int j = 0; j < T::kOwn; ++j) tile[T::row(i) * kWidth + T::column(j)] = sums[i][j];
          __syncthreads();
          if (!has_row) return;
          for (int j = 0; j < T::kColumns && first + j < count; ++j) {
            const A weight = weights[first + j], length = lengths[first + j];
            A value = tile[r * kWidth + j];
            if (separable(rule.eps_rule))
              value = value * column_factor(rule, eps, weight, length);
            else
              value = value * weight / (row_length * length + eps);
            if (rule.relu && value < A(0)) value = A(0);
            // Columns come in ascending order, so an equal value never overtakes.
            int i = rule.k;
            while (i > 0 && (value > list[(i - 1) * T::kRows + r] ||
                             (value != value && list[(i - 1) * T::kRows + r] == list[(i - 1) * T::kRows + r])))
              --i;
            if (i == rule.k) continue;
            for (int n = rule.k - 1; n > i; --n) {
              list[n * T::kRows + r] = list[(n - 1) * T::kRows + r];
              list_column[n * T::kRows + r] = list_column[(n - 1) * T::kRows + r];
            }
            list[i * T::kRows + r] = value;
            list_column[i * T::kRows + r] = index[first + j];
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
