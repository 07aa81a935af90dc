#include "cosine_correlation/cosine_correlation_torch.h"
#include "cosine_correlation/cosine_correlation_math.h"

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

// A unit of the backward pass, packed. T computes, S is stored.
template <class T>
struct GradUnit {
  std::vector<int32_t> index;
  std::vector<T> weight, length, factor, panels, rows;
  GradColumns<T> columns;
};

template <class T, class S>
void pack_unit(const Rule& rule, const Layer& layer, const Unit& unit, bool pairs, GradUnit<T>& packed) {
  compact(rule, layer, unit, packed.index, packed.weight);
  const int64_t count = static_cast<int64_t>(packed.index.size()), panels = ceil_div(count, kColumnPanel);
  const int64_t channels = ceil_div(layer.channels, kColumnPanel) * kColumnPanel;
  packed.length.resize(packed.index.size());
  packed.factor.resize(packed.index.size());
  packed.panels.resize(static_cast<size_t>(panels * kColumnPanel * (layer.channels + 1)));
  packed.rows.resize(static_cast<size_t>((count + 1) * channels));
  const Columns<T> listed{count, packed.index.data(), packed.weight.data(), packed.length.data(), packed.panels.data()};
  const S* support = static_cast<const S*>(layer.support) + unit.support_offset(layer);
  parallel_for(0, panels, ceil_div(4096, layer.channels + 1), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(pack_columns_cpu, layer, support, listed, pairs, begin, end);
  });
  const T eps = static_cast<T>(rule.eps);
  for (size_t j = 0; separable(rule.eps_rule) && j < packed.index.size(); ++j)
    packed.factor[j] = packed.weight[j] / guarded_length(rule.eps_rule, packed.length[j], eps);
  packed.columns = {count,
                    panels * kColumnPanel,
                    channels,
                    packed.index.data(),
                    packed.weight.data(),
                    packed.length.data(),
                    packed.factor.data(),
                    packed.panels.data(),
                    packed.rows.data()};
  parallel_for(0, ceil_div(count, 2), ceil_div(16384, layer.channels + 1), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(pack_column_rows_cpu, layer, support, packed.columns, pairs, begin, end);
  });
}

// Query rows whose coefficients are held at once: some 4 MB with the rows beside them, whatever the number of threads,
// which must not change the order of sums.
int64_t slab_capacity(const Layer& layer, int64_t columns) {
  const int64_t blocks = (int64_t(1) << 20) / (kRowBlock * (columns + layer.channels));
  const int64_t needed = ceil_div(layer.query_positions, kRowBlock);
  return kRowBlock * (blocks < 1 ? 1 : (blocks < needed ? blocks : needed));
}

template <class T, class S>
void mean_gradients(const Rule& rule, const Layer& layer, const S* query, const GradColumns<T>& columns, bool pairs,
                    const T* grad, T* grad_query, T* grad_support) {
  const int64_t capacity = slab_capacity(layer, columns.padded), blocks = capacity / kRowBlock;
  int64_t tasks, width;
  FSSOPS_CALL_ISA(grad_widths_cpu<T>, layer, tasks, width);
  std::vector<T> coefficients, rows, sums, taken;
  std::vector<T> column_sums(static_cast<size_t>(blocks * columns.padded));
  if (grad_support != nullptr) {
    coefficients.resize(static_cast<size_t>(capacity * columns.padded));
    rows.resize(static_cast<size_t>(capacity * width));
    sums.resize(static_cast<size_t>(columns.padded * width));
    taken.resize(static_cast<size_t>(columns.padded));
  }
  for (int64_t first = 0; first < layer.query_positions; first += capacity) {
    const int64_t left = layer.query_positions - first;
    const GradSlab<T> slab{first,       left < capacity ? left : capacity,
                           capacity,    grad_support != nullptr ? coefficients.data() : nullptr,
                           rows.data(), column_sums.data()};
    const int64_t used = ceil_div(slab.count, kRowBlock);
    parallel_for(0, used, 1, [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_rows_cpu, rule, layer, query, columns, pairs, grad, slab, grad_query, begin, end);
    });
    if (grad_support == nullptr) continue;
    for (int64_t block = 0; block < used; ++block)
      for (int64_t j = 0; j < columns.count; ++j)
        taken[static_cast<size_t>(j)] += column_sums[static_cast<size_t>(block * columns.padded + j)];
    parallel_for(0, columns.padded / kColumnPanel * tasks, 4, [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_columns_cpu, layer, columns, pairs, slab, sums.data(), begin, end);
    });
  }
  if (grad_support != nullptr)
    parallel_for(0, columns.count, ceil_div(16384, layer.channels + 1), [&](int64_t begin, int64_t end) {
      FSSOPS_CALL_ISA(grad_scatter_cpu, rule, layer, columns, pairs, sums.data(), taken.data(), grad_support, begin,
                      end);
    });
}

template <class T, class S>
void chosen_gradients(const Rule& rule, const Layer& layer, const S* query, const GradColumns<T>& columns,
                      const T* grad, const int32_t* picked, T* grad_query, T* grad_support) {
  const size_t count = static_cast<size_t>(rule.k * layer.query_positions);
  std::vector<int32_t> place(count);
  std::vector<T> coefficient(count), by_support(count), taken(static_cast<size_t>(columns.count));
  const Chosen<T> chosen{picked, place.data(), coefficient.data(), by_support.data()};
  const int64_t cost = kRowBlock * (layer.channels + 1) * (rule.k + 1);
  parallel_for(0, ceil_div(layer.query_positions, kRowBlock), ceil_div(65536, cost), [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(grad_chosen_rows_cpu, rule, layer, query, columns, grad, chosen, grad_query, begin, end);
  });
  if (grad_support == nullptr) return;
  for (size_t at = 0; at < count; ++at)
    if (place[at] >= 0) taken[static_cast<size_t>(place[at])] += by_support[at];
  parallel_for(0, ceil_div(layer.channels, kGradChannels), 1, [&](int64_t begin, int64_t end) {
    FSSOPS_CALL_ISA(grad_chosen_columns_cpu, rule, layer, query, columns, chosen, taken.data(), grad_support, begin,
                    end);
  });
}

template <class T, class S>
void run_backward(const Call& call, const T* grad, const int32_t* chosen, Tensors& grad_query, Tensors& grad_support) {
  const Rule& rule = call.rule;
  const bool mean = rule.reduction == Reduction::mean;
  bool pairs = false;
  if constexpr (sizeof(S) == 2) FSSOPS_CALL_ISA(has_bf16_dot, pairs);
  pairs = pairs && mean;
  GradUnit<T> packed;
  for (size_t i = 0; i < call.layers.size(); ++i) {
    const Layer& layer = call.layers[i];
    for (int64_t u = 0; u < rule.units(); ++u) {
      const Unit unit(rule, u);
      pack_unit<T, S>(rule, layer, unit, pairs, packed);
      if (packed.columns.count == 0) continue;
      const S* query = static_cast<const S*>(layer.query) + unit.query_offset(layer);
      const int64_t row = layer.first_row + u * layer.query_positions;
      T* of_query = nullptr;
      T* of_support = nullptr;
      if (!grad_query.empty())
        of_query =
            static_cast<T*>(grad_query[i].mutable_data_ptr()) + unit.image * layer.channels * layer.query_positions;
      if (!grad_support.empty())
        of_support = static_cast<T*>(grad_support[i].mutable_data_ptr()) +
                     (unit.image * rule.shots + unit.shot) * layer.channels * layer.support_positions;
      if (mean)
        mean_gradients<T, S>(rule, layer, query, packed.columns, pairs, grad + row, of_query, of_support);
      else
        chosen_gradients<T, S>(rule, layer, query, packed.columns, grad + row, chosen + row * rule.k, of_query,
                               of_support);
    }
  }
}

void check_cpu_type(const Call& call) {
  FSSOPS_CHECK(call.type == ScalarType::Float || call.type == ScalarType::Double || call.type == ScalarType::BFloat16,
               kName, "query", "be float32, float64 or bfloat16 on the CPU", dtype_name(call.type));
}

std::tuple<Tensor, Tensor> forward(Tensors query, Tensors support, Tensors masks, int64_t reduction, int64_t k,
                                   bool all_positions, bool relu, double eps, int64_t eps_rule, bool joint) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  check_cpu_type(call);
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

// Gradients are added up in float32 for bfloat16 features.
Tensors zeros_like(const Tensors& tensors) {
  Tensors out;
  for (const Tensor& t : tensors) {
    std::vector<int64_t> shape;
    for (int64_t i = 0; i < t.dim(); ++i) shape.push_back(t.size(i));
    const bool half = t.scalar_type() == ScalarType::BFloat16;
    out.push_back(new_empty(t, shape, half ? ScalarType::Float : t.scalar_type()));
    torch::stable::zero_(out.back());
  }
  return out;
}

std::tuple<Tensors, Tensors> backward(Tensor grad, Tensors query, Tensors support, Tensors masks, Tensor chosen,
                                      int64_t reduction, int64_t k, bool all_positions, bool relu, double eps,
                                      int64_t eps_rule, bool joint, bool need_query, bool need_support) {
  Call call = prepare(query, support, masks, reduction, k, all_positions, relu, eps, eps_rule, joint);
  check_cpu_type(call);
  check_grad(call, grad, chosen);
  Tensors grad_query = need_query ? zeros_like(call.query) : Tensors{};
  Tensors grad_support = need_support ? zeros_like(call.support) : Tensors{};
  const int32_t* picked = static_cast<const int32_t*>(chosen.const_data_ptr());
  if (call.type == ScalarType::Float)
    run_backward<float, float>(call, static_cast<const float*>(grad.const_data_ptr()), picked, grad_query,
                               grad_support);
  else if (call.type == ScalarType::BFloat16)
    run_backward<float, bf16_t>(call, static_cast<const float*>(grad.const_data_ptr()), picked, grad_query,
                                grad_support);
  else
    run_backward<double, double>(call, static_cast<const double*>(grad.const_data_ptr()), picked, grad_query,
                                 grad_support);
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
