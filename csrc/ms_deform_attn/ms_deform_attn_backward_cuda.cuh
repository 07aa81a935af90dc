// Kernels of the backward pass of multi-scale deformable attention.
//
// What bounds it is adding to grad_value in L2: 48 rows of D numbers for each (query, head) of three levels of four
// points. Neighbouring queries of one head add to the same tokens, so a block first brings together what goes to one
// token, by a hash table in shared memory, and adds each token's sum once.
#pragma once

#include "ms_deform_attn/ms_deform_attn_cuda.cuh"

namespace fssops::ms_deform_attn {

constexpr int kThreads = 256;  // a block of the kernels that go element by element
constexpr int kCorners = 4;
constexpr int kMostGroups = 64;          // of a block of value_sums_kernel
constexpr int kSlotsPerGroup = 64;       // of its hash table: a power of two
constexpr int kMostPointsPerGroup = 12;  // at once: their corners fill three quarters of the slots at most

template <class A>
__device__ __forceinline__ void write(const CudaArray& array, int64_t i, A value) {
  if constexpr (sizeof(A) == 8) {
    static_cast<double*>(array.data)[i] = value;
  } else {
    if (array.dtype == 0)
      static_cast<float*>(array.data)[i] = value;
    else if (array.dtype == 2)
      store_from_accumulator(static_cast<half_t*>(array.data) + i, value);
    else
      store_from_accumulator(static_cast<bf16_t*>(array.data) + i, value);
  }
}

// target[j] += values[j], atomically; the target of a float vector is aligned to 16 bytes.
template <class A, int kVector>
__device__ __forceinline__ void add_vector(A* target, const A (&values)[kVector]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  constexpr bool kTogether = sizeof(A) == 4 && kVector == 4;
#else
  constexpr bool kTogether = false;
#endif
  if constexpr (kTogether) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target), "f"(values[0]), "f"(values[1]),
                 "f"(values[2]), "f"(values[3])
                 : "memory");
#endif
  } else {
#pragma unroll
    for (int j = 0; j < kVector; ++j) atomicAdd(target + j, values[j]);
  }
}

// Non-negative doubles are ordered as their bits are.
__device__ __forceinline__ unsigned long long bits_of(double value) {
  unsigned long long bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

__device__ __forceinline__ double from_bits(unsigned long long bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// maximum = largest finite |array[b, row, i]| over rows of `inner` elements. grid-stride.
template <class A>
__global__ void __launch_bounds__(kThreads)
    maximum_kernel(CudaArray array, int64_t batch, int64_t rows, int64_t inner, unsigned long long* maximum) {
  double largest = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < batch * rows * inner;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / inner;
    const int64_t at = row / rows * array.batch_stride + row % rows * array.row_stride + i % inner;
    const double value = static_cast<double>(read<A, AnyType>(array, at)), size = value < 0 ? -value : value;
    if (size - size == 0 && size > largest) largest = size;
  }
  largest = warp_max(largest);
  if (threadIdx.x % kWarpSize == 0) atomicMax(maximum, bits_of(largest));
}

// fixed[2] = power of two by which terms are multiplied before they are added as integers: `terms` of them, each of a
// size up to fixed[0] * fixed[1] (or fixed[0], for weights that a softmax gave), stay below 2^63.
__global__ void scale_kernel(unsigned long long* fixed, bool softmax, int64_t terms) {
  const double bound = from_bits(fixed[0]) * (softmax ? 1.0 : from_bits(fixed[1]));
  int bits = 0;
  while ((int64_t{1} << bits) < terms) ++bits;
  const int exponent = bound < 1e300 ? ilogb(bound) + 1 : 1024;
  const int shift = 61 - bits - exponent;
  fixed[2] = bits_of(bound > 0 ? ldexp(1.0, shift > 1000 ? 1000 : shift) : 1.0);
}

// Shared memory of value_sums_kernel: what a chunk of points gives to each token, as linked lists. A tap is one corner
// of one point. All threads of the block call clear, insert and list, with a barrier between them.
template <class A>
struct TokenShares {
  Four<A>* fractions;  // [groups, chunk]: across, down, weight, number of the group
  int4* tokens;        // [groups, chunk]: of each tap; after insert() the tap that comes next in its list, or -1
  A* grads;            // [groups, width]: the gradient of the output, for a block of channels
  int* keys;           // [slots]: hash table of tokens, -1 where a slot is free
  int* heads;          // [slots]: first tap of the token
  int* found;          // [taps]: slots in use
  int* used;           // their number
  int slots, bits;

  static int64_t bytes(int groups, int chunk, int width) {
    return static_cast<int64_t>(groups) *
               (chunk * static_cast<int64_t>(sizeof(Four<A>) + 2 * sizeof(int4)) +
                width * static_cast<int64_t>(sizeof(A)) + 2 * kSlotsPerGroup * static_cast<int64_t>(sizeof(int))) +
           16;
  }

  __device__ __forceinline__ TokenShares(unsigned char* memory, int groups, int chunk, int width) {
    fractions = reinterpret_cast<Four<A>*>(memory);
    tokens = reinterpret_cast<int4*>(fractions + groups * chunk);
    grads = reinterpret_cast<A*>(tokens + groups * chunk);
    slots = groups * kSlotsPerGroup;
    bits = 31 - __clz(slots);
    keys = reinterpret_cast<int*>(grads + groups * width);
    heads = keys + slots;
    found = heads + slots;
    used = found + groups * chunk * kCorners;
  }

  __device__ __forceinline__ void clear() {
    for (int i = threadIdx.x; i < slots; i += blockDim.x) keys[i] = heads[i] = -1;
    if (threadIdx.x == 0) *used = 0;
  }

  __device__ __forceinline__ void insert(int taps) {
    int* of_tap = reinterpret_cast<int*>(tokens);
    for (int tap = threadIdx.x; tap < taps; tap += blockDim.x) {
      const int token = of_tap[tap];
      if (token < 0) continue;
      int slot = static_cast<int>((static_cast<uint32_t>(token) * 0x9e3779b1u) >> (32 - bits));
      while (true) {
        const int held = atomicCAS(keys + slot, -1, token);
        if (held == -1 || held == token) break;
        slot = (slot + 1) & (slots - 1);
      }
      of_tap[tap] = atomicExch(heads + slot, tap);
    }
  }

  // The number of slots is a multiple of the warp size, as that of threads is.
  __device__ __forceinline__ void list() {
    const int lane = threadIdx.x % kWarpSize;
    for (int i = threadIdx.x; i < slots; i += blockDim.x) {
      const bool in_use = keys[i] >= 0;
      const unsigned mask = __ballot_sync(kFullWarp, in_use);
      int start = 0;
      if (lane == 0) start = atomicAdd(used, __popc(mask));
      start = __shfl_sync(kFullWarp, start, 0);
      if (in_use) found[start + __popc(mask & ((1u << lane) - 1u))] = i;
    }
  }

  // What a tap gives: a part of the gradient of its group.
  __device__ __forceinline__ A part(int tap, int& group) const {
    const Four<A> f = fractions[tap / kCorners];
    const A lower = f.c * f.b, row = (tap & 2) != 0 ? lower : f.c - lower, right = row * f.a;
    group = static_cast<int>(f.d);
    return (tap & 1) != 0 ? right : row - right;
  }

  // Adds up the list that starts at `tap`, kVector channels a lane, and adds the sum to the token's.
  template <int kVector>
  __device__ __forceinline__ void add(int width, int lane, int tap, A* target) const {
    A sums[kVector] = {};
    while (tap >= 0) {
      int group;
      const A share = part(tap, group);
      const A* grad = grads + group * width + lane * kVector;
#pragma unroll
      for (int j = 0; j < kVector; ++j) sums[j] += share * grad[j];
      tap = reinterpret_cast<const int*>(tokens)[tap];
    }
    add_vector<A, kVector>(target, sums);
  }

  // The same in fixed point: integers give the same sum in any order.
  template <int kVector>
  __device__ __forceinline__ void add_fixed(int width, int lane, int tap, double scale, unsigned long long* target,
                                            unsigned char* poisoned) const {
    long long sums[kVector] = {};
    while (tap >= 0) {
      int group;
      const A share = part(tap, group);
      const A* grad = grads + group * width + lane * kVector;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const A term = share * grad[j];
        if (term - term == A(0))
          sums[j] += static_cast<long long>(rint(static_cast<double>(term) * scale));
        else
          *poisoned = 1;
      }
      tap = reinterpret_cast<const int*>(tokens)[tap];
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) atomicAdd(target + j, static_cast<unsigned long long>(sums[j]));
  }
};

// Largest logit, and one over the sum of exp(logit - largest); 0 and 1 for weights that are given.
template <int kLanes, class A, class P>
__device__ __forceinline__ void softmax_terms(const CudaForward& in, const Place<A, P>& place, int lane, A& largest,
                                              A& factor) {
  largest = A(0);
  factor = A(1);
  if (in.placement == Placement::locations) return;
  largest = place.template largest_logit<kLanes>(lane);
  A total = A(0);
  for (int n = lane; n < in.sizes.samples(); n += kLanes) total += exponential(place.weight(n) - largest);
  factor = A(1) / group_sum<kLanes>(total);
}

// grid as for forward_kernel: adds the gradient of value to value_sums.
template <class T, class P, int kVector, int kLanes>
__global__ void __launch_bounds__(most_threads<T, kLanes>(), 2) value_sums_kernel(CudaBackward args, int chunk) {
  using A = accumulator_t<T>;
  FSSOPS_DYNAMIC_SHARED(unsigned char, memory);
  constexpr int kWidth = kLanes * kVector;
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, groups = blockDim.x / kLanes;
  TokenShares<A> shared(memory, groups, chunk, kWidth);
  const Place<A, P> place(in, group, groups);
  const int samples = s.samples();
  const bool fused = in.placement != Placement::locations;
  A largest, factor;
  softmax_terms<kLanes>(in, place, lane, largest, factor);
  const T* grad_row = static_cast<const T*>(args.grad.data) + place.b * args.grad.batch_stride +
                      place.q * args.grad.row_stride + place.m * s.channels;
  for (int begin = 0; begin < samples; begin += chunk) {
    const int count = samples - begin < chunk ? samples - begin : chunk;
    __syncthreads();
    for (int i = lane; i < chunk; i += kLanes) {
      const int at = group * chunk + i;
      shared.tokens[at] = make_int4(-1, -1, -1, -1);
      if (i >= count || !place.stores) continue;
      const A raw = place.weight(begin + i);
      const Around<A> around = place.around(begin + i);
      shared.tokens[at] = around.tokens;
      shared.fractions[at] = {around.across, around.down, fused ? exponential(raw - largest) * factor : raw,
                              static_cast<A>(group)};
    }
    shared.clear();
    __syncthreads();
    shared.insert(groups * chunk * kCorners);
    __syncthreads();
    shared.list();
    for (int64_t block = 0; block < s.channels; block += kWidth) {
      const int64_t channel = block + lane * kVector;
      A grad[kVector] = {};
      if (channel < s.channels) Raw<T, kVector>::load(grad_row + channel).unpack(grad);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kVector; ++j) shared.grads[group * kWidth + lane * kVector + j] = grad[j];
      __syncthreads();
      for (int i = group; channel < s.channels && i < *shared.used; i += groups) {
        const int slot = shared.found[i], token = shared.keys[slot], tap = shared.heads[slot];
        const int64_t at = value_offset(place.b, token, place.m, s.tokens * s.row(), s.row(), s.channels) + channel;
        if (args.deterministic)
          shared.template add_fixed<kVector>(kWidth, lane, tap, from_bits(args.fixed[2]),
                                             static_cast<unsigned long long*>(args.value_sums) + at,
                                             args.poisoned + (place.b * s.tokens + token) * s.heads + place.m);
        else
          shared.template add<kVector>(kWidth, lane, tap, static_cast<A*>(args.value_sums) + at);
      }
      if constexpr (holds_all_channels<kLanes>()) break;
    }
  }
}

// grid as for forward_kernel: every group writes the gradients of its own points and weights.
template <class T, class P, int kVector, int kLanes>
__global__ void __launch_bounds__(most_threads<T, kLanes>(), 2) point_grads_kernel(CudaBackward args, int chunk) {
  using A = accumulator_t<T>;
  FSSOPS_DYNAMIC_SHARED(Four<A>, shared);
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, groups = blockDim.x / kLanes;
  Four<A>* fractions = shared + group * chunk;  // across, down, weight
  int4* tokens = reinterpret_cast<int4*>(shared + groups * chunk) + group * chunk;
  const Place<A, P> place(in, group, groups);
  const int samples = s.samples();
  const bool fused = in.placement != Placement::locations;
  A largest, factor;
  softmax_terms<kLanes>(in, place, lane, largest, factor);
  const T* value = static_cast<const T*>(in.value.data) +
                   value_offset(place.b, 0, place.m, in.value.batch_stride, in.value.row_stride, s.channels);
  const uint32_t stride = static_cast<uint32_t>(in.value.row_stride) * static_cast<uint32_t>(sizeof(T));
  const T* grad_row = static_cast<const T*>(args.grad.data) + place.b * args.grad.batch_stride +
                      place.q * args.grad.row_stride + place.m * s.channels;
  A grad[kVector] = {};
  if (lane * kVector < s.channels) Raw<T, kVector>::load(grad_row + lane * kVector).unpack(grad);
  A shared_term = A(0);  // sum of weight times its gradient, for the softmax
  for (int begin = 0; begin < samples; begin += chunk) {
    const int count = samples - begin < chunk ? samples - begin : chunk;
    __syncwarp();
    for (int i = lane; i < count; i += kLanes) {
      const A raw = place.weight(begin + i);
      const Around<A> around = place.around(begin + i);
      tokens[i] = around.tokens;
      fractions[i] = {around.across, around.down, fused ? exponential(raw - largest) * factor : raw, A(0)};
    }
    __syncwarp();
    for (int round = 0; round < count; round += kLanes) {
      A own_x = A(0), own_y = A(0), own_weight = A(0);  // of point round + lane
#pragma unroll 1
      for (int i = round; i < round + kLanes && i < count; ++i) {
        const int4 token = tokens[i];
        const Four<A> f = fractions[i];
        A dots[kCorners] = {};
#pragma unroll 1
        for (int64_t c = lane * kVector; c < s.channels; c += kLanes * kVector) {
          if constexpr (!holds_all_channels<kLanes>()) Raw<T, kVector>::load(grad_row + c).unpack(grad);
          const Raw<T, kVector> upper_left = load_token<T, kVector>(value + c, token.x, stride);
          const Raw<T, kVector> upper_right = load_token<T, kVector>(value + c, token.y, stride);
          const Raw<T, kVector> lower_left = load_token<T, kVector>(value + c, token.z, stride);
          const Raw<T, kVector> lower_right = load_token<T, kVector>(value + c, token.w, stride);
          dots[0] += dot(upper_left, grad);
          dots[1] += dot(upper_right, grad);
          dots[2] += dot(lower_left, grad);
          dots[3] += dot(lower_right, grad);
          if constexpr (holds_all_channels<kLanes>()) break;
        }
        const A upper = dots[0] + f.a * (dots[1] - dots[0]), lower = dots[2] + f.a * (dots[3] - dots[2]);
        const A left = dots[0] + f.b * (dots[2] - dots[0]), right = dots[1] + f.b * (dots[3] - dots[1]);
        const A grad_x = group_sum<kLanes>(right - left), grad_y = group_sum<kLanes>(lower - upper);
        const A grad_weight = group_sum<kLanes>(upper + f.b * (lower - upper));
        shared_term += f.c * grad_weight;
        if (i - round == lane) {
          own_x = f.c * grad_x;
          own_y = f.c * grad_y;
          own_weight = grad_weight;
        }
      }
      if (!place.stores || round + lane >= count) continue;
      const int n = begin + round + lane;
      const int64_t own = place.pair() * samples;  // the group's points
      if (args.grad_points.data != nullptr) {
        Frame<A> frame_x, frame_y;
        place.frames(place.level_of(n), frame_x, frame_y);
        write(args.grad_points, 2 * (own + n), own_x * frame_x.scale);
        write(args.grad_points, 2 * (own + n) + 1, own_y * frame_y.scale);
      }
      if (args.cell_grads != nullptr) {
        static_cast<A*>(args.cell_grads)[2 * (own + n)] = own_x;
        static_cast<A*>(args.cell_grads)[2 * (own + n) + 1] = own_y;
      }
      if (args.grad_weights.data != nullptr) {
        if (fused)
          static_cast<A*>(args.weight_grads)[own + n] = own_weight;
        else
          write(args.grad_weights, own + n, own_weight);
      }
    }
  }
  if (!fused || args.grad_weights.data == nullptr || !place.stores) return;
  // Gradient of the softmax; every lane reads back what it has written itself.
  const int64_t own = place.pair() * samples;
  for (int begin = 0; begin < samples; begin += chunk) {
    const int count = samples - begin < chunk ? samples - begin : chunk;
    for (int i = lane; i < count; i += kLanes) {
      const A weight = exponential(place.weight(begin + i) - largest) * factor;
      const A own_weight = static_cast<const A*>(args.weight_grads)[own + begin + i];
      write(args.grad_weights, own + begin + i, weight * (own_weight - shared_term));
    }
  }
}

// One thread a (query, level): gradient of its reference point or box, summed over heads and points.
template <class A>
__global__ void __launch_bounds__(kThreads) grad_reference_kernel(CudaBackward args) {
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  const bool boxes = in.placement == Placement::boxes;
  const A* cells = static_cast<const A*>(args.cell_grads);
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < s.batch * s.queries * s.levels;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / s.levels, level = i % s.levels, b = row / s.queries, q = row % s.queries;
    A x = A(0), y = A(0), stretch_x = A(0), stretch_y = A(0);
    for (int64_t m = 0; m < s.heads; ++m)
      for (int64_t p = 0; p < s.points; ++p) {
        const int64_t n = (m * s.levels + level) * s.points + p;
        const A cell_x = cells[2 * (row * s.heads * s.samples() + n)],
                cell_y = cells[2 * (row * s.heads * s.samples() + n) + 1];
        x += cell_x;
        y += cell_y;
        if (!boxes) continue;
        const int64_t at = b * in.points.batch_stride + q * in.points.row_stride + 2 * n;
        stretch_x += cell_x * read<A, AnyType>(in.points, at);
        stretch_y += cell_y * read<A, AnyType>(in.points, at + 1);
      }
    const A width = static_cast<A>(s.level[level].width), height = static_cast<A>(s.level[level].height);
    const int64_t out = i * (boxes ? 4 : 2);
    write(args.grad_reference, out, x * width);
    write(args.grad_reference, out + 1, y * height);
    if (!boxes) continue;
    write(args.grad_reference, out + 2, stretch_x * width * A(0.5) / static_cast<A>(s.points));
    write(args.grad_reference, out + 3, stretch_y * height * A(0.5) / static_cast<A>(s.points));
  }
}

// grad_value from its sums: from float32 to a half type, or from fixed point.
template <class T>
__global__ void __launch_bounds__(kThreads) grad_value_kernel(CudaBackward args) {
  using A = accumulator_t<T>;
  const Sizes& s = args.forward.sizes;
  T* out = static_cast<T*>(args.grad_value.data);
  const double factor = args.deterministic ? 1.0 / from_bits(args.fixed[2]) : 1.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < s.batch * s.tokens * s.row();
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    if (!args.deterministic)
      store_from_accumulator(out + i, static_cast<const A*>(args.value_sums)[i]);
    else if (args.poisoned[i / s.channels])
      store_from_accumulator(out + i, static_cast<A>(NAN));
    else
      store_from_accumulator(
          out + i, static_cast<A>(static_cast<double>(static_cast<const long long*>(args.value_sums)[i]) * factor));
  }
}

// Zeroes `count` bytes, a multiple of 16 first and the rest after; the target is aligned to 16.
__global__ void __launch_bounds__(kThreads) zero_kernel(unsigned char* target, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t vectors = count / 16;
  for (int64_t i = first; i < vectors; i += step) reinterpret_cast<uint4*>(target)[i] = make_uint4(0, 0, 0, 0);
  for (int64_t i = vectors * 16 + first; i < count; i += step) target[i] = 0;
}

}  // namespace fssops::ms_deform_attn
