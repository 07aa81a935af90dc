#include "common/check_cuda.h"
#include "ms_deform_attn/ms_deform_attn.h"
#include "ms_deform_attn/ms_deform_attn_torch.h"

namespace fssops::ms_deform_attn {

using torch::stable::new_empty;

namespace {

CudaArray array_of(const char* op, const char* name, const Tensor& tensor) {
  const bool rows = tensor.dim() >= 2;
  return {const_cast<void*>(tensor.const_data_ptr()), float_dtype_index(op, name, tensor), rows ? tensor.stride(0) : 0,
          rows ? tensor.stride(1) : 0};
}

CudaArray nothing() { return {nullptr, 0, 0, 0}; }

// The tensors of one call, checked, and kept alive.
struct Call {
  CudaForward args{};
  Tensor value, points, reference, weights;
};

// float64 goes with float64 only; otherwise every array has the dtype that it comes with.
void check_dtypes(const char* op, const char* name, const Tensor& tensor, const Tensor& value) {
  const bool wide = value.scalar_type() == ScalarType::Double;
  FSSOPS_CHECK((tensor.scalar_type() == ScalarType::Double) == wide, op, name, "be float64 exactly when value is",
               dtype_name(tensor.scalar_type()));
  check_device(op, name, tensor, value, "value");
}

// Rows of value are addressed by a 32-bit count of bytes between them.
Tensor with_near_rows(const Tensor& value) {
  const Tensor rows = with_contiguous_rows(value);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max() / 8;
  return rows.stride(1) < kMost && rows.stride(1) > -kMost ? rows : torch::stable::contiguous(rows);
}

Call fill(const char* op, const Sizes& sizes, Placement placement, const Tensor& value, const char* points_name,
          const Tensor& points, const Tensor& reference, const char* weights_name, const Tensor& weights) {
  Call call{{},
            with_near_rows(value),
            with_contiguous_rows(points),
            placement == Placement::locations ? reference : with_contiguous_rows(reference),
            with_contiguous_rows(weights)};
  FSSOPS_CHECK(sizes.row() < std::numeric_limits<int32_t>::max() / 8, op, "value",
               "have less than 2^28 numbers a token", shape_of(value));
  FSSOPS_CHECK(sizes.batch * sizes.heads * (sizes.queries / 4 + 1) < std::numeric_limits<int32_t>::max(), op,
               points_name, "have at most 2^33 / (B * M) queries on CUDA", shape_of(points));
  call.args.sizes = sizes;
  call.args.placement = placement;
  call.args.value = array_of(op, "value", call.value);
  call.args.points = array_of(op, points_name, call.points);
  if (placement != Placement::locations) call.args.reference = array_of(op, "reference_points", call.reference);
  call.args.weights = array_of(op, weights_name, call.weights);
  return call;
}

Call published_call(const Tensor& value, const Integers& shapes, const Integers& starts, const Tensor& locations,
                    const Tensor& weights) {
  const Sizes s = check_published(value, shapes, starts, locations, weights, check_dtypes);
  return fill(kName, s, Placement::locations, value, "sampling_locations", locations, locations, "attention_weights",
              weights);
}

Call fused_call(const Tensor& value, const Integers& shapes, const Integers& starts, const Tensor& reference,
                const Tensor& offsets, const Tensor& logits) {
  const Sizes s = check_fused(value, shapes, starts, reference, offsets, logits, check_dtypes);
  return fill(kFusedName, s, check_reference(s, reference), value, "sampling_offsets", offsets, reference,
              "attention_logits", logits);
}

Tensor forward(const char* op, Call call) {
  const Sizes& s = call.args.sizes;
  Tensor output = new_empty(call.value, {s.batch, s.queries, s.row()});
  call.args.output = array_of(op, "output", output);
  forward_cuda(call.args, current_stream(call.value));
  return output;
}

struct Gradients {
  Tensor value, reference, points, weights;
};

Gradients backward(const char* op, const Call& call, Tensor grad, bool need_value, bool need_reference,
                   bool need_points, bool need_weights, bool deterministic) {
  const Sizes& s = call.args.sizes;
  check_grad(op, s, grad, call.value);
  grad = with_contiguous_rows(grad);
  const ScalarType accumulator = accumulator_dtype(call.value);
  const auto like = [](const Tensor& tensor, bool wanted) {
    return wanted ? new_empty(tensor, tensor.sizes()) : new_empty(tensor, {0});
  };
  Gradients out{like(call.value, need_value), like(call.reference, need_reference), like(call.points, need_points),
                like(call.weights, need_weights)};
  if (s.batch * s.queries * s.row() == 0) {
    for (Tensor* tensor : {&out.value, &out.reference, &out.points, &out.weights}) torch::stable::zero_(*tensor);
    return out;
  }
  CudaBackward args{};
  args.forward = call.args;
  args.grad = array_of(op, "grad", grad);
  args.deterministic = deterministic;
  args.grad_value = need_value ? array_of(op, "grad_value", out.value) : nothing();
  args.grad_reference = need_reference ? array_of(op, "grad_reference", out.reference) : nothing();
  args.grad_points = need_points ? array_of(op, "grad_points", out.points) : nothing();
  args.grad_weights = need_weights ? array_of(op, "grad_weights", out.weights) : nothing();
  std::vector<Tensor> keep;
  const auto scratch = [&](const Tensor& shape_source, ScalarType type) {
    keep.push_back(new_empty(call.value, shape_source.sizes(), type));
    return keep.back().mutable_data_ptr();
  };
  if (need_value) {
    const bool in_place = !deterministic && call.value.scalar_type() == accumulator;
    args.value_sums =
        in_place ? out.value.mutable_data_ptr() : scratch(out.value, deterministic ? ScalarType::Long : accumulator);
    if (deterministic) {
      keep.push_back(new_empty(call.value, {3}, ScalarType::Long));
      args.fixed = static_cast<unsigned long long*>(keep.back().mutable_data_ptr());
      keep.push_back(new_empty(call.value, {s.batch, s.tokens, s.heads}, ScalarType::Byte));
      args.poisoned = static_cast<unsigned char*>(keep.back().mutable_data_ptr());
    }
  }
  if (need_reference) args.cell_grads = scratch(call.points, accumulator);
  if (need_weights && call.args.placement != Placement::locations)
    args.weight_grads =
        call.weights.scalar_type() == accumulator ? out.weights.mutable_data_ptr() : scratch(call.weights, accumulator);
  backward_cuda(args, current_stream(call.value));
  return out;
}

Tensor published(Tensor value, Integers shapes, Integers starts, Tensor locations, Tensor weights) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  return forward(kName, published_call(value, shapes, starts, locations, weights));
}

Tensor fused(Tensor value, Integers shapes, Integers starts, Tensor reference, Tensor offsets, Tensor logits) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  return forward(kFusedName, fused_call(value, shapes, starts, reference, offsets, logits));
}

std::tuple<Tensor, Tensor, Tensor> published_backward(Tensor grad, Tensor value, Integers shapes, Integers starts,
                                                      Tensor locations, Tensor weights, bool need_value,
                                                      bool need_locations, bool need_weights, bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Call call = published_call(value, shapes, starts, locations, weights);
  Gradients out = backward(kName, call, grad, need_value, false, need_locations, need_weights, deterministic);
  return {out.value, out.points, out.weights};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(Tensor grad, Tensor value, Integers shapes, Integers starts,
                                                          Tensor reference, Tensor offsets, Tensor logits,
                                                          bool need_value, bool need_reference, bool need_offsets,
                                                          bool need_logits, bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  const Call call = fused_call(value, shapes, starts, reference, offsets, logits);
  Gradients out =
      backward(kFusedName, call, grad, need_value, need_reference, need_offsets, need_logits, deterministic);
  return {out.value, out.reference, out.points, out.weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&published));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&published_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&fused_backward));
}

}  // namespace fssops::ms_deform_attn
