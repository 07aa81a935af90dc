// Half types: products on the matrix units, float32 accumulation. A warp owns 16 queries (or, for the gradients of key
// and value, 16 keys) and walks over tiles of the other side, which its block shares.
#pragma once

#include "masked_attention/masked_attention_tile.cuh"

namespace fssops::masked_attention {

constexpr int kTileKeys = 64, kTileQueries = 32, kWarpRows = 16, kKeyWarps = 4;
constexpr float kLn2 = 0.69314718056f, kLog2E = 1.44269504089f;
constexpr int64_t kMaxGridY = 65535;

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
  int parts;               // of the keys
  bool aligned;            // see load_tile
  float* partial;
  H* out;                  // forward: out, else unused
  float* to_logsumexp;
  H* grad_key;             // null where not wanted
  H* grad_value;
};

// One query's mask.
struct MaskRow {
  const uint32_t* row;  // null: every key is open
  int words;            // 0 for a query that is not there
  __device__ MaskRow(const Sizes& s, const uint32_t* bits, int64_t b, int64_t m, int64_t q)
      : row(bits != nullptr && q < s.queries ? bits + s.mask_row(b, m, q) : nullptr),
        words(q < s.queries ? static_cast<int>(s.words()) : 0) {}
  __device__ __forceinline__ uint32_t word(const Sizes& s, int index) const {
    if (index >= words) return 0;
    return row != nullptr ? row[index] : valid_bits(s.keys, index);
  }
};

// The next tile of keys, from `tile` on, in which a query of this block has an open key; `end` if there is none. All
// threads must call it; it is also a barrier. Two threads watch each query, a word of the tile each: `ahead` holds that
// of `tile`, on return that of the tile after the one returned, so that the memory answers while the block computes.
__device__ __forceinline__ int next_open_tile(const Sizes& s, const MaskRow& watched, int tile, int end, uint32_t& ahead) {
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
  load_tile<H, kTileKeys, kD>(stage.second, args.value + s.value.at(b, m, first), s.value.row, rows, depth, args.aligned);
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
        for (int w = step * kStep / kWordBits; w < (step + 1) * kStep / kWordBits; ++w) here |= words[0][w] | words[1][w];
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
          // Where every score so far is -inf, subtracting it would give NaN: the weights are 0 until a larger one comes.
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
        if (lane % 4 == 0)
          args.to_logsumexp[at] = has_key ? kLn2 * (largest[i] * scale) + logf(total[i]) : -INFINITY;
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

// One 16 x 16 piece of the weights and of their gradient, as A fragments. `products` are <row, column> of query and key,
// `grads` of gradient and value; `open` bit 4 * (n-tile) + fragment element. Rows carry i, columns j.
template <class H, class PerElement>
__device__ __forceinline__ void weigh_piece(const float (&products)[2][4], const float (&grads)[2][4], float scale,
                                            PerElement element, uint32_t (&p)[4], uint32_t (&ds)[4]) {
  float weight[2][4], slope[2][4];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float logsumexp, delta;  // in units of ln 2; of the query that this element belongs to
      const bool open = element(n, j, logsumexp, delta);
      weight[n][j] = open ? fast_exp2(fminf(products[n][j] * scale - logsumexp, 0.f)) : 0.f;
      // fminf drops a NaN: what was one before stays one.
      if (open && products[n][j] != products[n][j]) weight[n][j] = products[n][j];
      slope[n][j] = open ? weight[n][j] * (grads[n][j] - delta) : 0.f;
    }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int n = i / 2, j = i % 2 * 2;
    p[i] = pack_halves(weight[n][j], weight[n][j + 1], H{});
    ds[i] = pack_halves(slope[n][j], slope[n][j + 1], H{});
  }
}

// Gradient of query, this part's share [parts, B * M * Q, D]. Grid as forward_half_kernel.
template <class H, int kD>
__global__ void __launch_bounds__(256, kD <= 32 ? 2 : 1) grad_query_half_kernel(HalfArgs<H> args) {
  FSSOPS_DYNAMIC_SHARED(H, shared);
  constexpr int kSteps = kD / 16, kPitch = pitch_of(kD);
  const Sizes& s = args.s;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int group = lane / 4, pair = 2 * (lane % 4);
  const int part = blockIdx.x % args.parts, depth = static_cast<int>(s.head_size);
  const int64_t first_query = static_cast<int64_t>(blockIdx.x / args.parts) * (blockDim.x / 2);
  const int64_t q0 = first_query + warp * kWarpRows;
  const int rows = static_cast<int>(s.queries - q0 < kWarpRows ? (s.queries > q0 ? s.queries - q0 : 0) : kWarpRows);
  const float scale = args.scale * kLog2E;
  int begin, end;
  part_of(s, part, args.parts, begin, end);
  for (int64_t head = blockIdx.y; head < s.batch * s.heads; head += gridDim.y) {
    const int64_t b = head / s.heads, m = head % s.heads;
    uint32_t a[kSteps][4], g[kSteps][4];
    load_a<H, kSteps>(a, args.query + s.query.at(b, m, q0), s.query.row, rows, depth, 0u);
    load_a<H, kSteps>(g, args.grad + s.grad_out.at(b, m, q0), s.grad_out.row, rows, depth, 0u);
    float logsumexp[2], delta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool inside = group + 8 * i < rows;
      const int64_t at = s.query_row(b, m, q0 + group + 8 * i);
      logsumexp[i] = inside ? args.logsumexp[at] * kLog2E : 0.f;
      delta[i] = inside ? args.delta[at] : 0.f;
    }
    float sums[kD / 8][4] = {};
    const MaskRow watched(s, args.bits, b, m, first_query + threadIdx.x / 2);
    const MaskRow own[2] = {{s, args.bits, b, m, q0 + group}, {s, args.bits, b, m, q0 + group + 8}};
    uint32_t ahead = watched.word(s, begin * 2 + threadIdx.x % 2);
    int tile = next_open_tile(s, watched, begin, end, ahead), index = 0;
    if (tile < end) load_keys<H, kD>(args, b, m, tile, Stage<H, kD>(shared, kTileKeys, 0));
    commit_copies();
    while (tile < end) {
      const int next = next_open_tile(s, watched, tile + 1, end, ahead);
      if (next < end) load_keys<H, kD>(args, b, m, next, Stage<H, kD>(shared, kTileKeys, index ^ 1));
      commit_copies();
      uint32_t words[2][2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int w = 0; w < 2; ++w)
          words[i][w] = own[i].word(s, tile * 2 + w) >> pair;
      wait_copies<1>();
      __syncthreads();
      const Stage<H, kD> stage(shared, kTileKeys, index);
#pragma unroll
      for (int c = 0; c < kTileKeys / 16; ++c) {
        const uint32_t open[2] = {words[0][c / 2] >> c % 2 * 16, words[1][c / 2] >> c % 2 * 16};
        if (!__any_sync(kFullWarp, ((open[0] | open[1]) & 0x0303u) != 0)) continue;
        float products[2][4] = {}, grads[2][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint32_t bb[4];
          load_b_across(bb, stage.first, kPitch, c * 16, k * 16);
          mma_16x8x16(products[0], a[k], {bb[0], bb[1]}, H{});
          mma_16x8x16(products[1], a[k], {bb[2], bb[3]}, H{});
          load_b_across(bb, stage.second, kPitch, c * 16, k * 16);
          mma_16x8x16(grads[0], g[k], {bb[0], bb[1]}, H{});
          mma_16x8x16(grads[1], g[k], {bb[2], bb[3]}, H{});
        }
        uint32_t p[4], ds[4];
        weigh_piece<H>(
            products, grads, scale,
            [&](int n, int j, float& l, float& d) {
              l = logsumexp[j / 2];
              d = delta[j / 2];
              return (open[j / 2] >> (8 * n + j % 2) & 1u) != 0;
            },
            p, ds);
#pragma unroll
        for (int n = 0; n < kD / 8; n += 2) {
          uint32_t bb[4];
          load_b_down(bb, stage.first, kPitch, c * 16, n * 8);
          mma_16x8x16(sums[n], ds, {bb[0], bb[1]}, H{});
          mma_16x8x16(sums[n + 1], ds, {bb[2], bb[3]}, H{});
        }
      }
      tile = next;
      index ^= 1;
    }
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (group + 8 * i >= rows) continue;
      const int64_t at = part * s.batch * s.heads * s.queries + s.query_row(b, m, q0 + group + 8 * i);
      float* share = args.partial + at * depth;
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j)
          if (n * 8 + pair + j < depth) share[n * 8 + pair + j] = sums[n][2 * i + j];
    }
  }
}

template <class H, int kD>
constexpr int grad_key_shared_bytes() {
  return 4 * kTileQueries * pitch_of(kD) * static_cast<int>(sizeof(H));
}

// Gradients of key and value: a block takes 64 keys, 16 a warp, and walks over tiles of 32 queries.
// grid (blocks of keys, B * M).
template <class H, int kD>
__global__ void __launch_bounds__(kKeyWarps* kWarpSize, kD <= 32 ? 3 : 1) grad_key_half_kernel(HalfArgs<H> args) {
  FSSOPS_DYNAMIC_SHARED(H, shared);
  constexpr int kSteps = kD / 16, kPitch = pitch_of(kD);
  const Sizes& s = args.s;
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const int group = lane / 4, pair = 2 * (lane % 4), depth = static_cast<int>(s.head_size);
  const int word = static_cast<int>(blockIdx.x) * 2 + warp / 2;  // holds the bits of the warp's keys
  const int64_t k0 = (static_cast<int64_t>(blockIdx.x) * kKeyWarps + warp) * kWarpRows;
  const int rows = static_cast<int>(s.keys - k0 < kWarpRows ? (s.keys > k0 ? s.keys - k0 : 0) : kWarpRows);
  const float scale = args.scale * kLog2E;
  const int tiles = static_cast<int>(ceil_div(s.queries, kTileQueries));
  for (int64_t head = blockIdx.y; head < s.batch * s.heads; head += gridDim.y) {
    const int64_t b = head / s.heads, m = head % s.heads;
    uint32_t keys[kSteps][4], values[kSteps][4];
    load_a<H, kSteps>(keys, args.key + s.key.at(b, m, k0), s.key.row, rows, depth, 0u);
    load_a<H, kSteps>(values, args.value + s.value.at(b, m, k0), s.value.row, rows, depth, 0u);
    float to_key[kD / 8][4] = {}, to_value[kD / 8][4] = {};
    const auto load = [&](int tile, Stage<H, kD> stage) {
      const int64_t q = static_cast<int64_t>(tile) * kTileQueries;
      const int inside = static_cast<int>(s.queries - q < kTileQueries ? s.queries - q : kTileQueries);
      load_tile<H, kTileQueries, kD>(stage.first, args.query + s.query.at(b, m, q), s.query.row, inside, depth, args.aligned);
      load_tile<H, kTileQueries, kD>(stage.second, args.grad + s.grad_out.at(b, m, q), s.grad_out.row, inside, depth,
                                     args.aligned);
    };
    load(0, Stage<H, kD>(shared, kTileQueries, 0));
    commit_copies();
    for (int tile = 0; tile < tiles; ++tile) {
      __syncthreads();  // everybody has left the stage that is filled now
      if (tile + 1 < tiles) load(tile + 1, Stage<H, kD>(shared, kTileQueries, (tile + 1) % 2));
      commit_copies();
      wait_copies<1>();
      __syncthreads();
      const Stage<H, kD> stage(shared, kTileQueries, tile % 2);
#pragma unroll
      for (int c = 0; c < kTileQueries / 16; ++c) {
        // Columns are queries: this lane's are pair, pair + 1 and the same eight on; its rows are keys group, group + 8.
        const int64_t q0 = static_cast<int64_t>(tile) * kTileQueries + c * 16 + pair;
        uint32_t open[2][2];
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            open[n][j] = MaskRow(s, args.bits, b, m, q0 + 8 * n + j).word(s, word) >> (warp % 2 * 16);
        if (!__any_sync(kFullWarp, ((open[0][0] | open[0][1] | open[1][0] | open[1][1]) & 0xffffu) != 0)) continue;
        float logsumexp[2][2], delta[2][2];
#pragma unroll
        for (int n = 0; n < 2; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const bool inside = q0 + 8 * n + j < s.queries;
            const int64_t at = s.query_row(b, m, q0 + 8 * n + j);
            logsumexp[n][j] = inside ? args.logsumexp[at] * kLog2E : 0.f;
            delta[n][j] = inside ? args.delta[at] : 0.f;
          }
        float products[2][4] = {}, grads[2][4] = {};
#pragma unroll
        for (int k = 0; k < kSteps; ++k) {
          uint32_t bb[4];
          load_b_across(bb, stage.first, kPitch, c * 16, k * 16);
          mma_16x8x16(products[0], keys[k], {bb[0], bb[1]}, H{});
          mma_16x8x16(products[1], keys[k], {bb[2], bb[3]}, H{});
          load_b_across(bb, stage.second, kPitch, c * 16, k * 16);
          mma_16x8x16(grads[0], values[k], {bb[0], bb[1]}, H{});
          mma_16x8x16(grads[1], values[k], {bb[2], bb[3]}, H{});
        }
        uint32_t p[4], ds[4];
        weigh_piece<H>(
            products, grads, scale,
            [&](int n, int j, float& l, float& d) {
              l = logsumexp[n][j % 2];
              d = delta[n][j % 2];
              return (open[n][j % 2] >> (group + 8 * (j / 2)) & 1u) != 0;
            },
            p, ds);
#pragma unroll
        for (int n = 0; n < kD / 8; n += 2) {
          uint32_t bb[4];
          load_b_down(bb, stage.second, kPitch, c * 16, n * 8);
          mma_16x8x16(to_value[n], p, {bb[0], bb[1]}, H{});
          mma_16x8x16(to_value[n + 1], p, {bb[2], bb[3]}, H{});
          load_b_down(bb, stage.first, kPitch, c * 16, n * 8);
          mma_16x8x16(to_key[n], ds, {bb[0], bb[1]}, H{});
          mma_16x8x16(to_key[n + 1], ds, {bb[2], bb[3]}, H{});
        }
      }
    }
    wait_copies<0>();
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (group + 8 * i >= rows) continue;
      const int64_t at = s.grad_key.at(b, m, k0 + group + 8 * i);
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int d = n * 8 + pair + j;
          if (d >= depth) continue;
          if (args.grad_key != nullptr) store_from_accumulator(args.grad_key + at + d, args.scale * to_key[n][2 * i + j]);
          if (args.grad_value != nullptr) store_from_accumulator(args.grad_value + at + d, to_value[n][2 * i + j]);
        }
    }
  }
}

}  // namespace fssops::masked_attention
