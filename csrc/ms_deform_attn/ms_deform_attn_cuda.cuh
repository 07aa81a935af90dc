// Kernels of multi-scale deformable attention. T is the dtype of value and output, A its accumulator, P the dtype of
// points and weights (AnyType: told at run time).
//
// A group of kLanes lanes takes one (query, head); each lane takes kVector neighbouring channels, loaded at once. The
// lanes first find the tokens around the points, one point a lane, into shared memory; then all of them walk the
// points. A block takes neighbouring queries of one head, whose points overlap: many of their tokens are in the L1
// cache already. What bounds the forward pass is the rest, read from L2; so a block is as large as it can be.
#pragma once

#include "common/device.cuh"
#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_math.h"

namespace fssops::ms_deform_attn {

// Threads of a block of the kernels that walk points; fewer where there are few queries.
template <class T, int kLanes>
constexpr int most_threads() {
  return sizeof(T) == 8 || kLanes > 8 ? 256 : 512;
}

constexpr int kPointsAtOnce = 16;  // of each group, in shared memory

struct AnyType {};

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class A, class P>
__device__ __forceinline__ A read(const CudaArray& array, int64_t i) {
  if constexpr (sizeof(A) == 8)
    return static_cast<const double*>(array.data)[i];
  else if constexpr (sizeof(P) > 1)
    return load_as_accumulator(static_cast<const P*>(array.data)[i]);
  else if (array.dtype == 0)
    return static_cast<const float*>(array.data)[i];
  else if (array.dtype == 2)
    return to_float(static_cast<const half_t*>(array.data)[i]);
  else
    return to_float(static_cast<const bf16_t*>(array.data)[i]);
}

// Elements i and i + 1; the launch has checked that they are aligned as a pair.
template <class A, class P>
__device__ __forceinline__ void read_pair(const CudaArray& array, int64_t i, A& first, A& second) {
  struct alignas(2 * sizeof(P)) Pair {
    P first, second;
  };
  const Pair pair = *reinterpret_cast<const Pair*>(static_cast<const P*>(array.data) + i);
  first = load_as_accumulator(pair.first);
  second = load_as_accumulator(pair.second);
}

// The type of one access of so many bytes.
template <int kBytes>
struct Bytes;
template <>
struct Bytes<8> {
  using type = uint2;
};
template <>
struct Bytes<16> {
  using type = uint4;
};

// kVector elements as they lie in memory, moved by one access; or one element.
template <class T, int kVector>
struct Raw {
  typename Bytes<kVector* static_cast<int>(sizeof(T))>::type bits;

  static __device__ __forceinline__ Raw zeros() {
    Raw out;
    memset(&out.bits, 0, sizeof out.bits);
    return out;
  }
  static __device__ __forceinline__ Raw load(const T* source) {
    return {__ldg(reinterpret_cast<const decltype(bits)*>(source))};
  }
  __device__ __forceinline__ void unpack(accumulator_t<T> (&out)[kVector]) const {
    T elements[kVector];
    memcpy(elements, &bits, sizeof bits);
#pragma unroll
    for (int j = 0; j < kVector; ++j) out[j] = load_as_accumulator(elements[j]);
  }
};

template <class T>
struct Raw<T, 1> {
  T element;

  static __device__ __forceinline__ Raw zeros() {
    Raw out;
    memset(&out.element, 0, sizeof out.element);
    return out;
  }
  static __device__ __forceinline__ Raw load(const T* source) { return {*source}; }
  __device__ __forceinline__ void unpack(accumulator_t<T> (&out)[1]) const { out[0] = load_as_accumulator(element); }
};

template <class T, int kVector>
__device__ __forceinline__ void store_vector(T* target, const accumulator_t<T> (&values)[kVector]) {
  if constexpr (kVector == 1) {
    store_from_accumulator(target, values[0]);
  } else {
    T elements[kVector];
#pragma unroll
    for (int j = 0; j < kVector; ++j) store_from_accumulator(elements + j, values[j]);
    typename Bytes<kVector* static_cast<int>(sizeof(T))>::type raw;
    memcpy(&raw, elements, sizeof raw);
    *reinterpret_cast<decltype(raw)*>(target) = raw;
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

// Groups of few lanes are launched only when they hold all channels at once.
template <int kLanes>
constexpr bool holds_all_channels() {
  return kLanes < 16;
}

// Four numbers of one point, read by a whole group at once.
template <class A>
struct alignas(16) Four {
  A a, b, c, d;
};

// Tokens around a point, -1 for one that is outside, and how far beyond the upper left one the point lies.
template <class A>
struct Around {
  int4 tokens;
  A across, down;
};

// The (query, head) that a group works on, and where its numbers are.
template <class A, class P>
class Place {
 public:
  // Groups past the last query repeat it and store nothing.
  __device__ __forceinline__ Place(const CudaForward& args, unsigned group, unsigned groups) : args_(args) {
    const Sizes& s = args.sizes;
    const unsigned heads = static_cast<unsigned>(s.heads), queries = static_cast<unsigned>(s.queries);
    const unsigned tiles = (queries + groups - 1) / groups, rest = blockIdx.x / tiles;
    const unsigned own = (blockIdx.x - rest * tiles) * groups + group;
    stores = own < queries;
    q = query_at(s, static_cast<int32_t>(stores ? own : queries - 1));
    b = static_cast<int>(rest / heads);
    m = static_cast<int>(rest % heads);
    first_weight_ = b * args.weights.batch_stride + q * args.weights.row_stride + m * s.samples();
    first_point_ = b * args.points.batch_stride + q * args.points.row_stride + 2 * m * s.samples();
    reference_ = b * args.reference.batch_stride + q * args.reference.row_stride;
    levels_per_point_ = 1.f / static_cast<float>(s.points);
    half_step_ = A(0.5) / static_cast<A>(s.points);
  }

  __device__ __forceinline__ A weight(int n) const { return read<A, P>(args_.weights, first_weight_ + n); }

  // Exact, since there are less than 2^20 points: the quotient is at least half a point away from an integer.
  __device__ __forceinline__ int level_of(int n) const {
    return static_cast<int>((static_cast<float>(n) + 0.5f) * levels_per_point_);
  }

  // How the numbers of a point of the level become cells.
  __device__ __forceinline__ void frames(int level, Frame<A>& x, Frame<A>& y) const {
    const A width = static_cast<A>(args_.sizes.level[level].width);
    const A height = static_cast<A>(args_.sizes.level[level].height);
    A centre_x = A(0), centre_y = A(0), extent_x = A(0), extent_y = A(0);
    if (args_.placement != Placement::locations) {
      const bool box = args_.placement == Placement::boxes;
      const int64_t r = reference_ + level * (box ? 4 : 2);
      centre_x = read<A, AnyType>(args_.reference, r);
      centre_y = read<A, AnyType>(args_.reference, r + 1);
      if (box) {
        extent_x = read<A, AnyType>(args_.reference, r + 2);
        extent_y = read<A, AnyType>(args_.reference, r + 3);
      }
    }
    x = frame_of(args_.placement, centre_x, extent_x, width, half_step_);
    y = frame_of(args_.placement, centre_y, extent_y, height, half_step_);
  }

  __device__ __forceinline__ Around<A> around(int n) const {
    const int l = level_of(n);
    const Level level = args_.sizes.level[l];
    A number_x, number_y;
    if constexpr (sizeof(P) == 1) {
      number_x = read<A, P>(args_.points, first_point_ + 2 * n);
      number_y = read<A, P>(args_.points, first_point_ + 2 * n + 1);
    } else {
      read_pair<A, P>(args_.points, first_point_ + 2 * n, number_x, number_y);
    }
    Frame<A> frame_x, frame_y;
    frames(l, frame_x, frame_y);
    const A x = frame_x.base + frame_x.scale * number_x, y = frame_y.base + frame_y.scale * number_y;
    const A width = static_cast<A>(level.width), height = static_cast<A>(level.height);
    Around<A> out;
    A right, lower;
    const int32_t column = cell_below(x, width, right), line = cell_below(y, height, lower);
    const bool inside = contributes(x, y, width, height);
    const bool has_left = inside && column >= 0, has_right = inside && column + 1 < level.width;
    const bool has_upper = line >= 0, has_lower = line + 1 < level.height;
    const int32_t token = level.start + line * level.width + column;
    out.tokens = make_int4(has_left && has_upper ? token : -1, has_right && has_upper ? token + 1 : -1,
                           has_left && has_lower ? token + level.width : -1,
                           has_right && has_lower ? token + level.width + 1 : -1);
    out.across = keep_nan(right, x, y);
    out.down = keep_nan(lower, x, y);
    return out;
  }

  // Largest logit of the head.
  template <int kLanes>
  __device__ __forceinline__ A largest_logit(int lane) const {
    A largest = -INFINITY;
#pragma unroll 2
    for (int n = lane; n < args_.sizes.samples(); n += kLanes) {
      const A logit = weight(n);
      largest = logit > largest ? logit : largest;
    }
    return group_max<kLanes>(largest);
  }

  // Number of the (b, q, m).
  __device__ __forceinline__ int64_t pair() const {
    return (static_cast<int64_t>(b) * args_.sizes.queries + q) * args_.sizes.heads + m;
  }

  int b, m, q;
  bool stores;

 private:
  const CudaForward& args_;
  int64_t first_weight_, first_point_, reference_;
  float levels_per_point_;
  A half_step_;
};

// Where a token is, when tokens are `stride` bytes apart: one multiply-and-add with a 64-bit sum, which the compiler
// does not make of the C++ for it. For token -1 an address that must not be used.
template <class T>
__device__ __forceinline__ const T* address_of(const T* rows, int32_t token, uint32_t stride) {
  uint64_t address = reinterpret_cast<uint64_t>(rows);
#if defined(__CUDA_ARCH__)
  asm("mad.wide.u32 %0, %1, %2, %0;" : "+l"(address) : "r"(token), "r"(stride));
#else
  address += static_cast<uint64_t>(static_cast<uint32_t>(token)) * stride;
#endif
  return reinterpret_cast<const T*>(address);
}

// kVector channels of a token, zeros for token -1.
template <class T, int kVector>
__device__ __forceinline__ Raw<T, kVector> load_token(const T* rows, int32_t token, uint32_t stride) {
  const T* source = address_of(rows, token, stride);
  Raw<T, kVector> out = Raw<T, kVector>::zeros();
  if (token >= 0) out = Raw<T, kVector>::load(source);
  return out;
}

template <class T, int kVector>
__device__ __forceinline__ void add_weighted(const Raw<T, kVector>& row, accumulator_t<T> weight,
                                             accumulator_t<T> (&sums)[kVector]) {
  accumulator_t<T> values[kVector];
  row.unpack(values);
#pragma unroll
  for (int j = 0; j < kVector; ++j) sums[j] += weight * values[j];
}

template <class T, int kVector>
__device__ __forceinline__ accumulator_t<T> dot(const Raw<T, kVector>& row, const accumulator_t<T> (&other)[kVector]) {
  accumulator_t<T> values[kVector], sum = 0;
  row.unpack(values);
#pragma unroll
  for (int j = 0; j < kVector; ++j) sum += other[j] * values[j];
  return sum;
}

// grid: tiles of queries times B * M, see Place. Dynamic shared memory: a Four and an int4 for each group and point of
// a chunk.
template <class T, class P, int kVector, int kLanes>
__global__ void __launch_bounds__(most_threads<T, kLanes>(), 2) forward_kernel(CudaForward args, int chunk) {
  using A = accumulator_t<T>;
  FSSOPS_DYNAMIC_SHARED(Four<A>, shared);
  constexpr int kUnroll =
      kVector > 4 ? 1 : 2;  // eight half-precision channels a lane leave no registers for a second point
  const Sizes& s = args.sizes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, groups = blockDim.x / kLanes;
  Four<A>* corners = shared + group * chunk;
  int4* tokens = reinterpret_cast<int4*>(shared + groups * chunk) + group * chunk;
  const Place<A, P> place(args, group, groups);
  const int samples = s.samples();
  const bool fused = args.placement != Placement::locations;
  const A largest = fused ? place.template largest_logit<kLanes>(lane) : A(0);
  const T* value = static_cast<const T*>(args.value.data) +
                   value_offset(place.b, 0, place.m, args.value.batch_stride, args.value.row_stride, s.channels);
  const uint32_t stride = static_cast<uint32_t>(args.value.row_stride) * static_cast<uint32_t>(sizeof(T));
  for (int64_t block = 0; block < s.channels; block += kLanes * kVector) {
    const int64_t channel = block + lane * kVector;
    const T* rows = value + (channel < s.channels ? channel : 0);
    A sums[kVector] = {};
    A total = A(0);  // of the weights that this lane has seen; the softmax divides by it at the end
    for (int begin = 0; begin < samples; begin += chunk) {
      const int count = samples - begin < chunk ? samples - begin : chunk;
      __syncwarp();
      for (int i = lane; i < count; i += kLanes) {
        const A raw = place.weight(begin + i);
        const Around<A> around = place.around(begin + i);
        const A weight = fused ? exponential(raw - largest) : raw;
        total += weight;
        const A lower = weight * around.down, upper = weight - lower;
        tokens[i] = around.tokens;
        corners[i] = {upper - upper * around.across, upper * around.across, lower - lower * around.across,
                      lower * around.across};
      }
      __syncwarp();
#pragma unroll kUnroll
      for (int i = 0; i < count; ++i) {
        const int4 token = tokens[i];
        const Four<A> corner = corners[i];
        const Raw<T, kVector> upper_left = load_token<T, kVector>(rows, token.x, stride);
        const Raw<T, kVector> upper_right = load_token<T, kVector>(rows, token.y, stride);
        const Raw<T, kVector> lower_left = load_token<T, kVector>(rows, token.z, stride);
        const Raw<T, kVector> lower_right = load_token<T, kVector>(rows, token.w, stride);
        add_weighted(upper_left, corner.a, sums);
        add_weighted(upper_right, corner.b, sums);
        add_weighted(lower_left, corner.c, sums);
        add_weighted(lower_right, corner.d, sums);
      }
    }
    if (fused) {
      const A factor = A(1) / group_sum<kLanes>(total);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sums[j] *= factor;
    }
    if (place.stores && channel < s.channels)
      store_vector<T, kVector>(static_cast<T*>(args.output.data) + place.pair() * s.channels + channel, sums);
    if constexpr (holds_all_channels<kLanes>()) break;
  }
}

}  // namespace fssops::ms_deform_attn
