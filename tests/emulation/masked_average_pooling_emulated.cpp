// Entry points of the emulated masked average pooling, for ctypes.
#include "cuda_emulation.h"
#include "masked_average_pooling/masked_average_pooling.h"

using namespace fssops::masked_average_pooling;

namespace {

// sizes: B, C, N, h, w, H, W, channels_last
CudaForward forward_args(const int64_t* sizes, int resize, double eps, int dtype, int mask_type, const void* features,
                         const void* masks, void* weights, void* partial, void* divisor, void* prototypes) {
  CudaForward args{};
  args.sizes = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7] != 0};
  args.resize = static_cast<Resize>(resize);
  args.eps = eps;
  args.dtype = dtype;
  args.mask_type = static_cast<fssops::MaskType>(mask_type);
  args.features = features;
  args.masks = masks;
  args.weights = weights;
  args.partial = partial;
  args.divisor = divisor;
  args.prototypes = prototypes;
  return args;
}

}  // namespace

FSSOPS_EXPORT int64_t mask_sum_parts() { return kMaskSumParts; }

FSSOPS_EXPORT void forward(const int64_t* sizes, int resize, double eps, int dtype, int mask_type, const void* features,
                           const void* masks, void* weights, void* partial, void* divisor, void* prototypes) {
  forward_cuda(
      forward_args(sizes, resize, eps, dtype, mask_type, features, masks, weights, partial, divisor, prototypes),
      nullptr);
}

FSSOPS_EXPORT void backward(const int64_t* sizes, int resize, int dtype, int mask_type, const void* features,
                            const void* masks, void* weights, void* partial, void* divisor, void* prototypes,
                            const void* grad, void* scaled, void* shared, void* grad_weights, void* grad_features,
                            void* grad_masks) {
  CudaBackward args{};
  args.forward =
      forward_args(sizes, resize, 0.0, dtype, mask_type, features, masks, weights, partial, divisor, prototypes);
  args.grad = grad;
  args.scaled = scaled;
  args.shared = shared;
  args.grad_weights = grad_weights;
  args.grad_features = grad_features;
  args.grad_masks = grad_masks;
  backward_cuda(args, nullptr);
}
