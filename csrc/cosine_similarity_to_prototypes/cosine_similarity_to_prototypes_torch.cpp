#include "cosine_similarity_to_prototypes/cosine_similarity_to_prototypes_torch.h"

namespace fssops::cosine_similarity_to_prototypes {

using torch::stable::new_empty;
using torch::stable::parallel_for;

namespace {

template <class T>
const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* write(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
void run_forward(const Sizes& s, const Tensor& features, const Tensor& prototypes, Tensor& values,
                 Tensor& feature_lengths, Tensor& prototype_lengths) {
  const T *f = read<T>(features), *q = read<T>(prototypes);
  T *v = write<T>(values), *fl = write<T>(feature_lengths), *ql = write<T>(prototype_lengths);
  parallel_for(0, s.batch * s.prototypes, grain(s.channels),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(prototype_lengths_cpu, s, q, ql, begin, end); });
  parallel_for(0, pixel_tasks(s), grain(kPixelBlock * s.channels * (s.prototypes + 1) / 8),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(values_cpu, s, f, q, ql, v, fl, begin, end); });
}

template <class T>
void run_backward(const Sizes& s, const Tensor& grad, const Tensor& features, const Tensor& prototypes,
                  const Tensor& values, const Tensor& feature_lengths, const Tensor& prototype_lengths,
                  Tensor* grad_features, Tensor* grad_prototypes) {
  Tensor coefficients = new_empty(values, {s.batch, s.prototypes, s.pixels}),
         terms = new_empty(values, {s.batch, s.pixels});
  const T *g = read<T>(grad), *f = read<T>(features), *q = read<T>(prototypes), *v = read<T>(values);
  const T *fl = read<T>(feature_lengths), *ql = read<T>(prototype_lengths);
  T *e = write<T>(coefficients), *t = write<T>(terms);
  parallel_for(0, pixel_tasks(s), grain(kPixelBlock * s.prototypes), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(coefficients_cpu, s, g, v, fl, ql, e, t, begin, end);
  });
  if (grad_features != nullptr) {
    T* out = write<T>(*grad_features);
    parallel_for(0, feature_tasks(s), 1, [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_features_cpu, s, f, q, e, t, out, begin, end);
    });
  }
  if (grad_prototypes != nullptr) {
    T* out = write<T>(*grad_prototypes);
    parallel_for(0, prototype_tasks(s), 1, [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_prototypes_cpu, s, f, q, e, g, v, ql, out, begin, end);
    });
  }
}

void check_cpu_type(const Tensor& features) {
  const ScalarType type = features.scalar_type();
  FSSOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double, kName, "features",
               "be float32 or float64 on the CPU", dtype_name(type));
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor features, Tensor prototypes, double scale, double eps) {
  const Sizes s = check_inputs(features, prototypes, scale, eps);
  check_cpu_type(features);
  features = s.channels_last ? features : torch::stable::contiguous(features);
  prototypes = torch::stable::contiguous(prototypes);
  Tensor values = new_empty(features, {s.batch, s.prototypes, s.pixels});
  Tensor feature_lengths = new_empty(features, {s.batch, s.pixels});
  Tensor prototype_lengths = new_empty(features, {s.batch, s.prototypes});
  if (features.scalar_type() == ScalarType::Float)
    run_forward<float>(s, features, prototypes, values, feature_lengths, prototype_lengths);
  else
    run_forward<double>(s, features, prototypes, values, feature_lengths, prototype_lengths);
  return {values, feature_lengths, prototype_lengths};
}

std::tuple<Tensor, Tensor> backward(Tensor grad, Tensor features, Tensor prototypes, Tensor values,
                                    Tensor feature_lengths, Tensor prototype_lengths, double scale, double eps,
                                    bool need_features, bool need_prototypes) {
  const Sizes s = check_inputs(features, prototypes, scale, eps);
  check_cpu_type(features);
  check_backward(s, grad, values, feature_lengths, prototype_lengths);
  grad = torch::stable::contiguous(grad);
  features = s.channels_last ? features : torch::stable::contiguous(features);
  prototypes = torch::stable::contiguous(prototypes);
  Tensor grad_features = need_features ? torch::stable::empty_like(features) : new_empty(features, {0});
  Tensor grad_prototypes = need_prototypes ? torch::stable::empty_like(prototypes) : new_empty(features, {0});
  Tensor* to_features = need_features ? &grad_features : nullptr;
  Tensor* to_prototypes = need_prototypes ? &grad_prototypes : nullptr;
  if (features.scalar_type() == ScalarType::Float)
    run_backward<float>(s, grad, features, prototypes, values, feature_lengths, prototype_lengths, to_features,
                        to_prototypes);
  else
    run_backward<double>(s, grad, features, prototypes, values, feature_lengths, prototype_lengths, to_features,
                         to_prototypes);
  return {grad_features, grad_prototypes};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(
      "cosine_similarity_to_prototypes(Tensor features, Tensor prototypes, float scale, float eps) -> "
      "(Tensor values, Tensor feature_lengths, Tensor prototype_lengths)");
  m.def(
      "cosine_similarity_to_prototypes_backward(Tensor grad, Tensor features, Tensor prototypes, Tensor values, "
      "Tensor feature_lengths, Tensor prototype_lengths, float scale, float eps, bool need_features, "
      "bool need_prototypes) -> (Tensor grad_features, Tensor grad_prototypes)");
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("cosine_similarity_to_prototypes", TORCH_BOX(&forward));
  m.impl("cosine_similarity_to_prototypes_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::cosine_similarity_to_prototypes
