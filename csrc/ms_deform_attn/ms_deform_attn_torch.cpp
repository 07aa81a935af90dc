#include "ms_deform_attn/ms_deform_attn_torch.h"

#include "common/check.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fssops::ms_deform_attn {

using torch::stable::new_empty;
using torch::stable::parallel_for;

namespace {

void check_type(const char* op, const char* name, const Tensor& tensor, const Tensor& value) {
  FSSOPS_CHECK(tensor.scalar_type() == value.scalar_type(), op, name, "have the dtype of value on the CPU",
               dtype_name(tensor.scalar_type()));
  check_device(op, name, tensor, value, "value");
}

bool is_float(const char* op, const Tensor& value) {
  const ScalarType type = value.scalar_type();
  FSSOPS_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, "value", "be float32 or float64 on the CPU",
               dtype_name(type));
  return type == ScalarType::Float;
}

template <class T>
Rows<const T> rows_of(const Tensor& tensor) {
  return {static_cast<const T*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

// The tensors of one call, checked, and kept alive.
struct Call {
  Sizes sizes;
  Placement placement;
  Tensor value, points, reference, weights;

  template <class T>
  Inputs<T> inputs() const {
    Inputs<T> in{};
    in.placement = placement;
    in.value = rows_of<T>(value);
    in.points = rows_of<T>(points);
    in.weights = rows_of<T>(weights);
    if (placement != Placement::locations) in.reference = rows_of<T>(reference);
    return in;
  }
};

Call published_call(const Tensor& value, const Integers& shapes, const Integers& starts, const Tensor& locations,
                    const Tensor& weights) {
  const Sizes s = check_published(value, shapes, starts, locations, weights, check_type);
  return {s,         Placement::locations,         with_contiguous_rows(value), with_contiguous_rows(locations),
          locations, with_contiguous_rows(weights)};
}

Call fused_call(const Tensor& value, const Integers& shapes, const Integers& starts, const Tensor& reference,
                const Tensor& offsets, const Tensor& logits) {
  const Sizes s = check_fused(value, shapes, starts, reference, offsets, logits, check_type);
  return {s,
          check_reference(s, reference),
          with_contiguous_rows(value),
          with_contiguous_rows(offsets),
          with_contiguous_rows(reference),
          with_contiguous_rows(logits)};
}

template <class T>
void run_forward(const Call& call, Tensor& output) {
  const Sizes& s = call.sizes;
  const Inputs<T> in = call.inputs<T>();
  T* out = static_cast<T*>(output.mutable_data_ptr());
  parallel_for(0, s.batch * s.queries, grain(s.row() * s.samples() * 4),
               [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(forward_cpu, s, in, out, begin, end); });
}

Tensor forward(const char* op, const Call& call) {
  const Sizes& s = call.sizes;
  Tensor output = new_empty(call.value, {s.batch, s.queries, s.row()});
  if (is_float(op, call.value))
    run_forward<float>(call, output);
  else
    run_forward<double>(call, output);
  return output;
}

// Gradients, each empty unless it is wanted.
struct Gradients {
  Tensor value, points, reference, weights;
};

template <class T>
void run_backward(const Call& call, const Tensor& grad, Gradients& out, bool need_value, bool need_reference,
                  bool need_points) {
  const Sizes& s = call.sizes;
  const bool fused = call.placement != Placement::locations;
  const Inputs<T> in = call.inputs<T>();
  Inputs<T> weighted = in;
  Tensor softmax = new_empty(call.value, {fused ? s.batch * s.queries : 0, s.heads * s.samples()});
  if (fused) {
    T* target = static_cast<T*>(softmax.mutable_data_ptr());
    parallel_for(0, s.batch * s.queries, grain(s.heads * s.samples() * 8),
                 [&](int64_t begin, int64_t end) { FSSOPS_CALL_ISA(softmax_cpu, s, in, target, begin, end); });
    weighted.weights = {target, s.queries * s.heads * s.samples(), s.heads * s.samples()};
  }
  if (!need_value && !need_points) return;
  const Rows<const T> grad_rows = rows_of<T>(grad);
  T* grad_value = need_value ? static_cast<T*>(out.value.mutable_data_ptr()) : nullptr;
  T* grad_points = need_points ? static_cast<T*>(out.points.mutable_data_ptr()) : nullptr;
  T* grad_weights = need_points ? static_cast<T*>(out.weights.mutable_data_ptr()) : nullptr;
  const int64_t tasks = backward_tasks(s), all_tasks = s.batch * s.heads * s.levels;
  const int64_t cost = s.queries * s.channels * s.points * 16 * (tasks > 0 ? all_tasks / tasks : 1);
  parallel_for(0, tasks, grain(cost), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(backward_cpu, s, weighted, grad_rows, grad_value, grad_points, grad_weights, begin, end);
  });
  if (!fused || !need_points) return;
  T* grad_reference = need_reference ? static_cast<T*>(out.reference.mutable_data_ptr()) : nullptr;
  const T* weights = static_cast<const T*>(softmax.const_data_ptr());
  parallel_for(0, s.batch * s.queries, grain(s.heads * s.samples() * 8), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(finish_backward_cpu, s, in, weights, grad_points, grad_weights, grad_reference, begin, end);
  });
}

Gradients backward(const char* op, const Call& call, Tensor grad, bool need_value, bool need_reference,
                   bool need_points) {
  const Sizes& s = call.sizes;
  check_grad(op, s, grad, call.value);
  grad = with_contiguous_rows(grad);
  const bool with_reference = need_reference && call.placement != Placement::locations;
  const auto like = [&](const Tensor& tensor, bool wanted) {
    return wanted ? new_empty(tensor, tensor.sizes()) : new_empty(tensor, {0});
  };
  Gradients out{need_value ? torch::stable::new_zeros(call.value, call.value.sizes()) : new_empty(call.value, {0}),
                like(call.points, need_points), like(call.reference, with_reference), like(call.weights, need_points)};
  if (is_float(op, call.value))
    run_backward<float>(call, grad, out, need_value, with_reference, need_points);
  else
    run_backward<double>(call, grad, out, need_value, with_reference, need_points);
  return out;
}

Tensor published(Tensor value, Integers shapes, Integers starts, Tensor locations, Tensor weights) {
  return forward(kName, published_call(value, shapes, starts, locations, weights));
}

Tensor fused(Tensor value, Integers shapes, Integers starts, Tensor reference, Tensor offsets, Tensor logits) {
  return forward(kFusedName, fused_call(value, shapes, starts, reference, offsets, logits));
}

// The gradients of points and weights come together; what is not needed of them is dropped.
std::tuple<Tensor, Tensor, Tensor> published_backward(Tensor grad, Tensor value, Integers shapes, Integers starts,
                                                      Tensor locations, Tensor weights, bool need_value,
                                                      bool need_locations, bool need_weights, bool /*deterministic*/) {
  const Call call = published_call(value, shapes, starts, locations, weights);
  Gradients out = backward(kName, call, grad, need_value, false, need_locations || need_weights);
  if (!need_locations) out.points = new_empty(locations, {0});
  if (!need_weights) out.weights = new_empty(weights, {0});
  return {out.value, out.points, out.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(Tensor grad, Tensor value, Integers shapes, Integers starts,
                                                          Tensor reference, Tensor offsets, Tensor logits,
                                                          bool need_value, bool need_reference, bool need_offsets,
                                                          bool need_logits, bool /*deterministic*/) {
  const Call call = fused_call(value, shapes, starts, reference, offsets, logits);
  const bool need_points = need_reference || need_offsets || need_logits;
  Gradients out = backward(kFusedName, call, grad, need_value, need_reference, need_points);
  if (!need_offsets) out.points = new_empty(offsets, {0});
  if (!need_logits) out.weights = new_empty(logits, {0});
  return {out.value, out.reference, out.points, out.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(
      "ms_deform_attn(Tensor value, int[] spatial_shapes, int[] level_start_index, Tensor sampling_locations, "
      "Tensor attention_weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad, Tensor value, int[] spatial_shapes, int[] level_start_index, "
      "Tensor sampling_locations, Tensor attention_weights, bool need_value, bool need_locations, bool need_weights, "
      "bool deterministic) -> (Tensor grad_value, Tensor grad_locations, Tensor grad_weights)");
  m.def(
      "ms_deform_attn_fused(Tensor value, int[] spatial_shapes, int[] level_start_index, Tensor reference_points, "
      "Tensor sampling_offsets, Tensor attention_logits) -> Tensor");
  m.def(
      "ms_deform_attn_fused_backward(Tensor grad, Tensor value, int[] spatial_shapes, int[] level_start_index, "
      "Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits, bool need_value, bool "
      "need_reference, "
      "bool need_offsets, bool need_logits, bool deterministic) -> (Tensor grad_value, Tensor grad_reference, "
      "Tensor grad_offsets, Tensor grad_logits)");
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&published));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&published_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
}

}  // namespace fssops::ms_deform_attn
