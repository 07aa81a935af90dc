// The two half-precision storage types. Arithmetic is always done in float; these only load and store.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fssops {

struct alignas(2) half_t {
  uint16_t bits;
};

struct alignas(2) bf16_t {
  uint16_t bits;
};

// Host conversions without hardware support: round to nearest even, as the device instructions do.
namespace soft {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline uint16_t float_to_bf16(float value) {
  uint32_t bits = to_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN keeps being one
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-08f;  // 2^-24
    return sign ? -magnitude : magnitude;
  }
  return from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

inline uint16_t float_to_half(float value) {
  const uint32_t bits = to_bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: let the float adder round
    const float shifted = from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (to_bits(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace soft

FSSOPS_HOST_DEVICE float to_float(bf16_t value) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
#else
  return soft::from_bits(static_cast<uint32_t>(value.bits) << 16);
#endif
}

FSSOPS_HOST_DEVICE float to_float(half_t value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  return soft::half_to_float(value.bits);
#endif
}

// The type in which values of T are added up, and conversions to and from it.
template <class T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <class T>
using accumulator_t = typename Accumulator<T>::type;

FSSOPS_HOST_DEVICE float load_as_accumulator(float value) { return value; }
FSSOPS_HOST_DEVICE double load_as_accumulator(double value) { return value; }
FSSOPS_HOST_DEVICE float load_as_accumulator(uint8_t value) { return static_cast<float>(value); }
FSSOPS_HOST_DEVICE float load_as_accumulator(half_t value) { return to_float(value); }
FSSOPS_HOST_DEVICE float load_as_accumulator(bf16_t value) { return to_float(value); }

FSSOPS_HOST_DEVICE void store_from_accumulator(float* target, float value) { *target = value; }
FSSOPS_HOST_DEVICE void store_from_accumulator(double* target, double value) { *target = value; }
FSSOPS_HOST_DEVICE void store_from_accumulator(half_t* target, float value) {
#if defined(__CUDA_ARCH__)
  target->bits = __half_as_ushort(__float2half_rn(value));
#else
  target->bits = soft::float_to_half(value);
#endif
}
FSSOPS_HOST_DEVICE void store_from_accumulator(bf16_t* target, float value) {
#if defined(__CUDA_ARCH__)
  target->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
  target->bits = soft::float_to_bf16(value);
#endif
}

}  // namespace fssops
