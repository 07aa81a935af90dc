// Kernels that make masks. Rows are queries; a warp makes a word of 32 keys at a time by a ballot.
#pragma once

#include "masked_attention/masked_attention_tile.cuh"

namespace fssops::masked_attention {

constexpr int kMaskThreads = 256, kWordsAtOnce = 4, kBlockWords = kMaskThreads / kWarpSize * kWordsAtOnce;
constexpr int kProjectKeys = 64, kProjectDepth = 32, kProjectRows = 8;

// Words [first, last) of a row from open(key). Each warp asks for kWordsAtOnce words before it votes on the first, so
// that several loads are under way.
template <class Open>
__device__ __forceinline__ void make_words(int64_t keys, int64_t first, int64_t last, uint32_t* row, Open open) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  for (int64_t word = first + warp * kWordsAtOnce; word < last; word += kMaskThreads / kWarpSize * kWordsAtOnce) {
    bool opened[kWordsAtOnce];
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) {
      const int64_t key = (word + i) * kWordBits + lane;
      opened[i] = key < keys && open(key);
    }
#pragma unroll
    for (int i = 0; i < kWordsAtOnce; ++i) {
      const uint32_t bits = __ballot_sync(kFullWarp, opened[i]);
      if (lane == 0 && word + i < last) row[word + i] = bits;
    }
  }
}

// The words of a row that a block makes.
__device__ __forceinline__ void words_of_block(int64_t keys, int64_t& first, int64_t& last) {
  const int64_t words = words_of(keys);
  first = static_cast<int64_t>(blockIdx.x) * kBlockWords;
  last = first + kBlockWords < words ? first + kBlockWords : words;
}

// grid (blocks of words, rows).
template <class Source>
__global__ void __launch_bounds__(kMaskThreads) pack_kernel(CudaMask args) {
  const int64_t rows = args.batch * args.queries;
  int64_t first, last;
  words_of_block(args.keys, first, last);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const Source* closed = static_cast<const Source*>(args.source) + row * args.keys;
    make_words(args.keys, first, last, args.bits + row * words_of(args.keys),
               [&](int64_t key) { return closed[key] == 0; });
  }
}

// grid (blocks of words, rows). L logits, A the type they are computed in.
template <class L, class A>
__global__ void __launch_bounds__(kMaskThreads) logits_kernel(CudaMask args) {
  const int64_t rows = args.batch * args.queries;
  const ResizeAxis<A> down_axis(args.h, args.height), across_axis(args.w, args.width);
  const unsigned width = static_cast<unsigned>(args.width);
  int64_t first, last;
  words_of_block(args.keys, first, last);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const L* logits = static_cast<const L*>(args.source) + row * args.h * args.w;
    make_words(args.keys, first, last, args.bits + row * words_of(args.keys), [&](int64_t key) {
      const unsigned flat = static_cast<unsigned>(key);  // sides are below 2^15
      const int y = static_cast<int>(flat / width), x = static_cast<int>(flat % width);
      int top, bottom, left, right;
      A down, across;
      down_axis.taps(y, top, bottom, down);
      across_axis.taps(x, left, right, across);
      const L* upper = logits + top * args.w;
      const L* lower = logits + bottom * args.w;
      const A near = (A(1) - down) * A(load_as_accumulator(upper[left])) + down * A(load_as_accumulator(lower[left]));
      const A far = (A(1) - down) * A(load_as_accumulator(upper[right])) + down * A(load_as_accumulator(lower[right]));
      return !((A(1) - across) * near + across * far < A(0));
    });
  }
}

// A warp takes 32 keys and kProjectRows queries. grid (blocks of 32 * warps keys, blocks of queries, batch).
template <class T>
__global__ void __launch_bounds__(256) project_fma_kernel(CudaMask args) {
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, warps = blockDim.x / kWarpSize;
  const int64_t word = static_cast<int64_t>(blockIdx.x) * warps + warp, key = word * kWordBits + lane;
  const int64_t q0 = static_cast<int64_t>(blockIdx.y) * kProjectRows;
  if (word >= words_of(args.keys)) return;
  for (int64_t b = blockIdx.z; b < args.batch; b += gridDim.z) {
    const T* rows = static_cast<const T*>(args.source) + (b * args.queries + q0) * args.channels;
    const T* column =
        static_cast<const T*>(args.features) + b * args.channels * args.keys + (key < args.keys ? key : 0);
    T sums[kProjectRows] = {};
#pragma unroll 4
    for (int64_t c = 0; c < args.channels; ++c) {
      const T feature = column[c * args.keys];
#pragma unroll
      for (int r = 0; r < kProjectRows; ++r)  // past the end: the first query again, and not stored
        sums[r] += rows[(q0 + r < args.queries ? r : 0) * args.channels + c] * feature;
    }
#pragma unroll
    for (int r = 0; r < kProjectRows; ++r) {
      const uint32_t bits = __ballot_sync(kFullWarp, key < args.keys && !(sums[r] < T(0)));
      if (lane == 0 && q0 + r < args.queries)
        args.bits[(b * args.queries + q0 + r) * words_of(args.keys) + word] = bits;
    }
  }
}

// Half types, on the matrix units: a block of w warps takes 16 w queries and 64 keys.
// grid (blocks of keys, blocks of queries, batch). `aligned`: see load_tile, for the features.
template <class H>
__global__ void __launch_bounds__(256, 2) project_half_kernel(CudaMask args, bool aligned) {
  FSSOPS_DYNAMIC_SHARED(H, shared);
  constexpr int kPitch = pitch_of(kProjectKeys), kTile = kProjectDepth * kPitch, kTiles = kProjectKeys / 8;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize, group = lane / 4, pair = 2 * (lane % 4);
  const int64_t first_key = static_cast<int64_t>(blockIdx.x) * kProjectKeys;
  const int64_t q0 = (static_cast<int64_t>(blockIdx.y) * (blockDim.x / kWarpSize) + warp) * 16;
  const int rows = static_cast<int>(args.queries - q0 < 16 ? (args.queries > q0 ? args.queries - q0 : 0) : 16);
  const int columns = static_cast<int>(args.keys - first_key < kProjectKeys ? args.keys - first_key : kProjectKeys);
  for (int64_t b = blockIdx.z; b < args.batch; b += gridDim.z) {
    const H* embeddings = static_cast<const H*>(args.source) + (b * args.queries + q0) * args.channels;
    const H* features = static_cast<const H*>(args.features) + b * args.channels * args.keys + first_key;
    const auto load = [&](int64_t c, H* tile) {
      const int64_t left = args.channels - c;
      load_tile<H, kProjectDepth, kProjectKeys>(tile, features + c * args.keys, args.keys,
                                                static_cast<int>(left < kProjectDepth ? left : kProjectDepth), columns,
                                                aligned && columns % 8 == 0);
    };
    float sums[kTiles][4] = {};
    load(0, shared);
    commit_copies();
    int index = 0;
    for (int64_t c = 0; c < args.channels; c += kProjectDepth) {
      __syncthreads();  // everybody has left the tile that is filled now
      if (c + kProjectDepth < args.channels) load(c + kProjectDepth, shared + (index ^ 1) * kTile);
      commit_copies();
      uint32_t a[kProjectDepth / 16][4];
      const int64_t left = args.channels - c;
      load_a<H, kProjectDepth / 16>(a, embeddings + c, args.channels, rows,
                                    static_cast<int>(left < kProjectDepth ? left : kProjectDepth), 0u);
      wait_copies<1>();
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kProjectDepth / 16; ++k)
#pragma unroll
        for (int n = 0; n < kTiles; n += 2) {
          uint32_t bb[4];
          load_b_down(bb, shared + index * kTile, kPitch, k * 16, n * 8);
          mma_16x8x16(sums[n], a[k], {bb[0], bb[1]}, H{});
          mma_16x8x16(sums[n + 1], a[k], {bb[2], bb[3]}, H{});
        }
      index ^= 1;
    }
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int w = 0; w < 2; ++w)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint32_t bits = 0;
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            bits |= static_cast<uint32_t>(!(sums[w * 4 + n][2 * i + j] < 0.f)) << (n * 8 + pair + j);
        bits |= __shfl_xor_sync(kFullWarp, bits, 1);
        bits |= __shfl_xor_sync(kFullWarp, bits, 2);
        const int64_t word = first_key / kWordBits + w;
        if (lane % 4 == 0 && group + 8 * i < rows && word < words_of(args.keys))
          args.bits[(b * args.queries + q0 + group + 8 * i) * words_of(args.keys) + word] =
              bits & valid_bits(args.keys, word);
      }
  }
}

// Opens the rows that have no open key. grid: rows.
__global__ void __launch_bounds__(kMaskThreads) open_empty_kernel(CudaMask args) {
  const int64_t rows = args.batch * args.queries, words = words_of(args.keys);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    uint32_t* bits = args.bits + row * words;
    uint32_t any = 0;
    for (int64_t word = threadIdx.x; word < words; word += blockDim.x) any |= bits[word];
    if (__syncthreads_or(any != 0)) continue;
    for (int64_t word = threadIdx.x; word < words; word += blockDim.x) bits[word] = valid_bits(args.keys, word);
  }
}

}  // namespace fssops::masked_attention
