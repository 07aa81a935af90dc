#include "common/check_cuda.h"
#include "masked_average_pooling/masked_average_pooling.h"
#include "masked_average_pooling/masked_average_pooling_torch.h"

namespace fssops::masked_average_pooling {

using torch::stable::new_empty;

namespace {

constexpr int64_t kMostMasks = 4 * 65535;  // blocks of 4 masks are a dimension of a grid

// The arguments that both passes share; `keep` holds the tensors whose memory they point to.
CudaForward prepare(Tensor& features, Tensor& masks, double eps, int64_t resize, std::vector<Tensor>& keep) {
  CudaForward args{};
  args.sizes = check_inputs(features, masks, resize);
  FSSOPS_CHECK(args.sizes.masks <= kMostMasks, kName, "masks", "be at most 262140 an image on CUDA", shape_of(masks));
  args.resize = static_cast<Resize>(resize);
  args.eps = eps;
  args.dtype = float_dtype_index(kName, "features", features);
  args.mask_type = mask_type(kName, "masks", masks);
  masks = torch::stable::contiguous(masks);
  if (!args.sizes.channels_last) features = torch::stable::contiguous(features);
  const Sizes& s = args.sizes;
  const ScalarType accumulator = accumulator_dtype(features);
  keep.push_back(new_empty(features, {s.batch, s.masks, s.pixels()}, accumulator));
  keep.push_back(new_empty(features, {s.batch, s.masks, kMaskSumParts}, accumulator));
  args.features = features.const_data_ptr();
  args.masks = masks.const_data_ptr();
  args.weights = keep[0].mutable_data_ptr();
  args.partial = keep[1].mutable_data_ptr();
  return args;
}

std::tuple<Tensor, Tensor> forward(Tensor features, Tensor masks, double eps, int64_t resize) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  std::vector<Tensor> keep;
  CudaForward args = prepare(features, masks, eps, resize, keep);
  const Sizes& s = args.sizes;
  Tensor prototypes = new_empty(features, {s.batch, s.masks, s.channels});
  Tensor divisor = new_empty(features, {s.batch, s.masks}, accumulator_dtype(features));
  args.prototypes = prototypes.mutable_data_ptr();
  args.divisor = divisor.mutable_data_ptr();
  forward_cuda(args, current_stream(features));
  return {prototypes, divisor};
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor features, Tensor masks, Tensor prototypes, Tensor divisor,
                                    int64_t resize, bool need_features, bool need_masks) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  std::vector<Tensor> keep;
  CudaBackward args{};
  args.forward = prepare(features, masks, 0.0, resize, keep);
  const Sizes& s = args.forward.sizes;
  check_grad(s, grad, prototypes, divisor, features);
  FSSOPS_CHECK(!(need_masks && is_byte(masks)), kName, "masks", "be of a float dtype to have a gradient",
               dtype_name(masks.scalar_type()));
  grad = torch::stable::contiguous(grad);
  prototypes = torch::stable::contiguous(prototypes);
  const ScalarType accumulator = accumulator_dtype(features);
  Tensor grad_features = need_features ? torch::stable::empty_like(features) : new_empty(features, {0});
  Tensor grad_masks = need_masks ? torch::stable::empty_like(masks) : new_empty(features, {0});
  Tensor scaled = new_empty(features, {s.batch, s.masks, s.channels}, accumulator);
  Tensor shared = new_empty(features, {s.batch, s.masks}, accumulator);
  Tensor grad_weights = new_empty(features, {need_masks ? s.batch * s.masks * s.pixels() : 0}, accumulator);
  args.forward.prototypes = const_cast<void*>(prototypes.const_data_ptr());  // read only in this pass
  args.forward.divisor = const_cast<void*>(divisor.const_data_ptr());
  args.grad = grad.const_data_ptr();
  args.scaled = scaled.mutable_data_ptr();
  args.shared = shared.mutable_data_ptr();
  args.grad_weights = need_masks ? grad_weights.mutable_data_ptr() : nullptr;
  args.grad_features = need_features ? grad_features.mutable_data_ptr() : nullptr;
  args.grad_masks = need_masks ? grad_masks.mutable_data_ptr() : nullptr;
  if (s.batch * s.masks * s.channels > 0) {
    backward_cuda(args, current_stream(features));
  } else {
    torch::stable::zero_(grad_features);
    torch::stable::zero_(grad_masks);
  }
  return {grad_features, grad_masks};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("masked_average_pooling", TORCH_BOX(&forward));
  m.impl("masked_average_pooling_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::masked_average_pooling
