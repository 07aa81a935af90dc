// Kernels of multi-scale deformable attention. T is the dtype of value and output, A its accumulator.
//
// A group of kLanes lanes takes one (query, head); each lane takes kVector neighbouring channels, loaded at once. The
// lanes first find the tokens around the points, one point a lane, into shared memory; then all of them walk the
// points. A block takes neighbouring queries of one head, whose points overlap: most of their tokens are in the L1
// cache.
#pragma once

#include "common/device.cuh"
#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fssops::ms_deform_attn {

constexpr int kThreads = 256;
constexpr int kPointsAtOnce = 16;  // of each group, in shared memory

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class A>
__device__ __forceinline__ A read(const CudaArray& array, int64_t i) {
  if constexpr (sizeof(A) == 8) {
    return static_cast<const double*>(array.data)[i];
  } else {
    if (array.dtype == 0) return static_cast<const float*>(array.data)[i];
    if (array.dtype == 2) return to_float(static_cast<const half_t*>(array.data)[i]);
    return to_float(static_cast<const bf16_t*>(array.data)[i]);
  }
}

// kVector elements as one 16-byte access, or one element.
template <class T, int kVector>
__device__ __forceinline__ void load_vector(const T* source, accumulator_t<T> (&out)[kVector]) {
  if constexpr (kVector == 1) {
    out[0] = load_as_accumulator(*source);
  } else {
    static_assert(kVector * sizeof(T) == 16, "a vector is one 16-byte access");
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(source));
    T elements[kVector];
    memcpy(elements, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < kVector; ++j) out[j] = load_as_accumulator(elements[j]);
  }
}

template <class T, int kVector>
__device__ __forceinline__ void store_vector(T* target, const accumulator_t<T> (&values)[kVector]) {
  if constexpr (kVector == 1) {
    store_from_accumulator(target, values[0]);
  } else {
    T elements[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) store_from_accumulator(elements + j, values[j]);
    uint4 raw;
    memcpy(&raw, elements, sizeof raw);
    *reinterpret_cast<uint4*>(target) = raw;
  }
}

template <int kLanes, class A>
__device__ __forceinline__ A group_sum(A value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

template <int kLanes, class A>
__device__ __forceinline__ A group_max(A value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    const A other = __shfl_xor_sync(kFullWarp, value, offset);
    value = value < other ? other : value;
  }
  return value;
}

// Four numbers of one point, read by a whole group at once.
template <class A>
struct alignas(16) Four {
  A a, b, c, d;
};

// Which (query, head) a group works on. Groups past the last query repeat it and store nothing.
struct Place {
  int64_t b, m, q;
  bool stores;
};

template <int kGroups>
__device__ __forceinline__ Place place_of(const Sizes& s, int group) {
  const int64_t tiles = ceil_div(s.queries, kGroups), rest = blockIdx.x / tiles;
  const int64_t q = (blockIdx.x - rest * tiles) * kGroups + group;
  return {rest / s.heads, rest % s.heads, q < s.queries ? q : s.queries - 1, q < s.queries};
}

// The frames of point n of a group: how its numbers become cells.
template <class A>
struct Frames {
  Frame<A> x, y;
};

template <class A>
__device__ __forceinline__ Frames<A> frames_of(const CudaForward& args, const Place& place, int level) {
  const A width = static_cast<A>(args.sizes.level[level].width),
          height = static_cast<A>(args.sizes.level[level].height);
  const A points = static_cast<A>(args.sizes.points);
  A x = A(0), y = A(0), extent_x = A(0), extent_y = A(0);
  if (args.placement != Placement::locations) {
    const int64_t row = place.b * args.reference.batch_stride + place.q * args.reference.row_stride;
    const bool box = args.placement == Placement::boxes;
    const int64_t r = row + level * (box ? 4 : 2);
    x = read<A>(args.reference, r);
    y = read<A>(args.reference, r + 1);
    if (box) {
      extent_x = read<A>(args.reference, r + 2);
      extent_y = read<A>(args.reference, r + 3);
    }
  }
  return {frame_of(args.placement, x, extent_x, width, points), frame_of(args.placement, y, extent_y, height, points)};
}

// Tokens around a point, -1 for one that is outside, and how far beyond the upper left one the point lies.
template <class A>
struct Around {
  int4 tokens;
  A across, down;
};

template <class A>
__device__ __forceinline__ Around<A> tokens_around(const CudaForward& args, const Place& place, int64_t n) {
  const Sizes& s = args.sizes;
  const int l = static_cast<int>(n) / s.points;
  const Level level = s.level[l];
  const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
  const Frames<A> frames = frames_of<A>(args, place, l);
  const int64_t row = place.b * args.points.batch_stride + place.q * args.points.row_stride;
  const int64_t at = row + (place.m * s.samples() + n) * 2;
  const A x = frames.x.base + frames.x.scale * read<A>(args.points, at);
  const A y = frames.y.base + frames.y.scale * read<A>(args.points, at + 1);
  A right, lower;
  const int32_t column = cell_below(x, width, right), line = cell_below(y, height, lower);
  const bool inside = contributes(x, y, width, height);
  const bool has_left = inside && column >= 0, has_right = inside && column + 1 < level.width;
  const bool has_upper = line >= 0, has_lower = line + 1 < level.height;
  const int32_t first = level.start + line * level.width + column;
  Around<A> out;
  out.tokens = make_int4(has_left && has_upper ? first : -1, has_right && has_upper ? first + 1 : -1,
                         has_left && has_lower ? first + level.width : -1,
                         has_right && has_lower ? first + level.width + 1 : -1);
  out.across = keep_nan(right, x, y);
  out.down = keep_nan(lower, x, y);
  return out;
}

// Largest logit of the group's head, and the sum of exp(logit - largest).
template <int kLanes, class A>
__device__ __forceinline__ void softmax_terms(const CudaForward& args, int64_t first, int lane, A& largest, A& total) {
  const int samples = args.sizes.samples();
  largest = -INFINITY;
  for (int n = lane; n < samples; n += kLanes) {
    const A logit = read<A>(args.weights, first + n);
    largest = logit > largest ? logit : largest;
  }
  largest = group_max<kLanes>(largest);
  total = A(0);
  for (int n = lane; n < samples; n += kLanes) total += exponential(read<A>(args.weights, first + n) - largest);
  total = group_sum<kLanes>(total);
}

// Row of a token, `stride` bytes each; one multiply-and-add in 64 bits.
template <class T>
__device__ __forceinline__ const T* row_of(const T* rows, int32_t token, int32_t stride) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows) + static_cast<int64_t>(token) * stride);
}

template <class T, int kVector>
__device__ __forceinline__ void load_token(const T* rows, int32_t token, int32_t stride,
                                           accumulator_t<T> (&out)[kVector]) {
#pragma unroll
  for (int j = 0; j < kVector; ++j) out[j] = 0;
  if (token >= 0) load_vector<T, kVector>(row_of(rows, token, stride), out);
}

// grid: tiles of queries times B * M; see place_of. Dynamic shared memory: two Fours a group and point of a chunk.
template <class T, int kVector, int kLanes>
__global__ void __launch_bounds__(kThreads) forward_kernel(CudaForward args, int chunk) {
  using A = accumulator_t<T>;
  constexpr int kGroups = kThreads / kLanes;
  FSSOPS_DYNAMIC_SHARED(Four<A>, shared);
  const Sizes& s = args.sizes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, samples = s.samples();
  Four<A>* corners = shared + group * chunk;
  int4* tokens = reinterpret_cast<int4*>(shared + kGroups * chunk) + group * chunk;
  const Place place = place_of<kGroups>(s, group);
  const bool fused = args.placement != Placement::locations;
  const int64_t first = place.b * args.weights.batch_stride + place.q * args.weights.row_stride + place.m * samples;
  A largest = A(0), factor = A(1);
  if (fused) {
    softmax_terms<kLanes>(args, first, lane, largest, factor);
    factor = A(1) / factor;
  }
  const T* value = static_cast<const T*>(args.value.data) +
                   value_offset(place.b, 0, place.m, args.value.batch_stride, args.value.row_stride, s.channels);
  const int32_t stride = static_cast<int32_t>(args.value.row_stride * static_cast<int64_t>(sizeof(T)));
  T* output = static_cast<T*>(args.output.data) + ((place.b * s.queries + place.q) * s.heads + place.m) * s.channels;
  for (int64_t block = 0; block < s.channels; block += kLanes * kVector) {
    const int64_t c = block + lane * kVector;
    const T* rows = value + (c < s.channels ? c : 0);
    A sums[kVector] = {};
    for (int begin = 0; begin < samples; begin += chunk) {
      const int count = samples - begin < chunk ? samples - begin : chunk;
      __syncwarp();
      for (int i = lane; i < count; i += kLanes) {
        const A raw = read<A>(args.weights, first + begin + i);
        const A weight = fused ? exponential(raw - largest) * factor : raw;
        const Around<A> around = tokens_around<A>(args, place, begin + i);
        const A lower = weight * around.down, upper = weight - lower;
        tokens[i] = around.tokens;
        corners[i] = {upper - upper * around.across, upper * around.across, lower - lower * around.across,
                      lower * around.across};
      }
      __syncwarp();
#pragma unroll 2
      for (int i = 0; i < count; ++i) {
        const int4 token = tokens[i];
        const Four<A> corner = corners[i];
        A row[4][kVector];
        load_token<T, kVector>(rows, token.x, stride, row[0]);
        load_token<T, kVector>(rows, token.y, stride, row[1]);
        load_token<T, kVector>(rows, token.z, stride, row[2]);
        load_token<T, kVector>(rows, token.w, stride, row[3]);
#pragma unroll
        for (int j = 0; j < kVector; ++j)
          sums[j] += corner.a * row[0][j] + corner.b * row[1][j] + (corner.c * row[2][j] + corner.d * row[3][j]);
      }
    }
    if (place.stores && c < s.channels) store_vector<T, kVector>(output + c, sums);
  }
}

}  // namespace fssops::ms_deform_attn
