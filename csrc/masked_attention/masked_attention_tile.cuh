// Tiles in shared memory for the warp matrix multiply: asynchronous copies in, fragments out.
#pragma once

#include "common/device.cuh"
#include "masked_attention/masked_attention.h"

namespace fssops::masked_attention {

// Numbers between the rows of a tile of `width` columns: 16 bytes more than a row, so that the eight rows which one
// ldmatrix phase reads lie in different banks (width is a multiple of 16).
constexpr int pitch_of(int width) { return width + 8; }

// Four 8 x 8 matrices of halves; lane l gives the address of row l % 8 of matrix l / 8. Register i then holds, of
// matrix i, elements [lane / 4][2 * (lane % 4)] and the one after it; transposed: [2 * (lane % 4)][lane / 4] and the
// one below.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
#if defined(__CUDA_ARCH__)
  const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(address)
                 : "memory");
#elif !defined(__CUDACC__)
  const auto* all = emulation::exchange(kFullWarp, &row, sizeof row);
  const int lane = emulation::lane();
  auto element = [&](int matrix, int r, int c) {
    const uint16_t* from;
    memcpy(&from, all[8 * matrix + r], sizeof from);
    return static_cast<uint32_t>(from[c]);
  };
  for (int i = 0; i < 4; ++i) {
    const int near = 2 * (lane % 4), far = lane / 4;
    out[i] = kTransposed ? element(i, near, far) | element(i, near + 1, far) << 16
                         : element(i, far, near) | element(i, far, near + 1) << 16;
  }
  __syncwarp();  // nobody overwrites the rows before all have read them
#endif
}

// B fragments of two neighbouring n-tiles for a product over a tile's columns (scores): B[k][n] = tile[n0 + n][k0 + k].
// out[0..1] belong to columns n0..n0 + 7, out[2..3] to the next eight.
template <class H>
__device__ __forceinline__ void load_b_across(uint32_t (&out)[4], const H* tile, int pitch, int n0, int k0) {
  const int lane = threadIdx.x % kWarpSize, matrix = lane / 8, r = lane % 8;
  load_matrices<false>(out, tile + (n0 + (matrix / 2) * 8 + r) * pitch + k0 + (matrix % 2) * 8);
}

// B fragments of two neighbouring n-tiles for a product over a tile's rows (sums of rows): B[k][n] = tile[k0 + k][n0 +
// n].
template <class H>
__device__ __forceinline__ void load_b_down(uint32_t (&out)[4], const H* tile, int pitch, int k0, int n0) {
  const int lane = threadIdx.x % kWarpSize, matrix = lane / 8, r = lane % 8;
  load_matrices<true>(out, tile + (k0 + (matrix % 2) * 8 + r) * pitch + n0 + (matrix / 2) * 8);
}

// Copies rows [0, rows) of `depth` numbers into a tile of kRows x kWidth, zeros elsewhere. `aligned`: every row starts
// at a multiple of 16 bytes and depth is a multiple of 8.
template <class H, int kRows, int kWidth>
__device__ __forceinline__ void load_tile(H* tile, const H* source, int64_t step, int rows, int depth, bool aligned) {
  constexpr int kChunks = kWidth / 8, kPitch = pitch_of(kWidth);
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * kChunks; i += blockDim.x) {
    const int row = i / kChunks, d = i % kChunks * 8;
    H* target = tile + row * kPitch + d;
    const H* from = source + row * step + d;
    if (aligned && row < rows && d < depth) {
      copy_16_bytes_async(target, from);
      continue;
    }
#pragma unroll 1
    for (int j = 0; j < 8; ++j) {
      target[j].bits = 0;
      if (row < rows && d + j < depth) target[j] = from[j];
    }
  }
}

// A fragments of 16 rows, straight from global memory: row r of `rows` at source + r * step; zeros outside. `flip` is
// added to the sign bits (0x80008000 negates).
template <class H, int kSteps>
__device__ __forceinline__ void load_a(uint32_t (&out)[kSteps][4], const H* source, int64_t step, int rows, int depth,
                                       uint32_t flip) {
  const int lane = threadIdx.x % kWarpSize, group = lane / 4, pair = 2 * (lane % 4);
  const bool in_pairs = reinterpret_cast<uintptr_t>(source) % 4 == 0 && step % 2 == 0 && depth % 2 == 0;
#pragma unroll
  for (int k = 0; k < kSteps; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = group + (i % 2) * 8, d = k * 16 + pair + (i / 2) * 8;
      const H* from = source + row * step + d;
      uint32_t both = 0;
      if (row < rows && d < depth) {
        if (in_pairs)
          both = *reinterpret_cast<const uint32_t*>(from);
        else
          both = from[0].bits | (d + 1 < depth ? static_cast<uint32_t>(from[1].bits) << 16 : 0u);
      }
      out[k][i] = both ^ flip;
    }
}

// Two floats rounded to halves in one register, the first below: one instruction where pack_pair takes three.
__device__ __forceinline__ uint32_t pack_halves(float first, float second, half_t) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
#else
  return pack_pair<half_t>(first, second);
#endif
}

__device__ __forceinline__ uint32_t pack_halves(float first, float second, bf16_t) {
#if defined(__CUDA_ARCH__)
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
  return out;
#else
  return pack_pair<bf16_t>(first, second);
#endif
}

// 2^x to about 2 units in the last place; results below the smallest normal number are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
#else
  return std::exp2(x);
#endif
}

}  // namespace fssops::masked_attention
