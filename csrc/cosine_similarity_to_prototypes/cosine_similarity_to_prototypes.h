// Cosine of every pixel with every prototype:
//   values[b, n, p] = scale * (f_p . q_n) / (max(|f_p|, eps) * max(|q_n|, eps)).
// The features are read once for the dot products with a block of prototypes and for their own lengths, in either
// memory layout; neither normalised features nor an expanded product is formed. No torch in here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/macros.h"

namespace fssops::cosine_similarity_to_prototypes {

struct Sizes {
  int64_t batch, channels, prototypes, pixels;  // B, C, N, h * w
  bool channels_last;                           // features [B, h, w, C] in memory, else [B, C, h, w]
  double scale, eps;
  FSSOPS_HOST_DEVICE int64_t channel_stride() const { return channels_last ? 1 : pixels; }
  FSSOPS_HOST_DEVICE int64_t pixel_stride() const { return channels_last ? channels : 1; }
};

// d length / d vector = vector / length, and nothing where the length was clamped.
template <class A>
FSSOPS_HOST_DEVICE A inverse_square(A length, A eps) {
  return length > eps ? A(1) / (length * length) : A(0);
}

template <class A>
FSSOPS_HOST_DEVICE A clamped(A length, A eps) {
  return length < eps ? eps : length;  // NaN stays NaN
}

constexpr int64_t kPixelBlock = 64, kChannelBlock = 64;

#define FSSOPS_DECLARE(isa)                                                                                            \
  namespace isa {                                                                                                      \
  /* vectors [begin, end) of B * N: their lengths. */                                                                  \
  template <class T>                                                                                                   \
  void prototype_lengths_cpu(const Sizes&, const T* prototypes, T* lengths, int64_t begin, int64_t end);               \
  /* pixel blocks [begin, end) of all images: values [B, N, h * w] and feature lengths [B, h * w]. */                  \
  template <class T>                                                                                                   \
  void values_cpu(const Sizes&, const T* features, const T* prototypes, const T* prototype_lengths, T* values,         \
                  T* feature_lengths, int64_t begin, int64_t end);                                                     \
  /* pixel blocks [begin, end): coefficients [B, N, h * w] = d values / d dot * grad, feature_terms [B, h * w]. */     \
  template <class T>                                                                                                   \
  void coefficients_cpu(const Sizes&, const T* grad, const T* values, const T* feature_lengths,                        \
                        const T* prototype_lengths, T* coefficients, T* feature_terms, int64_t begin, int64_t end);    \
  /* feature_tasks [begin, end): grad_features in the layout of features. */                                           \
  template <class T>                                                                                                   \
  void grad_features_cpu(const Sizes&, const T* features, const T* prototypes, const T* coefficients,                  \
                         const T* feature_terms, T* grad_features, int64_t begin, int64_t end);                        \
  /* images times channel blocks [begin, end): grad_prototypes [B, N, C]. */                                           \
  template <class T>                                                                                                   \
  void grad_prototypes_cpu(const Sizes&, const T* features, const T* prototypes, const T* coefficients, const T* grad, \
                           const T* values, const T* prototype_lengths, T* grad_prototypes, int64_t begin,             \
                           int64_t end);                                                                               \
  }
FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

inline int64_t blocks_of(int64_t count, int64_t block) { return (count + block - 1) / block; }
inline int64_t pixel_tasks(const Sizes& s) { return s.batch * blocks_of(s.pixels, kPixelBlock); }
inline int64_t feature_tasks(const Sizes& s) {
  return s.channels_last ? pixel_tasks(s) : s.batch * blocks_of(s.channels, kChannelBlock);
}
inline int64_t prototype_tasks(const Sizes& s) { return s.batch * blocks_of(s.channels, kChannelBlock); }

// CUDA. `dtype` is that of features and prototypes: 0 float32, 1 float64, 2 float16, 3 bfloat16; A is its accumulator.
struct CudaForward {
  Sizes sizes;
  int dtype;
  const void* features;
  const void* prototypes;   // [B, N, C]
  void* values;             // A [B, N, h * w]
  void* feature_lengths;    // A [B, h * w]
  void* prototype_lengths;  // A [B, N]
};

struct CudaBackward {
  CudaForward forward;    // as the forward pass left it
  const void* grad;       // A [B, N, h * w]
  void* coefficients;     // A [B, N, h * w], scratch
  void* feature_terms;    // A [B, h * w], scratch
  void* prototype_terms;  // A [B, N], scratch
  void* grad_features;    // in the layout and dtype of features, or null
  void* grad_prototypes;  // [B, N, C], or null
};

// Throw std::runtime_error when a launch fails. Results are deterministic: nothing is added atomically.
void forward_cuda(const CudaForward& args, void* stream);
void backward_cuda(const CudaBackward& args, void* stream);

}  // namespace fssops::cosine_similarity_to_prototypes
