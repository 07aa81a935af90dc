// Half types, the gradients: two passes, so that nothing is added atomically. One walks over keys for the gradient of
// query, one over queries for those of key and value; both compute the weights anew.
#pragma once

#include "masked_attention/masked_attention_half.cuh"

namespace fssops::masked_attention {

// One 16 x 16 piece of the weights and of their gradient, as A fragments. `products` are <row, column> of query and
// key, `grads` of gradient and value; `open` bit 4 * (n-tile) + fragment element. Rows carry i, columns j.
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
        for (int w = 0; w < 2; ++w) words[i][w] = own[i].word(s, tile * 2 + w) >> pair;
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
      load_tile<H, kTileQueries, kD>(stage.first, args.query + s.query.at(b, m, q), s.query.row, inside, depth,
                                     args.aligned);
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
        // Columns are queries: this lane's are pair, pair + 1 and the same eight on; its rows are keys group, group
        // + 8.
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
          if (args.grad_key != nullptr)
            store_from_accumulator(args.grad_key + at + d, args.scale * to_key[n][2 * i + j]);
          if (args.grad_value != nullptr) store_from_accumulator(args.grad_value + at + d, to_value[n][2 * i + j]);
        }
    }
  }
}

}  // namespace fssops::masked_attention
