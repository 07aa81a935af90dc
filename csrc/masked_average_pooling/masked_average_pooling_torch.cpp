#include "masked_average_pooling/masked_average_pooling_torch.h"
#include "common/check.h"
#include "masked_average_pooling/masked_average_pooling.h"

namespace fssops::masked_average_pooling {

using torch::stable::new_empty;
using torch::stable::parallel_for;

namespace {

template <class T>
void weights(const Sizes& s, Resize rule, double eps, const Tensor& masks, const T*& weights, T* scratch, T* divisor) {
  const int64_t planes = s.batch * s.masks, cost = s.mask_pixels() * 4;
  if (is_byte(masks)) {
    const auto* source = static_cast<const uint8_t*>(masks.const_data_ptr());
    parallel_for(0, planes, grain(cost), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(weights_cpu, s, rule, static_cast<T>(eps), source, scratch, divisor, begin, end);
    });
    weights = scratch;
  } else {
    const auto* source = static_cast<const T*>(masks.const_data_ptr());
    T* target = rule == Resize::none ? const_cast<T*>(source) : scratch;  // not written: see weights_cpu
    parallel_for(0, planes, grain(cost), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(weights_cpu, s, rule, static_cast<T>(eps), source, target, divisor, begin, end);
    });
    weights = target;
  }
}

template <class T>
void run_forward(const Sizes& s, Resize rule, double eps, const Tensor& features, const Tensor& masks,
                 Tensor& prototypes, Tensor& divisor, Tensor& scratch) {
  const T* w = nullptr;
  weights<T>(s, rule, eps, masks, w, static_cast<T*>(scratch.mutable_data_ptr()),
             static_cast<T*>(divisor.mutable_data_ptr()));
  const T* f = static_cast<const T*>(features.const_data_ptr());
  const T* d = static_cast<const T*>(divisor.const_data_ptr());
  T* out = static_cast<T*>(prototypes.mutable_data_ptr());
  parallel_for(0, pool_tasks(s), grain(s.pixels() * kMaskBlock * kChannelBlock / 8),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(pool_cpu, s, f, w, d, out, begin, end); });
}

template <class T>
void run_backward(const Sizes& s, Resize rule, const Tensor& grad, const Tensor& features, const Tensor& masks,
                  const Tensor& prototypes, const Tensor& divisor, Tensor& scratch, Tensor& scaled, Tensor& shared,
                  Tensor* grad_features, Tensor* grad_masks) {
  const T* d = static_cast<const T*>(divisor.const_data_ptr());
  const T* g = static_cast<const T*>(grad.const_data_ptr());
  const T* p = static_cast<const T*>(prototypes.const_data_ptr());
  T* gs = static_cast<T*>(scaled.mutable_data_ptr());
  T* sh = static_cast<T*>(shared.mutable_data_ptr());
  const int64_t planes = s.batch * s.masks;
  parallel_for(0, planes, grain(s.channels),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(scale_grad_cpu, s, g, p, d, gs, sh, begin, end); });
  if (grad_features != nullptr) {
    const T* w = nullptr;
    Tensor unused = new_empty(divisor, divisor.sizes());  // the forward pass's divisor is what counts
    weights<T>(s, rule, 0.0, masks, w, static_cast<T*>(scratch.mutable_data_ptr()),
               static_cast<T*>(unused.mutable_data_ptr()));
    T* out = static_cast<T*>(grad_features->mutable_data_ptr());
    parallel_for(0, feature_tasks(s), 1,
                 [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(grad_features_cpu, s, gs, w, out, begin, end); });
  }
  if (grad_masks != nullptr) {
    const T* f = static_cast<const T*>(features.const_data_ptr());
    T* out = static_cast<T*>(grad_masks->mutable_data_ptr());
    parallel_for(0, planes, grain(s.channels * s.pixels() / 8), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_masks_cpu, s, rule, f, gs, sh, out, begin, end);
    });
  }
}

std::tuple<Tensor, Tensor> forward(Tensor features, Tensor masks, double eps, int64_t resize) {
  const Sizes s = check_inputs(features, masks, resize);
  const Resize rule = static_cast<Resize>(resize);
  check_cpu_types(features, masks);
  Tensor prototypes = new_empty(features, {s.batch, s.masks, s.channels});
  Tensor divisor = new_empty(features, {s.batch, s.masks});
  masks = torch::stable::contiguous(masks);
  features = s.channels_last ? features : torch::stable::contiguous(features);
  const bool in_place = rule == Resize::none && !is_byte(masks);
  Tensor scratch = new_empty(features, {in_place ? 0 : s.batch * s.masks * s.pixels()});
  if (features.scalar_type() == ScalarType::Float)
    run_forward<float>(s, rule, eps, features, masks, prototypes, divisor, scratch);
  else
    run_forward<double>(s, rule, eps, features, masks, prototypes, divisor, scratch);
  return {prototypes, divisor};
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor features, Tensor masks, Tensor prototypes, Tensor divisor,
                                    int64_t resize, bool need_features, bool need_masks) {
  const Sizes s = check_inputs(features, masks, resize);
  const Resize rule = static_cast<Resize>(resize);
  check_cpu_types(features, masks);
  check_grad(s, grad, prototypes, divisor, features);
  FSSOPS_CHECK(!(need_masks && is_byte(masks)), kName, "masks", "be of a float dtype to have a gradient",
               dtype_name(masks.scalar_type()));
  grad = torch::stable::contiguous(grad);
  masks = torch::stable::contiguous(masks);
  prototypes = torch::stable::contiguous(prototypes);
  features = s.channels_last ? features : torch::stable::contiguous(features);
  Tensor grad_features = need_features ? torch::stable::empty_like(features) : new_empty(features, {0});
  Tensor grad_masks = need_masks ? torch::stable::empty_like(masks) : new_empty(features, {0});
  const bool in_place = rule == Resize::none && !is_byte(masks);
  Tensor scratch = new_empty(features, {in_place || !need_features ? 0 : s.batch * s.masks * s.pixels()});
  Tensor scaled = new_empty(features, {s.batch, s.masks, s.channels}), shared = new_empty(features, {s.batch, s.masks});
  Tensor* to_features = need_features ? &grad_features : nullptr;
  Tensor* to_masks = need_masks ? &grad_masks : nullptr;
  if (features.scalar_type() == ScalarType::Float)
    run_backward<float>(s, rule, grad, features, masks, prototypes, divisor, scratch, scaled, shared, to_features,
                        to_masks);
  else
    run_backward<double>(s, rule, grad, features, masks, prototypes, divisor, scratch, scaled, shared, to_features,
                         to_masks);
  return {grad_features, grad_masks};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(
      "masked_average_pooling(Tensor features, Tensor masks, float eps, int resize) -> (Tensor prototypes, Tensor "
      "divisor)");
  m.def(
      "masked_average_pooling_backward(Tensor grad, Tensor features, Tensor masks, Tensor prototypes, Tensor divisor, "
      "int resize, bool need_features, bool need_masks) -> (Tensor grad_features, Tensor grad_masks)");
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("masked_average_pooling", TORCH_BOX(&forward));
  m.impl("masked_average_pooling_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::masked_average_pooling
