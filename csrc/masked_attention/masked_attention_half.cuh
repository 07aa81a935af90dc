// Half types: products on the matrix units, float32 accumulation. A warp owns 16 queries (or, for the gradients of key
// and value, 16 keys) and walks over tiles of the other side, which its block shares.
#pragma once

#include "masked_attention/masked_attention_tile.cuh"

namespace fssops::masked_attention {

constexpr int kTileKeys = 64, kTileQueries = 32, kWarpRows = 16, kKeyWarps = 4;
constexpr float kLn2 = 0.69314718056f, kLog2E = 1.44269504089f;

// What the kernels of one pass share. The head of a block is blockIdx.y (and gridDim.y further on).
template <class H>
struct HalfArgs {
  Sizes s;
  const H* query;
  const H* key;
  const H* value;
  const uint32_t* bits;    // null: every key is open
  const H* grad;           // gradient of out
  const float* logsumexp;  // [B, M, Q]
  const float* delta;      // [B, M, Q]
  float scale;
  int parts;     // of the keys
  bool aligned;  // see load_tile
  float* partial;
  H* out;  // forward: out, else unused
  float* to_logsumexp;
  H* grad_key;  // null where not wanted
  H* grad_value;
};

// One query's mask.
struct MaskRow {
  const uint32_t* row;  // null: every key is open
  bool there;           // whether there is such a query
  __device__ MaskRow(const Sizes& s, const uint32_t* bits, int64_t b, int64_t m, int64_t q)
      : row(bits != nullptr ? bits + s.mask_row(b, m, q) : nullptr), there(q < s.queries) {}
  // 0 past the last key and the last query.
  __device__ __forceinline__ uint32_t word(const Sizes& s, int index) const {
    const uint32_t valid = there ? valid_bits(s.keys, index) : 0;
    return row != nullptr && valid != 0 ? row[index] & valid : valid;
  }
};

// The next tile of keys, from `tile` on, in which a query of this block has an open key; `end` if there is none. All
// threads must call it; it is also a barrier. Two threads watch each query, a word of the tile each: `ahead` holds that
// of `tile`, on return that of the tile after the one returned, so that the memory answers while the block computes.
__device__ __forceinline__ int next_open_tile(const Sizes& s, const MaskRow& watched, int tile, int end,
                                              uint32_t& ahead) {
  while (tile < end) {
    const bool open = __syncthreads_or(ahead != 0) != 0;
    ahead = tile + 1 < end ? watched.word(s, (tile + 1) * 2 + threadIdx.x % 2) : 0;
    if (open) return tile;
    ++tile;
  }
  __syncthreads();
  return end;
}

template <class H, int kD>
constexpr int forward_shared_bytes() {
  return 4 * kTileKeys * pitch_of(kD) * static_cast<int>(sizeof(H));
}

// Both tiles of a stage: keys and values, or whatever two arrays are walked together.
template <class H, int kD>
struct Stage {
  H* first;
  H* second;
  __device__ Stage(H* shared, int rows, int index)
      : first(shared + index * 2 * rows * pitch_of(kD)), second(first + rows * pitch_of(kD)) {}
};

template <class H, int kD>
__device__ __forceinline__ void load_keys(const HalfArgs<H>& args, int64_t b, int64_t m, int tile, Stage<H, kD> stage) {
  const Sizes& s = args.s;
  const int64_t first = static_cast<int64_t>(tile) * kTileKeys;
  const int rows = static_cast<int>(s.keys - first < kTileKeys ? s.keys - first : kTileKeys);
  const int depth = static_cast<int>(s.head_size);
  load_tile<H, kTileKeys, kD>(stage.first, args.key + s.key.at(b, m, first), s.key.row, rows, depth, args.aligned);
  load_tile<H, kTileKeys, kD>(stage.second, args.value + s.value.at(b, m, first), s.value.row, rows, depth,
                              args.aligned);
}

// The tiles of a part.
__device__ __forceinline__ void part_of(const Sizes& s, int part, int parts, int& begin, int& end) {
  const int64_t tiles = ceil_div(s.keys, kTileKeys);
  begin = static_cast<int>(tiles * part / parts);
  end = static_cast<int>(tiles * (part + 1) / parts);
}

// grid (parts * blocks of queries, B * M); a block of w warps takes 16 w queries.
template <class H, int kD>
__global__ void __launch_bounds__(256, kD <= 64 ? 2 : 1) forward_half_kernel(HalfArgs<H> args) {
  FSSOPS_DYNAMIC_SHARED(H, shared);
  // Scores that a warp holds at once: large heads leave fewer registers for them.
  constexpr int kStep = kD <= 32 ? kTileKeys : kTileKeys / 2;
  constexpr int kSteps = kD / 16, kTiles = kStep / 8, kPitch = pitch_of(kD);
  const Sizes& s = args.s;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int group = lane / 4, pair = 2 * (lane % 4);
  const int part = blockIdx.x % args.parts;
  const int64_t first_query = static_cast<int64_t>(blockIdx.x / args.parts) * (blockDim.x / 2);
  const int64_t q0 = first_query + warp * kWarpRows;
  const int rows = static_cast<int>(s.queries - q0 < kWarpRows ? (s.queries > q0 ? s.queries - q0 : 0) : kWarpRows);
  // A scale below 0 turns the queries round, so that the largest score is the largest product; one of 0 stands for a
  // number too small to matter, so that -inf stays -inf.
  const float scale = fmaxf(fabsf(args.scale) * kLog2E, 1e-30f);
  int begin, end;
  part_of(s, part, args.parts, begin, end);
  for (int64_t head = blockIdx.y; head < s.batch * s.heads; head += gridDim.y) {
    const int64_t b = head / s.heads, m = head % s.heads;
    uint32_t a[kSteps][4];
    load_a<H, kSteps>(a, args.query + s.query.at(b, m, q0), s.query.row, rows, static_cast<int>(s.head_size),
                      args.scale < 0.f ? 0x80008000u : 0u);
    float sums[kD / 8][4] = {};
    float largest[2] = {-INFINITY, -INFINITY}, total[2] = {0.f, 0.f};
    uint32_t seen[2] = {0, 0};
    const MaskRow watched(s, args.bits, b, m, first_query + threadIdx.x / 2);
    const MaskRow own[2] = {{s, args.bits, b, m, q0 + group}, {s, args.bits, b, m, q0 + group + 8}};
    uint32_t ahead = watched.word(s, begin * 2 + threadIdx.x % 2);
    int tile = next_open_tile(s, watched, begin, end, ahead), index = 0;
    if (tile < end) load_keys<H, kD>(args, b, m, tile, Stage<H, kD>(shared, kTileKeys, 0));
    commit_copies();
    while (tile < end) {
      // This barrier also says that everybody has left the stage that is filled next.
      const int next = next_open_tile(s, watched, tile + 1, end, ahead);
      if (next < end) load_keys<H, kD>(args, b, m, next, Stage<H, kD>(shared, kTileKeys, index ^ 1));
      commit_copies();
      uint32_t words[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          words[i][w] = own[i].word(s, tile * 2 + w);
          seen[i] |= words[i][w];
          words[i][w] >>= pair;  // bit 8 n and the next are this lane's of n-tile n
        }
      wait_copies<1>();
      __syncthreads();
      const Stage<H, kD> stage(shared, kTileKeys, index);
#pragma unroll
      for (int step = 0; step < kTileKeys / kStep; ++step) {
        uint32_t here = 0;
#pragma unroll
        for (int w = step * kStep / kWordBits; w < (step + 1) * kStep / kWordBits; ++w)
          here |= words[0][w] | words[1][w];
        if (!__any_sync(kFullWarp, (here & 0x03030303u) != 0)) continue;
        float scores[kTiles][4] = {};
#pragma unroll
        for (int n = 0; n < kTiles; n += 2)
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            uint32_t bb[4];
            load_b_across(bb, stage.first, kPitch, step * kStep + n * 8, k * 16);
            mma_16x8x16(scores[n], a[k], {bb[0], bb[1]}, H{});
            mma_16x8x16(scores[n + 1], a[k], {bb[2], bb[3]}, H{});
          }
        float factor[2], shift[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float highest = largest[i];
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const uint32_t open = words[i][step * kStep / kWordBits + n / 4] >> (n % 4 * 8);
            if (!(open & 1u)) scores[n][2 * i] = -INFINITY;
            if (!(open & 2u)) scores[n][2 * i + 1] = -INFINITY;
            highest = fmaxf(highest, fmaxf(scores[n][2 * i], scores[n][2 * i + 1]));
          }
          highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 1));
          highest = fmaxf(highest, __shfl_xor_sync(kFullWarp, highest, 2));
          // Where every score so far is -inf, subtracting it would give NaN: the weights are 0 until a larger one
          // comes.
          shift[i] = highest == -INFINITY ? 0.f : highest * scale;
          factor[i] = fast_exp2(largest[i] * scale - shift[i]);
          largest[i] = highest;
          float added = 0.f;
#pragma unroll
          for (int n = 0; n < kTiles; ++n)
#pragma unroll
            for (int j = 2 * i; j < 2 * i + 2; ++j) {
              scores[n][j] = fast_exp2(scores[n][j] * scale - shift[i]);
              added += scores[n][j];
            }
          total[i] = total[i] * factor[i] + added;
        }
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int j = 0; j < 4; ++j) sums[n][j] *= factor[j / 2];
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) {
          const uint32_t p[4] = {pack_halves(scores[2 * k][0], scores[2 * k][1], H{}),
                                 pack_halves(scores[2 * k][2], scores[2 * k][3], H{}),
                                 pack_halves(scores[2 * k + 1][0], scores[2 * k + 1][1], H{}),
                                 pack_halves(scores[2 * k + 1][2], scores[2 * k + 1][3], H{})};
#pragma unroll
          for (int n = 0; n < kD / 8; n += 2) {
            uint32_t bb[4];
            load_b_down(bb, stage.second, kPitch, step * kStep + k * 16, n * 8);
            mma_16x8x16(sums[n], p, {bb[0], bb[1]}, H{});
            mma_16x8x16(sums[n + 1], p, {bb[2], bb[3]}, H{});
          }
        }
      }
      tile = next;
      index ^= 1;
    }
    wait_copies<0>();
    __syncthreads();  // the next head's first tile goes where the last one was
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      total[i] += __shfl_xor_sync(kFullWarp, total[i], 1);
      total[i] += __shfl_xor_sync(kFullWarp, total[i], 2);
      const int row = group + 8 * i;
      if (row >= rows) continue;
      const bool has_key = seen[i] != 0;
      const int64_t at = s.query_row(b, m, q0 + row);
      if (args.parts == 1) {
        H* out = args.out + s.out.at(b, m, q0 + row);
        const float inverse = has_key ? 1.f / total[i] : 0.f;
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (n * 8 + pair + j < s.head_size)
              store_from_accumulator(out + n * 8 + pair + j, has_key ? sums[n][2 * i + j] * inverse : 0.f);
        if (lane % 4 == 0) args.to_logsumexp[at] = has_key ? kLn2 * (largest[i] * scale) + logf(total[i]) : -INFINITY;
      } else {
        float* share = args.partial + (part * s.batch * s.heads * s.queries + at) * (s.head_size + 2);
#pragma unroll
        for (int n = 0; n < kD / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (n * 8 + pair + j < s.head_size) share[n * 8 + pair + j] = sums[n][2 * i + j];
        if (lane % 4 == 0) {
          share[s.head_size] = largest[i] * scale;
          share[s.head_size + 1] = has_key ? total[i] : -1.f;  // a sum of weights is never negative
        }
      }
    }
  }
}

}  // namespace fssops::masked_attention
