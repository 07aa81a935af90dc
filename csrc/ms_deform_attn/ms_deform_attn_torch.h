// Argument checks that the CPU and the CUDA registration share.
#pragma once

#include <limits>

#include "common/check.h"
#include "ms_deform_attn/ms_deform_attn.h"

namespace fssops::ms_deform_attn {

inline constexpr const char* kName = "ms_deform_attn";
inline constexpr const char* kFusedName = "ms_deform_attn_fused";

using Integers = std::vector<int64_t>;

inline std::string text_of(const Integers& numbers) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < numbers.size(); ++i) text << (i ? ", " : "") << numbers[i];
  text << ']';
  return text.str();
}

inline bool share_no_token(const Sizes& s) {
  for (int i = 0; i < s.levels; ++i)
    for (int j = 0; j < i; ++j) {
      const Level &a = s.level[i], &b = s.level[j];
      if (a.start < b.start + int64_t{b.height} * b.width && b.start < a.start + int64_t{a.height} * a.width)
        return false;
    }
  return true;
}

// spatial_shapes is [h, w] of every level, one after the other. `points` has shape [B, Q, M, L, P, 2].
inline Sizes check_sizes(const char* op, const Tensor& value, const Integers& shapes, const Integers& starts,
                         const char* points_name, const Tensor& points) {
  check_dim(op, "value", value, 4, "[B, S, M, D]");
  check_dim(op, points_name, points, 6, "[B, Q, M, L, P, 2]");
  Sizes s{};
  s.batch = value.size(0);
  s.tokens = value.size(1);
  s.heads = value.size(2);
  s.channels = value.size(3);
  s.queries = points.size(1);
  FSSOPS_CHECK(points.size(0) == s.batch && points.size(2) == s.heads && points.size(5) == 2, op, points_name,
               "have the batch and heads of value, and 2 coordinates", shape_of(points));
  const int64_t levels = points.size(3);
  FSSOPS_CHECK(levels >= 1 && levels <= kMaxLevels, op, points_name, "have 1 to 64 levels", levels);
  FSSOPS_CHECK(static_cast<int64_t>(shapes.size()) == 2 * levels, op, "spatial_shapes",
               "have one (h, w) for each level", text_of(shapes));
  FSSOPS_CHECK(static_cast<int64_t>(starts.size()) == levels, op, "level_start_index", "have one number for each level",
               text_of(starts));
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  FSSOPS_CHECK(s.tokens < kMost, op, "value", "have less than 2^31 tokens", s.tokens);
  FSSOPS_CHECK(s.queries < kMost, op, points_name, "have less than 2^31 queries", s.queries);
  FSSOPS_CHECK(
      points.size(4) >= 1 && points.size(4) * levels < (1 << 20) && points.size(4) * levels * s.heads < kMost / 16, op,
      points_name, "have at least one point a level, less than 2^20 a head and 2^27 a query", shape_of(points));
  s.levels = static_cast<int>(levels);
  s.points = static_cast<int>(points.size(4));
  for (int l = 0; l < s.levels; ++l) {
    const int64_t height = shapes[2 * l], width = shapes[2 * l + 1], start = starts[l];
    FSSOPS_CHECK(height >= 1 && height < kMost && width >= 1 && width < kMost, op, "spatial_shapes",
                 "have positive heights and widths", text_of(shapes));
    FSSOPS_CHECK(start >= 0 && start <= s.tokens && height * width <= s.tokens - start, op, "level_start_index",
                 ("keep every level of spatial_shapes " + text_of(shapes) + " inside value's " +
                  std::to_string(s.tokens) + " tokens")
                     .c_str(),
                 text_of(starts));
    s.level[l] = {static_cast<int32_t>(height), static_cast<int32_t>(width), static_cast<int32_t>(start)};
  }
  s.disjoint = share_no_token(s);
  s.tiled = s.queries == s.tokens;
  for (int64_t l = 0, next = 0; l < levels; ++l) {
    s.tiled = s.tiled && s.level[l].start == next;
    next += int64_t{s.level[l].height} * s.level[l].width;
    if (l + 1 == levels) s.tiled = s.tiled && next == s.tokens;
  }
  return s;
}

inline void check_weights(const char* op, const char* name, const Sizes& s, const Tensor& weights) {
  check_dim(op, name, weights, 5, "[B, Q, M, L, P]");
  FSSOPS_CHECK(weights.size(0) == s.batch && weights.size(1) == s.queries && weights.size(2) == s.heads &&
                   weights.size(3) == s.levels && weights.size(4) == s.points,
               op, name, "have shape [B, Q, M, L, P]", shape_of(weights));
}

// Which placement the reference points stand for.
inline Placement check_reference(const Sizes& s, const Tensor& reference) {
  check_dim(kFusedName, "reference_points", reference, 4, "[B, Q, L, 2 or 4]");
  FSSOPS_CHECK(reference.size(0) == s.batch && reference.size(1) == s.queries && reference.size(2) == s.levels &&
                   (reference.size(3) == 2 || reference.size(3) == 4),
               kFusedName, "reference_points", "have shape [B, Q, L, 2 or 4]", shape_of(reference));
  return reference.size(3) == 2 ? Placement::offsets : Placement::boxes;
}

// How a registration checks the dtype and device of a tensor beside value.
using CheckTensor = void (*)(const char* op, const char* name, const Tensor& tensor, const Tensor& value);

inline Sizes check_published(const Tensor& value, const Integers& shapes, const Integers& starts,
                             const Tensor& locations, const Tensor& weights, CheckTensor check) {
  const Sizes s = check_sizes(kName, value, shapes, starts, "sampling_locations", locations);
  check_weights(kName, "attention_weights", s, weights);
  check(kName, "sampling_locations", locations, value);
  check(kName, "attention_weights", weights, value);
  return s;
}

inline Sizes check_fused(const Tensor& value, const Integers& shapes, const Integers& starts, const Tensor& reference,
                         const Tensor& offsets, const Tensor& logits, CheckTensor check) {
  const Sizes s = check_sizes(kFusedName, value, shapes, starts, "sampling_offsets", offsets);
  check_weights(kFusedName, "attention_logits", s, logits);
  check(kFusedName, "reference_points", reference, value);
  check(kFusedName, "sampling_offsets", offsets, value);
  check(kFusedName, "attention_logits", logits, value);
  return s;
}

inline void check_grad(const char* op, const Sizes& s, const Tensor& grad, const Tensor& value) {
  check_dim(op, "grad", grad, 3, "[B, Q, M * D]");
  FSSOPS_CHECK(grad.size(0) == s.batch && grad.size(1) == s.queries && grad.size(2) == s.row(), op, "grad",
               "have shape [B, Q, M * D]", shape_of(grad));
  FSSOPS_CHECK(grad.scalar_type() == value.scalar_type(), op, "grad", "have the dtype of value",
               dtype_name(grad.scalar_type()));
  check_device(op, "grad", grad, value, "value");
}

// `tensor` itself when everything from its third dimension on is contiguous, else a copy.
inline Tensor with_contiguous_rows(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= 2; --d) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) return torch::stable::contiguous(tensor);
    expected *= tensor.size(d);
  }
  return tensor;
}

}  // namespace fssops::ms_deform_attn
