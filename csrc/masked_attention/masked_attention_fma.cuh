// float32 and float64: products on the ordinary units. A warp owns kRows queries (or keys) and walks over tiles of 32
// of the other side, one a lane, which its block shares. kSlices = ceil(head size / 32).
#pragma once

#include "common/device.cuh"
#include "masked_attention/masked_attention.h"

namespace fssops::masked_attention {

constexpr int kRows = 4;

// 16 bytes, the widest access to shared memory.
template <class T>
struct alignas(16) Chunk {
  static constexpr int kSize = 16 / static_cast<int>(sizeof(T));
  T v[kSize];
};

// Numbers between the rows of a tile: a chunk more than a row, so that lanes that read one chunk of eight neighbouring
// rows meet different banks.
template <class T>
constexpr int fma_pitch(int slices) {
  return slices * kWarpSize + Chunk<T>::kSize;
}

template <class T>
struct FmaArgs {
  Sizes s;
  const T* query;
  const T* key;
  const T* value;
  const uint32_t* bits;
  const T* grad;
  const T* logsumexp;
  const T* delta;
  T scale;
  int parts;
  T* partial;
  T* out;
  T* to_logsumexp;
  T* grad_key;
  T* grad_value;
};

// Shared memory of a block: two tiles, two sets of rows, and two sets of weights. Rows of a kilobyte (float64, heads of
// 65 to 128) leave room for three warps.
template <class T, int kSlices>
struct FmaShared {
  static constexpr int kWarps = kSlices * sizeof(T) <= 16 ? 4 : 3, kThreads = kWarps * kWarpSize;
  static constexpr int kBlockRows = kRows * kWarps;
  static constexpr int kPitch = fma_pitch<T>(kSlices), kTile = kWarpSize * kPitch, kOwn = kBlockRows * kPitch;
  static constexpr int kWeights = kBlockRows * kWarpSize;
  static constexpr int kBytes = (2 * kTile + 2 * kOwn + 2 * kWeights) * static_cast<int>(sizeof(T));
  static_assert(kBytes <= kMostSharedBytes);
  T *tile[2], *own[2], *weights[2];
  __device__ explicit FmaShared(T* shared) {
    for (int i = 0; i < 2; ++i) {
      tile[i] = shared + i * kTile;
      own[i] = shared + 2 * kTile + i * kOwn;
      weights[i] = shared + 2 * kTile + 2 * kOwn + i * kWeights;
    }
  }
};

// Rows [0, count) of `depth` numbers into shared memory, zeros elsewhere.
template <class T, int kCount, int kSlices>
__device__ __forceinline__ void load_rows(T* target, const T* source, int64_t step, int64_t count, int depth) {
  for (int i = threadIdx.x; i < kCount * kSlices * kWarpSize; i += FmaShared<T, kSlices>::kThreads) {
    const int row = i / (kSlices * kWarpSize), d = i % (kSlices * kWarpSize);
    target[row * fma_pitch<T>(kSlices) + d] = row < count && d < depth ? source[row * step + d] : T(0);
  }
}

// products[r] = <own row r, the lane's row of the tile>.
template <class T, int kSlices>
__device__ __forceinline__ void multiply_rows(const T* own, const T* tile, T (&products)[kRows]) {
  constexpr int kPitch = fma_pitch<T>(kSlices), kSize = Chunk<T>::kSize;
  const T* column = tile + threadIdx.x % kWarpSize * kPitch;
#pragma unroll
  for (int r = 0; r < kRows; ++r) products[r] = T(0);
#pragma unroll 4
  for (int d = 0; d < kSlices * kWarpSize; d += kSize) {
    const Chunk<T> right = *reinterpret_cast<const Chunk<T>*>(column + d);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Chunk<T> left = *reinterpret_cast<const Chunk<T>*>(own + r * kPitch + d);
#pragma unroll
      for (int i = 0; i < kSize; ++i) products[r] += left.v[i] * right.v[i];
    }
  }
}

// sums[r][c] += sum over the tile's rows k of weights[r][k] * tile[k][32 c + lane].
template <class T, int kSlices>
__device__ __forceinline__ void add_rows(const T* weights, const T* tile, T (&sums)[kRows][kSlices]) {
  constexpr int kPitch = fma_pitch<T>(kSlices), kSize = Chunk<T>::kSize;
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll 2
  for (int k = 0; k < kWarpSize; k += kSize) {
    Chunk<T> weight[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) weight[r] = *reinterpret_cast<const Chunk<T>*>(weights + r * kWarpSize + k);
#pragma unroll
    for (int i = 0; i < kSize; ++i)
#pragma unroll
      for (int c = 0; c < kSlices; ++c) {
        const T value = tile[(k + i) * kPitch + c * kWarpSize + lane];
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r][c] += weight[r].v[i] * value;
      }
  }
}

// Mask words of the warp's rows for one tile of 32 keys; 0 outside.
template <class T>
__device__ __forceinline__ uint32_t row_words(const FmaArgs<T>& args, int64_t b, int64_t m, int64_t q0, int64_t tile,
                                              uint32_t (&words)[kRows]) {
  const Sizes& s = args.s;
  const uint32_t valid = valid_bits(s.keys, tile);
  uint32_t any = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    words[r] = 0;
    if (q0 + r < s.queries)
      words[r] = args.bits != nullptr ? args.bits[s.mask_row(b, m, q0 + r) + tile] & valid : valid;
    any |= words[r];
  }
  return any;
}

// grid (parts * blocks of queries, B * M). The kernel of the forward pass, and of the gradient of query.
template <class T, int kSlices, bool kForward>
__global__ void __launch_bounds__(FmaShared<T, kSlices>::kThreads, kSlices * sizeof(T) <= 8 ? 3 : 2)
    query_fma_kernel(FmaArgs<T> args) {
  FSSOPS_DYNAMIC_SHARED(T, memory);
  const FmaShared<T, kSlices> shared(memory);
  constexpr int kPitch = FmaShared<T, kSlices>::kPitch, kBlockRows = FmaShared<T, kSlices>::kBlockRows;
  const Sizes& s = args.s;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, depth = static_cast<int>(s.head_size);
  const int part = blockIdx.x % args.parts;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x / args.parts) * kBlockRows,
                q0 = first_query + warp * kRows;
  const int64_t tiles = s.words(), begin = tiles * part / args.parts, end = tiles * (part + 1) / args.parts;
  const T scale = args.scale * T(1.4426950408889634), ln2 = T(0.6931471805599453);
  T* weights = shared.weights[0] + warp * kRows * kWarpSize;
  const int own = warp * kRows * kPitch;
  for (int64_t head = blockIdx.y; head < s.batch * s.heads; head += gridDim.y) {
    const int64_t b = head / s.heads, m = head % s.heads;
    const int64_t count = s.queries - first_query;
    __syncthreads();
    load_rows<T, kBlockRows, kSlices>(shared.own[0], args.query + s.query.at(b, m, first_query), s.query.row, count,
                                      depth);
    if constexpr (!kForward)
      load_rows<T, kBlockRows, kSlices>(shared.own[1], args.grad + s.grad_out.at(b, m, first_query), s.grad_out.row,
                                        count, depth);
    T sums[kRows][kSlices] = {}, largest[kRows], total[kRows] = {}, logsumexp[kRows] = {}, delta[kRows] = {};
    uint32_t seen[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      largest[r] = -INFINITY;
      if (kForward || q0 + r >= s.queries) continue;
      logsumexp[r] = args.logsumexp[s.query_row(b, m, q0 + r)] * T(1.4426950408889634);
      delta[r] = args.delta[s.query_row(b, m, q0 + r)];
    }
    for (int64_t tile = begin; tile < end; ++tile) {
      uint32_t words[kRows];
      const uint32_t any = row_words(args, b, m, q0, tile, words);
      if (!__syncthreads_or(any != 0)) continue;  // also: everybody has left the tiles
      const int64_t first = tile * kWarpSize;
      load_rows<T, kWarpSize, kSlices>(shared.tile[0], args.key + s.key.at(b, m, first), s.key.row, s.keys - first,
                                       depth);
      load_rows<T, kWarpSize, kSlices>(shared.tile[1], args.value + s.value.at(b, m, first), s.value.row,
                                       s.keys - first, depth);
      __syncthreads();
      if (any == 0) continue;
      T products[kRows], grads[kRows];
      multiply_rows<T, kSlices>(shared.own[0] + own, shared.tile[0], products);
      if constexpr (!kForward) multiply_rows<T, kSlices>(shared.own[1] + own, shared.tile[1], grads);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool open = (words[r] >> lane & 1u) != 0;
        const T score = products[r] * scale;
        T weight;
        if constexpr (kForward) {
          const T highest = warp_max(open ? score : T(-INFINITY)), before = largest[r];
          largest[r] = before < highest ? highest : before;
          // Where every score so far is -inf, subtracting it would give NaN: the weights are 0 until a larger one
          // comes.
          const T shift = largest[r] == T(-INFINITY) ? T(0) : largest[r];
          weight = open ? exp2(score - shift) : T(0);
          const T factor = exp2(before - shift);
          total[r] = total[r] * factor + weight;
#pragma unroll
          for (int c = 0; c < kSlices; ++c) sums[r][c] *= factor;
          seen[r] |= words[r];
        } else {
          weight = open ? exp2(score - logsumexp[r]) * (grads[r] - delta[r]) : T(0);
        }
        weights[r * kWarpSize + lane] = weight;
      }
      __syncwarp();
      add_rows<T, kSlices>(weights, shared.tile[kForward ? 1 : 0], sums);
      __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kForward) total[r] = warp_sum(total[r]);
      if (q0 + r >= s.queries) continue;
      const int64_t at = s.query_row(b, m, q0 + r), all = s.batch * s.heads * s.queries;
      const bool has_key = seen[r] != 0;
      T* target = args.partial + (part * all + at) * (kForward ? depth + 2 : depth);
      const bool whole = kForward && args.parts == 1;
      if (whole) target = args.out + s.out.at(b, m, q0 + r);
#pragma unroll
      for (int c = 0; c < kSlices; ++c)
        if (c * kWarpSize + lane < depth)
          target[c * kWarpSize + lane] = !whole ? sums[r][c] : (has_key ? sums[r][c] / total[r] : T(0));
      if (!kForward || lane != 0) continue;
      if (whole) {
        args.to_logsumexp[at] = has_key ? ln2 * largest[r] + log(total[r]) : T(-INFINITY);
      } else {
        target[depth] = largest[r];
        target[depth + 1] = has_key ? total[r] : T(-1);  // a sum of weights is never negative
      }
    }
  }
}

// Gradients of key and value: the rows are keys, the lanes queries. grid (blocks of keys, B * M).
template <class T, int kSlices>
__global__ void __launch_bounds__(FmaShared<T, kSlices>::kThreads, kSlices * sizeof(T) <= 8 ? 3 : 2)
    grad_key_fma_kernel(FmaArgs<T> args) {
  FSSOPS_DYNAMIC_SHARED(T, memory);
  const FmaShared<T, kSlices> shared(memory);
  constexpr int kPitch = FmaShared<T, kSlices>::kPitch, kBlockRows = FmaShared<T, kSlices>::kBlockRows;
  const Sizes& s = args.s;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, depth = static_cast<int>(s.head_size);
  const int64_t first_key = static_cast<int64_t>(blockIdx.x) * kBlockRows, k0 = first_key + warp * kRows;
  const T scale = args.scale * T(1.4426950408889634);
  T* p = shared.weights[0] + warp * kRows * kWarpSize;
  T* ds = shared.weights[1] + warp * kRows * kWarpSize;
  const int own = warp * kRows * kPitch;
  for (int64_t head = blockIdx.y; head < s.batch * s.heads; head += gridDim.y) {
    const int64_t b = head / s.heads, m = head % s.heads, count = s.keys - first_key;
    __syncthreads();
    load_rows<T, kBlockRows, kSlices>(shared.own[0], args.key + s.key.at(b, m, first_key), s.key.row, count, depth);
    load_rows<T, kBlockRows, kSlices>(shared.own[1], args.value + s.value.at(b, m, first_key), s.value.row, count,
                                      depth);
    T to_key[kRows][kSlices] = {}, to_value[kRows][kSlices] = {};
    for (int64_t first = 0; first < s.queries; first += kWarpSize) {
      const int64_t q = first + lane;
      uint32_t word = 0;  // the warp's keys are kRows bits of one word
      if (q < s.queries) {
        const int64_t at = k0 / kWordBits;
        const uint32_t valid = valid_bits(s.keys, at);
        if (at < s.words()) word = args.bits != nullptr ? args.bits[s.mask_row(b, m, q) + at] & valid : valid;
      }
      word = word >> (k0 % kWordBits) & ((1u << kRows) - 1u);
      if (!__syncthreads_or(word != 0)) continue;
      load_rows<T, kWarpSize, kSlices>(shared.tile[0], args.query + s.query.at(b, m, first), s.query.row,
                                       s.queries - first, depth);
      load_rows<T, kWarpSize, kSlices>(shared.tile[1], args.grad + s.grad_out.at(b, m, first), s.grad_out.row,
                                       s.queries - first, depth);
      __syncthreads();
      if (!__any_sync(kFullWarp, word != 0)) continue;
      const T logsumexp = q < s.queries ? args.logsumexp[s.query_row(b, m, q)] * T(1.4426950408889634) : T(0);
      const T delta = q < s.queries ? args.delta[s.query_row(b, m, q)] : T(0);
      T products[kRows], grads[kRows];
      multiply_rows<T, kSlices>(shared.own[0] + own, shared.tile[0], products);
      multiply_rows<T, kSlices>(shared.own[1] + own, shared.tile[1], grads);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool open = (word >> r & 1u) != 0;
        const T weight = open ? exp2(products[r] * scale - logsumexp) : T(0);
        p[r * kWarpSize + lane] = weight;
        ds[r * kWarpSize + lane] = open ? weight * (grads[r] - delta) : T(0);
      }
      __syncwarp();
      add_rows<T, kSlices>(p, shared.tile[1], to_value);
      add_rows<T, kSlices>(ds, shared.tile[0], to_key);
      __syncwarp();
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (k0 + r >= s.keys) continue;
      const int64_t at = s.grad_key.at(b, m, k0 + r);
#pragma unroll
      for (int c = 0; c < kSlices; ++c) {
        const int d = c * kWarpSize + lane;
        if (d >= depth) continue;
        if (args.grad_key != nullptr) args.grad_key[at + d] = args.scale * to_key[r][c];
        if (args.grad_value != nullptr) args.grad_value[at + d] = to_value[r][c];
      }
    }
  }
}

}  // namespace fssops::masked_attention
