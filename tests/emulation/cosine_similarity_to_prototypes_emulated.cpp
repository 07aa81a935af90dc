// Entry point of the emulated cosine with prototypes, for ctypes: both passes.
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes.h"
#include "cuda_emulation.h"

using namespace fssops::cosine_similarity_to_prototypes;

// sizes: B, C, N, h * w, channels_last. scratch: feature_lengths, prototype_lengths, coefficients, feature_terms,
// prototype_terms.
FSSOPS_EXPORT void run(const int64_t* sizes, double scale, double eps, int dtype, const void* features,
                       const void* prototypes, void* values, void** scratch, const void* grad, void* grad_features,
                       void* grad_prototypes) {
  CudaBackward args{};
  args.forward.sizes = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4] != 0, scale, eps};
  args.forward.dtype = dtype;
  args.forward.features = features;
  args.forward.prototypes = prototypes;
  args.forward.values = values;
  args.forward.feature_lengths = scratch[0];
  args.forward.prototype_lengths = scratch[1];
  forward_cuda(args.forward, nullptr);
  args.grad = grad;
  args.coefficients = scratch[2];
  args.feature_terms = scratch[3];
  args.prototype_terms = scratch[4];
  args.grad_features = grad_features;
  args.grad_prototypes = grad_prototypes;
  backward_cuda(args, nullptr);
}
