// Argument checks and layers of raw pointers, for the CPU and the CUDA registration.
#pragma once

#include "common/check.h"
#include "cosine_correlation/cosine_correlation.h"

namespace fssops::cosine_correlation {

inline constexpr const char* kName = "cosine_correlation";

using Tensors = std::vector<Tensor>;

// Positions must be one axis: rows of an image follow each other. Else the features are copied.
inline Tensor mergeable(const Tensor& t) {
  const int64_t y = t.dim() - 2, x = t.dim() - 1;
  if (t.size(y) == 1 || t.stride(y) == t.size(x) * t.stride(x)) return t;
  return torch::stable::contiguous(t);
}

inline int64_t position_stride(const Tensor& t) {
  const int64_t y = t.dim() - 2, x = t.dim() - 1;
  return t.size(x) > 1 ? t.stride(x) : t.stride(y);
}

// A checked call: the rule, a layer for every entry, and the tensors that the layers point to.
struct Call {
  Rule rule;
  std::vector<Layer> layers;
  Tensors query, support, masks;
  int64_t rows = 0;  // values of all layers
  ScalarType type;
};

inline Call prepare(Tensors& query, Tensors& support, Tensors& masks, int64_t reduction, int64_t k, bool all_positions,
                    bool relu, double eps, int64_t eps_rule, bool joint) {
  FSSOPS_CHECK(!query.empty(), kName, "query", "have at least one layer", 0);
  FSSOPS_CHECK(support.size() == query.size(), kName, "support", "have as many layers as query", support.size());
  FSSOPS_CHECK(masks.size() == query.size(), kName, "masks", "have as many layers as query", masks.size());
  FSSOPS_CHECK(reduction >= 0 && reduction <= 2, kName, "reduction", "be an index of REDUCTIONS (0 to 2)", reduction);
  FSSOPS_CHECK(eps_rule >= 0 && eps_rule <= 2, kName, "eps_rule", "be an index of EPS_RULES (0 to 2)", eps_rule);
  FSSOPS_CHECK(k >= 1 && k <= kMaxTopK, kName, "k", "be 1 to 32", k);
  Call call;
  check_dim(kName, "masks", masks[0], 5, "[B, N, K, y, x]");
  const Reduction kind = static_cast<Reduction>(reduction);
  const int kept = kind == Reduction::mean ? 0 : (kind == Reduction::max ? 1 : static_cast<int>(k));
  call.rule = {masks[0].size(0),
               masks[0].size(1),
               masks[0].size(2),
               kind,
               static_cast<EpsRule>(eps_rule),
               kept,
               all_positions,
               relu,
               joint,
               eps};
  const Rule& rule = call.rule;
  call.type = query[0].scalar_type();
  const ScalarType accumulator = accumulator_of(call.type);
  for (size_t i = 0; i < query.size(); ++i) {
    const Tensor &q = query[i], &s = support[i], &m = masks[i];
    check_dim(kName, "query", q, 4, "[B, C, h, w]");
    check_dim(kName, "support", s, 5, "[B, K, C, y, x]");
    check_dim(kName, "masks", m, 5, "[B, N, K, y, x]");
    FSSOPS_CHECK(m.size(0) == rule.batch && m.size(1) == rule.masks && m.size(2) == rule.shots, kName, "masks",
                 "have the same images, masks and shots in every layer", shape_of(m));
    FSSOPS_CHECK(rule.shots > 0, kName, "support", "have at least one shot", shape_of(s));
    FSSOPS_CHECK(q.size(0) == rule.batch, kName, "query", "have the batch size of masks", shape_of(q));
    FSSOPS_CHECK(s.size(0) == rule.batch && s.size(1) == rule.shots, kName, "support",
                 "have the images and shots of masks", shape_of(s));
    FSSOPS_CHECK(s.size(2) == q.size(1), kName, "support", "have the channels of query", shape_of(s));
    FSSOPS_CHECK(s.size(3) == m.size(3) && s.size(4) == m.size(4), kName, "masks", "have the size of support",
                 shape_of(m));
    FSSOPS_CHECK(q.size(2) * q.size(3) > 0, kName, "query", "have at least one position", shape_of(q));
    FSSOPS_CHECK(s.size(3) * s.size(4) > 0, kName, "support", "have at least one position", shape_of(s));
    FSSOPS_CHECK(rule.shots * s.size(3) * s.size(4) < (int64_t(1) << 31) && q.size(2) * q.size(3) < (int64_t(1) << 31),
                 kName, "support", "have less than 2^31 positions", shape_of(s));
    FSSOPS_CHECK(q.scalar_type() == call.type, kName, "query", "have one dtype in all layers",
                 dtype_name(q.scalar_type()));
    FSSOPS_CHECK(s.scalar_type() == call.type, kName, "support", "have the dtype of query",
                 dtype_name(s.scalar_type()));
    FSSOPS_CHECK(m.scalar_type() == accumulator, kName, "masks", "be float32, or float64 with float64 features",
                 dtype_name(m.scalar_type()));
    for (const Tensor* t : {&q, &s, &m})
      FSSOPS_CHECK(t->get_device_index() == query[0].get_device_index(), kName, "query, support and masks",
                   "be on one device", t->get_device_index());
    call.query.push_back(mergeable(q));
    call.support.push_back(mergeable(s));
    call.masks.push_back(torch::stable::contiguous(m));
    const Tensor &kept_query = call.query.back(), &kept_support = call.support.back();
    Layer layer{};
    layer.channels = q.size(1);
    layer.query_positions = q.size(2) * q.size(3);
    layer.support_positions = s.size(3) * s.size(4);
    layer.query_strides = {kept_query.stride(0), 0, kept_query.stride(1), position_stride(kept_query)};
    layer.support_strides = {kept_support.stride(0), kept_support.stride(1), kept_support.stride(2),
                             position_stride(kept_support)};
    layer.query = kept_query.const_data_ptr();
    layer.support = kept_support.const_data_ptr();
    layer.masks = call.masks.back().const_data_ptr();
    layer.first_row = call.rows;
    call.rows += rule.units() * layer.query_positions;
    call.layers.push_back(layer);
  }
  return call;
}

// Also makes both contiguous.
inline void check_grad(const Call& call, Tensor& grad, Tensor& chosen) {
  check_dim(kName, "grad", grad, 1, "[rows]");
  FSSOPS_CHECK(grad.size(0) == call.rows, kName, "grad", "have as many elements as values", shape_of(grad));
  FSSOPS_CHECK(grad.scalar_type() == call.masks[0].scalar_type(), kName, "grad", "have the dtype of masks",
               dtype_name(grad.scalar_type()));
  FSSOPS_CHECK(chosen.dim() == 1 && chosen.size(0) == call.rows * call.rule.k, kName, "chosen",
               "have k elements a value", shape_of(chosen));
  FSSOPS_CHECK(chosen.scalar_type() == ScalarType::Int, kName, "chosen", "be int32", dtype_name(chosen.scalar_type()));
  check_device(kName, "grad", grad, call.query[0]);
  check_device(kName, "chosen", chosen, call.query[0]);
  grad = torch::stable::contiguous(grad);
  chosen = torch::stable::contiguous(chosen);
}

}  // namespace fssops::cosine_correlation
