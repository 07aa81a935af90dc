// The cosine of one pair and its derivatives, shared by CPU and CUDA.
#pragma once

#include "cosine_correlation/cosine_correlation.h"

namespace fssops::cosine_correlation {

// The rules that guard each length on its own divide by guarded_length(|q|) * guarded_length(t).
template <class A>
FSSOPS_HOST_DEVICE A guarded_length(EpsRule rule, A length, A eps) {
  if (rule == EpsRule::add_to_norms) return length + eps;
  return length < eps ? eps : length;  // NaN stays NaN
}

FSSOPS_HOST_DEVICE bool separable(EpsRule rule) { return rule != EpsRule::add_to_product; }

// What a query position's reduced value is multiplied by. NaN where the length is not finite: relu has turned what
// would have been -infinity / infinity into a zero.
template <class A>
FSSOPS_HOST_DEVICE A row_factor(EpsRule rule, A length, A eps) {
  if (!separable(rule)) return A(1);
  const A zero = length * A(0);
  return zero == A(0) ? A(1) / guarded_length(rule, length, eps) : zero;
}

// cosine = scale * (q . s), and -d ln(scale) by |q| and by |s|.
template <class A>
struct PairScale {
  A scale, by_query, by_support;
};

template <class A>
FSSOPS_HOST_DEVICE PairScale<A> pair_scale(EpsRule rule, A eps, A query_length, A weight, A length) {
  const A magnitude = weight < A(0) ? -weight : weight;
  if (rule == EpsRule::add_to_product) {
    const A divisor = query_length * length + eps;
    return {weight / divisor, length / divisor, query_length * magnitude / divisor};
  }
  const A left = guarded_length(rule, query_length, eps), right = guarded_length(rule, length, eps);
  const bool clamps = rule == EpsRule::clamp_norms;
  return {weight / (left * right), clamps && !(query_length > eps) ? A(0) : A(1) / left,
          clamps && !(length > eps) ? A(0) : magnitude / right};
}

// One element of the backward pass: coefficient = d value / d (q . s), and what the derivative by each length needs.
template <class A>
struct PairGrad {
  A coefficient, by_query, by_support;
};

// `grad` is the gradient of the query position's value over its divisor; `active` says that the cosine entered it.
template <class A>
FSSOPS_HOST_DEVICE PairGrad<A> pair_grad(const Rule& rule, A eps, A grad, bool active, A product, A query_length,
                                         A weight, A length) {
  const PairScale<A> s = pair_scale(rule.eps_rule, eps, query_length, weight, length);
  if (!active || (rule.relu && s.scale * product <= A(0))) return {A(0), A(0), A(0)};
  const A coefficient = grad * s.scale;
  return {coefficient, coefficient * product * s.by_query, coefficient * product * s.by_support};
}

// Whether `column` is among the chosen ones of a query position; chosen[i * stride], i < k.
FSSOPS_HOST_DEVICE bool is_chosen(const int32_t* chosen, int64_t stride, int k, int32_t column) {
  for (int i = 0; i < k; ++i)
    if (chosen[i * stride] == column) return true;
  return false;
}

}  // namespace fssops::cosine_correlation
