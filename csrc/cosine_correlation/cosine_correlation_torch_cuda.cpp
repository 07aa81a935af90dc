#include "common/check_cuda.h"
#include "cosine_correlation/cosine_correlation_torch.h"

namespace fssops::cosine_correlation {

using torch::stable::new_empty;

namespace {

// Scratch of one launch; more layers than fit go into further launches, one after the other in the same memory.
constexpr int64_t kScratchBytes = int64_t(1) << 30;

std::vector<int64_t> shape_vector(const Tensor& t) {
  std::vector<int64_t> shape;
  for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
  return shape;
}

// Calls run(call, first layer) for groups of layers whose scratch fits; a group has one layer at least.
template <class Run>
void in_groups(const Call& call, bool backward, void* values, int32_t* chosen, Run run) {
  const int dtype = float_dtype_index(kName, "query", call.query[0]);
  const size_t all = call.layers.size();
  std::vector<size_t> starts{0};
  std::vector<int64_t> sizes;
  int64_t largest = 0, used = 0;
  for (size_t i = 0; i < all; ++i) {
    CudaLayer probe{};
    probe.layer = call.layers[i];
    sizes.push_back(plan_scratch(call.rule, dtype, backward, probe, nullptr));
    if (i > starts.back() &&
        (used + sizes[i] > kScratchBytes || i - starts.back() == static_cast<size_t>(kMaxLayers))) {
      starts.push_back(i);
      used = 0;
    }
    used += sizes[i];
    if (used > largest) largest = used;
  }
  starts.push_back(all);
  Tensor scratch = new_empty(call.query[0], {largest}, ScalarType::Byte);
  for (size_t group = 0; group + 1 < starts.size(); ++group) {
    CudaCall launch{};
    launch.rule = call.rule;
    launch.dtype = dtype;
    launch.values = values;
    launch.chosen = chosen;
    char* base = static_cast<char*>(scratch.mutable_data_ptr());
    for (size_t i = starts[group]; i < starts[group + 1]; ++i) {
      CudaLayer& layer = launch.table[launch.layers++];
      layer.layer = call.layers[i];
      base += plan_scratch(call.rule, dtype, backward, layer, base);
    }
    run(launch, starts[group]);
  }
}

std::tuple<Tensor, Tensor> forward(Tensors query, Tensors support, Tensors masks, int64_t reduction, int64_t k,
                                   bool all_positions, bool relu, double eps, int64_t eps_rule, bool joint) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  const torch::stable::accelerator::DeviceGuard guard(call.query[0].get_device_index());
  Tensor values = new_empty(call.masks[0], {call.rows});
  Tensor chosen = new_empty(call.masks[0], {call.rows * call.rule.k}, ScalarType::Int);
  void* stream = current_stream(call.query[0]);
  in_groups(call, false, values.mutable_data_ptr(), static_cast<int32_t*>(chosen.mutable_data_ptr()),
            [&](const CudaCall& launch, size_t) { forward_cuda(launch, stream); });
  return {values, chosen};
}

std::tuple<Tensors, Tensors> backward(Tensor grad, Tensors query, Tensors support, Tensors masks, Tensor chosen,
                                      int64_t reduction, int64_t k, bool all_positions, bool relu, double eps,
                                      int64_t eps_rule, bool joint, bool need_query, bool need_support) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  check_grad(call, grad, chosen);
  const torch::stable::accelerator::DeviceGuard guard(call.query[0].get_device_index());
  Tensors grad_query, grad_support;
  for (size_t i = 0; i < call.layers.size(); ++i) {
    if (need_query) grad_query.push_back(new_empty(call.query[i], shape_vector(call.query[i])));
    if (need_support) grad_support.push_back(new_empty(call.support[i], shape_vector(call.support[i])));
    if (call.rule.units() == 0) {  // no mask: nothing flows
      if (need_query) torch::stable::zero_(grad_query[i]);
      if (need_support) torch::stable::zero_(grad_support[i]);
    }
  }
  void* stream = current_stream(call.query[0]);
  in_groups(call, true, const_cast<void*>(grad.const_data_ptr()),
            const_cast<int32_t*>(static_cast<const int32_t*>(chosen.const_data_ptr())),  // read only in this pass
            [&](CudaCall& launch, size_t first) {
              for (int i = 0; i < launch.layers; ++i) {
                const size_t at = first + static_cast<size_t>(i);
                launch.query_grads[i] = need_query ? grad_query[at].mutable_data_ptr() : nullptr;
                launch.support_grads[i] = need_support ? grad_support[at].mutable_data_ptr() : nullptr;
              }
              backward_cuda(launch, stream);
            });
  return {grad_query, grad_support};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fssops, CUDA, m) {
  m.impl("cosine_correlation", TORCH_BOX(&forward));
  m.impl("cosine_correlation_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::cosine_correlation
