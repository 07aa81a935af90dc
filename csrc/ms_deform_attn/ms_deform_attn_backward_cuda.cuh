// Kernels of the backward pass of multi-scale deformable attention.
#pragma once

#include "ms_deform_attn/ms_deform_attn_cuda.cuh"

namespace fssops::ms_deform_attn {

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
  if constexpr (sizeof(A) == 4 && kVector % 4 == 0) {
#pragma unroll
    for (int j = 0; j < kVector; j += 4)
      asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + j), "f"(values[j]),
                   "f"(values[j + 1]), "f"(values[j + 2]), "f"(values[j + 3])
                   : "memory");
    return;
  }
#endif
#pragma unroll
  for (int j = 0; j < kVector; ++j) atomicAdd(target + j, values[j]);
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

// Power of two by which terms are multiplied before they are added as integers: `terms` of them, each of a size up to
// the product of the two maxima, stay below 2^63.
__device__ __forceinline__ double fixed_point_scale(const unsigned long long* maxima, int64_t terms) {
  const double bound = from_bits(maxima[0]) * from_bits(maxima[1]);
  if (!(bound > 0)) return 1.0;
  int bits = 0;
  while ((int64_t{1} << bits) < terms) ++bits;
  const int exponent = bound < 1e300 ? ilogb(bound) + 1 : 1024;
  const int shift = 61 - bits - exponent;
  return ldexp(1.0, shift > 1000 ? 1000 : shift);
}

// maxima[which] = largest finite |array[b, row, i]| over rows of `inner` elements. grid-stride.
template <class A>
__global__ void __launch_bounds__(kThreads)
    maximum_kernel(CudaArray array, int64_t batch, int64_t rows, int64_t inner, unsigned long long* maximum) {
  double largest = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < batch * rows * inner;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t row = i / inner;
    const int64_t at = row / rows * array.batch_stride + row % rows * array.row_stride + i % inner;
    const double value = static_cast<double>(read<A>(array, at)), size = value < 0 ? -value : value;
    if (size - size == 0 && size > largest) largest = size;
  }
  largest = warp_max(largest);
  if (threadIdx.x % kWarpSize == 0) atomicMax(maximum, bits_of(largest));
}

__global__ void set_kernel(unsigned long long* maximum, double value) { *maximum = bits_of(value); }

// Adds a corner's share of the gradient to its token.
template <class T, int kVector>
__device__ __forceinline__ void add_token(const CudaBackward& args, int64_t base, int32_t token,
                                          accumulator_t<T> weight, const accumulator_t<T> (&grad)[kVector],
                                          double scale, unsigned char* poisoned) {
  using A = accumulator_t<T>;
  if (token < 0) return;
  const Sizes& s = args.forward.sizes;
  const int64_t at = base + token * s.row();
  A share[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) share[j] = weight * grad[j];
  if (!args.deterministic) {
    add_vector<A, kVector>(static_cast<A*>(args.value_sums) + at, share);
    return;
  }
  auto* sums = static_cast<unsigned long long*>(args.value_sums) + at;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    if (share[j] - share[j] == A(0))
      atomicAdd(sums + j,
                static_cast<unsigned long long>(static_cast<long long>(rint(static_cast<double>(share[j]) * scale))));
    else
      poisoned[token * s.heads] = 1;
  }
}

// grid as for forward_kernel. Every group writes the gradients of its own points and weights, and adds to value_sums.
template <class T, int kVector, int kLanes>
__global__ void __launch_bounds__(kThreads) backward_kernel(CudaBackward args, int chunk) {
  using A = accumulator_t<T>;
  constexpr int kGroups = kThreads / kLanes;
  FSSOPS_DYNAMIC_SHARED(Four<A>, shared);
  const CudaForward& in = args.forward;
  const Sizes& s = in.sizes;
  const int lane = threadIdx.x % kLanes, group = threadIdx.x / kLanes, samples = s.samples();
  Four<A>* fractions = shared + group * chunk;
  int4* tokens = reinterpret_cast<int4*>(shared + kGroups * chunk) + group * chunk;
  const Place place = place_of<kGroups>(s, group);
  const bool fused = in.placement != Placement::locations;
  const bool to_points =
      args.grad_points.data != nullptr || args.cell_grads != nullptr || args.grad_weights.data != nullptr;
  const int64_t first = place.b * in.weights.batch_stride + place.q * in.weights.row_stride + place.m * samples;
  const int64_t own = ((place.b * s.queries + place.q) * s.heads + place.m) * samples;  // the group's points
  A largest = A(0), factor = A(1);
  if (fused) {
    softmax_terms<kLanes>(in, first, lane, largest, factor);
    factor = A(1) / factor;
  }
  const T* value = static_cast<const T*>(in.value.data) +
                   value_offset(place.b, 0, place.m, in.value.batch_stride, in.value.row_stride, s.channels);
  const int32_t stride = static_cast<int32_t>(in.value.row_stride * static_cast<int64_t>(sizeof(T)));
  const T* grad_row = static_cast<const T*>(args.grad.data) + place.b * args.grad.batch_stride +
                      place.q * args.grad.row_stride + place.m * s.channels;
  const double scale =
      args.deterministic && args.value_sums != nullptr ? fixed_point_scale(args.maxima, s.queries * samples) : 1.0;
  unsigned char* poisoned = args.deterministic ? args.poisoned + place.b * s.tokens * s.heads + place.m : nullptr;
  const bool one_block = s.channels <= kLanes * kVector;
  A grad[kVector] = {};
  if (one_block && lane * kVector < s.channels) load_vector<T, kVector>(grad_row + lane * kVector, grad);
  A shared_term = A(0);  // sum of weight times its gradient, for the softmax
  for (int begin = 0; begin < samples; begin += chunk) {
    const int count = samples - begin < chunk ? samples - begin : chunk;
    __syncwarp();
    for (int i = lane; i < count; i += kLanes) {
      const A raw = read<A>(in.weights, first + begin + i);
      const Around<A> around = tokens_around<A>(in, place, begin + i);
      tokens[i] = around.tokens;
      fractions[i] = {around.across, around.down, fused ? exponential(raw - largest) * factor : raw, A(0)};
    }
    __syncwarp();
    for (int round = 0; round < count; round += kLanes) {
      A own_x = A(0), own_y = A(0), own_weight = A(0);  // of point round + lane
      for (int i = round; i < round + kLanes && i < count; ++i) {
        const int4 token = tokens[i];
        const Four<A> f = fractions[i];
        const A across = f.a, down = f.b, weight = f.c;
        A dots[4] = {};
        for (int64_t c = lane * kVector; c < s.channels; c += kLanes * kVector) {
          if (!one_block) load_vector<T, kVector>(grad_row + c, grad);
          if (to_points) {
            A rows[4][kVector];
            load_token<T, kVector>(value + c, token.x, stride, rows[0]);
            load_token<T, kVector>(value + c, token.y, stride, rows[1]);
            load_token<T, kVector>(value + c, token.z, stride, rows[2]);
            load_token<T, kVector>(value + c, token.w, stride, rows[3]);
#pragma unroll
            for (int k = 0; k < 4; ++k)
#pragma unroll
              for (int j = 0; j < kVector; ++j) dots[k] += grad[j] * rows[k][j];
          }
          if (args.value_sums != nullptr && place.stores) {
            const A lower = weight * down, upper = weight - lower;
            const int64_t base = value_offset(place.b, 0, place.m, s.tokens * s.row(), s.row(), s.channels) + c;
            add_token<T, kVector>(args, base, token.x, upper - upper * across, grad, scale, poisoned);
            add_token<T, kVector>(args, base, token.y, upper * across, grad, scale, poisoned);
            add_token<T, kVector>(args, base, token.z, lower - lower * across, grad, scale, poisoned);
            add_token<T, kVector>(args, base, token.w, lower * across, grad, scale, poisoned);
          }
        }
        if (!to_points) continue;
        const A upper = dots[0] + across * (dots[1] - dots[0]), lower = dots[2] + across * (dots[3] - dots[2]);
        const A left = dots[0] + down * (dots[2] - dots[0]), right = dots[1] + down * (dots[3] - dots[1]);
        const A grad_x = group_sum<kLanes>(weight * (right - left)),
                grad_y = group_sum<kLanes>(weight * (lower - upper));
        const A grad_weight = group_sum<kLanes>(upper + down * (lower - upper));
        shared_term += weight * grad_weight;
        if (i - round == lane) {
          own_x = grad_x;
          own_y = grad_y;
          own_weight = grad_weight;
        }
      }
      const int n = begin + round + lane;
      if (!to_points || !place.stores || round + lane >= count) continue;
      if (args.grad_points.data != nullptr) {
        const Frames<A> frames = frames_of<A>(in, place, n / s.points);
        write(args.grad_points, 2 * (own + n), own_x * frames.x.scale);
        write(args.grad_points, 2 * (own + n) + 1, own_y * frames.y.scale);
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
  for (int begin = 0; begin < samples; begin += chunk) {
    const int count = samples - begin < chunk ? samples - begin : chunk;
    for (int i = lane; i < count; i += kLanes) {
      const A weight = exponential(read<A>(in.weights, first + begin + i) - largest) * factor;
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
        stretch_x += cell_x * read<A>(in.points, at);
        stretch_y += cell_y * read<A>(in.points, at + 1);
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
  const double factor = args.deterministic ? 1.0 / fixed_point_scale(args.maxima, s.queries * s.samples()) : 1.0;
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

// Zeroes `count` bytes, a multiple of 4 first and the rest after.
__global__ void __launch_bounds__(kThreads) zero_kernel(unsigned char* target, int64_t count) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x,
                step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t vectors = count / 16;
  for (int64_t i = first; i < vectors; i += step) reinterpret_cast<uint4*>(target)[i] = make_uint4(0, 0, 0, 0);
  for (int64_t i = vectors * 16 + first; i < count; i += step) target[i] = 0;
}

}  // namespace fssops::ms_deform_attn
