// Masked average pooling: prototypes[b, n, c] = sum_p weights[b, n, p] * features[b, c, p] / divisor[b, n].
//
// Every resize rule is linear in the mask, so the rule acts on the masks alone: weights = R(masks), and
// divisor = sum(weights) + eps. For upsample_features (PANet) the features would be upsampled by U; since
// sum_xy U(F) * M = sum_p F * U^T(M), the transpose of the upsampling acts on the mask instead, and
// divisor = sum(masks) + eps.
//
// Three steps, each over a range of independent rows, each with the transpose that its gradient needs. All pointers
// are to contiguous arrays but for features, which are channels-first or channels-last. No torch in here.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/macros.h"
#include "common/mask_type.h"

namespace fssops::masked_average_pooling {

enum class Resize : int { none = 0, nearest = 1, bilinear = 2, bilinear_align_corners = 3, upsample_features = 4 };

struct Sizes {
  int64_t batch, channels, masks;   // B, C, N
  int64_t height, width;            // h, w of the features
  int64_t mask_height, mask_width;  // H, W of the masks
  bool channels_last;               // features [B, h, w, C] in memory, else [B, C, h, w]
  FSSOPS_HOST_DEVICE int64_t pixels() const { return height * width; }
  FSSOPS_HOST_DEVICE int64_t mask_pixels() const { return mask_height * mask_width; }
};

#define FSSOPS_DECLARE(isa)                                                                                          \
  namespace isa {                                                                                                    \
  /* planes [begin, end) of B * N: weights [B * N, h * w] and divisor [B * N] from masks (uint8 or T). */            \
  template <class T, class M>                                                                                        \
  void weights_cpu(const Sizes&, Resize, T eps, const M* masks, T* weights, T* divisor, int64_t begin, int64_t end); \
  /* tasks [begin, end) of pool_tasks(): prototypes [B, N, C]. */                                                    \
  template <class T>                                                                                                 \
  void pool_cpu(const Sizes&, const T* features, const T* weights, const T* divisor, T* prototypes, int64_t begin,   \
                int64_t end);                                                                                        \
  /* planes [begin, end) of B * N: scaled [B, N, C] = grad / divisor, shared [B * N] = sum_c scaled * prototypes. */ \
  template <class T>                                                                                                 \
  void scale_grad_cpu(const Sizes&, const T* grad, const T* prototypes, const T* divisor, T* scaled, T* shared,      \
                      int64_t begin, int64_t end);                                                                   \
  /* tasks [begin, end) of feature_tasks(): grad_features, in the layout of features. */                             \
  template <class T>                                                                                                 \
  void grad_features_cpu(const Sizes&, const T* scaled, const T* weights, T* grad_features, int64_t begin,           \
                         int64_t end);                                                                               \
  /* planes [begin, end) of B * N: grad_masks [B * N, H * W]. */                                                     \
  template <class T>                                                                                                 \
  void grad_masks_cpu(const Sizes&, Resize, const T* features, const T* scaled, const T* shared, T* grad_masks,      \
                      int64_t begin, int64_t end);                                                                   \
  }
FSSOPS_FOR_EACH_ISA(FSSOPS_DECLARE)
#undef FSSOPS_DECLARE

constexpr int64_t kMaskBlock = 4, kChannelBlock = 64;

// Independent pieces of pool_cpu: blocks of masks times blocks of channels of every image.
inline int64_t pool_tasks(const Sizes& s) {
  return s.batch * ((s.masks + kMaskBlock - 1) / kMaskBlock) * ((s.channels + kChannelBlock - 1) / kChannelBlock);
}

// Independent pieces of grad_features_cpu: blocks of channels (channels-first) or of pixels (channels-last).
inline int64_t feature_tasks(const Sizes& s) {
  const int64_t rows = s.channels_last ? s.pixels() : s.channels;
  return s.batch * ((rows + kChannelBlock - 1) / kChannelBlock);
}

// CUDA. `dtype` is that of features and prototypes: 0 float32, 1 float64, 2 float16, 3 bfloat16. A is its accumulator
// (float, or double for float64); weights, divisor and partial are arrays of A.
constexpr int64_t kMaskSumParts = 32;

struct CudaForward {
  Sizes sizes;
  Resize resize;
  double eps;
  int dtype;
  MaskType mask_type;
  const void* features;
  const void* masks;
  void* weights;     // A [B, N, h * w], scratch
  void* partial;     // A [B, N, kMaskSumParts], scratch
  void* divisor;     // A [B, N], out
  void* prototypes;  // [B, N, C], out
};

struct CudaBackward {
  CudaForward forward;  // with divisor and prototypes as the forward pass left them
  const void* grad;     // [B, N, C]
  void* scaled;         // A [B, N, C], scratch
  void* shared;         // A [B, N], scratch
  void* grad_weights;   // A [B, N, h * w], scratch; null when grad_masks is
  void* grad_features;  // in the layout and dtype of features, or null
  void* grad_masks;     // in the dtype of masks, or null
};

// Throw std::runtime_error when a launch fails. Results are deterministic: nothing is added atomically.
void forward_cuda(const CudaForward& args, void* stream);
void backward_cuda(const CudaBackward& args, void* stream);

}  // namespace fssops::masked_average_pooling
