// Tiles of products of packed features: out[row][column] = sum_c query[c][row] * support[c][column], both read with
// positions along memory, through a pipeline of asynchronous copies that runs on over the columns of a block.
// Float and double multiply on the ordinary units, half types on the matrix units; both keep float (double) sums.
#pragma once

#include "common/device.cuh"
#include "cosine_correlation/cosine_correlation_math.h"

namespace fssops::cosine_correlation {

constexpr int kThreads = 256;
constexpr int kStages = 3;

// Four 8x8 matrices of 16-bit elements, transposed: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const uint16_t* row) {
#if defined(__CUDACC__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
#else
  const uint64_t own = reinterpret_cast<uint64_t>(row);
  const auto* rows = emulation::exchange(kFullWarp, &own, sizeof own);
  const int lane = emulation::lane();
  for (int i = 0; i < 4; ++i) {
    const auto* first = reinterpret_cast<const uint16_t*>(rows[i * 8 + 2 * (lane % 4)][0]);
    const auto* second = reinterpret_cast<const uint16_t*>(rows[i * 8 + 2 * (lane % 4) + 1][0]);
    out[i] = first[lane / 4] | static_cast<uint32_t>(second[lane / 4]) << 16;
  }
  __syncwarp();  // nobody overwrites shared memory that a slower lane still reads
#endif
}

// Which elements of a tile a thread holds: kOwn x kOwn sums.
template <class F>
struct Tile {  // float and double: 16 x 16 threads
  using A = accumulator_t<F>;
  static constexpr int kOwn = sizeof(F) == 8 ? 4 : 8;
  static constexpr int kRows = 16 * kOwn, kColumns = 16 * kOwn;
  static constexpr int kDepth = 16;        // channels of a stage
  static constexpr int kLd = kRows;        // elements of a row in shared memory
  static constexpr int kColumnLanes = 16;  // lanes side by side that share a row
  static constexpr int kColumnWarps = 1;   // warps that share a row
  static constexpr int kRowThreads = 16;   // threads that share a column
  static constexpr int kVector = 16 / sizeof(F);

  __device__ static int row(int i) { return i / kGroup * (kRows / kGroups) + threadIdx.x / 16 * kGroup + i % kGroup; }
  __device__ static int column(int j) {
    return j / kGroup * (kRows / kGroups) + threadIdx.x % 16 * kGroup + j % kGroup;
  }
  __device__ static int row_thread() { return threadIdx.x / 16; }

  __device__ static void multiply(const F* query, const F* support, A (&sums)[kOwn][kOwn]) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) {
      F left[kOwn], right[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) left[i] = query[k * kLd + row(i)];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) right[j] = support[k * kLd + column(j)];
#pragma unroll
      for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i][j] += left[i] * right[j];
    }
  }

 private:
  // Groups of neighbours that one 16-byte load brings.
  static constexpr int kGroup = 16 / sizeof(F), kGroups = kOwn / kGroup;
};

// Half types: 2 x 4 warps of 64 x 32 elements, each 4 x 4 matrix products of 16 x 8.
template <class F>
struct MatrixTile {
  using A = float;
  static constexpr int kOwn = 8, kRows = 128, kColumns = 128, kDepth = 32;
  static constexpr int kLd = kRows + 8;  // 17 times 16 bytes: eight rows of a matrix lie in different banks
  static constexpr int kColumnLanes = 4, kColumnWarps = 4, kRowThreads = 16, kVector = 8;

  __device__ static int lane() { return threadIdx.x % kWarpSize; }
  __device__ static int warp_row() { return threadIdx.x / kWarpSize / 4; }
  __device__ static int warp_column() { return threadIdx.x / kWarpSize % 4; }
  __device__ static int row(int i) { return warp_row() * 64 + i / 2 * 16 + lane() / 4 + i % 2 * 8; }
  __device__ static int column(int j) { return warp_column() * 32 + j / 2 * 8 + lane() % 4 * 2 + j % 2; }
  __device__ static int row_thread() { return warp_row() * 8 + lane() / 4; }

  __device__ static void multiply(const F* query, const F* support, float (&sums)[kOwn][kOwn]) {
    const int l = lane();
    const F* left_row = query + (l / 16 * 8 + l % 8) * kLd + warp_row() * 64 + l / 8 % 2 * 8;
    const F* right_row = support + (l / 8 % 2 * 8 + l % 8) * kLd + warp_column() * 32 + l / 16 * 8;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t left[4][4], right[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        load_matrices_transposed(left[i], reinterpret_cast<const uint16_t*>(left_row + k * kLd + i * 16));
#pragma unroll
      for (int j = 0; j < 2; ++j)
        load_matrices_transposed(right[j], reinterpret_cast<const uint16_t*>(right_row + k * kLd + j * 16));
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          float d[4] = {sums[2 * i][2 * j], sums[2 * i][2 * j + 1], sums[2 * i + 1][2 * j], sums[2 * i + 1][2 * j + 1]};
          const uint32_t b[2] = {right[j / 2][j % 2 * 2], right[j / 2][j % 2 * 2 + 1]};
          mma_16x8x16(d, left[i], b, F{});
          sums[2 * i][2 * j] = d[0];
          sums[2 * i][2 * j + 1] = d[1];
          sums[2 * i + 1][2 * j] = d[2];
          sums[2 * i + 1][2 * j + 1] = d[3];
        }
    }
  }
};
template <>
struct Tile<half_t> : MatrixTile<half_t> {};
template <>
struct Tile<bf16_t> : MatrixTile<bf16_t> {};

template <class F>
constexpr int kStageElements = Tile<F>::kDepth * Tile<F>::kLd * 2;
template <class F, int kStageCount = kStages>
constexpr int kPipelineBytes = kStageCount * kStageElements<F> * static_cast<int>(sizeof(F));

// The products of one tile of rows with `tiles` tiles of columns, `tile_step` tiles apart. After each tile,
// consume(first column, sums) is called by all threads. query and support point at the first row and the first column.
template <class F, int kStageCount = kStages, class Consume>
__device__ __forceinline__ void multiply_tiles(const F* query, int64_t query_ld, int64_t query_valid, const F* support,
                                               int64_t support_ld, int64_t channels, int tiles, int64_t tile_step,
                                               F* shared, Consume consume) {
  using T = Tile<F>;
  // A thread copies the same 16-byte piece of every kLines-th channel of a stage.
  constexpr int kChunks = T::kRows / T::kVector, kLines = kThreads / kChunks;
  // No channels at all: one step of zeros, so that every tile is consumed.
  const int steps = static_cast<int>(channels > 0 ? ceil_div(channels, T::kDepth) : 1);
  const int all_steps = steps * tiles;
  const int line = static_cast<int>(threadIdx.x) / kChunks, x = static_cast<int>(threadIdx.x) % kChunks * T::kVector;
  const bool row_inside = x < query_valid;
  const int left_over = static_cast<int>(channels - line);  // channels from this thread's first one on
  const F* query_line = query + line * query_ld + (row_inside ? x : 0);
  const F* support_line = support + line * support_ld + x;
  int next_channel = 0, next_tile = 0;
  auto load = [&](int step) {
    F* stage = shared + step % kStageCount * kStageElements<F> + line * T::kLd + x;
#pragma unroll
    for (int i = 0; i < T::kDepth; i += kLines) {
      const int c = next_channel + i;
      const bool inside = c < left_over;
      copy_16_bytes_async(stage + i * T::kLd, inside ? query_line + c * query_ld : query, inside && row_inside);
      copy_16_bytes_async(stage + (T::kDepth + i) * T::kLd,
                          inside ? support_line + c * support_ld + next_tile * tile_step * T::kColumns : support,
                          inside);
    }
    next_channel += T::kDepth;
    if (next_channel >= steps * T::kDepth) {
      next_channel = 0;
      ++next_tile;
    }
  };
  typename T::A sums[T::kOwn][T::kOwn] = {};
  int steps_left = steps;
  int64_t first = 0;  // column of the tile in the works
  __syncthreads();    // the stages may still be read by what came before
#pragma unroll
  for (int step = 0; step < kStageCount - 1; ++step) {
    if (step < all_steps) load(step);
    commit_copies();
  }
  for (int step = 0; step < all_steps; ++step) {
    wait_copies<kStageCount - 2>();
    __syncthreads();
    if (step + kStageCount - 1 < all_steps) load(step + kStageCount - 1);
    commit_copies();
    const F* stage = shared + step % kStageCount * kStageElements<F>;
    T::multiply(stage, stage + T::kDepth * T::kLd, sums);
    if (--steps_left == 0) {
      steps_left = steps;
      consume(first, sums);
      first += tile_step * T::kColumns;
#pragma unroll
      for (int i = 0; i < T::kOwn; ++i)
#pragma unroll
        for (int j = 0; j < T::kOwn; ++j) sums[i][j] = typename T::A(0);
    }
  }
  wait_copies<0>();
}

}  // namespace fssops::cosine_correlation
