// Backward kernels, one layer and one unit of every image at a time. Products are made again for kGradChunk columns,
// turned into coefficients E[row][column] = d loss / d (q . s), and multiplied with either side. Sums that span
// launches are added to in launch order, so results do not change from run to run.
#pragma once

#include "cosine_correlation/cosine_correlation_tile.cuh"

namespace fssops::cosine_correlation {

constexpr int kGradTile = 64, kGradDepth = 16;

// What all kernels of one step share: unit `unit_in_image` of every image, columns from `chunk` on.
struct GradStep {
  CudaLayer target;
  int64_t unit_in_image, chunk;
  __device__ int64_t unit(const Rule& rule, int64_t image) const {
    return image * rule.masks * rule.units_per_mask() + unit_in_image;
  }
  // Kept columns of this chunk.
  __device__ int64_t columns(int64_t unit) const {
    const int64_t left = target.count[unit] - chunk;
    return left < 0 ? 0 : (left < kGradChunk ? left : kGradChunk);
  }
};

// Coefficients of a tile of rows, and what the lengths take. grid (row tiles, images).
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    coefficients_kernel(Rule rule, const __grid_constant__ GradStep step, const A* grad, const int32_t* chosen) {
  using T = Tile<F>;
  FSSOPS_DYNAMIC_SHARED(unsigned char, memory);
  F* shared = reinterpret_cast<F*>(memory);
  A* column_sums = reinterpret_cast<A*>(memory + kPipelineBytes<F>);  // [kRowThreads][kColumns], then row sums
  const CudaLayer& target = step.target;
  const Layer& layer = target.layer;
  const A eps = static_cast<A>(rule.eps);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * T::kRows;
  for (int64_t b = blockIdx.y; b < rule.batch; b += gridDim.y) {
    const int64_t u = step.unit(rule, b), count = step.columns(u), at = u * target.support_ld + step.chunk;
    if (count == 0) continue;
    const A* weights = static_cast<const A*>(target.weight) + at;
    const A* lengths = static_cast<const A*>(target.length) + at;
    const int32_t* index = target.index + at;
    const F* query = static_cast<const F*>(target.query_packed) + b * target.query_batch + row0;
    const F* support =
        static_cast<const F*>(target.support_packed) + u * layer.channels * target.support_ld + step.chunk;
    const A* row_lengths = static_cast<const A*>(target.query_length) + b * layer.query_positions;
    const int64_t valid = (target.pack_query ? target.query_ld : layer.query_positions) - row0;
    const int64_t value_row = layer.first_row + u * layer.query_positions;
    const A divisor = static_cast<A>(divisor_of(rule, layer, target.count[u]));
    A* coefficients = static_cast<A*>(target.coefficients) + (b * layer.query_positions + row0) * kGradChunk;
    A* column_partial = static_cast<A*>(target.column_partial) + (b * gridDim.x + blockIdx.x) * kGradChunk;
    A row_sums[T::kOwn] = {};
    const int tiles = static_cast<int>(ceil_div(count, T::kColumns));
    multiply_tiles<F>(query, target.query_ld, valid, support, target.support_ld, layer.channels, tiles, 1, shared,
                      [&](int64_t first, A(&sums)[T::kOwn][T::kOwn]) {
                        A by_support[T::kOwn] = {};
                        for (int i = 0; i < T::kOwn; ++i) {
                          const int64_t row = row0 + T::row(i);
                          const bool has_row = row < layer.query_positions;
                          const A row_grad = has_row ? grad[value_row + row] / divisor : A(0);
                          const A row_length = has_row ? row_lengths[row] : A(0);
                          const int32_t* picked = chosen + value_row * rule.k + row;
#pragma unroll
                          for (int j = 0; j < T::kOwn; ++j) {
                            const int64_t column = first + T::column(j);
                            PairGrad<A> g{A(0), A(0), A(0)};
                            if (has_row && column < count) {
                              const bool active = rule.reduction == Reduction::mean ||
                                                  is_chosen(picked, layer.query_positions, rule.k, index[column]);
                              // sums[i][j] with a run-time i would go to memory; the loop over i is unrolled by the
                              // select below.
                              A product = A(0);
#pragma unroll
                              for (int n = 0; n < T::kOwn; ++n) product = n == i ? sums[n][j] : product;
                              g = pair_grad(rule, eps, row_grad, active, product, row_length, weights[column],
                                            lengths[column]);
                            }
                            if (has_row) coefficients[T::row(i) * kGradChunk + column] = g.coefficient;
#pragma unroll
                            for (int n = 0; n < T::kOwn; ++n) row_sums[n] += n == i ? g.by_query : A(0);
                            by_support[j] += g.by_support;
                          }
                        }
                        __syncthreads();
#pragma unroll
                        for (int j = 0; j < T::kOwn; ++j)
                          column_sums[T::row_thread() * T::kColumns + T::column(j)] = by_support[j];
                        __syncthreads();
                        if (threadIdx.x < T::kColumns) {
                          A total = A(0);
                          for (int n = 0; n < T::kRowThreads; ++n) total += column_sums[n * T::kColumns + threadIdx.x];
                          column_partial[first + threadIdx.x] = total;
                        }
                      });
    constexpr int kColumnThreads = kThreads / T::kRowThreads;
    const int column_thread = T::kColumnWarps == 1
                                  ? static_cast<int>(threadIdx.x) % T::kColumnLanes
                                  : static_cast<int>(threadIdx.x) / kWarpSize % T::kColumnWarps * T::kColumnLanes +
                                        static_cast<int>(threadIdx.x) % T::kColumnLanes;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < T::kOwn; ++i) column_sums[column_thread * T::kRows + T::row(i)] = row_sums[i];
    __syncthreads();
    if (threadIdx.x < T::kRows && row0 + threadIdx.x < layer.query_positions) {
      A total = A(0);
      for (int n = 0; n < kColumnThreads; ++n) total += column_sums[n * T::kRows + threadIdx.x];
      static_cast<A*>(target.row_term)[b * layer.query_positions + row0 + threadIdx.x] += total;
    }
    __syncthreads();
  }
}

// out[m][n] += sum_k a(k, m) b(k, n), m channels and n positions: 64 x 64 by 256 threads, 4 x 4 each. load_a and load_b
// give the element or 0 outside; add(m, n, value) writes.
template <class A, class LoadA, class LoadB, class Add>
__device__ __forceinline__ void multiply_block(int64_t depth, A* shared, LoadA load_a, LoadB load_b, Add add) {
  A* left = shared;  // [kGradDepth][kGradTile + 1]
  A* right = shared + kGradDepth * (kGradTile + 1);
  const int y = threadIdx.x / 16, x = threadIdx.x % 16;
  A sums[4][4] = {};
  for (int64_t k0 = 0; k0 < depth; k0 += kGradDepth) {
    __syncthreads();
    load_a(k0, left);
    load_b(k0, right);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kGradDepth; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          sums[i][j] += left[k * (kGradTile + 1) + y + 16 * i] * right[k * (kGradTile + 1) + x + 16 * j];
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) add(y + 16 * i, x + 16 * j, sums[i][j]);
}

// Fills [kGradDepth][kGradTile + 1] so that neighbouring threads read neighbouring k (kAlongDepth) or positions.
template <bool kAlongDepth, class A, class Element>
__device__ __forceinline__ void fill_block(A* target, Element element) {
#pragma unroll
  for (int n = 0; n < kGradDepth * kGradTile / kThreads; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x);
    const int k = kAlongDepth ? i % kGradDepth : i / kGradTile, x = kAlongDepth ? i / kGradDepth : i % kGradTile;
    target[k * (kGradTile + 1) + x] = element(k, x);
  }
}

// grad_query[c][p] += sum_j support[c][j] E[p][j]. grid (position tiles, channel tiles, images).
template <class F, class A>
__global__ void __launch_bounds__(kThreads) grad_query_kernel(Rule rule, const __grid_constant__ GradStep step) {
  FSSOPS_DYNAMIC_SHARED(A, shared);
  const CudaLayer& target = step.target;
  const Layer& layer = target.layer;
  const int64_t p0 = static_cast<int64_t>(blockIdx.x) * kGradTile, c0 = static_cast<int64_t>(blockIdx.y) * kGradTile;
  for (int64_t b = blockIdx.z; b < rule.batch; b += gridDim.z) {
    const int64_t u = step.unit(rule, b), count = step.columns(u);
    if (count == 0) continue;
    const F* support =
        static_cast<const F*>(target.support_packed) + u * layer.channels * target.support_ld + step.chunk;
    const A* coefficients = static_cast<const A*>(target.coefficients) + b * layer.query_positions * kGradChunk;
    A* out = static_cast<A*>(target.grad_query) + b * layer.channels * layer.query_positions;
    multiply_block(
        count, shared,
        [&](int64_t j0, A* block) {
          fill_block<true>(block, [&](int j, int c) {
            const bool inside = j0 + j < count && c0 + c < layer.channels;
            return inside ? A(load_as_accumulator(support[(c0 + c) * target.support_ld + j0 + j])) : A(0);
          });
        },
        [&](int64_t j0, A* block) {
          fill_block<true>(block, [&](int j, int p) {
            const bool inside = j0 + j < count && p0 + p < layer.query_positions;
            return inside ? coefficients[(p0 + p) * kGradChunk + j0 + j] : A(0);
          });
        },
        [&](int c, int p, A value) {
          if (c0 + c < layer.channels && p0 + p < layer.query_positions)
            out[(c0 + c) * layer.query_positions + p0 + p] += value;
        });
  }
}

// grad_support[c][column j] += sum_p query[c][p] E[p][j]. grid (column tiles of the chunk, channel tiles, images).
template <class F, class A>
__global__ void __launch_bounds__(kThreads) grad_support_kernel(Rule rule, const __grid_constant__ GradStep step) {
  FSSOPS_DYNAMIC_SHARED(A, shared);
  const CudaLayer& target = step.target;
  const Layer& layer = target.layer;
  const int64_t j0 = static_cast<int64_t>(blockIdx.x) * kGradTile, c0 = static_cast<int64_t>(blockIdx.y) * kGradTile;
  for (int64_t b = blockIdx.z; b < rule.batch; b += gridDim.z) {
    const int64_t u = step.unit(rule, b), count = step.columns(u);
    if (j0 >= count) continue;
    const Unit unit(rule, u);
    const F* query = static_cast<const F*>(target.query_packed) + b * target.query_batch;
    const A* coefficients = static_cast<const A*>(target.coefficients) + b * layer.query_positions * kGradChunk;
    const int32_t* index = target.index + u * target.support_ld + step.chunk;
    A* out =
        static_cast<A*>(target.grad_support) + (b * rule.shots + unit.shot) * layer.channels * layer.support_positions;
    multiply_block(
        layer.query_positions, shared,
        [&](int64_t p0, A* block) {
          fill_block<true>(block, [&](int p, int c) {
            const bool inside = p0 + p < layer.query_positions && c0 + c < layer.channels;
            return inside ? A(load_as_accumulator(query[(c0 + c) * target.query_ld + p0 + p])) : A(0);
          });
        },
        [&](int64_t p0, A* block) {
          fill_block<false>(block, [&](int p, int j) {
            const bool inside = p0 + p < layer.query_positions && j0 + j < count;
            return inside ? coefficients[(p0 + p) * kGradChunk + j0 + j] : A(0);
          });
        },
        [&](int c, int j, A value) {
          if (c0 + c >= layer.channels || j0 + j >= count) return;
          const int64_t column = index[j0 + j], shot = column / layer.support_positions;
          out[(shot * layer.channels + c0 + c) * layer.support_positions + column % layer.support_positions] += value;
        });
  }
}

// column_term of every kept column of the chunk += the parts of the row tiles. grid (column blocks, images).
template <class A>
__global__ void __launch_bounds__(kThreads)
    column_term_kernel(Rule rule, const __grid_constant__ GradStep step, int64_t row_tiles) {
  const CudaLayer& target = step.target;
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t b = blockIdx.y; b < rule.batch; b += gridDim.y) {
    const int64_t u = step.unit(rule, b);
    if (j >= step.columns(u)) continue;
    const A* parts = static_cast<const A*>(target.column_partial) + b * row_tiles * kGradChunk + j;
    A total = A(0);
    for (int64_t i = 0; i < row_tiles; ++i) total += parts[i * kGradChunk];
    const int64_t column = target.index[u * target.support_ld + step.chunk + j];
    // The unit's shots follow each other, as the positions of column numbers do.
    const int64_t first = (b * rule.shots + Unit(rule, u).shot) * target.layer.support_positions;
    static_cast<A*>(target.column_term)[first + column] += total;
  }
}

// grad[v][c] - own[v][c] * term[v] / |own[v]|, in the dtype of the features. One warp's lanes take 32 vectors, the
// block's warps share the channels. grid (position blocks, groups): groups are images (query) or images * shots
// (support).
template <class F, class A>
__global__ void __launch_bounds__(kThreads)
    finish_grad_kernel(int64_t groups, int64_t shots, int64_t channels, int64_t positions, Strides strides,
                       const F* own, const A* sums, const A* terms, F* out) {
  FSSOPS_DYNAMIC_SHARED(A, scratch);  // [warps][32]
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  constexpr int kAllWarps = kThreads / kWarpSize;
  const int64_t p = static_cast<int64_t>(blockIdx.x) * kWarpSize + lane;
  const bool inside = p < positions;
  for (int64_t group = blockIdx.y; group < groups; group += gridDim.y) {
    const F* source =
        own + group / shots * strides.batch + group % shots * strides.shot + (inside ? p : 0) * strides.position;
    const A term = inside ? terms[group * positions + p] : A(0);
    A squares = A(0);
    for (int64_t c = warp; c < channels; c += kAllWarps) {
      const A value = load_as_accumulator(source[c * strides.channel]);
      squares += value * value;
    }
    __syncthreads();
    scratch[warp * kWarpSize + lane] = squares;
    __syncthreads();
    A total = A(0);
    for (int w = 0; w < kAllWarps; ++w) total += scratch[w * kWarpSize + lane];
    const A factor = total > A(0) && term != A(0) ? term / sqrt(total) : A(0);
    if (inside)
      for (int64_t c = warp; c < channels; c += kAllWarps) {
        const int64_t at = (group * channels + c) * positions + p;
        A value = sums[at];
        if (factor != A(0)) value -= factor * A(load_as_accumulator(source[c * strides.channel]));
        store_from_accumulator(out + at, value);
      }
  }
}

// Zeros. Grid-stride.
template <class A>
__global__ void __launch_bounds__(kThreads) clear_kernel(A* target, int64_t count) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    target[i] = A(0);
}

}  // namespace fssops::cosine_correlation
