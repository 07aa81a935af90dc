// Vectors of the widest register of the instruction set a file is compiled for (FSSOPS_ISA), for float and double.
//
// Everything lives in a namespace named after the set, so that two copies of one inline function, compiled for
// different processors, can never be merged by the linker. For the same reason <op>_cpu.cpp files use no standard
// containers or algorithms: their instantiations would be shared.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef FSSOPS_ISA
#error "simd.h is for files that are compiled once per instruction set; see build_backend/native_build.py"
#endif

namespace fssops::simd {
namespace FSSOPS_ISA {

#if defined(__AVX512F__)
inline constexpr int kBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kBytes = 32;
#else
inline constexpr int kBytes = 16;
#endif

template <class T>
struct Vec {
  static constexpr int kSize = kBytes / static_cast<int>(sizeof(T));
  typedef T Native __attribute__((vector_size(kBytes)));
  Native v;

  static Vec zero() { return {Native{}}; }
  static Vec broadcast(T value) {
    return {value - Native{}};
  }  // x - 0 is x, which x + 0 is not for -0: no addition is left
  static Vec load(const T* source) {
    Vec out;
    std::memcpy(&out.v, source, kBytes);
    return out;
  }
  // The first `count` (0..kSize) elements; zeros behind them. Reads nothing past them.
  static Vec load_partial(const T* source, int count) {
    if (count == kSize) return load(source);
    Vec out = zero();
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      out.v = (Native)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), source);
    else
      out.v = (Native)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1u), source);
#else
    std::memcpy(&out.v, source, static_cast<size_t>(count) * sizeof(T));
#endif
    return out;
  }
  void store(T* target) const { std::memcpy(target, &v, kBytes); }
  void store_partial(T* target, int count) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(target, static_cast<__mmask16>(count >= 16 ? 0xffffu : (1u << count) - 1u), (__m512)v);
    else
      _mm512_mask_storeu_pd(target, static_cast<__mmask8>(count >= 8 ? 0xffu : (1u << count) - 1u), (__m512d)v);
#else
    std::memcpy(target, &v, static_cast<size_t>(count) * sizeof(T));
#endif
  }
  T operator[](int i) const { return v[i]; }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  Vec& operator+=(Vec b) {
    v += b.v;
    return *this;
  }
  Vec& operator*=(Vec b) {
    v *= b.v;
    return *this;
  }
};

// a * b + c; one rounding where the set has it (the build allows contraction).
template <class T>
inline Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v * b.v + c.v};
}

// The larger of each pair; a NaN in `a` is kept, one in `b` is not: call it as max(value, bound).
template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return {a.v < b.v ? b.v : a.v};
}

template <class T>
inline Vec<T> min(Vec<T> a, Vec<T> b) {
  return {b.v < a.v ? b.v : a.v};
}

template <class T>
inline T sum(Vec<T> a) {
  // Pairwise, in an order that depends on the width only.
  T lanes[Vec<T>::kSize];
  a.store(lanes);
  for (int width = Vec<T>::kSize / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

template <class T>
inline T reduce_max(Vec<T> a) {
  T largest = a[0];
  for (int i = 1; i < Vec<T>::kSize; ++i) largest = a[i] > largest ? a[i] : largest;
  return largest;
}

// exp. Float: Cody-Waite reduction and a polynomial of degree 6, within 2 units in the last place; below -87.3 it
// gives 0 (results that would be subnormal are flushed), above 88.7 infinity; NaN stays NaN. Double: the C library's.
inline Vec<float> exp(Vec<float> x) {
  using V = Vec<float>;
  typedef int32_t Ints __attribute__((vector_size(kBytes)));
  const V low = V::broadcast(-87.33654f), high = V::broadcast(88.72283f);
  const typename V::Native clamped = x.v < low.v ? low.v : (x.v > high.v ? high.v : x.v);
  const typename V::Native shifter = V::broadcast(12582912.f).v;  // 1.5 * 2^23 rounds to the nearest integer
  const typename V::Native shifted = clamped * 1.44269504f + shifter;
  const typename V::Native n = shifted - shifter;
  const typename V::Native r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  typename V::Native p = V::broadcast(1.9875691500e-4f).v;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two steps, so that n = 128 does not overflow the exponent before the product does.
  const Ints integer = __builtin_convertvector(n, Ints);
  const Ints half = integer >> 1;
  union Bits {
    Ints i;
    typename V::Native f;
  };
  Bits first, second;
  first.i = (half + 127) << 23;
  second.i = (integer - half + 127) << 23;
  V out{p * first.f * second.f};
  out.v = x.v < low.v ? V::zero().v : out.v;
  out.v = x.v > high.v ? V::broadcast(__builtin_inff()).v : out.v;
  out.v = x.v != x.v ? x.v : out.v;
  return out;
}

inline Vec<double> exp(Vec<double> x) {
  Vec<double> out;
  for (int i = 0; i < Vec<double>::kSize; ++i) out.v[i] = std::exp(x.v[i]);
  return out;
}

// A block of memory for one call; freed with it. Throws nothing: on exhaustion the process ends with a message.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(nullptr) {
    if (count <= 0) return;
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ != nullptr) return;
    std::fprintf(stderr, "fssops: out of memory: a CPU kernel asked for %zu bytes\n", bytes);
    std::abort();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }

 private:
  T* data_;
};

}  // namespace FSSOPS_ISA
}  // namespace fssops::simd
