#include "cosine_correlation/cosine_correlation_torch.h"

namespace fssops::cosine_correlation {

using torch::stable::new_empty;
using torch::stable::parallel_for;

namespace {

// Lists the kept columns of a unit.
template <class T>
void compact(const Rule& rule, const Layer& layer, const Unit& unit, std::vector<int32_t>& index,
             std::vector<T>& weight) {
  index.clear();
  weight.clear();
  const T* mask = static_cast<const T*>(layer.masks) + unit.mask_offset(rule, layer);
  for (int64_t i = 0; i < rule.unit_shots() * layer.support_positions; ++i)
    if (mask[i] != T(0)) {
      index.push_back(static_cast<int32_t>(i));
      weight.push_back(mask[i]);
    }
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// T computes, S is stored.
template <class T, class S>
void run_forward(const Call& call, T* values, int32_t* chosen) {
  const Rule& rule = call.rule;
  bool pairs = false;
  if constexpr (sizeof(S) == 2) FSSOPS_CALL_ISA(has_bf16_dot, pairs);
  std::vector<int32_t> index;
  std::vector<T> weight, length, packed;
  for (const Layer& layer : call.layers)
    for (int64_t u = 0; u < rule.units(); ++u) {
      const Unit unit(rule, u);
      compact(rule, layer, unit, index, weight);
      const int64_t count = static_cast<int64_t>(index.size()), panels = ceil_div(count, kColumnPanel);
      length.resize(index.size());
      packed.resize(static_cast<size_t>(panels * kColumnPanel * (layer.channels + 1)));
      const Columns<T> columns{count, index.data(), weight.data(), length.data(), packed.data()};
      const S* support = static_cast<const S*>(layer.support) + unit.support_offset(layer);
      const S* query = static_cast<const S*>(layer.query) + unit.query_offset(layer);
      parallel_for(0, panels, ceil_div(4096, layer.channels + 1), [&](int64_t begin, int64_t end) {
        FSSOPS_CALL_ISA(pack_columns_cpu, layer, support, columns, pairs, begin, end);
      });
      const int64_t row = layer.first_row + u * layer.query_positions;
      const int64_t cost = kRowBlock * (layer.channels + 1) * (count + 1);
      parallel_for(0, ceil_div(layer.query_positions, kRowBlock), ceil_div(1 << 20, cost),
                   [&](int64_t begin, int64_t end) {
                     FSSOPS_CALL_ISA(correlate_cpu, rule, layer, query, columns, pairs, values + row,
                                     chosen + row * rule.k, begin, end);
                   });
    }
}

template <class T>
void run_backward(const Call& call, const T* grad, const int32_t* chosen, Tensors& grad_query, Tensors& grad_support) {
  const Rule& rule = call.rule;
  std::vector<int32_t> index;
  std::vector<T> weight, length, packed, lengths;
  for (size_t i = 0; i < call.layers.size(); ++i) {
    const Layer& layer = call.layers[i];
    lengths.resize(static_cast<size_t>(layer.query_positions));
    for (int64_t u = 0; u < rule.units(); ++u) {
      const Unit unit(rule, u);
      compact(rule, layer, unit, index, weight);
      const int64_t count = static_cast<int64_t>(index.size());
      if (count == 0) continue;
      length.resize(index.size());
      packed.resize(static_cast<size_t>(count * layer.channels));
      const Columns<T> columns{count, index.data(), weight.data(), length.data(), packed.data()};
      const T* support = static_cast<const T*>(layer.support) + unit.support_offset(layer);
      const T* query = static_cast<const T*>(layer.query) + unit.query_offset(layer);
      parallel_for(0, count, ceil_div(32768, layer.channels + 1), [&](int64_t begin, int64_t end) {
        FSSOPS_CALL_ISA(gather_columns_cpu, layer, support, columns, begin, end);
      });
      T* l = lengths.data();
      parallel_for(0, layer.query_positions, ceil_div(32768, layer.channels + 1), [&](int64_t begin, int64_t end) {
        FSSOPS_CALL_ISA(query_lengths_cpu, layer, query, l, begin, end);
      });
      const int64_t row = layer.first_row + u * layer.query_positions;
      const T* g = grad + row;
      const int32_t* picked = chosen + row * rule.k;
      if (!grad_query.empty()) {
        T* out =
            static_cast<T*>(grad_query[i].mutable_data_ptr()) + unit.image * layer.channels * layer.query_positions;
        parallel_for(0, ceil_div(layer.query_positions, kGradBlock), 1, [&](int64_t begin, int64_t end) {
          FSSOPS_CALL_ISA(grad_query_cpu, rule, layer, query, l, columns, g, picked, out, begin, end);
        });
      }
      if (!grad_support.empty()) {
        T* out = static_cast<T*>(grad_support[i].mutable_data_ptr()) +
                 (unit.image * rule.shots + unit.shot) * layer.channels * layer.support_positions;
        parallel_for(0, ceil_div(count, kGradBlock), 1, [&](int64_t begin, int64_t end) {
          FSSOPS_CALL_ISA(grad_support_cpu, rule, layer, query, l, columns, g, picked, out, begin, end);
        });
      }
    }
  }
}

void check_cpu_type(const Call& call, bool half) {
  const bool full = call.type == ScalarType::Float || call.type == ScalarType::Double;
  FSSOPS_CHECK(full || (half && call.type == ScalarType::BFloat16), kName, "query",
               half ? "be float32, float64 or bfloat16 on the CPU" : "be float32 or float64 in the CPU's backward pass",
               dtype_name(call.type));
}

std::tuple<Tensor, Tensor> forward(Tensors query, Tensors support, Tensors masks, int64_t reduction, int64_t k,
                                   bool all_positions, bool relu, double eps, int64_t eps_rule, bool joint) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  check_cpu_type(call, true);
  // bfloat16 features give float32 values: their sums are not rounded.
  Tensor values = new_empty(call.masks[0], {call.rows});
  Tensor chosen = new_empty(call.masks[0], {call.rows * call.rule.k}, ScalarType::Int);
  int32_t* picked = static_cast<int32_t*>(chosen.mutable_data_ptr());
  if (call.type == ScalarType::Float)
    run_forward<float, float>(call, static_cast<float*>(values.mutable_data_ptr()), picked);
  else if (call.type == ScalarType::Double)
    run_forward<double, double>(call, static_cast<double*>(values.mutable_data_ptr()), picked);
  else
    run_forward<float, bf16_t>(call, static_cast<float*>(values.mutable_data_ptr()), picked);
  return {values, chosen};
}

Tensors zeros_like(const Tensors& tensors) {
  Tensors out;
  for (const Tensor& t : tensors) {
    std::vector<int64_t> shape;
    for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
    out.push_back(new_empty(t, shape));
    torch::stable::zero_(out.back());
  }
  return out;
}

std::tuple<Tensors, Tensors> backward(Tensor grad, Tensors query, Tensors support, Tensors masks, Tensor chosen,
                                      int64_t reduction, int64_t k, bool all_positions, bool relu, double eps,
                                      int64_t eps_rule, bool joint, bool need_query, bool need_support) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  check_cpu_type(call, false);
  check_grad(call, grad, chosen);
  grad = torch::stable::contiguous(grad);
  Tensors grad_query = need_query ? zeros_like(call.query) : Tensors{};
  Tensors grad_support = need_support ? zeros_like(call.support) : Tensors{};
  const int32_t* picked = static_cast<const int32_t*>(chosen.const_data_ptr());
  if (call.type == ScalarType::Float)
    run_backward<float>(call, static_cast<const float*>(grad.const_data_ptr()), picked, grad_query, grad_support);
  else
    run_backward<double>(call, static_cast<const double*>(grad.const_data_ptr()), picked, grad_query, grad_support);
  return {grad_query, grad_support};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(fssops, m) {
  m.def(
      "cosine_correlation(Tensor[] query, Tensor[] support, Tensor[] masks, int reduction, int k, bool all_positions, "
      "bool relu, float eps, int eps_rule, bool joint) -> (Tensor values, Tensor chosen)");
  m.def(
      "cosine_correlation_backward(Tensor grad, Tensor[] query, Tensor[] support, Tensor[] masks, Tensor chosen, "
      "int reduction, int k, bool all_positions, bool relu, float eps, int eps_rule, bool joint, bool need_query, "
      "bool need_support) -> (Tensor[] grad_query, Tensor[] grad_support)");
}

STABLE_TORCH_LIBRARY_IMPL(fssops, CPU, m) {
  m.impl("cosine_correlation", TORCH_BOX(&forward));
  m.impl("cosine_correlation_backward", TORCH_BOX(&backward));
}

}  // namespace fssops::cosine_correlation
