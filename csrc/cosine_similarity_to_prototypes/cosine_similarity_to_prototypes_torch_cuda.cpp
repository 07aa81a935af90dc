#include "common/check_cuda.h"
#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes_torch.h"

namespace fssops::cosine_similarity_to_prototypes {

using torch::stable::new_empty;

namespace {

constexpr int64_t kMostPrototypes = 4 * 65535;  // blocks of 4 prototypes are a dimension of a grid

// The arguments that both passes share, without the outputs.
CudaForward prepare(Tensor& features, Tensor& prototypes, double scale, double eps) {
  CudaForward args{};
  args.sizes = check_inputs(features, prototypes, scale, eps);
  FSSOPS_CHECK(args.sizes.prototypes <= kMostPrototypes, kName, "prototypes", "be at most 262140 an image on CUDA",
               shape_of(prototypes));
  args.dtype = float_dtype_index(kName, "features", features);
  if (!args.sizes.channels_last) features = torch::stable::contiguous(features);
  prototypes = torch::stable::contiguous(prototypes);
  args.features = features.const_data_ptr();
  args.prototypes = prototypes.const_data_ptr();
  return args;
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor features, Tensor prototypes, double scale, double eps) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  CudaForward args = prepare(features, prototypes, scale, eps);
  const Sizes& s = args.sizes;
  const ScalarType accumulator = accumulator_dtype(features);
  Tensor values = new_empty(features, {s.batch, s.prototypes, s.pixels}, accumulator);
  Tensor feature_lengths = new_empty(features, {s.batch, s.pixels}, accumulator);
  Tensor prototype_lengths = new_empty(features, {s.batch, s.prototypes}, accumulator);
  args.values = values.mutable_data_ptr();
  args.feature_lengths = feature_lengths.mutable_data_ptr();
  args.prototype_lengths = prototype_lengths.mutable_data_ptr();
  forward_cuda(args, current_stream(features));
  return {values, feature_lengths, prototype_lengths};
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor features, Tensor prototypes, Tensor values,
                                    Tensor feature_lengths, Tensor prototype_lengths, double scale, double eps,
                                    bool need_features, bool need_prototypes) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  CudaBackward args{};
  args.forward = prepare(features, prototypes, scale, eps);
  const Sizes& s = args.forward.sizes;
  check_backward(s, grad, values, feature_lengths, prototype_lengths);
  const ScalarType accumulator = accumulator_dtype(features);
  FSSOPS_CHECK(grad.scalar_type() == accumulator, kName, "grad", "have the dtype of values",
               dtype_name(grad.scalar_type()));
  grad = torch::stable::contiguous(grad);
  Tensor grad_features = need_features ? torch::stable::empty_like(features) : new_empty(features, {0});
  Tensor grad_prototypes = need_prototypes ? torch::stable::empty_like(prototypes) : new_empty(features, {0});
  Tensor coefficients = new_empty(values, {s.batch, s.prototypes, s.pixels}),
         terms = new_empty(values, {s.batch, s.pixels});
  Tensor prototype_terms = new_empty(values, {s.batch, s.prototypes});
  args.forward.values = const_cast<void*>(values.const_data_ptr());  // read only in this pass, as the lengths
  args.forward.feature_lengths = const_cast<void*>(feature_lengths.const_data_ptr());
  args.forward.prototype_lengths = const_cast<void*>(prototype_lengths.const_data_ptr());
  args.grad = grad.const_data_ptr();
  args.coefficients = coefficients.mutable_data_ptr();
  args.feature_terms = terms.mutable_data_ptr();
  args.prototype_terms = prototype_terms.mutable_data_ptr();
  args.grad_features = need_features ? grad_features.mutable_data_ptr() : nullptr;
  args.grad_prototypes = need_prototypes ? grad_prototypes.mutable_data_ptr() : nullptr;
  if (s.prototypes * s.pixels > 0) {
    backward_cuda(args, current_stream(features));
  } else {
    torch::stable::zero_(grad_features);
    torch::stable::zero_(grad_prototypes);
  }
  return {grad_features, grad_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("cosine_similarity_to_prototypes", TORCH_BOX(&forward));
  m.impl("cosine_similarity_to_prototypes_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::cosine_similarity_to_prototypes
